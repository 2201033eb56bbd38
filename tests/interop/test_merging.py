"""Several datasets as one: every voxel keeps its name, and what nobody looked for is said case by case."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from autoseg.cli.main import main
from autoseg.errors import DatasetError, PartialError, SettingError
from autoseg.interop.collection import Collection, Entry
from autoseg.interop.merging import merge_collections
from autoseg.io.discover import read_dataset
from autoseg.io.verify import check_spec
from autoseg.io.volume import Volume
from autoseg.pipeline.importing import import_source
from autoseg.schema.dataset import DatasetSpec
from autoseg.schema.importing import ImportSettings
from tests.synthetic import write_manifest, write_pictures, write_volume

SHAPE = (4, 6, 5)
Write = Callable[..., Path]


def value_of(name: str, number: int) -> float:
    """Voxels of an image tell the case and the channel that they are of."""
    return float(sum(map(ord, name)) % 97 + 100 * number)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write("Dataset003_A", labels, cases={"c1": label array}, tests=..., channels=..., **dataset.json)``."""

    def make(
        name: str,
        labels: Mapping[str, object],
        *,
        cases: Mapping[str, np.ndarray],
        tests: Mapping[str, np.ndarray | None] | None = None,
        channels: tuple[str, ...] = ("CT",),
        ending: str = ".nii.gz",
        top: str = "sources",
        **more: object,
    ) -> Path:
        folder = tmp_path / top / name
        for part, group in (("Tr", cases), ("Ts", tests or {})):
            for case, label in group.items():
                for number, channel in enumerate(channels):
                    data = np.full(SHAPE, value_of(case + channel, number), np.float32)
                    data[0] = -1
                    write_volume(folder / f"images{part}" / f"{case}_{number:04d}{ending}", data)
                if label is not None:
                    write_volume(folder / f"labels{part}" / f"{case}{ending}", label)
        write_manifest(folder, channels=channels, labels=dict(labels), cases=len(cases), ending=ending, **more)
        return folder

    return make


@pytest.fixture
def merge(tmp_path: Path) -> Callable[..., Path]:
    def run(*sources: Path | str, name: str = "Dataset020_All", **given: object) -> Path:
        first, *others = map(str, sources)
        return import_source(
            ImportSettings(source=first, merge=tuple(others), name=name, workdir=str(tmp_path / "work"), **given)
        )

    return run


def some(seed: int, *values: int) -> np.ndarray:
    return np.random.default_rng(seed).choice([0, *values], SHAPE).astype(np.int16)


def read(path: str | Path | None) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def by_name(label: np.ndarray, labels: Mapping[str, object]) -> dict[str, np.ndarray]:
    return {name: np.isin(label, values) for name, values in labels.items() if name != "background"}


def labels_in(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "dataset.json").read_text())["labels"]
    return found


def check(spec: DatasetSpec, folder: Path, sources: Mapping[str, tuple[Path, Mapping[str, object]]]) -> None:
    """Every case of every source is there, each of its voxels under the names that it had."""
    assert not check_spec(spec)
    united = labels_in(folder)
    seen = 0
    for case in spec.cases:
        prefix, id_ = case.id.split("_", 1)
        source, own = sources[prefix]
        before = by_name(read(source / "labelsTr" / f"{id_}.nii.gz"), own)
        after = by_name(read(case.label), united)
        for name, mask in before.items():
            np.testing.assert_array_equal(after[name], mask)
        for name in after.keys() - before.keys():
            assert not (after[name] & ~np.logical_or.reduce(list(before.values()))).any()
        seen += 1
    assert seen == sum(len(list((source / "labelsTr").iterdir())) for source, _ in sources.values())


