"""Every kind of fault is found, in one pass, with the file and a remedy; small noise is none."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from autoseg.io.discover import read_dataset
from autoseg.io.verify import Fault, check_spec, fault_table, load_case, to_internal
from autoseg.schema.dataset import CaseFiles, DatasetSpec, Label, Labels


def all_faults(folder, tolerance_mm=0.1) -> list[Fault]:
    spec = read_dataset(folder)
    faults = list(check_spec(spec))
    for case in spec.cases:
        loaded, found = load_case(case, dataclasses.replace(spec, cases=()), tolerance_mm=tolerance_mm)
        assert (loaded is None) == any(fault.fatal for fault in found)
        faults += found
    return list(dict.fromkeys(faults))


def change(path, function=lambda data: data, **geometry):
    """Rewrite a file with other voxels or another geometry."""
    image = sitk.ReadImage(str(path))
    changed = sitk.GetImageFromArray(function(sitk.GetArrayFromImage(image)))
    changed.SetSpacing(geometry.get("spacing", image.GetSpacing()))
    changed.SetOrigin(geometry.get("origin", image.GetOrigin()))
    changed.SetDirection(geometry.get("direction", image.GetDirection()))
    sitk.WriteImage(changed, str(path), True)


def with_voxel(value, kind=None):
    def function(data):
        data = data.astype(kind or data.dtype)
        data[1, 1, 1] = value
        return data

    return function


IMAGE, SECOND, LABEL = "imagesTr/case_a_0000.nii.gz", "imagesTr/case_a_0001.nii.gz", "labelsTr/case_a.nii.gz"
TURNED = (0.999, -0.0447, 0, 0.0447, 0.999, 0, 0, 0, 1)

FAULTS = {
    "missing label": (lambda f: (f / LABEL).unlink(), LABEL, "missing label"),
    "missing channel": (lambda f: (f / SECOND).unlink(), SECOND, "missing channel"),
    "extra channel": (lambda f: shutil.copy(f / SECOND, f / "imagesTr/case_a_0002.nii.gz"), "_0002", "extra channel"),
    "shape of label": (lambda f: change(f / LABEL, lambda d: d[:-1]), LABEL, "another shape"),
    "shape of channel": (lambda f: change(f / SECOND, lambda d: d[:, :-1]), SECOND, "another shape"),
    "spacing": (lambda f: change(f / LABEL, spacing=(1, 1, 2.1)), LABEL, "another spacing"),
    "origin": (lambda f: change(f / LABEL, origin=(5, -3, 8.2)), LABEL, "another origin"),
    "direction": (lambda f: change(f / SECOND, direction=TURNED), SECOND, "another direction"),
    "NaN": (lambda f: change(f / IMAGE, with_voxel(np.nan)), IMAGE, "NaN or infinite values in 1 voxels"),
    "infinity": (lambda f: change(f / SECOND, with_voxel(-np.inf)), SECOND, "NaN or infinite values in 1 voxels"),
    "unknown value": (lambda f: change(f / LABEL, with_voxel(7)), LABEL, "does not name: 7 (1 voxels)"),
    "negative value": (lambda f: change(f / LABEL, with_voxel(-1, np.int16)), LABEL, "does not name: -1 (1 voxels)"),
    "huge value": (lambda f: change(f / LABEL, with_voxel(2**31 - 1, np.int32)), LABEL, "2147483647 (1 voxels)"),
    "fraction": (lambda f: change(f / LABEL, with_voxel(0.5, np.float32)), LABEL, "no integer (0.5)"),
    "NaN in label": (lambda f: change(f / LABEL, with_voxel(np.nan, np.float32)), LABEL, "no integer (nan)"),
    "truncated": (lambda f: (f / IMAGE).write_bytes((f / IMAGE).read_bytes()[:-200]), IMAGE, "is truncated"),
    "truncated label": (lambda f: (f / LABEL).write_bytes((f / LABEL).read_bytes()[:-9]), LABEL, "is truncated"),
    "garbage": (lambda f: (f / IMAGE).write_bytes(b"garbage" * 999), IMAGE, "is not a NIfTI file"),
    "empty file": (lambda f: (f / LABEL).write_bytes(b""), LABEL, "is empty"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found_alone(make_dataset, name):
    folder = make_dataset()
    spoil, file, text = FAULTS[name]
    spoil(folder)
    (fault,) = all_faults(folder)
    assert fault.fatal
    assert fault.case == "case_a"
    assert file in fault.file
    assert text in fault.fault
    assert fault.remedy


def test_empty_label_is_only_a_warning(make_dataset):
    folder = make_dataset()
    change(folder / LABEL, np.zeros_like)
    (fault,) = all_faults(folder)
    assert not fault.fatal
    assert "is empty" in fault.fault
    assert "warning: is empty" in fault_table([fault])


def test_label_with_nothing_but_ignored_voxels_counts_as_empty(make_dataset):
    folder = make_dataset(labels={"background": 0, "one": 1, "two": 2, "ignore": 9})
    change(folder / LABEL, lambda data: np.full_like(data, 9))
    (fault,) = all_faults(folder)
    assert not fault.fatal


def test_flawless_dataset_has_no_faults(make_dataset):
    assert all_faults(make_dataset()) == []


def test_header_noise_stops_nobody(make_dataset):
    folder = make_dataset()
    noise = 1e-6
    direction = (1, noise, 0, -noise, 1, 0, 0, 0, 1)
    change(folder / LABEL, spacing=(1 + noise, 1 - noise, 2 + noise), origin=(5 + noise, -3, 8), direction=direction)
    change(folder / SECOND, spacing=(1 - noise, 1, 2), direction=direction)
    assert all_faults(folder) == []


def test_tolerance_is_in_mm_at_the_corners(make_dataset):
    folder = make_dataset()
    change(folder / LABEL, origin=(5, -3, 8.2))
    assert all_faults(folder, tolerance_mm=0.25) == []
    assert len(all_faults(folder, tolerance_mm=0.15)) == 1


def test_all_faults_of_all_cases_in_one_pass(make_dataset):
    folder = make_dataset(cases=5)
    change(folder / LABEL, with_voxel(7))
    change(folder / LABEL, origin=(0, 0, 0))
    change(folder / IMAGE, with_voxel(np.nan))
    (folder / "labelsTr/case_b.nii.gz").unlink()
    (folder / "imagesTr/case_c_0001.nii.gz").write_bytes(b"no image")
    (folder / "imagesTr/case_d_0001.nii.gz").unlink()
    change(folder / "labelsTr/case_d.nii.gz", with_voxel(9))
    faults = all_faults(folder)
    assert [fault.case for fault in faults].count("case_a") == 3
    assert {fault.case for fault in faults} == {"case_a", "case_b", "case_c", "case_d"}
    assert [fault.case for fault in faults].count("case_d") == 2
    text = fault_table(faults + faults)
    assert len(text.splitlines()) == 2 + len(faults)
    assert "labelsTr/case_b.nii.gz" in text


def test_duplicate_ids_in_the_list_of_dataset_json(make_dataset):
    folder = make_dataset(channels=1)
    content = json.loads((folder / "dataset.json").read_text())
    entries = [
        f'"{id_}": {{"images": ["imagesTr/{name}_0000.nii.gz"], "label": "labelsTr/{name}.nii.gz"}}'
        for id_, name in (("x", "case_a"), ("x", "case_b"))
    ]
    text = json.dumps(content)[:-1] + f', "dataset": {{{", ".join(entries)}}}}}'
    (folder / "dataset.json").write_text(text)
    faults = check_spec(read_dataset(folder))
    assert len(faults) == 2
    assert all("duplicate id" in fault.fault and fault.fatal for fault in faults)


def test_duplicate_ids_in_the_folder(make_dataset):
    folder = make_dataset(channels=1)
    shutil.copy(folder / IMAGE, folder / "imagesTr/case_a.nii.gz")
    faults = check_spec(read_dataset(folder))
    assert {fault.case for fault in faults if "duplicate id" in fault.fault} == {"case_a"}


def test_one_file_in_two_cases(make_dataset):
    folder = make_dataset(channels=1)
    spec = read_dataset(folder)
    first, second = spec.cases
    spec = dataclasses.replace(spec, cases=(first, dataclasses.replace(second, label=first.label)))
    assert [fault.fault.split(":")[0] for fault in check_spec(spec)] == ["file of two cases"] * 2


def test_channels_inside_one_file_count(make_dataset):
    folder = make_dataset(cases=1, channels=2)
    series = sitk.JoinSeries([sitk.ReadImage(str(folder / name)) for name in (IMAGE, SECOND)])
    (folder / SECOND).unlink()
    sitk.WriteImage(series, str(folder / IMAGE))
    assert all_faults(folder) == []
    spec = read_dataset(folder)
    loaded, _ = load_case(spec.cases[0], spec)
    assert loaded is not None
    assert loaded.image.data.shape == (2, 6, 7, 8)
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "channel_names": {"0": "only"}}))
    (fault,) = all_faults(folder)
    assert "extra channel: 2" in fault.fault
    assert "without alpha" in fault.remedy


def test_loaded_case_has_all_channels_and_internal_labels(make_dataset):
    folder = make_dataset(labels={"background": 0, "two": 2, "one": 1, "far": 50, "ignore": 255})
    change(folder / LABEL, lambda data: np.where(data == 2, 50, data).astype(np.uint8))
    change(folder / LABEL, with_voxel(255))
    spec = read_dataset(folder)
    loaded, faults = load_case(spec.cases[0], spec)
    assert faults == ()
    assert loaded is not None
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / LABEL)))
    assert loaded.label.dtype == np.uint8
    for value, index in {0: 0, 1: 1, 50: 3, 255: 4}.items():
        np.testing.assert_array_equal(loaded.label == index, stored == value)
    for channel, name in enumerate((IMAGE, SECOND)):
        expected = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / name)))
        np.testing.assert_array_equal(loaded.image.data[channel], expected)


@pytest.mark.parametrize("top", [300, 3_000_000])
def test_internal_indices_invert_to_the_integers(top):
    values = (0, -5, 7, top)
    labels = Labels(foreground=tuple(Label(name=str(value), values=(value,)) for value in values[1:]))
    data = np.random.default_rng(0).choice(values, (4, 5, 6)).astype(np.int32)
    internal, unknown = to_internal(data, labels)
    assert unknown == {}
    np.testing.assert_array_equal(np.array(labels.leaves)[internal], data)
    data[0, 0, :2] = 8, -6
    assert to_internal(data, labels)[1] == {-6: 1, 8: 1}


def test_more_than_255_labels():
    labels = Labels(foreground=tuple(Label(name=str(value), values=(value,)) for value in range(1, 400)))
    data = np.arange(400, dtype=np.uint16).reshape(1, 20, 20)
    internal, unknown = to_internal(data, labels)
    assert internal.dtype == np.int16
    assert unknown == {}
    np.testing.assert_array_equal(internal, data)


def test_case_without_a_label_entry():
    labels = Labels(foreground=(Label(name="one", values=(1,)),))
    case = CaseFiles(id="a", images=("/nowhere/a.nii.gz",))
    spec = DatasetSpec(name="d", channels=("CT",), labels=labels, file_ending=".nii.gz", cases=(case,))
    assert [fault.fault.split(":")[0] for fault in check_spec(spec)] == ["missing channel", "missing label"]
