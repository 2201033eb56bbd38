"""Foreign datasets as dataset folders: the same voxels in the same places, whatever layout they came in."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from autoseg.cli.main import main
from autoseg.errors import DatasetError, ModelFolderError, PartialError, SettingError
from autoseg.inference.predictor import Predictor
from autoseg.io.discover import find_cases, find_dataset, read_dataset
from autoseg.io.verify import check_spec
from autoseg.pipeline.importing import import_source
from autoseg.schema.folders import Workspace
from autoseg.schema.importing import ImportSettings

SHAPE = (4, 5, 6)


def save(path: Path, data: np.ndarray) -> np.ndarray:
    """(z, y, x) or (t, z, y, x) with ITK itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if data.ndim == 4:
        image = sitk.JoinSeries([sitk.GetImageFromArray(part) for part in data])
    else:
        image = sitk.GetImageFromArray(data)
    image.SetSpacing((0.5, 0.7, 2.0, 1.0)[: image.GetDimension()])
    image.SetOrigin((3.0, -4.0, 5.0, 0.0)[: image.GetDimension()])
    sitk.WriteImage(image, str(path))
    return data


def random(seed: int, *leading: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 500, (*leading, *SHAPE)).astype(np.int16)


def labelled(seed: int, *values: int) -> np.ndarray:
    return np.random.default_rng(seed).choice([0, *values], SHAPE).astype(np.uint8)


def read(path: str | Path) -> np.ndarray:
    image = sitk.ReadImage(str(path))
    if image.GetDimension() == 3:
        assert image.GetSpacing() == pytest.approx((0.5, 0.7, 2.0))
        assert image.GetOrigin() == pytest.approx((3.0, -4.0, 5.0))
    return sitk.GetArrayFromImage(image)


