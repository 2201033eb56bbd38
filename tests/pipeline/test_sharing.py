"""A model in one file: the same after the journey, refused when anything about the file is not as it was written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoseg import records
from autoseg.cli.main import main
from autoseg.errors import ModelFolderError, RecordError, ResourceError, SettingError
from autoseg.inference.predictor import Predictor
from autoseg.io.bundle import open_bundle
from autoseg.pipeline.card import without_paths
from autoseg.pipeline.choose import choose_model
from autoseg.pipeline.export import export
from autoseg.pipeline.install import Installed, install, installed_text
from autoseg.schema.dataset import CaseFiles, DatasetSpec
from autoseg.schema.fingerprint import CaseFingerprint, ClassCount, Fingerprint
from autoseg.schema.folders import ModelFolder
from autoseg.schema.report import CaseScores, ClassScores, EvaluationReport, FoldRun, MeanScores, RunReport
from autoseg.schema.settings import PredictSettings
from autoseg.schema.sharing import Card, Manifest, Member
from autoseg.schema.tools import ExportSettings, InstallSettings

WriteModel = Callable[..., ModelFolder]
SECRET = "/home/somebody/study"


def _evaluation(name: str, dice: float) -> EvaluationReport:
    scores = ClassScores(
        label="near",
        empty="",
        dice=dice,
        iou=0.5,
        precision=0.5,
        recall=0.5,
        reference_ml=1.0,
        prediction_ml=1.0,
        hd95=2.0,
        assd=1.0,
        surface_dice=0.9,
        lesion_f1=1.0,
    )
    mean = MeanScores(
        label="near",
        cases=1,
        empty_both=0,
        empty_reference=0,
        empty_prediction=0,
        dice=dice,
        iou=0.5,
        precision=0.5,
        recall=0.5,
        hd95=2.0,
        assd=1.0,
        surface_dice=0.9,
        lesion_f1=1.0,
    )
    case = CaseScores(
        id=name, reference=f"{SECRET}/{name}.nii.gz", prediction=f"{SECRET}/p/{name}.nii.gz", classes=(scores,)
    )
    return EvaluationReport(foreground_dice=dice, surface_tolerance_mm=2.0, mean=(mean,), cases=(case,))


def _calibration(temperature: float) -> str:
    figures = {"nll_before": 1.0, "nll_after": 1.0, "ece_before": 0.1, "ece_after": 0.1, "cases": 1, "voxels": 1}
    return json.dumps({"version": 1, "temperature": temperature, **figures, "weights": {}})


@pytest.fixture
def model(write_model: WriteModel, tmp_path: Path) -> ModelFolder:
    """Two folds with all the records that training leaves, in a folder of no particular name."""
    folder = write_model(tmp_path / "some" / "where", folds=("0", "1"))
    settings = records.load(RunReport, folder.run).settings
    settings.update(workdir=SECRET, splits=f"{SECRET}/splits.json", dataset=[f"{SECRET}/Dataset007_Small"], epochs=3)
    command = f"autoseg_train -d {SECRET}/Dataset007_Small --splits={SECRET}/splits.json"
    records.save(folder.run, RunReport(command=command, settings=settings, versions={"torch": "2.0"}))
    spec = records.load(DatasetSpec, folder.dataset)
    cases = (CaseFiles(id="mueller_1950", images=(f"{SECRET}/a.nii.gz",), label=None),)
    records.save(folder.dataset, replace(spec, cases=cases))
    counts = (ClassCount(name="near", voxels=1, components=1),)
    measured = tuple(
        CaseFingerprint(
            id=f"mueller_{z}", shape=(9, 9, 9), cropped_shape=(9, 9, 9), spacing=(z, 1.0, 0.5), classes=counts,
            intensities=(),
        )
        for z in (1.0, 2.0, 5.0)
    )  # fmt: skip
    records.save(
        folder.fingerprint, Fingerprint(dataset="Dataset007_Small", content_hash="", cases=measured, intensities=())
    )
    for fold, dice in (("0", 0.8), ("1", 0.9)):
        records.save(folder.fold(fold).summary, _evaluation(f"mueller_{fold}", dice))
        run = FoldRun(
            fold=fold, status="validated", signature="s", target_epochs=3, target_seconds=None, budget=None, epochs=3,
            steps=750, seconds=90.0,
        )  # fmt: skip
        records.save(folder.fold(fold).run, run)
    folder.fold("0").checkpoint.write_bytes(b"not for others")
    return folder


@pytest.fixture
def shared(model: ModelFolder, tmp_path: Path) -> Path:
    settings = ExportSettings(model=str(model.root), output=str(tmp_path / "shared.zip"), licence="CC-BY-4.0")
    return export(settings)


def put(path: Path, workdir: Path, **changed: object) -> Installed:
    return install(InstallSettings(file=str(path), workdir=str(workdir), **changed))  # type: ignore[arg-type]


def everything(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones too."""
    paths = (path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def rewritten(source: Path, target: Path, change: Callable[[dict[str, bytes], Manifest], Manifest]) -> Path:
    """A file whose members and manifest were changed by somebody who knows the format, and made consistent again."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest = records.from_json(Manifest, members.pop("autoseg.json").decode())
    manifest = change(members, manifest)
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("autoseg.json", records.to_json(manifest))
        for name, data in members.items():
            archive.writestr(name, data)
    return target


def test_after_the_journey_it_predicts_the_same(model: ModelFolder, shared: Path, tmp_path: Path) -> None:
    there = put(shared, tmp_path / "work")
    assert there.model.root == tmp_path / "work" / "results" / "Dataset007_Small" / "unet_3d_fullres"
    image = np.random.default_rng(0).normal(size=(24, 20, 18)).astype(np.float32)
    first, second = (Predictor.load(folder.root, device="cpu") for folder in (model, there.model))
    assert second.folds == ("0", "1")
    labels = first.predict_array(image, (1.0, 1.0, 1.0))
    assert len(np.unique(labels)) > 1
    np.testing.assert_array_equal(labels, second.predict_array(image, (1.0, 1.0, 1.0)))


def test_prediction_finds_it_and_knows_its_score(
    shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    there = put(shared, tmp_path / "work")
    with caplog.at_level("INFO", logger="autoseg"):
        assert choose_model(PredictSettings(workdir=str(tmp_path / "work"))) == there.model
    assert "validation Dice 0.8500" in caplog.text


def test_a_model_that_is_not_installed_is_told_apart(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="not installed yet") as caught:
        choose_model(PredictSettings(model=str(shared), workdir=str(tmp_path / "work")))
    assert f"autoseg_install -i {shared}" in caught.value.hint


def test_the_same_model_gives_the_same_bytes(model: ModelFolder, shared: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "copied"
    shutil.copytree(model.root, copy)
    for path in copy.rglob("*"):
        os.utime(path, (10**9, 10**9))
        path.chmod(0o700)
    again = export(ExportSettings(model=str(copy), output=str(tmp_path / "again.zip"), licence="CC-BY-4.0"))
    assert again.read_bytes() == shared.read_bytes()


def test_only_what_others_need_leaves_the_house(shared: Path) -> None:
    with zipfile.ZipFile(shared) as archive:
        names = archive.namelist()
        texts = b"\n".join(archive.read(name) for name in names if not name.endswith(".safetensors"))
    assert names[0] == "autoseg.json"
    assert set(names[1:]) == {
        *("plan.json", "dataset.json", "run.json", "card.json", "CARD.md", "LICENCE.txt"),
        *(f"fold_{fold}/{name}" for fold in "01" for name in ("weights.safetensors", "fold.json")),
        *(f"fold_{fold}/validation/summary.json" for fold in "01"),
    }
    for secret in (b"somebody", b"mueller", b"/home"):
        assert secret not in texts
    assert b"splits.json" in texts


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/a/b/c.json", "c.json"),
        ("C:\\data\\c.json", "c.json"),
        ("3", "3"),
        (["/a/b", 3, None], ["b", 3, None]),
        ({"x": {"y": "~/d"}}, {"x": {"y": "d"}}),
    ],
)
def test_paths_are_cut_down_to_their_last_name(value: object, expected: object) -> None:
    assert without_paths(value) == expected


def test_the_card_tells_what_was_measured(shared: Path, tmp_path: Path) -> None:
    there = put(shared, tmp_path / "work")
    card = records.load(Card, there.model.root / "card.json")
    assert (card.dataset, card.cases, card.channels) == ("Dataset007_Small", 3, ("channel 0",))
    assert card.labels == {"near": (5,), "far": (9,)}
    assert (card.smallest_spacing, card.median_spacing, card.largest_spacing) == (
        (1.0, 1.0, 0.5),
        (2.0, 1.0, 0.5),
        (5.0, 1.0, 0.5),
    )
    (near, far) = card.scores
    assert (near.label, near.cases, near.dice) == ("near", 2, pytest.approx(0.85))
    assert far.cases == 0
    assert [fold.epochs for fold in card.folds] == [3, 3]
    assert card.training["epochs"] == 3
    assert card.versions == {"torch": "2.0"}
    assert card.licence == "CC-BY-4.0"
    readable = (there.model.root / "CARD.md").read_text()
    for words in ("CC-BY-4.0", "| near | 5 |", "0.8500", "not a medical device", "smallest 1 x 1 x 0.5"):
        assert words in readable


def test_licence_and_use_may_be_files_and_are_shown(model: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "licence").write_text("\nOur licence\n" + "clause\n" * 40 + "\x1b[31mred\n")
    words = ["-m", str(model.root), "-o", str(tmp_path / "m.zip"), "--licence", str(tmp_path / "licence")]
    assert main(["export", *words, "--intended-use", "Finding near things."]) == 0
    there = put(tmp_path / "m.zip", tmp_path / "work")
    assert there.manifest.licence == "Our licence"
    shown = installed_text(there, InstallSettings())
    assert "Finding near things." in shown
    assert "clause" in shown
    assert "more lines in" in shown
    assert "\x1b" not in shown
    assert f"autoseg_predict -m {there.model.root}" in shown


def test_some_folds_and_the_post_processing(model: ModelFolder, tmp_path: Path) -> None:
    model.postprocessing.write_text('{"version": 1, "steps": []}')
    path = export(ExportSettings(model=str(model.root), output=str(tmp_path / "one.zip"), fold=("1",)))
    there = put(path, tmp_path / "work")
    assert there.model.finished_folds() == ("1",)
    assert there.model.postprocessing.read_text() == '{"version": 1, "steps": []}'
    with pytest.raises(ModelFolderError, match="no trained fold 7"):
        export(ExportSettings(model=str(model.root), output=str(tmp_path / "x.zip"), fold=("7",)))


def test_an_existing_file_is_replaced_only_on_request(model: ModelFolder, shared: Path) -> None:
    before = shared.read_bytes()
    settings = ExportSettings(model=str(model.root), output=str(shared), licence="MIT")
    with pytest.raises(SettingError, match="exists already"):
        export(settings)
    assert shared.read_bytes() == before
    export(replace(settings, force=True))
    assert shared.read_bytes() != before


def test_installing_twice_changes_nothing(shared: Path, tmp_path: Path) -> None:
    first = put(shared, tmp_path / "work")
    times = {path: path.stat().st_mtime_ns for path in first.model.root.rglob("*")}
    second = put(shared, tmp_path / "work")
    assert (first.was_there, second.was_there) == (False, True)
    assert {path: path.stat().st_mtime_ns for path in first.model.root.rglob("*")} == times


def test_another_model_of_that_name_is_kept_unless_forced(
    model: ModelFolder, shared: Path, write_model: WriteModel, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    own = write_model(work / "results" / "Dataset007_Small" / "unet_3d_fullres", folds=("all",))
    before = everything(work)
    with pytest.raises(SettingError, match="holds another model") as caught:
        put(shared, work)
    assert "--force" in caught.value.hint
    assert everything(work) == before
    beside = put(shared, work, name="from a colleague")
    assert beside.model.root.name == "from a colleague"
    assert own.finished_folds() == ("all",)
    put(shared, work, force=True)
    assert own.finished_folds() == ("0", "1")
    assert [path.name for path in (work / "results").iterdir()] == ["Dataset007_Small"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("fold_0/fold.json", "{", "is not valid JSON"),
        ("fold_1/validation/summary.json", "garbage", "is not valid JSON"),
        ("postprocessing.json", "{}", "has version None"),
        ("postprocessing.json", '{"version": 1, "steps": [{"rule": "no"}]}', "does not fit"),
        ("calibration.json", "[]", "holds no JSON object"),
        ("calibration.json", _calibration(0.0), "is no temperature"),
        ("run.json", '{"version": 1, "command": "", "settings": {"configuration": "3d_fullres", "mirror_axes": 3}}',
         "mirror_axes 3 are not axes"),
        ("run.json", '{"version": 1, "command": "", "settings": {"configuration": "3d_fullres", "mirror_axes": [3]}}',
         r"mirror_axes \[3\] are not axes"),
    ],
)  # fmt: skip
def test_records_that_prediction_could_not_read_are_refused(
    shared: Path, tmp_path: Path, name: str, content: str, words: str
) -> None:
    def exchange(members: dict[str, bytes], manifest: Manifest) -> Manifest:
        members[name] = content.encode()
        size, digest = len(members[name]), hashlib.sha256(members[name]).hexdigest()
        others = tuple(entry for entry in manifest.members if entry.name != name)
        return replace(manifest, members=(*others, Member(name=name, size=size, sha256=digest)))

    with pytest.raises(ModelFolderError, match=words):
        put(rewritten(shared, tmp_path / "x.zip", exchange), tmp_path / "work")
    assert everything(tmp_path / "work") == {}


@pytest.mark.parametrize("name", ["race", "selection", "selection.json", "Race"])
def test_a_name_that_autoseg_itself_uses_is_refused(shared: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingError, match="cannot be the name of a model"):
        put(shared, tmp_path / "work", name=name)
    changed = rewritten(shared, tmp_path / "x.zip", lambda _, manifest: replace(manifest, model=name))
    with pytest.raises(ModelFolderError, match="cannot be the name"):
        put(changed, tmp_path / "work")
    assert everything(tmp_path / "work") == {}


def test_a_calibration_that_cannot_be_read_is_not_given_away(model: ModelFolder, tmp_path: Path) -> None:
    (model.root / "calibration.json").write_text(_calibration(1.5))
    there = put(export(ExportSettings(model=str(model.root), output=str(tmp_path / "a.zip"))), tmp_path / "work")
    assert (there.model.root / "calibration.json").read_text() == _calibration(1.5)
    (model.root / "calibration.json").write_text("{")
    with pytest.raises(RecordError, match="is not valid JSON"):
        export(ExportSettings(model=str(model.root), output=str(tmp_path / "b.zip")))
    assert not (tmp_path / "b.zip").exists()


@pytest.mark.parametrize("rename", [1, 2])
def test_a_model_that_is_being_replaced_is_not_lost(
    shared: Path, write_model: WriteModel, tmp_path: Path, rename: int
) -> None:
    work = tmp_path / "work"
    own = write_model(work / "results" / "Dataset007_Small" / "unet_3d_fullres", folds=("all",))
    before = everything(own.root)
    script = (
        "import os, pathlib, sys\n"
        "from autoseg.pipeline.install import install\n"
        "from autoseg.schema.tools import InstallSettings\n"
        "real, calls = pathlib.Path.rename, []\n"
        "def rename(*paths):\n"
        "    calls.append(paths)\n"
        f"    return os._exit(9) if len(calls) == {rename} else real(*paths)\n"
        "pathlib.Path.rename = rename\n"
        "install(InstallSettings(file=sys.argv[1], workdir=sys.argv[2], force=True))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(shared), str(work)], check=False)
    assert done.returncode == 9
    assert own.root.exists() == (rename == 1)
    (left,) = (work / "results").glob(".*")
    with pytest.raises(SettingError, match="holds another model"):
        put(shared, work)
    assert everything(own.root) == before
    assert not left.exists()


def test_a_model_that_took_the_place_meanwhile_stays(shared: Path, write_model: WriteModel, tmp_path: Path) -> None:
    work = tmp_path / "work"
    own = write_model(work / "results" / "Dataset007_Small" / "unet_3d_fullres", folds=("all",))
    # As an installation leaves it that is killed between its two renames.
    left = work / "results" / ".installing-killed"
    write_model(left / "new")
    former = write_model(left / "former" / "Dataset007_Small" / "unet_3d_fullres", folds=("1",))
    put(shared, work, name="beside")
    assert own.finished_folds() == ("all",)
    assert former.finished_folds() == ("1",)


def test_a_tampered_byte_is_refused_or_without_effect(shared: Path, tmp_path: Path) -> None:
    content = shared.read_bytes()
    expected = everything(put(shared, tmp_path / "good").model.root)
    with zipfile.ZipFile(shared) as archive:
        starts = [(info.header_offset, info.file_size, info.filename) for info in archive.infolist()]
    inside = [start + 30 + len(name) + size // 2 for start, size, name in starts]
    anywhere = np.random.default_rng(0).integers(0, len(content), 30).tolist()
    ends = list(range(len(content) - 22, len(content), 2))
    damaged, work = tmp_path / "damaged.zip", tmp_path / "work"
    for position in [*inside, *anywhere, *ends]:
        damaged.write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
        try:
            there = put(damaged, work)
        except (ModelFolderError, RecordError):
            assert position in inside or everything(work) == {}
        else:
            # Some bytes of a zip file say nothing, such as the time of a member.
            assert position not in inside
            assert everything(there.model.root) == expected
            shutil.rmtree(work)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.3, 0.9, -1, -22])
def test_a_truncated_file_is_refused(shared: Path, tmp_path: Path, kept: float) -> None:
    content = shared.read_bytes()
    count = int(kept * len(content)) if isinstance(kept, float) else kept if kept >= 0 else len(content) + kept
    cut = tmp_path / "cut.zip"
    cut.write_bytes(content[:count])
    with pytest.raises(ModelFolderError, match=r"cut\.zip is damaged"):
        put(cut, tmp_path / "work")
    assert everything(tmp_path / "work") == {}


def test_a_renamed_member_is_refused(shared: Path, tmp_path: Path) -> None:
    def rename(members: dict[str, bytes], manifest: Manifest) -> Manifest:
        members["fold_2/weights.safetensors"] = members.pop("fold_1/weights.safetensors")
        return manifest

    with pytest.raises(ModelFolderError) as caught:
        put(rewritten(shared, tmp_path / "x.zip", rename), tmp_path / "work")
    assert "fold_1/weights.safetensors is listed and not there" in caught.value.message
    assert "fold_2/weights.safetensors is there and not listed" in caught.value.message


def test_swapped_members_are_refused(shared: Path, tmp_path: Path) -> None:
    def swap(members: dict[str, bytes], manifest: Manifest) -> Manifest:
        first, second = "fold_0/weights.safetensors", "fold_1/weights.safetensors"
        members[first], members[second] = members[second], members[first]
        return manifest

    with pytest.raises(ModelFolderError, match="not what its checksum says"):
        put(rewritten(shared, tmp_path / "x.zip", swap), tmp_path / "work")
    assert everything(tmp_path / "work") == {}


@pytest.mark.parametrize(
    "name",
    [
        *("../escaped", "/tmp/escaped", "fold_0/../../escaped", "..\\escaped", "C:/escaped", "fold_0/code.py"),
        *("fold_0/", "plan.json/x", "./plan.json", "fold_01/fold.json", "fold_0/weights.safetensors\n"),
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(shared: Path, tmp_path: Path, name: str) -> None:
    def add(members: dict[str, bytes], manifest: Manifest) -> Manifest:
        members[name] = b"x"
        entry = Member(name=name, size=1, sha256=hashlib.sha256(b"x").hexdigest())
        return replace(manifest, members=(*manifest.members, entry))

    with pytest.raises(ModelFolderError, match="is not a member that a model has"):
        put(rewritten(shared, tmp_path / "x.zip", add), tmp_path / "work")
    assert everything(tmp_path / "work") == {}
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("name", ["../../escaped", "a/b", "..", ".hidden", "", "a\nb", "/tmp/escaped"])
@pytest.mark.parametrize("field", ["dataset", "model"])
def test_a_name_in_the_manifest_cannot_lead_elsewhere(shared: Path, tmp_path: Path, field: str, name: str) -> None:
    bad = rewritten(shared, tmp_path / "x.zip", lambda _, manifest: replace(manifest, **{field: name}))
    with pytest.raises(ModelFolderError, match="cannot be the name of a folder"):
        put(bad, tmp_path / "work")
    with pytest.raises(SettingError, match="cannot be the name of a model"):
        put(shared, tmp_path / "work", name="../escaped")
    assert everything(tmp_path / "work") == {}


def test_a_link_is_refused(shared: Path, tmp_path: Path) -> None:
    bad = tmp_path / "link.zip"
    with zipfile.ZipFile(shared) as source, zipfile.ZipFile(bad, "w") as target:
        for info in source.infolist():
            data = source.read(info)
            if info.filename == "LICENCE.txt":
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            target.writestr(info, data)
    with pytest.raises(ModelFolderError, match=r"LICENCE\.txt is a link"):
        put(bad, tmp_path / "work")


def test_a_packed_member_is_refused_before_it_is_unpacked(shared: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(shared) as source, zipfile.ZipFile(bomb, "w") as target:
        for info in source.infolist():
            if info.filename == "CARD.md":
                target.writestr("CARD.md", bytes(50_000_000), zipfile.ZIP_DEFLATED)
            else:
                target.writestr(info, source.read(info))
    assert bomb.stat().st_size < 1_000_000
    with pytest.raises(ModelFolderError, match=r"CARD\.md is packed"):
        put(bomb, tmp_path / "work")


def test_a_size_that_is_a_lie_is_refused(shared: Path, tmp_path: Path) -> None:
    content = bytearray(shared.read_bytes())
    entry = content.index(b"PK\x01\x02", content.rindex(b"fold_1/weights.safetensors") - 60)
    struct.pack_into("<II", content, entry + 20, 3_000_000_000, 3_000_000_000)
    (tmp_path / "lie.zip").write_bytes(content)
    with pytest.raises(ModelFolderError, match="larger than the file"):
        put(tmp_path / "lie.zip", tmp_path / "work")


def test_two_members_of_one_name_are_refused(shared: Path, tmp_path: Path) -> None:
    twice = tmp_path / "twice.zip"
    shutil.copy(shared, twice)
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("plan.json", b"{}")
    with pytest.raises(ModelFolderError, match=r"'plan\.json' is there twice"):
        put(twice, tmp_path / "work")


def test_weights_of_another_configuration_are_refused(shared: Path, write_model: WriteModel, tmp_path: Path) -> None:
    other = write_model(tmp_path / "flat", ndim=2).fold("0").weights.read_bytes()

    def exchange(members: dict[str, bytes], manifest: Manifest) -> Manifest:
        name = "fold_0/weights.safetensors"
        members[name] = other
        entries = tuple(
            replace(entry, size=len(other), sha256=hashlib.sha256(other).hexdigest()) if entry.name == name else entry
            for entry in manifest.members
        )
        return replace(manifest, members=entries)

    with pytest.raises(ModelFolderError, match="parts of different models: fold 0"):
        put(rewritten(shared, tmp_path / "x.zip", exchange), tmp_path / "work")
    assert everything(tmp_path / "work") == {}


def test_the_announced_checksum_is_held_against_the_file(shared: Path, tmp_path: Path) -> None:
    right = hashlib.sha256(shared.read_bytes()).hexdigest()
    with pytest.raises(SettingError, match="not the expected one"):
        put(shared, tmp_path / "work", sha256="0" * 64)
    with pytest.raises(SettingError, match="64 hexadecimal digits"):
        put(shared, tmp_path / "work", sha256="abc")
    assert put(shared, tmp_path / "work", sha256=right.upper()).model.finished_folds()


def test_a_future_version_says_so(shared: Path, tmp_path: Path) -> None:
    def later(members: dict[str, bytes], manifest: Manifest) -> Manifest:
        return replace(manifest, version=2)

    with pytest.raises(RecordError, match="has version 2"):
        put(rewritten(shared, tmp_path / "x.zip", later), tmp_path / "work")


def test_a_full_disk_leaves_nothing_behind(
    shared: Path, model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="no space left"):
        put(shared, tmp_path / "work")
    assert everything(tmp_path / "work") == {}
    assert list((tmp_path / "work" / "results").iterdir()) == []
    with pytest.raises(ResourceError, match="no space left"):
        export(ExportSettings(model=str(model.root), output=str(tmp_path / "new" / "m.zip")))
    assert everything(tmp_path / "new") == {}


@pytest.mark.parametrize("content", [b"", b"a text", None])
def test_what_is_no_model_is_one_sentence(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.zip"
    if content is not None:
        path.write_bytes(content)
    assert main(["install", "-i", str(path), "--workdir", str(tmp_path / "work")]) == 2
    shown = capsys.readouterr().err
    assert str(path) in shown
    assert "Traceback" not in shown


def test_errors_of_whoever_uses_a_bundle_pass_through(shared: Path) -> None:
    with pytest.raises(ValueError, match="mine"), open_bundle(shared):
        raise ValueError("mine")