def test_labels_are_united_by_name_and_unseen_ones_are_named(write: Write, merge: Callable[..., Path]) -> None:
    a = {"background": 0, "liver": 1, "spleen": 7}
    b = {"background": 0, "kidney": 1, "liver": 2}
    first = write("Dataset003_A", a, cases={"c1": some(0, 1, 7), "c2": some(1, 1)})
    second = write("Dataset004_B", b, cases={"c1": some(2, 1, 2)}, tests={"t1": some(3, 1, 2), "t2": None})
    folder = merge(first, second)
    content = json.loads((folder / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "liver": 1, "spleen": 7, "kidney": 8}
    assert content["annotated"] == {
        **{f"A_{case}": ["liver", "spleen"] for case in ("c1", "c2")},
        **{f"B_{case}": ["kidney", "liver"] for case in ("c1", "t1")},
    }
    spec = read_dataset(folder)
    assert [case.id for case in spec.cases] == ["A_c1", "A_c2", "B_c1"]
    check(spec, folder, {"A": (first, a), "B": (second, b)})
    held_out = read(folder / "labelsTs" / "B_t1.nii.gz")
    np.testing.assert_array_equal(held_out, np.array([0, 8, 1])[some(3, 1, 2)])
    assert sorted(path.name for path in (folder / "imagesTs").iterdir()) == ["B_t1_0000.nii.gz", "B_t2_0000.nii.gz"]


def test_what_a_source_says_of_its_cases_stays(write: Write, merge: Callable[..., Path]) -> None:
    labels = {"background": 0, "liver": 1, "spleen": 2}
    first = write("A", labels, cases={"c1": some(0, 1), "c2": some(1, 1, 2)}, annotated={"c1": ["liver"]})
    second = write("B", labels, cases={"c1": some(2, 1, 2)}, licence="CC0")
    content = json.loads((merge(first, second) / "dataset.json").read_text())
    assert content["annotated"] == {"A_c1": ["liver"]}
    assert content["merged_from"]["B"]["licence"] == "CC0"


def test_regions_and_ignored_voxels(write: Write, merge: Callable[..., Path]) -> None:
    a = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": 3}
    b = {"background": 0, "liver": 1, "whole": [2, 3], "dead": 3}
    first = write("A", {**a, "ignore": 9}, cases={"c1": some(0, 1, 2, 3, 9)}, regions_class_order=[1, 2, 3])
    second = write("B", {**b, "ignore": 4}, cases={"c1": some(1, 1, 2, 3, 4)}, regions_class_order=[1, 2, 3])
    folder = merge(first, second)
    spec = read_dataset(folder)
    check(spec, folder, {"A": (first, {**a, "ignore": 9}), "B": (second, {**b, "ignore": 4})})
    united = labels_in(folder)
    # Of B, 2 is only whole, as 1 of A is; nothing in A is a liver, or dead.
    assert united == {
        "background": 0,
        "whole": [1, 2, 3, 5],
        "core": [2, 3],
        "tip": 3,
        "liver": 4,
        "dead": 5,
        "ignore": 9,
    }
    assert spec.labels.regions_class_order == (1, 2, 3, 4, 5)
    # A voxel of A that is only whole may be dead; one of B that is only whole may be core or tip.
    candidates = {case.id: spec.labels.candidates(case.annotated or ()) for case in spec.cases}
    place = spec.labels.leaves.index
    assert set(candidates["A_c1"][place(1)]) == {place(1), place(5)}
    assert set(candidates["B_c1"][place(1)]) == {place(1), place(2), place(3)}


def test_what_is_alone_here_and_inside_of_a_region_there_is_one_label(write: Write, merge: Callable[..., Path]) -> None:
    a = {"background": 0, "tumour": 1}
    b = {"background": 0, "organ": [1, 2], "tumour": 2}
    first = write("A", a, cases={"c1": some(0, 1)})
    second = write("B", b, cases={"c1": some(1, 1, 2)}, regions_class_order=[1, 2])
    folder = merge(first, second)
    spec = read_dataset(folder)
    check(spec, folder, {"A": (first, a), "B": (second, b)})
    # In B a tumour is written over the organ that it is in.
    assert spec.labels.names == ("organ", "tumour")
    assert spec.labels.regions_class_order == (3, 1)
    tumour = set(spec.labels.foreground[1].values)
    assert len(tumour) == 2
    # A tumour of A may lie in an organ or not, as nobody looked for organs there.
    cases = {case.id: case for case in spec.cases}
    ids = {spec.labels.leaves.index(value) for value in tumour}
    assert set(spec.labels.candidates(cases["A_c1"].annotated or ())[min(ids)]) == ids


def test_a_region_comes_after_those_that_it_lies_in(write: Write, merge: Callable[..., Path]) -> None:
    a = {"background": 0, "whole": [1, 2, 3], "core": [2, 3]}
    b = {"background": 0, "whole": [1, 2, 3, 4], "mid": [2, 3, 4], "core": [3, 4]}
    first = write("A", a, cases={"c1": some(0, 1, 2, 3)}, regions_class_order=[1, 2])
    second = write("B", b, cases={"c1": some(1, 1, 2, 3, 4)}, regions_class_order=[1, 2, 3])
    folder = merge(first, second)
    spec = read_dataset(folder)
    check(spec, folder, {"A": (first, a), "B": (second, b)})
    assert spec.labels.names == ("whole", "mid", "core")
    assert len(set(spec.labels.regions_class_order or ())) == 3
    contents = [set(label.values) for label in spec.labels.foreground]
    assert contents[0] > contents[1]
    assert contents[0] > contents[2]


def test_regions_that_sources_write_over_one_another_in_different_orders_are_refused(
    write: Write, merge: Callable[..., Path]
) -> None:
    first = write(
        "A", {"background": 0, "a": [1, 2], "b": [2, 3]}, cases={"c1": some(0, 1, 2, 3)}, regions_class_order=[1, 3]
    )
    second = write(
        "B", {"background": 0, "b": [2, 3], "a": [1, 2]}, cases={"c1": some(1, 1, 2, 3)}, regions_class_order=[3, 1]
    )
    with pytest.raises(DatasetError, match='"a" and "b" are written over one another in different orders'):
        merge(first, second)


def test_no_two_regions_of_different_sources_are_written_alike(write: Write, merge: Callable[..., Path]) -> None:
    a = {"background": 0, "whole": [1, 2], "tip": 2, "left": 3, "right": 4}
    b = {"background": 0, "liver": [1, 2], "dead": 2}
    first = write("A", a, cases={"c1": some(0, 1, 2, 3, 4)}, regions_class_order=[10, 11, 20, 20])
    second = write("B", b, cases={"c1": some(1, 1, 2)}, regions_class_order=[10, 11])
    labels = read_dataset(merge(first, second)).labels
    order = dict(zip(labels.names, labels.regions_class_order or (), strict=True))
    assert [order[name] for name in ("whole", "tip", "left", "right")] == [10, 11, 20, 20]
    assert len(set(order.values())) == 5
    assert not {order["liver"], order["dead"]} & {0, *labels.leaves}


def test_an_integer_that_is_free_is_kept(write: Write, merge: Callable[..., Path]) -> None:
    a, b = {"background": 0, "liver": 1}, {"background": 0, "kidney": 1, "spleen": 2}
    first = write("A", a, cases={"c1": some(0, 1)})
    second = write("B", b, cases={"c1": some(1, 1, 2)})
    folder = merge(first, second)
    assert labels_in(folder) == {"background": 0, "liver": 1, "kidney": 3, "spleen": 2}
    check(read_dataset(folder), folder, {"A": (first, a), "B": (second, b)})


def test_pictures_and_volumes_are_not_one_dataset(write: Write, merge: Callable[..., Path], tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path, name="B", cases=2, test_cases=0, colour=False)
    volumes = write("A", {"background": 0, "disc": 1}, cases={"c1": some(0, 1)}, channels=("grey",))
    with pytest.raises(DatasetError, match=r"B has pictures \(2D\), A has volumes \(3D\)"):
        merge(volumes, pictures)
    more = write_pictures(tmp_path, name="C", cases=2, test_cases=0, colour=False, seed=1)
    assert len(read_dataset(merge(pictures, more)).cases) == 4


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., Path]:
    """``task("T2", "ADC")``: a task of the Decathlon with these channels on the fourth axis of its images."""

    def make(*channels: str) -> Path:
        folder = tmp_path / "decathlon" / "Task07_Organ"
        (folder / "imagesTr").mkdir(parents=True)
        parts = [np.full(SHAPE, value_of(name, 0), np.float32) for name in channels]
        image = sitk.JoinSeries([sitk.GetImageFromArray(part) for part in parts])
        sitk.WriteImage(image, str(folder / "imagesTr" / "o1.nii.gz"))
        write_volume(folder / "labelsTr" / "o1.nii.gz", some(5, 1, 2))
        content = {
            "modality": {str(number): name for number, name in enumerate(channels)},
            "labels": {"0": "background", "1": "tumour", "2": "organ"},
            "numTraining": 1,
            "training": [{"image": "./imagesTr/o1.nii.gz", "label": "./labelsTr/o1.nii.gz"}],
        }
        (folder / "dataset.json").write_text(json.dumps(content))
        return folder

    return make


