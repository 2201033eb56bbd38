"""The list of architectures tells what autoseg_plan would plan, says why something does not fit, and writes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import autoseg
from autoseg import records
from autoseg.cli.main import main
from autoseg.errors import DatasetError, SettingError
from autoseg.nets import NETS
from autoseg.pipeline.alternative import spacing_of
from autoseg.pipeline.architectures_text import listing_text
from autoseg.schema.fingerprint import Fingerprint
from autoseg.schema.folders import Workspace
from autoseg.schema.listing import ArchitectureListing, ListedArchitecture, PlannedSize
from autoseg.schema.plan import PlanOrigin
from autoseg.schema.settings import ArchitecturesSettings
from tests.synthetic import write_dataset, write_pictures

VOLUMES, PICTURES = "Dataset007_Tiny", "Dataset008_Pictures"
SPACING = (3.0, 1.5, 1.5)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes that were planned for 1 GB of a GPU at a spacing of the user's; pictures that were only measured."""
    root = tmp_path_factory.mktemp("work")
    write_dataset(root / "raw", name=VOLUMES, cases=4, test_cases=0)
    write_pictures(root / "raw", name=PICTURES, cases=4, test_cases=0)
    common = {"workdir": str(root), "workers": 0}
    autoseg.plan(dataset=7, arch="unet", device="cuda", memory="1GB", spacing=SPACING, **common)
    autoseg.fingerprint(dataset=8, **common)
    return root


def listed(work: Path, **settings: object) -> ArchitectureListing:
    listing: ArchitectureListing = autoseg.architectures(**{"workdir": str(work), "arch": ["unet"], **settings})
    return listing


