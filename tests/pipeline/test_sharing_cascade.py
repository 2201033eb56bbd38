"""Both stages of a cascade in one file: the same after the journey, and refused when the parts do not fit."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoseg import records
from autoseg.cli.main import main
from autoseg.errors import ModelFolderError, ResourceError, SettingError
from autoseg.inference.predictor import Predictor
from autoseg.io.images import read_label
from autoseg.pipeline.export import export
from autoseg.pipeline.install import Installed, install
from autoseg.schema.folders import ModelFolder
from autoseg.schema.report import RunReport
from autoseg.schema.sharing import Card, Manifest, Member
from autoseg.schema.tools import ExportSettings, InstallSettings
from tests.cascades import LOW, SECOND, write_cascade
from tests.conftest import WriteModel
from tests.synthetic import write_volume

Change = Callable[[dict[str, bytes]], None]


@pytest.fixture
def stages(tmp_path: Path) -> tuple[ModelFolder, ModelFolder]:
    return write_cascade(tmp_path / "own" / "Dataset007_Small")


@pytest.fixture
def shared(stages: tuple[ModelFolder, ModelFolder], tmp_path: Path) -> Path:
    return pack(stages[1], tmp_path / "cascade.zip")


def pack(model: ModelFolder, path: Path, **changed: object) -> Path:
    return export(ExportSettings(model=str(model.root), output=str(path), licence="MIT", **changed))  # type: ignore[arg-type]


def put(path: Path, workdir: Path, **changed: object) -> Installed:
    return install(InstallSettings(file=str(path), workdir=str(workdir), **changed))  # type: ignore[arg-type]


def everything(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def rewritten(source: Path, target: Path, change: Change) -> Path:
    """The file as somebody changes it who knows the format: sizes and checksums fit again."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest = records.from_json(Manifest, members.pop("autoseg.json").decode())
    change(members)
    entries = tuple(
        Member(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest()) for name, data in members.items()
    )
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("autoseg.json", records.to_json(replace(manifest, members=entries)))
        for name, data in members.items():
            archive.writestr(name, data)
    return target


def test_after_the_journey_both_stages_predict_the_same(
    stages: tuple[ModelFolder, ModelFolder], shared: Path, tmp_path: Path
) -> None:
    image = np.random.default_rng(0).normal(size=(22, 20, 18)).astype(np.float32)
    write_volume(tmp_path / "in" / "case_0000.nii.gz", image)
    there = put(shared, tmp_path / "work")
    # What the file was made of is gone for the second prediction.
    found = []
    for model in (stages[1], there.model):
        words = ["-m", str(model.root), "-i", str(tmp_path / "in"), "-o", str(tmp_path / model.root.parent.parent.name)]
        assert main(["predict", *words, "--device", "cpu", "--tta", "--save-probabilities", "--quiet"]) == 0
        target = tmp_path / model.root.parent.parent.name / "case.nii.gz"
        with np.load(target.with_name("case.npz")) as archive:
            found.append((read_label(target).data, archive["probabilities"]))
        shutil.rmtree(tmp_path / "own", ignore_errors=True)
    assert len(np.unique(found[0][0])) > 1
    for original, installed in zip(*found, strict=True):
        np.testing.assert_array_equal(original, installed)