def test_a_task_of_the_decathlon_may_be_a_source(
    write: Write, merge: Callable[..., Path], task: Callable[..., Path]
) -> None:
    first = write("A", {"background": 0, "organ": 1}, cases={"c1": some(0, 1)}, channels=("T2", "ADC"))
    folder = merge(first, task("T2", "ADC"))
    spec = read_dataset(folder)
    assert [case.id for case in spec.cases] == ["A_c1", "Task07_Organ_o1"]
    shown = [read(path).max() for path in spec.cases[1].images]
    assert shown == [value_of("T2", 0), value_of("ADC", 0)]
    assert labels_in(folder) == {"background": 0, "organ": 1, "tumour": 2}
    np.testing.assert_array_equal(read(spec.cases[1].label), np.array([0, 2, 1])[some(5, 1, 2)])


def test_channels_in_another_order_inside_of_a_file_are_refused(
    write: Write, merge: Callable[..., Path], task: Callable[..., Path]
) -> None:
    first = write("A", {"background": 0, "organ": 1}, cases={"c1": some(0, 1)}, channels=("T2", "ADC"))
    with pytest.raises(DatasetError, match="Task07_Organ has its channels in another order, inside of its files"):
        merge(first, task("ADC", "T2"))


def test_what_is_read_from_dicom_is_refused() -> None:
    def never() -> tuple[Volume, Volume | None]:
        raise AssertionError("read")

    series = Collection(
        name="Series", channels=("CT",), labels={"background": 0, "liver": 1}, entries=(Entry(id="x", read=never),)
    )
    with pytest.raises(DatasetError, match="Series is read from DICOM"):
        merge_collections([series, replace(series, name="Other")], "Both")