@pytest.fixture
def bring(tmp_path: Path) -> Callable[..., Path]:
    def run(source: Path, **given: object) -> Path:
        return import_source(ImportSettings(source=str(source), workdir=str(tmp_path / "work"), **given))

    return run


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A Decathlon task with two channels in 4D images."""
    folder = tmp_path / "Task07_Organ"
    for seed, name in enumerate(["organ_001", "organ_002"]):
        save(folder / "imagesTr" / f"{name}.nii.gz", random(seed, 2))
        save(folder / "labelsTr" / f"{name}.nii.gz", labelled(seed, 1, 2))
    save(folder / "imagesTs" / "organ_003.nii.gz", random(9, 2))
    content = {
        "name": "Organ",
        "licence": "CC-BY-SA 4.0",
        "tensorImageSize": "4D",
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "2": "tumour", "1": "organ"},
        "numTraining": 2,
        "numTest": 1,
        "training": [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
            for name in ("organ_001", "organ_002")
        ],
        "test": ["./imagesTs/organ_003.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_a_decathlon_task_has_its_channels_split(bring, task):
    folder = bring(task)
    assert folder.name == "Dataset007_Organ"
    spec = read_dataset(folder)
    assert (spec.channels, spec.labels.names, spec.labels.leaves) == (("T2", "ADC"), ("organ", "tumour"), (0, 1, 2))
    assert [case.id for case in spec.cases] == ["organ_001", "organ_002"]
    assert check_spec(spec) == ()
    for seed, case in enumerate(spec.cases):
        for channel, image in enumerate(case.images):
            np.testing.assert_array_equal(read(image), random(seed, 2)[channel])
        np.testing.assert_array_equal(read(case.label), labelled(seed, 1, 2))
    (held_out,) = find_cases(folder / "imagesTs", num_channels=2, file_ending=".nii.gz")
    np.testing.assert_array_equal(read(held_out.images[1]), random(9, 2)[1])
    assert json.loads((folder / "dataset.json").read_text())["licence"] == "CC-BY-SA 4.0"


def test_what_was_stopped_goes_on_and_touches_nothing_that_is_complete(bring, task):
    folder = bring(task)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    made = {path: path.stat().st_mtime_ns for path in files}
    (folder / "dataset.json").unlink()
    lost = folder / "imagesTr" / "organ_002_0001.nii.gz"
    lost.unlink()
    bring(task)
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == files
    untouched = [path for path in files if "organ_002" not in path.name and path.name != "dataset.json"]
    assert len(untouched) == 5
    assert all(path.stat().st_mtime_ns == made[path] for path in untouched)


def test_an_nnunet_folder_is_copied_or_linked(bring, tmp_path):
    source = tmp_path / "Dataset011_Raw"
    for seed, name in enumerate(["a", "b"]):
        save(source / "imagesTr" / f"{name}_0000.nrrd", random(seed))
        save(source / "labelsTr" / f"{name}.nrrd", labelled(seed, 1, 2, 3))
    save(source / "imagesTs" / "c_0000.nrrd", random(5))
    save(source / "labelsTs" / "c.nrrd", labelled(5, 1))
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    content = {
        "channel_names": {"0": "CT"},
        "labels": labels,
        "regions_class_order": [1, 2],
        "numTraining": 2,
        "file_ending": ".nrrd",
    }
    (source / "dataset.json").write_text(json.dumps(content))
    for link in (False, True):
        folder = bring(source, link=link, name=f"Dataset01{2 + link}_New")
        spec, truth = read_dataset(folder), read_dataset(source)
        assert (spec.channels, spec.labels, spec.file_ending) == (truth.channels, truth.labels, truth.file_ending)
        for case, origin in zip(spec.cases, truth.cases, strict=True):
            for mine, theirs in zip((*case.images, case.label), (*origin.images, origin.label), strict=True):
                assert Path(mine).is_symlink() is link
                assert Path(mine).read_bytes() == Path(theirs).read_bytes()
        assert {path.name for path in (folder / "labelsTs").iterdir()} == {"c.nrrd"}
    assert folder.name == "Dataset013_New"


@pytest.mark.parametrize("kind", ["csv", "semicolons", "json"])
def test_a_manifest_of_paths_becomes_a_dataset(bring, tmp_path, kind):
    rows = []
    for seed, name in enumerate(["x", "y", "z"]):
        save(tmp_path / "anywhere" / name / "t1.nii.gz", random(seed))
        save(tmp_path / "anywhere" / name / "flair.mha", random(seed + 10))
        save(tmp_path / "anywhere" / name / "mask.nrrd", labelled(seed, 2, 40))
        row = {
            "case": f"patient {name}",
            "image_0": f"anywhere/{name}/t1.nii.gz",
            "image_1": str(tmp_path / "anywhere" / name / "flair.mha"),
            "label": f"anywhere/{name}/mask.nrrd",
            "split": "test" if name == "z" else "train",
        }
        rows.append(row)
    manifest = tmp_path / ("cohort.json" if kind == "json" else "cohort.csv")
    if kind == "json":
        content = {"channels": ["T1", "FLAIR"], "labels": {"background": 0, "a": 2, "b": 40}, "cases": rows}
        manifest.write_text(json.dumps(content))
        folder = bring(manifest)
    else:
        with manifest.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter=";" if kind == "semicolons" else ",")
            writer.writeheader()
            writer.writerows(rows)
        folder = bring(manifest, channels=("T1", "FLAIR"))
    assert folder.name == "Dataset001_cohort"
    spec = read_dataset(folder)
    assert spec.channels == ("T1", "FLAIR")
    assert spec.labels.names == (("a", "b") if kind == "json" else ("label 2", "label 40"))
    assert [case.id for case in spec.cases] == ["patient x", "patient y"]
    for seed, case in enumerate(spec.cases):
        np.testing.assert_array_equal(read(case.images[0]), random(seed))
        np.testing.assert_array_equal(read(case.images[1]), random(seed + 10))
        np.testing.assert_array_equal(read(case.label), labelled(seed, 2, 40))
    (held_out,) = find_cases(folder / "imagesTs", num_channels=2, file_ending=spec.file_ending)
    np.testing.assert_array_equal(read(held_out.images[1]), random(12))
    assert len(list((folder / "labelsTs").iterdir())) == 1


def test_all_wrong_rows_are_listed(bring, tmp_path):
    save(tmp_path / "good.nii.gz", random(0))
    lines = ["image,label", "good.nii.gz,lost.nii.gz", "good.nii.gz,", ",good.nii.gz", "gone.nii.gz,good.nii.gz"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    with pytest.raises(DatasetError) as caught:
        bring(tmp_path / "list.csv")
    for number in (1, 2, 3, 4):
        assert f"row {number}:" in caught.value.message
    assert not (tmp_path / "work").exists()


def manifest_of_one(folder: Path, **given: object) -> Path:
    save(folder / "t1.nii.gz", random(0))
    save(folder / "mask.nii.gz", labelled(0, 1))
    path = folder / "list.json"
    path.write_text(json.dumps({**given, "cases": [{"image": "t1.nii.gz", "label": "mask.nii.gz"}]}))
    return path


def test_a_single_text_names_a_single_channel(bring, tmp_path):
    assert read_dataset(bring(manifest_of_one(tmp_path, channels="CT"))).channels == ("CT",)


@pytest.mark.parametrize("channels", [5, ["CT", 3], {"0": "CT"}, [" "]])
def test_channels_of_a_wrong_kind_are_refused_with_the_right_form(bring, tmp_path, channels):
    path = manifest_of_one(tmp_path, channels=channels)
    with pytest.raises(DatasetError, match=r'"channels" in .*list\.json must be a list of names') as caught:
        bring(path)
    assert '{"channels": ["CT"]}' in caught.value.hint


@pytest.mark.parametrize("labels", [5, "liver", ["liver"], []])
def test_labels_of_a_wrong_kind_are_refused_with_the_right_form(bring, tmp_path, labels):
    path = manifest_of_one(tmp_path, labels=labels)
    with pytest.raises(DatasetError, match=r'"labels" in .*list\.json must map names to integers') as caught:
        bring(path)
    assert '{"labels": {"background": 0, "liver": 1}}' in caught.value.hint


@pytest.mark.parametrize("name", ["Dataset003_Foo/../../evil", "Dataset003_Foo/x", "Dataset003_a..b", "Dataset003_"])
def test_a_name_that_is_no_name_of_a_folder_is_refused(bring, tmp_path, name):
    with pytest.raises(SettingError, match="cannot be the name of a folder"):
        bring(manifest_of_one(tmp_path), name=name)
    assert not (tmp_path / "work").exists()
    assert not (tmp_path / "evil").exists()


def test_a_number_stands_for_one_dataset(bring, tmp_path):
    manifest = manifest_of_one(tmp_path)
    first = bring(manifest, name="Dataset003_A")
    bring(manifest, name="Dataset005_Other")
    for name in ("Dataset003_B", "Dataset0003_B", "Task03_B"):
        with pytest.raises(SettingError, match="Dataset003_A has the number 3 already") as caught:
            bring(manifest, name=name)
        assert "--name Dataset006_B" in caught.value.hint
    assert find_dataset("3", Workspace(tmp_path / "work")) == first
    assert bring(manifest, name="Dataset003_A") == first
    # A name without a number goes on in the dataset of just this name.
    assert bring(manifest, name="Other").name == "Dataset005_Other"
    assert bring(manifest, name="ther").name == "Dataset006_ther"


def test_bad_files_are_listed_in_one_table_and_leave_no_dataset(bring, task):
    (task / "labelsTr" / "organ_001.nii.gz").write_bytes(b"")
    image = task / "imagesTr" / "organ_002.nii.gz"
    image.write_bytes(image.read_bytes()[:200])
    (task / "imagesTs" / "organ_003.nii.gz").unlink()
    with pytest.raises(DatasetError, match="organ_003"):
        bring(task)
    save(task / "imagesTs" / "organ_003.nii.gz", random(9, 2))
    with pytest.raises(PartialError) as caught:
        bring(task)
    assert "organ_002" in caught.value.message
    assert "remedy" in caught.value.message
    folder = task.parent / "work" / "raw" / "Dataset007_Organ"
    assert not (folder / "dataset.json").exists()
    assert (folder / "imagesTr" / "organ_001_0001.nii.gz").exists()
    save(image, random(1, 2))
    assert read_dataset(bring(task)).cases[1].id == "organ_002"


def test_another_dataset_is_not_written_over(bring, task):
    folder = bring(task)
    before = (folder / "dataset.json").read_text()
    changed = json.loads((task / "dataset.json").read_text())
    changed["modality"]["0"] = "T1"
    (task / "dataset.json").write_text(json.dumps(changed))
    with pytest.raises(SettingError, match="another dataset"):
        bring(task)
    assert (folder / "dataset.json").read_text() == before


def test_files_of_other_cases_are_refused_and_a_case_that_fails_leaves_none(bring, task, tmp_path):
    bad = task / "imagesTr" / "organ_002.nii.gz"
    content = bad.read_bytes()
    bad.write_bytes(content[:50])
    with pytest.raises(PartialError, match="organ_002"):
        bring(task)
    folder = tmp_path / "work" / "raw" / "Dataset007_Organ"
    assert sorted(path.name[:9] for path in folder.rglob("*.nii.gz")) == ["organ_001"] * 3 + ["organ_003"] * 2
    assert not (folder / "dataset.json").exists()
    stranger = save(folder / "imagesTr" / "other_0000.nii.gz", random(4))
    with pytest.raises(SettingError, match=r"not of these cases:\n.*other_0000\.nii\.gz"):
        bring(task)
    np.testing.assert_array_equal(read(folder / "imagesTr" / "other_0000.nii.gz"), stranger)
    (folder / "imagesTr" / "other_0000.nii.gz").unlink()
    bad.write_bytes(content)
    assert len(read_dataset(bring(task)).cases) == 2


@pytest.mark.parametrize("link", [False, True])
def test_files_that_lie_where_they_are_to_be_stay(bring, tmp_path, link):
    folder = tmp_path / "work" / "raw" / "Dataset003_Here"
    image = save(folder / "imagesTr" / "a_0000.nii.gz", random(0))
    label = save(folder / "labelsTr" / "a.nii.gz", labelled(0, 1))
    save(folder / "imagesTr" / "b_0000.nii.gz", random(1))
    (folder / "b.jpg").write_bytes(b"nothing")
    rows = "a,imagesTr/a_0000.nii.gz,labelsTr/a.nii.gz\nb,imagesTr/b_0000.nii.gz,b.jpg\n"
    (folder / "list.csv").write_text(f"case,image,label\n{rows}")
    (tmp_path / "names.json").write_text(json.dumps({"labels": {"background": 0, "organ": 1}}))
    given = {"name": "Dataset003_Here", "channels": ("CT",), "labels": str(tmp_path / "names.json"), "link": link}
    with pytest.raises(PartialError, match="JPEG"):
        bring(folder / "list.csv", **given)
    np.testing.assert_array_equal(read(folder / "imagesTr" / "a_0000.nii.gz"), image)
    np.testing.assert_array_equal(read(folder / "labelsTr" / "a.nii.gz"), label)
    assert (folder / "imagesTr" / "b_0000.nii.gz").is_file()
    assert not (folder / "imagesTr" / "b_0000.nii.gz").is_symlink()


def test_what_is_written_anew_follows_its_source(bring, task):
    """Images that are split, and labels that are converted."""
    folder = bring(task)
    changed = save(task / "imagesTr" / "organ_001.nii.gz", random(7, 2))
    assert bring(task) == folder
    for number in range(2):
        np.testing.assert_array_equal(read(folder / "imagesTr" / f"organ_001_{number:04d}.nii.gz"), changed[number])


def test_sources_that_are_nothing_are_refused_in_a_sentence(bring, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="nothing that can be imported"):
        bring(tmp_path / "empty")
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises(SettingError, match="no manifest"):
        bring(tmp_path / "text.txt")
    with pytest.raises(SettingError, match="does not exist"):
        bring(tmp_path / "nowhere")


def test_an_nnunet_model_becomes_a_model_of_its_dataset(bring, write_peer, tmp_path):
    name = "nnUNetTrainer__nnUNetPlans__3d_fullres"
    source = write_peer(tmp_path / name)
    root = bring(source)
    assert root == tmp_path / "work" / "results" / "Dataset011_Made" / name
    assert Predictor.load(root, device="cpu").folds == ("0",)
    assert bring(source) == root
    assert not [path for path in (tmp_path / "work" / "results").iterdir() if path.name.startswith(".")]
    other = write_peer(
        tmp_path / "other" / name, axes=None, weights=lambda data: data["decoder.seg_layers.1.bias"].add_(1)
    )
    with pytest.raises(ModelFolderError, match="holds another model"):
        bring(other)


def test_the_command_says_what_it_did(task, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["import", "-i", str(task), "--workdir", "work"]) == 0
    assert "2 cases in" in capsys.readouterr().err
    assert main(["import", "-i", str(tmp_path / "none")]) == 2
    assert os.fspath(tmp_path / "none") in capsys.readouterr().err
