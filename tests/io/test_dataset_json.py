"""dataset.json in all its spellings; every problem of a file is reported at once."""

import json

import pytest

from autoseg.errors import DatasetError
from autoseg.io.dataset_json import read_description
from autoseg.schema.dataset import Label

FLAWLESS = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1},
    "numTraining": 3,
    "file_ending": ".nii.gz",
}


def described(folder, text=None, **changes):
    content = text if text is not None else json.dumps({**FLAWLESS, **changes})
    (folder / "dataset.json").write_text(content)
    return read_description(folder)


def problems(folder, text=None, **changes):
    with pytest.raises(DatasetError) as caught:
        described(folder, text, **changes)
    return caught.value.message


def test_channels_follow_their_numbers_not_their_text(tmp_path):
    names = {str(number): f"name{number}" for number in (10, 2, 0, 1, 3, 11, 4, 5, 6, 7, 9, 8)}
    assert described(tmp_path, channel_names=names).channels == tuple(f"name{number}" for number in range(12))


def test_legacy_modality_and_labels_by_integer(tmp_path):
    text = json.dumps({"modality": {"0": "MRI"}, "labels": {"2": "Posterior", "0": "background", "1": "Anterior"}})
    description = described(tmp_path, text)
    assert description.channels == ("MRI",)
    assert description.labels.foreground == (Label(name="Anterior", values=(1,)), Label(name="Posterior", values=(2,)))
    assert description.file_ending is None


def test_labels_in_any_order_with_any_integers(tmp_path):
    labels = described(tmp_path, labels={"spleen": 117, "background": 0, "liver": 5, "ignore": 200}).labels
    assert labels.names == ("liver", "spleen")
    assert labels.leaves == (0, 5, 117)
    assert (labels.ignore, labels.ignore_index) == (200, 3)


def test_regions_keep_the_order_of_the_file(tmp_path):
    labels = described(
        tmp_path,
        labels={"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
        regions_class_order=[1, 2, 3],
    ).labels
    assert labels.names == ("whole", "core", "enhancing")
    assert labels.foreground[0].values == (1, 2, 3)
    assert labels.regions_class_order == (1, 2, 3)
    assert labels.num_heads == 3


def test_lists_of_one_integer_are_plain_labels(tmp_path):
    labels = described(tmp_path, labels={"background": [0], "liver": [4]}).labels
    assert not labels.has_regions
    assert labels.leaves == (0, 4)


def test_listed_cases_expand_variables_and_start_at_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SCANS", "/data/scans")
    cases = described(
        tmp_path,
        dataset={
            "b": {"images": ["$SCANS/b0.nii.gz"], "label": "../labels/b.nii.gz"},
            "a": {"images": ["sub/a0.nii.gz"], "label": "${SCANS}/a.nii.gz"},
        },
    ).cases
    assert [case.id for case in cases] == ["a", "b"]
    assert cases[0].images == (str(tmp_path / "sub/a0.nii.gz"),)
    assert cases[0].label == "/data/scans/a.nii.gz"
    assert cases[1].images == ("/data/scans/b0.nii.gz",)
    assert cases[1].label == str(tmp_path.parent / "labels/b.nii.gz")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"channel_names": {}}, '"channel_names" is missing'),
        ({"channel_names": {"0": "a", "2": "b"}}, "must number the channels 0 to 1"),
        ({"channel_names": {"x": "a"}}, "must number the channels 0 to 0"),
        ({"labels": {}}, '"labels" is missing'),
        ({"labels": {"background": 0}}, "no foreground"),
        ({"labels": {"background": 1, "liver": 2}}, '"background" must be 0'),
        ({"labels": {"background": 0, "liver": "one"}}, 'label "liver" must be an integer'),
        ({"labels": {"background": 0, "liver": 1.5}}, 'label "liver" must be an integer'),
        ({"labels": {"background": 0, "liver": True}}, 'label "liver" must be an integer'),
        ({"labels": {"background": 0, "liver": []}}, 'label "liver" must be an integer'),
        ({"labels": {"background": 0, "liver": 1, "spleen": 1}}, 'labels "liver" and "spleen" are the same'),
        ({"labels": {"background": 0, "liver": 1, "ignore": 1}}, '"ignore" must be one integer that no other'),
        ({"labels": {"background": 0, "all": [0, 1]}, "regions_class_order": [1]}, "contains 0"),
        ({"labels": {"background": 0, "all": [1, 2]}}, '"regions_class_order" must list 1 integers'),
        ({"labels": {"background": 0, "all": [1, 2]}, "regions_class_order": [1, 2]}, "must list 1 integers"),
        ({"file_ending": ".dcm"}, "cannot be read"),
        ({"file_ending": 3}, "must be text"),
        ({"dataset": {"a": {"images": []}}}, 'case "a" in "dataset" has no list of "images"'),
        ({"dataset": {"a": {"images": ["x.png"], "label": 3}}}, '"label" of case "a"'),
        ({"dataset": {"../a": {"images": ["x.png"]}}}, "cannot be a file name"),
        ({"dataset": ["a"]}, "must map each case"),
    ],
)
def test_problem_is_named(tmp_path, changes, problem):
    assert problem in problems(tmp_path, **changes)


def test_all_problems_at_once(tmp_path):
    message = problems(tmp_path, channel_names={}, labels={"background": 0, "a": 1, "b": 1}, file_ending=".dcm")
    assert message.count("\n  - ") == 3


def test_names_that_json_would_silently_merge(tmp_path):
    text = '{"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "liver": 2}}'
    assert "two entries called 'liver'" in problems(tmp_path, text)


def test_cases_that_json_would_silently_merge_are_kept_to_be_reported(tmp_path):
    entry = '{"images": ["a.png"], "label": "a_label.png"}'
    text = json.dumps(FLAWLESS)[:-1] + f', "dataset": {{"a": {entry}, "a": {entry}}}}}'
    assert [case.id for case in described(tmp_path, text).cases] == ["a", "a"]


@pytest.mark.parametrize(("text", "problem"), [("{", "not valid JSON"), ("[]", "must hold a JSON object")])
def test_broken_file(tmp_path, text, problem):
    assert problem in problems(tmp_path, text)


def test_missing_file(tmp_path):
    with pytest.raises(DatasetError, match=r"dataset\.json does not exist"):
        read_description(tmp_path)


@pytest.mark.parametrize("value", ["--5", "-", "1-", "5.5", "\u00b2"])
def test_text_that_is_no_integer_is_a_problem_of_its_label(tmp_path, value):
    assert 'label "liver" must be an integer' in problems(tmp_path, labels={"background": 0, "liver": value})


def test_keys_that_are_twice_there_or_misspelt(tmp_path):
    text = json.dumps({**FLAWLESS, "lables": {}}).replace('"labels": {', '"numTraining": 4, "x": {')
    found = problems(tmp_path, text)
    assert '"lables" is not understood; did you mean "labels"?' in found
    assert '"numTraining" occurs twice' in found
    others = {"name": "x", "numTest": 3, "tensorImageSize": "3D", "test": [], "training": [], "release": "1.0"}
    assert described(tmp_path, **others).labels.names == ("liver",)