def test_channels_are_put_in_the_order_of_the_first(write: Write, merge: Callable[..., Path]) -> None:
    labels = {"background": 0, "liver": 1}
    first = write("A", labels, cases={"c1": some(0, 1)}, channels=("T1", "FLAIR"))
    second = write("B", labels, cases={"c1": some(1, 1)}, channels=("flair", "T1"))
    spec = read_dataset(merge(first, second))
    assert spec.channels == ("T1", "FLAIR")
    shown = {case.id: [read(path).max() for path in case.images] for case in spec.cases}
    assert shown["A_c1"] == [value_of("c1T1", 0), value_of("c1FLAIR", 1)]
    assert shown["B_c1"] == [value_of("c1T1", 1), value_of("c1flair", 0)]


def test_files_are_linked_where_they_can_be_and_other_formats_are_converted(
    write: Write, merge: Callable[..., Path]
) -> None:
    first = write("A", {"background": 0, "liver": 1}, cases={"c1": some(0, 1)})
    second = write("B", {"background": 0, "kidney": 1}, cases={"c1": some(1, 1)})
    third = write("C", {"background": 0, "spleen": 3}, cases={"c1": some(2, 3)}, ending=".nrrd")
    folder = merge(first, second, third, link=True)
    spec = read_dataset(folder)
    linked = {case.id: (Path(case.images[0]).is_symlink(), Path(case.label or "").is_symlink()) for case in spec.cases}
    # B's labels get other integers, and C is in another format.
    assert linked["A_c1"] == (True, True)
    assert linked["B_c1"] == (True, False)
    np.testing.assert_array_equal(read(spec.cases[1].label), np.array([0, 4])[some(1, 1)])
    np.testing.assert_array_equal(read(spec.cases[2].label), some(2, 3))
    assert read_dataset(first).cases[0].label == str(first / "labelsTr" / "c1.nii.gz")
    np.testing.assert_array_equal(read(second / "labelsTr" / "c1.nii.gz"), some(1, 1))


