"""A network in a package of somebody else: the example of the documentation, installed and used as it says."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk  # noqa: N813 - the field's name
import torch
from safetensors.torch import load_file

import autoseg
from autoseg import records
from autoseg.errors import SettingError
from autoseg.nets import NETS, traits_of
from autoseg.schema.folders import Workspace
from autoseg.schema.listing import ArchitectureListing
from tests.nets.zoo import SETTINGS, build, logits_and_own, planned, total
from tests.synthetic import write_dataset

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = (REPOSITORY / "docs" / "new_architecture.md").read_text(encoding="utf-8")
GROUP = "autoseg.nets"
DATASET = "Dataset007_Tiny"
MOST_LINES = 30

# What a user would type, in one process; the last command's output is the script's.
SCRIPT = """
import sys
from autoseg.cli.main import main
from autoseg.nets import NETS

assert "addnet" in NETS.names(), NETS.names()
root, images = sys.argv[1:]
for words in (
    ["plan_and_preprocess", "-d", "7", "--arch", "addnet", "--memory", "1GB", "--device", "cpu", "-w", "0"],
    ["train", "-f", "0", "--epochs", "1", "--iterations", "2", "--val-iterations", "1", "-w", "0", "--device", "cpu"],
    ["train", "-c", "2d", "-f", "0", "--epochs", "1", "--iterations", "2", "--val-iterations", "1", "-w", "0",
     "--device", "cpu", "--no-validate"],
    ["predict", "-c", "3d_fullres", "-i", images, "-o", root + "/out", "--device", "cpu"],
    ["architectures", "--arch", "addnet", "--json"],
):
    status = main([*words, "--workdir", root])
    assert status == 0, (status, words)
"""


def blocks(language: str) -> list[str]:
    """The code blocks of the document."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, flags=re.MULTILINE | re.DOTALL)


def metadata() -> dict[str, dict[str, str]]:
    """The sections of the document's pyproject.toml, whose few lines are also those of an ini file."""
    parser = configparser.ConfigParser()
    parser.read_string(blocks("toml")[0])
    return {name: {key: ast.literal_eval(value) for key, value in parser[name].items()} for name in parser.sections()}


def install(folder: Path, files: dict[str, str], entry_points: dict[str, str]) -> Path:
    """Lay files and metadata where an installer would; the folder is for ``sys.path``."""
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    info = folder / "of_a_user-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: of-a-user\nVersion: 0.1\n", encoding="utf-8")
    lines = [f"[{GROUP}]", *(f"{name} = {target}" for name, target in entry_points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documented package, installed."""
    points = metadata()[f'project.entry-points."{GROUP}"']
    return install(tmp_path_factory.mktemp("site"), {"addnet.py": blocks("python")[0]}, points)


@pytest.fixture(scope="module")
def used(site: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Path, ArchitectureListing]:
    """A work directory after the documented commands, the dataset, and what autoseg_architectures said."""
    workspace = Workspace(tmp_path_factory.mktemp("work"))
    dataset = write_dataset(workspace.raw, name=DATASET, cases=5, test_cases=1)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(workspace.root), str(dataset / "imagesTs")],
        env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{REPOSITORY}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return workspace, dataset, records.from_json(ArchitectureListing, done.stdout)


def test_the_example_is_short() -> None:
    assert len(blocks("python")[0].splitlines()) <= MOST_LINES


def test_both_forms_of_the_metadata_say_the_same() -> None:
    (call,) = [node for node in ast.walk(ast.parse(blocks("python")[1])) if isinstance(node, ast.Call)]
    setup = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    sections = metadata()
    assert {key: setup[key] for key in ("name", "version")} == {
        key: sections["project"][key] for key in ("name", "version")
    }
    assert setup["install_requires"] == sections["project"]["dependencies"]
    points = [f"{name} = {target}" for name, target in sections[f'project.entry-points."{GROUP}"'].items()]
    assert setup["entry_points"] == {GROUP: points}


def test_it_is_planned_trained_and_used(used: tuple[Workspace, Path, ArchitectureListing]) -> None:
    workspace, dataset, _ = used
    for configuration in ("3d_fullres", "2d"):
        model = workspace.model(DATASET, configuration, "addnet")
        assert model.finished_folds() == ("0",)
        assert any(name.startswith("heads.1") for name in load_file(model.fold(0).weights))
    (image,) = (dataset / "imagesTs").iterdir()
    made = sitk.ReadImage(str(workspace.root / "out" / image.name.replace("_0000", "")))
    assert made.GetSize() == sitk.ReadImage(str(image)).GetSize()
    assert set(sitk.GetArrayFromImage(made).ravel()) <= {0, 1, 2}


def test_the_list_shows_it_with_the_figures_of_its_plan_and_its_preset(
    used: tuple[Workspace, Path, ArchitectureListing],
) -> None:
    workspace, _, listing = used
    (row,) = listing.architectures
    (wide,) = listing.presets
    assert (row.name, row.ndims, wide.name) == ("addnet", (2, 3), "addnet:wide")
    assert row.planned is not None
    assert wide.planned is not None
    weights = load_file(workspace.model(DATASET, "3d_fullres", "addnet").fold(0).weights)
    assert row.planned.parameters == sum(tensor.numel() for tensor in weights.values())
    plan = json.loads(workspace.prepared(DATASET).plan.read_text(encoding="utf-8"))
    (full,) = [item for item in plan["configurations"] if item["name"] == "3d_fullres"]
    assert list(row.planned.patch_size) == full["patch_size"]
    assert wide.planned.parameters > 4 * row.planned.parameters


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("place", range(5))
def test_the_example_keeps_the_contract(ndim: int, place: int, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(site))
    topology, patch = planned("addnet", *SETTINGS[ndim][place])
    network = build("addnet", topology, patch).train()
    x = torch.randn(2, 2, *patch)
    outputs = network(x)
    logits, own = logits_and_own(network, outputs)
    assert own is None
    assert sum(network.output_weights) == pytest.approx(1)
    assert logits[0].shape == (2, 3, *patch)
    assert logits[1].shape[:2] == (2, 3)
    total(network, outputs).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        if parameter.ndim > 1:
            assert parameter.grad.abs().max() > 0, name
    with torch.no_grad():
        (final,) = network.eval()(x)
    assert torch.equal(final, logits[0])


def test_a_package_that_cannot_be_imported_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"needs_more.py": "import no_such_package_at_all\n", "has_less.py": "Another = None\n"}
    points = {"needing": "needs_more:Net", "lacking": "has_less:Net"}
    monkeypatch.syspath_prepend(str(install(tmp_path, files, points)))
    assert {"needing", "lacking"} <= set(NETS.names())
    for name, reason in (("needing", "no_such_package_at_all"), ("lacking", "'Net'")):
        with pytest.raises(SettingError, match=f"'{name}' cannot be loaded from {points[name]}: .*{reason}") as caught:
            traits_of(name)
        assert GROUP in caught.value.hint
    listing = autoseg.architectures(workdir=str(tmp_path / "empty"))
    reasons = {row.name: row.reason for row in listing.architectures if row.reason}
    assert reasons.keys() == points.keys()
    assert "no_such_package_at_all" in reasons["needing"]


def test_a_package_cannot_take_the_name_of_a_network_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = NETS.get("unet")
    monkeypatch.syspath_prepend(str(install(tmp_path, {"thief.py": "Net = None\n"}, {"unet": "thief:Net"})))
    assert NETS.get("unet") is ours
    assert NETS.names().count("unet") == 1