def files(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


@pytest.mark.parametrize("arch", ["unetpp", "fcn:8s"])
def test_figures_are_those_of_autoseg_plan_for_the_device_memory_and_spacing_of_the_plan(
    arch: str, work: Path, tmp_path: Path
) -> None:
    before = files(work)
    listing = listed(work, arch=[arch])
    assert files(work) == before
    assert (listing.dataset, listing.device, listing.memory_bytes) == (VOLUMES, "cuda", 10**9)
    shutil.copytree(work, tmp_path, dirs_exist_ok=True)
    plan = autoseg.plan(
        dataset=7, arch=arch, device="cuda", memory="1GB", spacing=SPACING, workdir=str(tmp_path), workers=0
    )
    made = plan.configuration("3d_fullres")
    (row,) = [row for row in (*listing.architectures, *listing.presets) if row.name == arch]
    assert row.planned == PlannedSize(
        configuration="3d_fullres",
        patch_size=made.patch_size,
        batch_size=made.batch_size,
        parameters=made.cost.parameters,
        flops=made.cost.flops,
        memory_bytes=made.cost.memory_bytes,
    )


def test_flags_come_before_the_plan(work: Path) -> None:
    (flat,) = listed(work, configuration="2d", memory="500MB").architectures
    assert flat.planned is not None
    assert flat.planned.configuration == "2d"
    assert len(flat.planned.patch_size) == 2
    narrow = listed(work, device="cpu", memory="1GB")
    assert narrow.device == "cpu"
    (there,), (here,) = listed(work).architectures, narrow.architectures
    assert there.planned is not None
    assert here.planned is not None
    # On a CPU networks have half the width.
    assert 3.5 < there.planned.parameters / here.planned.parameters < 4.5


def test_a_measured_dataset_is_enough(work: Path) -> None:
    listing = listed(work, dataset=8, device="cpu", memory="1GB")
    assert listing.dataset == PICTURES
    (row,) = listing.architectures
    assert row.planned is not None
    assert row.planned.configuration == "2d"


def test_what_does_not_fit_has_its_reason_in_the_row(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listing = listed(work, device="cpu", memory="1MB")
    (unet,) = listing.architectures
    assert unet.planned is None
    assert "even the smallest patch" in unet.reason
    words = ["architectures", "--workdir", str(work), "--arch", "unet", "-q", "--device", "cpu", "--memory", "1MB"]
    assert main(words) == 0
    assert f"Ronneberger et al. 2015 2D 3D {unet.reason}" in " ".join(capsys.readouterr().out.split())


def test_without_a_dataset_the_published_sizes_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["architectures", "--workdir", str(tmp_path), "--memory", "8GB", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    for name in NETS.names():
        assert any(line.startswith(name) for line in out.splitlines())
    # Ronneberger et al. 2015 and Çiçek et al. 2016.
    (unet,) = [line for line in out.splitlines() if line.startswith("unet *")]
    assert unet.split()[-2:] == ["31,030,658", "19,069,955"]
    assert "autoseg_fingerprint -d DATASET" in out.splitlines()[-1]
    assert err == ""
    assert list(tmp_path.iterdir()) == []


def test_presets_are_listed_with_their_architecture_or_alone(tmp_path: Path) -> None:
    both = listed(tmp_path, arch=["resenc_unet", "unet", "resenc_unet:L"])
    assert [row.name for row in both.architectures] == ["resenc_unet", "unet"]
    assert [row.name for row in both.presets] == ["resenc_unet:M", "resenc_unet:L", "resenc_unet:XL"]
    alone = listed(tmp_path, arch=["resenc_unet:L"])
    assert alone.architectures == ()
    assert [row.settings for row in alone.presets] == [{"memory_bytes": 24 * 10**9}]


def test_json_is_one_document_and_nothing_else(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["architectures", "--workdir", str(work), "--arch", "unet", "fcn:8s", "--json"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert [row["name"] for row in data["architectures"]] == ["unet"]
    assert [row["settings"] for row in data["presets"]] == [{"levels": 3}]
    assert records.from_json(ArchitectureListing, out) == listed(work, arch=["unet", "fcn:8s"])
    assert f"plan for {VOLUMES}: 2/2" in err


@pytest.mark.parametrize(
    ("device", "memory", "choice"), [("cpu", "24GB", "unet"), ("cuda", "8GB", "unet"), ("cuda", "24GB", "resenc_unet")]
)
def test_what_auto_stands_for_is_marked_and_explained(
    device: str, memory: str, choice: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["architectures", "-d", VOLUMES, "--workdir", str(work), "--arch", "unet", "resenc_unet", "-q"]
    assert main([*words, "--device", device, "--memory", memory]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if " * " in line] == [choice]
    assert f"* --arch auto means {choice}: " in out


def test_the_winner_of_a_race_is_what_auto_stands_for_until_flags_ask_for_another_budget(
    work: Path, tmp_path: Path
) -> None:
    shutil.copytree(work, tmp_path, dirs_exist_ok=True)
    path = Workspace(tmp_path).prepared(VOLUMES).plan_origin
    records.save(path, replace(records.load(PlanOrigin, path), adopted="unetpp"))
    assert listed(tmp_path).choice == "unetpp"
    assert listed(tmp_path, memory="900MB").choice == "unet"


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"arch": ["unnet"]}, SettingError, "no architecture called 'unnet'"),
        ({"arch": ["resenc_unet:huge"]}, SettingError, "no preset 'huge'"),
        ({"configuration": "4d"}, SettingError, "no configuration '4d'"),
        ({"dataset": 8, "configuration": "3d_fullres"}, SettingError, "no configuration '3d_fullres'"),
        ({"dataset": 99}, DatasetError, "no dataset '99'"),
        ({"device": "tpu"}, SettingError, "'tpu' is not a device"),
    ],
)
def test_what_does_not_exist_is_one_sentence(
    settings: dict[str, object], error: type[Exception], words: str, work: Path
) -> None:
    with pytest.raises(error, match=words):
        listed(work, **settings)


def test_a_dataset_that_was_not_measured_names_the_command(tmp_path: Path) -> None:
    write_pictures(tmp_path / "raw", cases=1, test_cases=0)
    with pytest.raises(DatasetError, match="not been measured") as caught:
        listed(tmp_path, dataset=8)
    assert f"autoseg_fingerprint -d {PICTURES}" in caught.value.hint


def test_a_plan_of_slices_says_nothing_about_the_spacing_of_volumes(work: Path) -> None:
    plan = autoseg.plan(dataset=7, arch="unet", device="cuda", memory="1GB", spacing=SPACING, workdir=str(work))
    measured = records.load(Fingerprint, Workspace(work).prepared(VOLUMES).fingerprint)
    assert spacing_of(plan, measured) == SPACING
    assert spacing_of(replace(plan, configurations=(plan.configuration("2d"),)), measured) is None


def row(name: str, **fields: object) -> ListedArchitecture:
    defaults = {"paper": "A long list of authors and others 2031; Another one 2032", "ndims": (2, 3)}
    build: Callable[..., ListedArchitecture] = ListedArchitecture
    return build(name=name, **{**defaults, **fields})


def planned(**fields: object) -> PlannedSize:
    defaults = {"batch_size": 2, "parameters": 902_101, "flops": 57 * 10**9, "memory_bytes": 5 * 10**9}
    build: Callable[..., PlannedSize] = PlannedSize
    return build(configuration="3d_fullres", patch_size=(128, 128, 128), **{**defaults, **fields})


def test_the_table_is_aligned_and_fits_a_terminal() -> None:
    sentence = "even the smallest patch, 96x96x96, needs 22.0 GB in training and 5.5 GB are usable"
    listing = ArchitectureListing(
        dataset="Dataset007_Tiny",
        device="cuda",
        memory_bytes=8 * 10**9,
        choice="unet",
        why="unet: " + "because of this " * 10,
        architectures=(
            row("attention_unet", planned=planned(batch_size=366, parameters=101_940_975)),
            row("of_a_plugin", paper="", ndims=(), reason="cannot be loaded"),
            row("unet", planned=planned(flops=5_721_131_188_224)),
            row("vnet", reason=sentence),
        ),
        presets=(
            row("uctransnet_u2:paper", settings={"attention_heads": 4, "dropout": 0.1}, planned=planned()),
            row(
                "unet:wide", settings={"blocks_per_stage": 4, "base_width": 64, "memory_bytes": 10**9}, reason=sentence
            ),
        ),
    )
    text = listing_text(listing, ArchitecturesSettings())
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert sentence in " ".join(text.split())
    column = next(line for line in lines if line.startswith("name ")).index("patch")
    starts = [line[column:].split()[0] for line in lines if line[:4] in {"atte", "unet", "vnet", "of_a"}]
    assert starts == ["128x128x128", "cannot", "128x128x128", "even", "even"]
    assert "101.9 M" in text
    assert "5.7 T" in text
    assert "blocks_per_stage=4, width 64," in text
    assert [line.split()[1] for line in lines if line.startswith("unet ")] == ["*"]