def test_a_list_of_paths_may_be_a_source(write: Write, merge: Callable[..., Path], tmp_path: Path) -> None:
    first = write("A", {"background": 0, "liver": 1}, cases={"c1": some(0, 1)})
    other = write("B", {"background": 0, "any": 1}, cases={"c1": some(1, 1)})
    rows = [{"case": "x", "image": str(other / "imagesTr/c1_0000.nii.gz"), "label": str(other / "labelsTr/c1.nii.gz")}]
    content = {"channels": ["CT"], "labels": {"background": 0, "kidney": 1}, "cases": rows}
    (tmp_path / "list.json").write_text(json.dumps(content))
    folder = merge(first, tmp_path / "list.json")
    spec = read_dataset(folder)
    assert [(case.id, case.annotated) for case in spec.cases] == [("A_c1", ("liver",)), ("list_x", ("kidney",))]
    np.testing.assert_array_equal(read(spec.cases[1].label), np.array([0, 2])[some(1, 1)])


def test_all_contradictions_are_listed_together_and_nothing_is_written(
    write: Write, merge: Callable[..., Path], tmp_path: Path
) -> None:
    one = write(
        "Dataset003_A",
        {"background": 0, "whole": [1, 2], "tip": 2, "Liver": 3},
        cases={"c1": some(0, 1, 2, 3)},
        regions_class_order=[1, 2, 3],
    )
    two = write("B", {"background": 0, "whole": 1, "liver": 2}, cases={"c1": some(1, 1, 2)}, channels=("MR",))
    # The same name in another place.
    three = write("Dataset003_A", {"background": 0, "tip": 1}, cases={"c1": some(2, 1)}, top="elsewhere")
    with pytest.raises(DatasetError) as caught:
        merge(one, two, three)
    for words in (
        '"whole" is a region in Dataset003_A and a label with one integer in B',
        '"Liver" and "liver" differ only',
        "Dataset003_A has the channels CT, B has MR",
        "several cases would have the same name: Dataset003_A_c1",
    ):
        assert words in caught.value.message
    assert not (tmp_path / "work").exists()


def test_datasets_of_the_same_short_name_keep_their_whole_one(write: Write, merge: Callable[..., Path]) -> None:
    labels = {"background": 0, "liver": 1}
    first = write("Dataset003_A", labels, cases={"c1": some(0, 1)})
    second = write("Dataset004_A", labels, cases={"c1": some(1, 1)})
    assert [case.id for case in read_dataset(merge(first, second)).cases] == ["Dataset003_A_c1", "Dataset004_A_c1"]