def test_both_stages_are_named_by_their_own_folders(
    stages: tuple[ModelFolder, ModelFolder], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    link = tmp_path / "a link" / "to it"
    link.parent.mkdir()
    link.symlink_to(stages[1].root)
    with caplog.at_level("INFO", logger="autoseg"):
        for number, root in enumerate((stages[1].root, link)):
            pack(ModelFolder(root), tmp_path / f"{number}.zip")
    lines = [line for record in caplog.records for line in record.getMessage().splitlines()]
    assert [line for line in lines if line.startswith("first stage: ")] == [
        f"first stage: {stages[0].root.resolve()}, folds 0, 1"
    ] * 2


def test_the_first_stage_matters_and_brings_all_of_its_folds(
    stages: tuple[ModelFolder, ModelFolder], tmp_path: Path
) -> None:
    there = put(pack(stages[1], tmp_path / "one.zip", fold=("1",)), tmp_path / "work").model
    assert there.finished_folds() == ("1",)
    assert there.first_stage.finished_folds() == ("0", "1")
    image = np.random.default_rng(0).normal(size=(22, 20, 18)).astype(np.float32)
    before = Predictor.load(there.root, device="cpu").predict_array(image, (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(
        before, Predictor.load(stages[1].root, folds=("1",), device="cpu").predict_array(image, (1.0, 1.0, 1.0))
    )
    shutil.rmtree(there.first_stage.fold("0").root)
    after = Predictor.load(there.root, device="cpu").predict_array(image, (1.0, 1.0, 1.0))
    assert (before != after).any()


def test_the_same_cascade_gives_the_same_bytes_wherever_its_stages_lie(
    stages: tuple[ModelFolder, ModelFolder], shared: Path, tmp_path: Path
) -> None:
    first, second = (tmp_path / "elsewhere" / name for name in ("a", "deep/b"))
    for model, place in zip(stages, (first, second), strict=True):
        shutil.copytree(model.root, place)
    run = json.loads((second / "run.json").read_text())
    run["settings"]["previous_model"] = "../../a"
    (second / "run.json").write_text(json.dumps(run))
    assert pack(ModelFolder(second), tmp_path / "again.zip").read_bytes() == shared.read_bytes()
    # An installed one may be given on.
    third = pack(put(shared, tmp_path / "work").model, tmp_path / "third.zip")
    with zipfile.ZipFile(third) as ours, zipfile.ZipFile(shared) as theirs:
        assert ours.read("first_stage/run.json") == theirs.read("first_stage/run.json")
        assert ours.namelist() == theirs.namelist()


def test_its_card_tells_of_both(shared: Path, tmp_path: Path) -> None:
    there = put(shared, tmp_path / "work")
    stage = records.load(Card, there.model.root / "card.json").first_stage
    assert stage is not None
    assert (stage.configuration, stage.working_spacing, len(stage.folds)) == (LOW, (2.0, 2.0, 2.0), 2)
    assert f"refines the segmentations of {LOW}" in there.card
    assert records.load(RunReport, there.model.run).settings["previous_model"] == "first_stage"


def test_installing_twice_changes_nothing_and_a_damaged_first_stage_is_no_installed_one(
    shared: Path, tmp_path: Path
) -> None:
    first = put(shared, tmp_path / "work").model
    before = everything(first.root)
    assert put(shared, tmp_path / "work").was_there
    weights = first.first_stage.fold("1").weights
    for damage in (
        lambda: weights.write_bytes(b"another"),
        lambda: shutil.rmtree(weights.parent),
        lambda: shutil.copytree(weights.parent, weights.parent.with_name("fold_2")),
    ):
        damage()
        with pytest.raises(SettingError, match="holds another model"):
            put(shared, tmp_path / "work")
        assert not put(shared, tmp_path / "work", force=True).was_there
        assert everything(first.root) == before


def test_a_cascade_without_its_first_stage_is_refused_before_anything_is_written(
    stages: tuple[ModelFolder, ModelFolder], tmp_path: Path
) -> None:
    shutil.rmtree(stages[0].root)
    with pytest.raises(ModelFolderError, match=f"{LOW}, and that model is not in"):
        pack(stages[1], tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


def test_stages_of_different_trainings_are_not_put_into_one_file(
    stages: tuple[ModelFolder, ModelFolder], tmp_path: Path
) -> None:
    plan = json.loads(stages[0].plan.read_text())
    plan["labels"]["foreground"][0]["name"] = "other"
    stages[0].plan.write_text(json.dumps(plan))
    with pytest.raises(ModelFolderError, match="other labels"):
        pack(stages[1], tmp_path / "x.zip")


def _edit(name: str, change: Callable[[dict], object]) -> Change:  # type: ignore[type-arg]
    def edit(members: dict[str, bytes]) -> None:
        data = json.loads(members[name])
        change(data)
        members[name] = json.dumps(data).encode()

    return edit


def _drop(members: dict[str, bytes]) -> None:
    for name in [name for name in members if name.startswith("first_stage/")]:
        del members[name]


def _swap(members: dict[str, bytes]) -> None:
    members["first_stage/fold_0/weights.safetensors"] = members["fold_0/weights.safetensors"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_drop, f"{SECOND} comes without its model of {LOW}"),
        (_swap, "parts of different models: first_stage fold 0"),
        (lambda members: members.pop("first_stage/plan.json"), r"first_stage/plan\.json is missing"),
        (
            lambda members: [members.pop(f"first_stage/fold_{fold}/weights.safetensors") for fold in "01"],
            r"first_stage/fold_0/weights\.safetensors is missing",
        ),
        (_edit("run.json", lambda run: run["settings"].update(previous_model="../../../other")), "previous_model"),
        (_edit("run.json", lambda run: run["settings"].update(previous_model="/tmp/other")), "previous_model"),
        (_edit("run.json", lambda run: run["settings"].pop("previous_model")), "previous_model None"),
        (lambda members: members.update({"first_stage/fold_0/fold.json": b"{"}), "is not valid JSON"),
        (lambda members: members.update({"first_stage/fold_0/validation/summary.json": b"{}"}), "has version None"),
        (_edit("first_stage/run.json", lambda run: run["settings"].update(mirror_axes=3)), "mirror_axes 3"),
        (_edit("first_stage/plan.json", lambda plan: plan.update(transpose=[1, 0, 2])), "other axis order"),
        (_edit("first_stage/run.json", lambda run: run["settings"].update(configuration=SECOND)), "number of stages"),
        (lambda members: members.update({"first_stage/../../escaped": b"x"}), "is not a member that a model has"),
        (lambda members: members.update({"first_stage/first_stage/plan.json": b"x"}), "is not a member"),
        (lambda members: members.update({"first_stage/card.json": b"x"}), "is not a member"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    shared: Path, tmp_path: Path, change: Change, words: str
) -> None:
    with pytest.raises(ModelFolderError, match=words):
        put(rewritten(shared, tmp_path / "x.zip", change), tmp_path / "work")
    assert everything(tmp_path / "work") == {}
    assert not (tmp_path / "escaped").exists()


def test_a_first_stage_that_nothing_refines_is_refused(shared: Path, write_model: WriteModel, tmp_path: Path) -> None:
    plain = export(ExportSettings(model=str(write_model(tmp_path / "plain").root), output=str(tmp_path / "plain.zip")))
    with zipfile.ZipFile(shared) as archive:
        first = {name: archive.read(name) for name in archive.namelist() if name.startswith("first_stage/")}
    with pytest.raises(ModelFolderError, match="other configuration"):
        put(rewritten(plain, tmp_path / "x.zip", lambda members: members.update(first)), tmp_path / "work")
    assert everything(tmp_path / "work") == {}


def test_a_tampered_byte_of_the_first_stage_is_refused(shared: Path, tmp_path: Path) -> None:
    content = bytearray(shared.read_bytes())
    with zipfile.ZipFile(shared) as archive:
        starts = [
            info.header_offset + 30 + len(info.filename) + info.file_size // 2
            for info in archive.infolist()
            if info.filename.startswith("first_stage/")
        ]
    assert len(starts) == 5
    for position in starts:
        damaged = content.copy()
        damaged[position] ^= 0x55
        (tmp_path / "damaged.zip").write_bytes(damaged)
        with pytest.raises(ModelFolderError):
            put(tmp_path / "damaged.zip", tmp_path / "work")
        assert everything(tmp_path / "work") == {}


def test_a_full_disk_leaves_neither_stage_behind(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The last member: one stage is complete by then.
    with zipfile.ZipFile(shared) as archive:
        last, calls = len(archive.namelist()) - 1, []

    def full(_: int) -> None:
        calls.append(1)
        if len(calls) == last:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="no space left"):
        put(shared, tmp_path / "work")
    assert len(calls) == last
    assert everything(tmp_path / "work") == {}
    assert list((tmp_path / "work" / "results").iterdir()) == []


def test_onnx_graphs_of_a_cascade_are_refused_in_one_sentence(
    stages: tuple[ModelFolder, ModelFolder], tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match="two models, not one graph"):
        export(ExportSettings(model=str(stages[1].root), onnx=True, output=str(tmp_path / "graphs")))
    assert not (tmp_path / "graphs").exists()
