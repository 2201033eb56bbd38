"""``autoseg_ensemble`` and ``autoseg_postprocess`` on folders of files."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage
from skimage.measure import label as components

import autoseg
from autoseg import records
from autoseg.cli.main import main
from autoseg.errors import AutosegError, DatasetError, PartialError, RecordError, SettingError
from autoseg.io.probabilities import probabilities_shape, probability_heads
from autoseg.schema.postprocessing import KEEP_LARGEST, PostProcessing, PostStep
from autoseg.schema.report import Interval
from autoseg.schema.selection import Candidate, PostProcessRun, Selection
from tests.synthetic import OBLIQUE, write_manifest, write_pictures, write_volume

LABELS = {"background": 0, "liver": 1, "lesion": 4}
SPACING = (2.5, 1.0, 0.8)


def put(folder: Path, name: str, label: np.ndarray, probabilities: np.ndarray | None = None, **more: object) -> None:
    write_volume(folder / f"{name}.nii.gz", label, spacing=SPACING, direction=OBLIQUE, origin=(3, -4, 5), **more)
    if probabilities is not None:
        np.savez_compressed(folder / f"{name}.npz", probabilities=probabilities)


def manifest(folder: Path, labels: dict[str, object] = LABELS, **more: object) -> None:
    write_manifest(folder, channels=("CT",), labels=labels, cases=1, ending=".nii.gz", **more)


def drawn(seed: int, shape: tuple[int, int, int] = (5, 9, 8)) -> np.ndarray:
    return np.random.default_rng(seed).choice([0, 1, 4], size=shape).astype(np.uint8)


def softmax(seed: int, heads: int = 3, shape: tuple[int, int, int] = (5, 9, 8)) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(heads, *shape))
    return np.exp(logits) / np.exp(logits).sum(axis=0)


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def three_folders(root: Path, **probabilities: np.ndarray) -> list[Path]:
    folders = [root / name for name in "abc"]
    for number, folder in enumerate(folders):
        for case in range(2):
            put(folder, f"case_{case}", drawn(10 * number + case))
    return folders


def test_a_vote_is_the_most_frequent_label_and_the_first_folder_wins_a_tie(tmp_path: Path) -> None:
    folders = three_folders(tmp_path)
    report = autoseg.ensemble(inputs=folders, outputs=tmp_path / "out")
    assert report.method == "vote"
    for case in range(2):
        maps = [read(folder / f"case_{case}.nii.gz") for folder in folders]
        # Counter keeps the order of first appearance among equals.
        expected = [Counter(votes).most_common(1)[0][0] for votes in zip(*(one.ravel() for one in maps), strict=True)]
        made = sitk.ReadImage(str(tmp_path / "out" / f"case_{case}.nii.gz"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(made).ravel(), expected)
        source = sitk.ReadImage(str(folders[0] / f"case_{case}.nii.gz"))
        np.testing.assert_allclose(made.GetDirection(), source.GetDirection(), atol=1e-6)
        np.testing.assert_allclose(made.GetOrigin(), source.GetOrigin(), atol=1e-5)
        np.testing.assert_allclose(made.GetSpacing(), source.GetSpacing(), atol=1e-6)
    assert json.loads((tmp_path / "out" / "ensemble.json").read_text())["method"] == "vote"


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_where_all_have_probabilities_their_mean_decides(tmp_path: Path, kind: type) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    both = [softmax(number).astype(kind) for number in range(2)]
    for number, folder in enumerate(folders):
        put(folder, "case", drawn(number), both[number])
    manifest(folders[1])
    report = autoseg.ensemble(inputs=folders, outputs=tmp_path / "out")
    assert report.method == "probabilities"
    mean = (both[0].astype(np.float32) + both[1].astype(np.float32)) / 2
    np.testing.assert_array_equal(read(tmp_path / "out" / "case.nii.gz"), np.array([0, 1, 4])[mean.argmax(axis=0)])
    assert (tmp_path / "out" / "dataset.json").read_text() == (folders[1] / "dataset.json").read_text()


def test_regions_are_on_above_a_half_and_later_ones_win(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    rng = np.random.default_rng(0)
    both = [rng.uniform(size=(2, 5, 9, 8)).astype(np.float32) for _ in folders]
    for number, folder in enumerate(folders):
        put(folder, "case", drawn(number), both[number])
        manifest(folder, {"background": 0, "whole": [1, 2], "core": [2]}, regions_class_order=[1, 2])
    autoseg.ensemble(inputs=folders, outputs=tmp_path / "out")
    whole, core = (both[0] + both[1]) / 2
    np.testing.assert_array_equal(
        read(tmp_path / "out" / "case.nii.gz"), np.where(core > 0.5, 2, np.where(whole > 0.5, 1, 0))
    )


def test_what_prediction_saves_goes_in(write_model, tmp_path: Path) -> None:
    write_volume(tmp_path / "in" / "case_0000.nii.gz", np.random.default_rng(0).uniform(1, 9, (9, 12, 10)))
    for name, spacing in (("one", 1.0), ("two", 1.4)):
        model = write_model(tmp_path / f"model_{name}", spacing=spacing).root
        out = tmp_path / name
        autoseg.predict(inputs=tmp_path / "in", outputs=out, model=model, device="cpu", save_probabilities=True)
    autoseg.ensemble(inputs=(tmp_path / "one", tmp_path / "two"), outputs=tmp_path / "both")
    with np.load(tmp_path / "one" / "case.npz") as first, np.load(tmp_path / "two" / "case.npz") as second:
        mean = first["probabilities"].astype(np.float32) + second["probabilities"].astype(np.float32)
    np.testing.assert_array_equal(read(tmp_path / "both" / "case.nii.gz"), np.array([0, 5, 9])[mean.argmax(axis=0)])


def test_two_folders_without_probabilities_decide_nothing(tmp_path: Path) -> None:
    folders = three_folders(tmp_path)[:2]
    np.savez_compressed(folders[0] / "case_0.npz", probabilities=softmax(0))
    with pytest.raises(SettingError, match="vote of two"):
        autoseg.ensemble(inputs=folders, outputs=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_cases_and_other_grids_are_listed_together_and_the_rest_is_made(tmp_path: Path) -> None:
    folders = three_folders(tmp_path)
    for number, folder in enumerate(folders):
        put(folder, "shifted", drawn(number))
        put(folder, "small", drawn(number, (5, 9, 8 - (number == 2))))
    write_volume(folders[1] / "shifted.nii.gz", drawn(1), spacing=SPACING, direction=OBLIQUE, origin=(3, -4, 9))
    (folders[2] / "case_1.nii.gz").unlink()
    put(folders[0], "alone", drawn(0))
    with pytest.raises(PartialError) as caught:
        autoseg.ensemble(inputs=folders, outputs=tmp_path / "out")
    message = caught.value.message
    assert "4 cases" in message
    for part in ("alone: missing in", "case_1: missing in", "shifted: ", "4 mm apart", "small: ", "5 x 9 x 7"):
        assert part in message
    assert str(folders[2]) in message
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["case_0.nii.gz"]


def test_probabilities_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        put(folder, "case", drawn(0), softmax(0, heads=4))
        put(folder, "other", drawn(0), softmax(0))
        manifest(folder)
    (folders[1] / "other.npz").write_bytes((folders[0] / "other.npz").read_bytes()[:-400])
    with pytest.raises(PartialError, match="2 cases") as caught:
        autoseg.ensemble(inputs=folders, outputs=tmp_path / "out")
    assert "4 classes" in caught.value.message
    assert "other.npz" in caught.value.message
    manifest(folders[1], {"background": 0, "liver": 1, "lesion": 2})
    with pytest.raises(SettingError, match="other labels"):
        autoseg.ensemble(inputs=folders, outputs=tmp_path / "out")
    for folder in folders:
        (folder / "dataset.json").unlink()
    with pytest.raises(SettingError, match=r"no folder has a dataset\.json"):
        autoseg.ensemble(inputs=folders, outputs=tmp_path / "out2")


def test_heads_are_read_one_by_one_and_nothing_is_unpickled(tmp_path: Path) -> None:
    values = softmax(1).astype(np.float16)
    np.savez(tmp_path / "plain.npz", probabilities=values)
    assert probabilities_shape(tmp_path / "plain.npz") == values.shape
    np.testing.assert_array_equal(np.stack(list(probability_heads(tmp_path / "plain.npz"))), values)
    faulty = {
        "objects": np.array([[[[{}]]]], dtype=object),
        "flat": np.zeros(3),
        "turned": np.asfortranarray(values),
        "whole": values.astype(int),
    }
    for name, array in faulty.items():
        np.savez(tmp_path / f"{name}.npz", probabilities=array)
        with pytest.raises(DatasetError, match=f"{name}.npz"):
            list(probability_heads(tmp_path / f"{name}.npz"))
    np.savez(tmp_path / "else.npz", softmax=values)
    (tmp_path / "no.npz").write_bytes(b"no zip")
    for name in ("else", "no", "absent"):
        with pytest.raises(DatasetError, match=f"{name}.npz"):
            probabilities_shape(tmp_path / f"{name}.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_any_damaged_byte_is_one_sentence(tmp_path: Path, save: Callable[..., None]) -> None:
    path = tmp_path / "case.npz"
    save(path, probabilities=softmax(2, shape=(2, 3, 4)).astype(np.float16))
    whole = path.read_bytes()
    damaged = [
        whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :]
        for place in range(len(whole))
        for flip in (1, 8, 255)
    ]
    refused = 0
    for content in (*damaged, whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        try:
            list(probability_heads(path))
        except AutosegError as error:
            refused += 1
            assert str(path) in error.message
    assert refused > len(damaged) / 4


def test_the_record_does_not_describe_what_another_run_made(tmp_path: Path) -> None:
    folders = three_folders(tmp_path)
    manifest(folders[0])
    autoseg.ensemble(inputs=folders, outputs=tmp_path / "voted")
    autoseg.postprocess(inputs=folders[0], outputs=tmp_path / "clean", keep_largest=1)
    for folder in folders:
        (folder / "case_1.nii.gz").write_bytes(b"damaged")
    (folders[0] / "dataset.json").unlink()
    with pytest.raises(PartialError):
        autoseg.ensemble(inputs=folders[::-1], outputs=tmp_path / "voted")
    with pytest.raises(PartialError):
        autoseg.postprocess(inputs=folders[0], outputs=tmp_path / "clean", keep_largest=4)
    assert sorted(path.name for path in (tmp_path / "voted").iterdir()) == ["case_0.nii.gz", "ensemble.json"]
    assert sorted(path.name for path in (tmp_path / "clean").iterdir()) == ["case_0.nii.gz", "postprocess.json"]


def test_folders_are_not_overwritten(tmp_path: Path) -> None:
    folders = three_folders(tmp_path)
    put(tmp_path / "labelsTr", "case_0", drawn(5))
    for outputs in (folders[1], tmp_path / "labelsTr"):
        before = {path: path.read_bytes() for path in outputs.iterdir()}
        with pytest.raises(SettingError):
            autoseg.ensemble(inputs=folders, outputs=outputs)
        with pytest.raises(SettingError):
            autoseg.postprocess(inputs=folders[1], outputs=outputs, keep_largest=1)
        assert {path: path.read_bytes() for path in outputs.iterdir()} == before
    autoseg.ensemble(inputs=folders, outputs=tmp_path / "out")
    autoseg.ensemble(inputs=folders[::-1], outputs=tmp_path / "out")
    with pytest.raises(SettingError, match="two different folders"):
        autoseg.ensemble(inputs=(folders[0], folders[0], folders[1]), outputs=tmp_path / "out")


def blobs(seed: int) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(9, 20, 18)), 1.0)
    return np.array([0, 1, 4], dtype=np.uint8)[np.digitize(field, np.quantile(field, [0.6, 0.9]))]


def test_typed_steps_on_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for case in range(3):
        put(folder, f"case_{case}", blobs(case))
    manifest(folder)
    words = ["--keep-largest", "liver", "--min-size", "lesion=21", "--fill-holes", "liver", "lesion"]
    assert main(["postprocess", "-i", str(folder), "-o", str(tmp_path / "out"), *words]) == 0
    for case in range(3):
        expected = blobs(case)
        numbered = components(expected == 1, connectivity=3)
        sizes = np.bincount(numbered.ravel())[1:]
        expected[(numbered > 0) & ~np.isin(numbered, 1 + np.flatnonzero(sizes == sizes.max()))] = 0
        numbered = components(expected == 4, connectivity=3)
        sizes = np.bincount(numbered.ravel()) * 2.5 * 0.8
        expected[(numbered > 0) & (sizes[numbered] < 21)] = 0
        for value in (1, 4):
            expected[ndimage.binary_fill_holes(expected == value) & (expected == 0)] = value
        np.testing.assert_array_equal(read(tmp_path / "out" / f"case_{case}.nii.gz"), expected)
    run = records.load(PostProcessRun, tmp_path / "out" / "postprocess.json")
    assert [step.label for step in run.steps] == ["liver", "lesion", "liver", "lesion"]
    assert (tmp_path / "out" / "dataset.json").exists()


def test_integers_and_the_whole_foreground_need_no_names(tmp_path: Path) -> None:
    put(tmp_path / "in", "case", blobs(0))
    report = autoseg.postprocess(inputs=tmp_path / "in", outputs=tmp_path / "out", keep_largest=("foreground", "4"))
    assert [step.values for step in report.steps] == [(1, 4), (4,)]
    numbered = components(blobs(0) > 0, connectivity=3)
    expected = np.where(numbered == 1 + np.bincount(numbered.ravel())[1:].argmax(), blobs(0), 0)
    numbered = components(expected == 4, connectivity=3)
    expected[(numbered > 0) & (numbered != 1 + np.bincount(numbered.ravel())[1:].argmax())] = 0
    np.testing.assert_array_equal(read(tmp_path / "out" / "case.nii.gz"), expected)
    assert report.changed == {"case.nii.gz": int((expected != blobs(0)).sum())}


def test_steps_come_from_a_selection_or_a_model(tmp_path: Path) -> None:
    put(tmp_path / "in", "case", blobs(1))
    step = PostStep(rule=KEEP_LARGEST, label="lesion", values=(4,))
    nothing = Interval(mean=0.5, low=0.4, high=0.6)
    candidate = Candidate(models=("unet_2d",), dice=nothing, dice_after=nothing, difference=nothing)
    selection = Selection(
        dataset="Dataset001_A",
        models=("unet_2d",),
        postprocessing=(step,),
        cases=9,
        candidates=(candidate,),
        left_out={},
        verdict="",
    )
    records.save(tmp_path / "selection.json", selection)
    records.save(tmp_path / "postprocessing.json", PostProcessing(steps=(step,)))
    made = []
    for name in ("selection.json", "postprocessing.json"):
        report = autoseg.postprocess(
            inputs=tmp_path / "in", outputs=tmp_path / name.split(".")[0], selection=tmp_path / name
        )
        assert report.steps == (step,)
        made.append(read(report.written[0]))
    np.testing.assert_array_equal(made[0], made[1])
    assert components(made[0] == 4, connectivity=3).max() == 1
    records.save(tmp_path / "empty.json", PostProcessing())
    with pytest.raises(SettingError, match="no step"):
        autoseg.postprocess(inputs=tmp_path / "in", outputs=tmp_path / "x", selection=tmp_path / "empty.json")
    (tmp_path / "broken.json").write_text("[1]")
    with pytest.raises(RecordError, match=r"broken\.json"):
        autoseg.postprocess(inputs=tmp_path / "in", outputs=tmp_path / "x", selection=tmp_path / "broken.json")


def test_words_that_are_not_understood_are_listed_together(tmp_path: Path) -> None:
    put(tmp_path / "in", "case", blobs(0))
    manifest(tmp_path / "in")
    with pytest.raises(SettingError) as caught:
        autoseg.postprocess(
            inputs=tmp_path / "in",
            outputs=tmp_path / "out",
            keep_largest=("spleen",),
            min_size=("liver", "lesion=-3", "kidney=5"),
            fill_holes=("foreground",),
        )
    for word in ("'spleen'", "'liver' is not LABEL=MM3", "'lesion=-3'", "'kidney'", "holes of the foreground"):
        assert word in caught.value.message
    assert "liver, lesion" in caught.value.hint
    for settings in ({}, {"keep_largest": ("liver",), "selection": "x.json"}):
        with pytest.raises(SettingError, match="either"):
            autoseg.postprocess(inputs=tmp_path / "in", outputs=tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", [0, 1])
@pytest.mark.parametrize("label", ["1", "foreground"])
def test_a_broken_file_does_not_stop_the_others(tmp_path: Path, broken: int, label: str) -> None:
    for case in range(3):
        put(tmp_path / "in", f"case_{case}", blobs(case))
    path = tmp_path / "in" / f"case_{broken}.nii.gz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(PartialError, match="1 of 3") as caught:
        autoseg.postprocess(inputs=tmp_path / "in", outputs=tmp_path / "out", keep_largest=label)
    assert path.name in caught.value.message
    made = sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz"))
    assert made == [f"case_{case}.nii.gz" for case in range(3) if case != broken]


def test_pictures_are_measured_in_pixels(tmp_path: Path) -> None:
    dataset = write_pictures(tmp_path, cases=1, test_cases=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = autoseg.postprocess(inputs=dataset / "labelsTr", outputs=tmp_path / "out", min_size=("1=100000",))
    assert read(report.written[0]).max() == 0
    report = autoseg.postprocess(inputs=dataset / "labelsTr", outputs=tmp_path / "out2", min_size=("1=100",))
    assert report.changed == {"case_00.png": 0}


def test_negative_integers_belong_to_the_whole_foreground(tmp_path: Path) -> None:
    label = np.zeros((3, 8, 8), np.int16)
    label[1, 1:4, 1:4], label[1, 4, 1:4], label[1, 7, 7] = 1, -3, -3
    put(tmp_path / "in", "case", label)
    manifest(tmp_path / "in", labels={"background": 0, "liver": 1, "lesion": -3})
    autoseg.postprocess(inputs=tmp_path / "in", outputs=tmp_path / "out", keep_largest="foreground")
    label[1, 7, 7] = 0
    np.testing.assert_array_equal(read(tmp_path / "out" / "case.nii.gz"), label)