def test_what_was_stopped_goes_on_and_other_sources_are_refused(
    write: Write, merge: Callable[..., Path], tmp_path: Path
) -> None:
    first = write("A", {"background": 0, "liver": 1}, cases={"c1": some(0, 1), "c2": some(1, 1)})
    second = write("B", {"background": 0, "kidney": 1}, cases={"c1": some(2, 1), "c2": some(3, 1)})
    good = (second / "imagesTr" / "c2_0000.nii.gz").read_bytes()
    (second / "labelsTr" / "c1.nii.gz").rename(tmp_path / "kept")
    with pytest.raises(DatasetError, match="cannot be imported as it is"):
        merge(first, second)
    (tmp_path / "kept").rename(second / "labelsTr" / "c1.nii.gz")
    folder = merge(first, second)
    (folder / "dataset.json").unlink()
    (folder / "labelsTr" / "B_c2.nii.gz").unlink()
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}
    assert merge(first, second) == folder
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert (second / "imagesTr" / "c2_0000.nii.gz").read_bytes() == good
    assert len(read_dataset(folder).cases) == 4
    third = write("C", {"background": 0, "liver": 2}, cases={"c1": some(4, 2)})
    before = sorted(folder.rglob("*"))
    with pytest.raises(SettingError, match="a merge of other sources"):
        merge(third, second)
    assert sorted(folder.rglob("*")) == before


def test_a_case_that_fails_can_be_left_out(write: Write, merge: Callable[..., Path]) -> None:
    first = write("A", {"background": 0, "liver": 1}, cases={"c1": some(0, 1)})
    cases, labels = {"c1": some(1, 1), "c2": some(2, 1, 5), "c3": some(3, 1)}, {"background": 0, "kidney": 1}
    second = write("B", labels, cases=cases)
    with pytest.raises(PartialError, match="holds 5, which dataset"):
        merge(first, second)
    for path in (second / "imagesTr" / "c2_0000.nii.gz", second / "labelsTr" / "c2.nii.gz"):
        path.unlink()
    write_manifest(second, channels=("CT",), labels=labels, cases=2, ending=".nii.gz")
    folder = merge(first, second)
    spec = read_dataset(folder)
    assert [case.id for case in spec.cases] == ["A_c1", "B_c1", "B_c3"]
    check(spec, folder, {"A": (first, {"liver": 1}), "B": (second, {"kidney": 1})})


def test_a_merge_that_was_stopped_is_no_place_for_another_dataset(write: Write, merge: Callable[..., Path]) -> None:
    first = write("A", {"background": 0, "liver": 1}, cases={"c1": some(0, 1)})
    second = write("B", {"background": 0, "kidney": 1}, cases={"c1": some(1, 1)})
    folder = merge(first, second)
    (folder / "dataset.json").unlink()
    before = sorted(folder.rglob("*"))
    with pytest.raises(SettingError, match="holds another dataset"):
        merge(write("C", {"background": 0, "liver": 1}, cases={"c1": some(2, 1)}))
    assert sorted(folder.rglob("*")) == before


def test_a_label_follows_its_source(write: Write, merge: Callable[..., Path]) -> None:
    labels = {"background": 0, "kidney": 1}
    first = write("A", {"background": 0, "liver": 1}, cases={"c1": some(0, 1)})
    second = write("B", labels, cases={"c1": some(1, 1)})
    folder = merge(first, second)
    written = folder / "labelsTr" / "B_c1.nii.gz"
    np.testing.assert_array_equal(read(written), np.array([0, 2])[some(1, 1)])
    write_volume(second / "labelsTr" / "c1.nii.gz", some(2, 1))
    merge(first, second)
    np.testing.assert_array_equal(read(written), np.array([0, 2])[some(2, 1)])
    # Stopped, and then another source of that name.
    (folder / "dataset.json").unlink()
    other = write("B", labels, cases={"c1": some(3, 1)}, top="elsewhere")
    merge(first, other)
    np.testing.assert_array_equal(read(written), np.array([0, 2])[some(3, 1)])


