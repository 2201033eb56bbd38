import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoseg.errors import DatasetError
from autoseg.io.discover import find_cases, find_dataset, read_dataset, resolve_workspace
from autoseg.schema.folders import Workspace


@pytest.fixture(autouse=True)
def no_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    monkeypatch.delenv("AUTOSEG_HOME", raising=False)
    monkeypatch.chdir(tmp_path)


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


def ids(cases):
    return [case.id for case in cases]


def names(case):
    return [Path(image).name for image in case.images]


def test_workspace_argument_beats_variable_beats_default(tmp_path, monkeypatch):
    assert resolve_workspace(None).root == tmp_path / "autoseg_data"
    monkeypatch.setenv("AUTOSEG_HOME", str(tmp_path / "home"))
    assert resolve_workspace(None).root == tmp_path / "home"
    assert resolve_workspace("work").root == tmp_path / "work"


@pytest.mark.parametrize("identifier", ["3", "003", "Dataset003", "Dataset003_Liver", "Liver"])
def test_dataset_by_number_or_name(tmp_path, identifier):
    touch(tmp_path / "w/raw/Dataset003_Liver/dataset.json", tmp_path / "w/raw/Dataset030_Other/dataset.json")
    assert find_dataset(identifier, Workspace(tmp_path / "w")).name == "Dataset003_Liver"


def test_number_100_is_not_1001(tmp_path):
    touch(tmp_path / "w/raw/Dataset1001_X/dataset.json", tmp_path / "w/raw/Dataset100_Y/dataset.json")
    assert find_dataset("100", Workspace(tmp_path / "w")).name == "Dataset100_Y"


def test_dataset_by_folder(tmp_path):
    touch(tmp_path / "mine/dataset.json")
    assert find_dataset("mine", Workspace(tmp_path / "w")) == tmp_path / "mine"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"empty has no dataset\.json"):
        find_dataset(str(tmp_path / "empty"), Workspace(tmp_path / "w"))


def test_raw_folder_of_the_peer_is_second_choice(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "peer"))
    touch(tmp_path / "peer/Dataset003_Theirs/dataset.json", tmp_path / "peer/Dataset004_Only/dataset.json")
    touch(tmp_path / "w/raw/Dataset003_Ours/dataset.json")
    assert find_dataset("3", Workspace(tmp_path / "w")).name == "Dataset003_Ours"
    assert find_dataset("4", Workspace(tmp_path / "w")).name == "Dataset004_Only"


def test_ambiguous_and_unknown_datasets_list_what_there_is(tmp_path):
    touch(tmp_path / "w/raw/Dataset003_A/dataset.json", tmp_path / "w/raw/Dataset003_B/dataset.json")
    with pytest.raises(DatasetError, match="Dataset003_A, Dataset003_B"):
        find_dataset("3", Workspace(tmp_path / "w"))
    with pytest.raises(DatasetError, match=r"there is no dataset '5'.*\n.*Dataset003_A, Dataset003_B"):
        find_dataset("5", Workspace(tmp_path / "w"))


def test_read_dataset_lists_cases_in_order(make_dataset):
    folder = make_dataset(cases=3, channels=2)
    touch(folder / "imagesTr/.case_z_0000.nii.gz", folder / "imagesTr/notes.txt")
    spec = read_dataset(folder)
    assert spec.name == "Dataset007_Phantom"
    assert ids(spec.cases) == ["case_a", "case_b", "case_c"]
    assert names(spec.cases[0]) == ["case_a_0000.nii.gz", "case_a_0001.nii.gz"]
    assert spec.cases[0].label == str(folder / "labelsTr/case_a.nii.gz")


def test_what_is_annotated_in_held_out_cases_changes_nothing(make_dataset):
    folder = make_dataset(cases=3, annotated={"case_b": ["two"]})
    before = read_dataset(folder)
    assert before.labels.partial == (("two",),)
    description = json.loads((folder / "dataset.json").read_text())
    description["annotated"]["held_out"] = ["one"]
    (folder / "dataset.json").write_text(json.dumps(description))
    touch(folder / "labelsTs/held_out.nii.gz")
    assert read_dataset(folder) == before


