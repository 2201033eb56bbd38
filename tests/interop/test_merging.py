"""Several datasets as one: every voxel keeps its name, and what nobody looked for is said case by case."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from autoseg.cli.main import main
from autoseg.errors import DatasetError, PartialError, SettingError
from autoseg.io.discover import read_dataset
from autoseg.io.verify import check_spec
from autoseg.pipeline.importing import import_source
from autoseg.schema.dataset import DatasetSpec
from autoseg.schema.importing import ImportSettings
from tests.synthetic import write_manifest, write_volume

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
    np.testing.assert_array_equal(read(spec.cases[1].label), np.array([0, 2])[some(1, 1)])
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


def test_integers_that_nobody_named_fail_their_case(write: Write, merge: Callable[..., Path]) -> None:
    first = write("A", {"background": 0, "liver": 1}, cases={"c1": some(0, 1)})
    second = write("B", {"background": 0, "kidney": 1}, cases={"c1": some(1, 1)}, tests={"t1": some(2, 1, 5)})
    with pytest.raises(PartialError, match="holds 5, which dataset"):
        merge(first, second)


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