def test_cases_are_called_as_their_source_is_called_here(
    write: Write, merge: Callable[..., Path], tmp_path: Path
) -> None:
    first = write("store_17", {"background": 0, "liver": 1}, cases={"c1": some(0, 1)})
    second = write("B", {"background": 0, "kidney": 1}, cases={"c1": some(1, 1)})
    (tmp_path / "work" / "raw").mkdir(parents=True)
    (tmp_path / "work" / "raw" / "Dataset003_Liver").symlink_to(first)
    assert [case.id for case in read_dataset(merge("3", second)).cases] == ["B_c1", "Liver_c1"]
    with pytest.raises(SettingError, match="given twice"):
        merge("3", first)


def test_names_of_the_labels_of_a_list_of_paths_lie_in_a_file(
    write: Write, merge: Callable[..., Path], tmp_path: Path
) -> None:
    first = write("A", {"background": 0, "liver": 1}, cases={"c1": some(0, 1)})
    other = write("B", {"background": 0, "any": 1}, cases={"c1": some(1, 1)})
    (tmp_path / "list.csv").write_text(f"image,label\n{other}/imagesTr/c1_0000.nii.gz,{other}/labelsTr/c1.nii.gz\n")
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"labels": {"background": 0, "kidney": 1}}))
    folder = merge(first, tmp_path / "list.csv", channels=("CT",), labels=str(names), name="Dataset021_Named")
    assert labels_in(folder) == {"background": 0, "liver": 1, "kidney": 2}
    names.write_text(json.dumps({"labels": ["kidney"]}))
    for sources in ([first, tmp_path / "list.csv"], [tmp_path / "list.csv"]):
        with pytest.raises(DatasetError, match=r'"labels" in .*names\.json must map names to integers'):
            merge(*sources, channels=("CT",), labels=str(names))


def test_settings_that_say_nothing_of_a_dataset_are_refused(
    write: Write, merge: Callable[..., Path], write_peer: Callable[..., Path], tmp_path: Path
) -> None:
    first = write("A", {"background": 0, "liver": 1}, cases={"c1": some(0, 1)})
    second = write("B", {"background": 0, "kidney": 1}, cases={"c1": some(1, 1)})
    model = write_peer(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres")
    for sources, given, shown in (
        ([first, second], {"configuration": "3d_fullres"}, "-c chooses between models"),
        ([first], {"configuration": "3d_fullres"}, "-c chooses between models"),
        ([first, second], {"name": ""}, "'' cannot be the name"),
        ([first], {"name": " - "}, "' - ' cannot be the name"),
        ([first, model], {}, "models of nnU-Net cannot be merged"),
        ([model, first], {}, "models of nnU-Net cannot be merged"),
    ):
        with pytest.raises(SettingError, match=shown):
            merge(*sources, **given)
    assert not (tmp_path / "work").exists()


def test_by_number_on_the_command_line(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = {"background": 0, "liver": 1}
    write("Dataset003_A", labels, cases={"c1": some(0, 1)}, top="work/raw")
    write("Dataset004_B", {"background": 0, "kidney": 1}, cases={"c1": some(1, 1)}, top="work/raw")
    words = ["import", "-i", "3", "--workdir", str(tmp_path / "work"), "--quiet"]
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--merge", "4", "--name", "Both"]) == 0
    assert [case.id for case in read_dataset(tmp_path / "work" / "raw" / "Dataset005_Both").cases] == ["A_c1", "B_c1"]
    for wrong, shown in (
        (["--merge", "4"], "has no name"),
        (["--merge", "3", "--name", "Both"], "given twice"),
        (["--merge", "9", "--name", "Both"], "no dataset '9'"),
        (["--merge", "4", "--name", "Dataset003_A"], "holds another dataset"),
    ):
        assert main([*words, *wrong]) == 2
        assert shown in capsys.readouterr().err