def test_channel_ten_comes_after_channel_two(make_dataset):
    spec = read_dataset(make_dataset(cases=1, channels=12))
    assert names(spec.cases[0])[9:] == ["case_a_0009.nii.gz", "case_a_0010.nii.gz", "case_a_0011.nii.gz"]


def test_file_ending_is_found_when_dataset_json_does_not_tell(make_dataset):
    folder = make_dataset()
    content = json.loads((folder / "dataset.json").read_text())
    del content["file_ending"]
    (folder / "dataset.json").write_text(json.dumps(content))
    assert read_dataset(folder).file_ending == ".nii.gz"


def test_missing_files_are_in_the_spec_where_they_should_be(make_dataset):
    folder = make_dataset(cases=3, channels=2)
    (folder / "imagesTr/case_a_0000.nii.gz").unlink()
    (folder / "labelsTr/case_b.nii.gz").unlink()
    for path in (folder / "imagesTr").glob("case_c*"):
        path.unlink()
    spec = read_dataset(folder)
    assert ids(spec.cases) == ["case_a", "case_b", "case_c"]
    assert names(spec.cases[0]) == ["case_a_0000.nii.gz", "case_a_0001.nii.gz"]
    assert spec.cases[1].label == str(folder / "labelsTr/case_b.nii.gz")
    assert names(spec.cases[2]) == ["case_c_0000.nii.gz", "case_c_0001.nii.gz"]


def test_surplus_labels_are_no_cases_when_the_number_of_cases_is_right(make_dataset):
    folder = make_dataset(cases=2)
    shutil.copy(folder / "labelsTr/case_a.nii.gz", folder / "labelsTr/other.nii.gz")
    assert ids(read_dataset(folder).cases) == ["case_a", "case_b"]


def test_ids_that_end_like_a_channel(make_dataset):
    folder = make_dataset(cases=1, channels=1)
    for name in ("scan_0000", "scan_0001", "scan_0002"):
        shutil.copy(folder / "imagesTr/case_a_0000.nii.gz", folder / f"imagesTr/{name}_0000.nii.gz")
        shutil.copy(folder / "labelsTr/case_a.nii.gz", folder / f"labelsTr/{name}.nii.gz")
    spec = read_dataset(folder)
    assert ids(spec.cases) == ["case_a", "scan_0000", "scan_0001", "scan_0002"]
    assert all(len(case.images) == 1 for case in spec.cases)


def test_colour_pictures_need_one_file_and_jpeg_images_take_png_labels(tmp_path):
    folder = tmp_path / "Dataset001_Cells"
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(folder / "imagesTr/a_0000.jpg")
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(folder / "labelsTr/a.png")
    content = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "cell": 1}}
    (folder / "dataset.json").write_text(json.dumps({**content, "file_ending": ".jpg"}))
    (case,) = read_dataset(folder).cases
    assert names(case) == ["a_0000.jpg"]
    assert case.label == str(folder / "labelsTr/a.png")


def test_folders_that_are_missing_or_empty(make_dataset, tmp_path):
    folder = make_dataset(cases=0)
    with pytest.raises(DatasetError, match="no folder imagesTr and no folder labelsTr"):
        read_dataset(folder)
    (folder / "imagesTr").mkdir()
    (folder / "labelsTr").mkdir()
    with pytest.raises(DatasetError, match=r"no files that end in \.nii\.gz"):
        read_dataset(folder)


def test_prediction_with_channels(tmp_path):
    touch(*(tmp_path / f"in/{name}_{channel:04d}.nii.gz" for name in "ba" for channel in (1, 0)))
    cases = find_cases(tmp_path / "in", num_channels=2, file_ending=".nii.gz")
    assert ids(cases) == ["a", "b"]
    assert names(cases[1]) == ["b_0000.nii.gz", "b_0001.nii.gz"]
    assert cases[0].label is None


def test_prediction_with_one_channel_needs_no_suffix(tmp_path):
    touch(*(tmp_path / f"in/{name}.nii.gz" for name in ("a_0000", "b", "scan_0007", "scan_0008")))
    cases = find_cases(tmp_path / "in", num_channels=1, file_ending=".nii.gz")
    assert ids(cases) == ["a", "b", "scan_0007", "scan_0008"]


def test_prediction_lists_all_problems(make_dataset):
    images = make_dataset(cases=4, channels=2) / "imagesTr"
    (images / "case_b_0001.nii.gz").unlink()
    (images / "case_c_0000.nii.gz").unlink()
    shutil.copy(images / "case_d_0000.nii.gz", images / "case_d_0002.nii.gz")
    # One whole case is worth predicting; the others fail when they are read.
    assert ids(find_cases(images, num_channels=2, file_ending=".nii.gz")) == ["case_a", "case_b", "case_c", "case_d"]
    for channel in (0, 1):
        (images / f"case_a_{channel:04d}.nii.gz").unlink()
    with pytest.raises(DatasetError) as caught:
        find_cases(images, num_channels=2, file_ending=".nii.gz")
    assert "case_b_0001.nii.gz: missing channel" in caught.value.message
    assert "case_c_0000.nii.gz: missing channel" in caught.value.message
    assert "case_d_0002.nii.gz: extra channel: 3 channels in 3 file(s), expected 2" in caught.value.message
    assert "case_a" not in caught.value.message


def test_extra_channel_for_prediction(make_dataset):
    folder = make_dataset(cases=1, channels=3)
    with pytest.raises(DatasetError, match="extra channel: 3 channels in 3 file"):
        find_cases(folder / "imagesTr", num_channels=2, file_ending=".nii.gz")
    with pytest.raises(DatasetError, match="extra channel: 3 channels in 3 file"):
        find_cases(folder / "imagesTr", num_channels=1, file_ending=".nii.gz")


def test_two_images_of_one_name(tmp_path):
    touch(tmp_path / "in/a.png", tmp_path / "in/a_0000.png")
    with pytest.raises(DatasetError, match="a: there are several images of this name"):
        find_cases(tmp_path / "in", num_channels=1, file_ending=".png")


def test_single_file_brings_its_other_channels_along(tmp_path):
    touch(*(tmp_path / f"in/{name}.nii.gz" for name in ("a_0000", "a_0001", "b_0000", "b_0001")))
    (case,) = find_cases(tmp_path / "in/a_0001.nii.gz", num_channels=2, file_ending=".nii.gz")
    assert names(case) == ["a_0000.nii.gz", "a_0001.nii.gz"]
    (case,) = find_cases(tmp_path / "in/b_0001.nii.gz", num_channels=1, file_ending=".nii.gz")
    assert case.id == "b_0001"


def test_other_format_is_taken_when_it_is_the_only_one(tmp_path):
    touch(tmp_path / "in/a.nrrd", tmp_path / "in/b.nrrd")
    assert ids(find_cases(tmp_path / "in", num_channels=1, file_ending=".nii.gz")) == ["a", "b"]
    touch(tmp_path / "in/c.mha")
    with pytest.raises(DatasetError, match=r"only \.mha and \.nrrd files"):
        find_cases(tmp_path / "in", num_channels=1, file_ending=".nii.gz")


def test_nothing_to_predict(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(DatasetError, match="no images"):
        find_cases(tmp_path / "in", num_channels=1, file_ending=".nii.gz")
    with pytest.raises(DatasetError, match="does not exist"):
        find_cases(tmp_path / "nowhere", num_channels=1, file_ending=".nii.gz")


def test_images_of_other_endings_are_left_out_with_a_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("autoseg"), "propagate", True)
    touch(tmp_path / "in/a.png", tmp_path / "in/b.nrrd", tmp_path / "in/c.bmp", tmp_path / "in/notes.txt")
    assert ids(find_cases(tmp_path / "in", num_channels=1, file_ending=".png")) == ["a"]
    (message,) = {record.getMessage() for record in caplog.records}
    assert message == "2 images that do not end in .png are left out: b.nrrd, c.bmp"
