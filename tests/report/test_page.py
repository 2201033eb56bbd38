from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the field's name
from matplotlib.image import imread

from autoseg import records
from autoseg.errors import RecordError
from autoseg.evaluation.metrics import case_scores, summarize
from autoseg.report import write_report
from autoseg.schema.dataset import CaseFiles, DatasetSpec, Label, Labels
from autoseg.schema.fingerprint import CaseFingerprint, ClassCount, Fingerprint, Intensities
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Architecture, Configuration, Cost, Normalization, Plan, Resampling, Topology
from autoseg.schema.report import CaseScores, RunReport

LABELS = Labels(foreground=(Label(name="<i>liver & co", values=(1,)), Label(name="tumour", values=(2,))))
VOID = {"meta", "img", "path"}


class Checked(HTMLParser):
    """Reads a page and remembers what it asks for and says; a tag that is not closed in order is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def write(path: Path, array: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return str(path)


def a_case(root: Path, model: ModelFolder, fold: int, name: str, shift: int) -> tuple[CaseFiles, CaseScores]:
    reference = np.zeros((4, 24, 24), np.uint8)
    reference[1:3, 6:16, 6:16] = 1
    reference[1, 8:10, 8:10] = 2
    prediction = np.roll(reference, shift, axis=2)
    image = write(root / "images" / f"{name}.nii.gz", (reference * 50).astype(np.int16))
    label = write(root / "labels" / f"{name}.nii.gz", reference)
    guess = write(model.fold(fold).validation / f"{name}.nii.gz", prediction)
    scores = case_scores(reference, prediction, LABELS, (1, 1, 1), id=name, reference_file=label, prediction_file=guess)
    return CaseFiles(id=name, images=(image,), label=label), scores


def a_plan() -> Plan:
    configuration = Configuration(
        name="3d_fullres",
        ndim=3,
        spacing=(1.0, 1.0, 1.0),
        median_shape=(4, 24, 24),
        patch_size=(4, 24, 24),
        batch_size=2,
        normalization=(Normalization(scheme="zscore"),),
        resampling=Resampling(),
        architecture=Architecture(name="unet"),
        topology=Topology(strides=((1, 1, 1), (1, 2, 2)), kernels=((1, 3, 3), (3, 3, 3)), features=(32, 64)),
        batch_dice=False,
        cost=Cost(parameters=1_200_000, memory_bytes=500_000_000, flops=10**10),
        why=("The patch holds whole images, because they are small.",),
    )
    return Plan(
        dataset="Dataset001_Test",
        device="cpu",
        memory_bytes=8 * 10**9,
        transpose=(0, 1, 2),
        channels=("CT",),
        labels=LABELS,
        configurations=(configuration,),
        why=("Axes stay as they are.",),
    )


def a_fingerprint(cases: list[CaseFiles]) -> Fingerprint:
    channel = Intensities(
        count=9, mean=55.5, std=1.0, minimum=0.0, maximum=100.0, median=50.0, percentile_00_5=1.0, percentile_99_5=99.0
    )
    measured = [
        CaseFingerprint(
            id=case.id,
            shape=(4, 24, 24),
            cropped_shape=(4, 24, 24),
            spacing=(1.0, 1.0, 1.0),
            classes=(
                ClassCount(name="<i>liver & co", voxels=5000 * number, components=1),
                ClassCount(name="tumour", voxels=0, components=0),
            ),
            intensities=(),
        )
        for number, case in enumerate(cases, start=1)
    ]
    return Fingerprint(dataset="Dataset001_Test", content_hash="", cases=tuple(measured), intensities=(channel,))


@pytest.fixture
def model(tmp_path: Path) -> ModelFolder:
    """Two folds with two validated cases each; the cases are shifted by 0 to 3 voxels."""
    model = ModelFolder(tmp_path / "model")
    cases = []
    for fold, shifts in enumerate(((0, 1), (2, 3))):
        made = [a_case(tmp_path, model, fold, f"case{shift}", shift) for shift in shifts]
        cases += [files for files, _ in made]
        records.save(model.fold(fold).summary, summarize([scores for _, scores in made], LABELS))
        history = [
            {
                "epoch": n,
                "train_loss": 1 / n,
                "val_loss": 1 / n,
                "dice": {"tumour": 0.5},
                "learning_rate": 0.01,
                "seconds": 1,
            }
            for n in (1, 2, 3)
        ]
        records.write_text(model.fold(fold).log, "".join(json.dumps(row) + "\n" for row in history))
        records.write_text(model.fold(fold).weights, "")
    spec = DatasetSpec(
        name="Dataset001_Test", channels=("CT",), labels=LABELS, file_ending=".nii.gz", cases=tuple(cases)
    )
    records.save(model.dataset, spec)
    records.save(model.plan, a_plan())
    records.save(model.fingerprint, a_fingerprint(cases))
    run = RunReport(
        command="autoseg_train -d 1 --epochs 3", settings={"configuration": "3d_fullres"}, versions={"torch": "9.8.7"}
    )
    records.save(model.run, run)
    return model


def page(model: ModelFolder) -> Checked:
    assert write_report(model) == model.report
    return Checked(model.report.read_text(encoding="utf-8"))


def test_the_page_is_whole_and_needs_nothing_else(model: ModelFolder) -> None:
    found = page(model)
    assert all(link.startswith("data:image/png;base64,") for link in found.links)
    assert not {"script", "link", "iframe"} & set(found.tags)
    pictures = [imread(io.BytesIO(base64.b64decode(link.partition(",")[2]))) for link in found.links]
    # Best, median and worst case, and the curves of two folds.
    assert len(pictures) == 5
    assert "http" not in model.report.read_text(encoding="utf-8").replace("http-equiv", "")


def test_the_page_says_what_the_records_say(model: ModelFolder) -> None:
    text = page(model).text
    # Shifting a 10 x 10 x 2 cuboid with a hole in it: what the scores of all four cases are is in the summaries.
    cases = [
        case for fold in (0, 1) for case in records.load(type(summarize([], LABELS)), model.fold(fold).summary).cases
    ]
    for index in range(2):
        mean = np.mean([case.classes[index].dice for case in cases])
        assert f"{mean:.3f}" in text
    assert "best: case0, Dice 1.000" in text
    assert "worst: case3" in text
    assert "median: case1" in text
    for sentence in (
        "<i>liver & co",
        "The patch holds whole images, because they are small.",
        "Axes stay as they are.",
        "autoseg_train -d 1 --epochs 3",
        "9.8.7",
        "1.2 million",
        "55.5",
        "12.5",  # median ml of 5, 10, 15 and 20
    ):
        assert sentence in text


def test_labels_absent_on_one_side_are_counted_apart(model: ModelFolder, tmp_path: Path) -> None:
    assert "Absent labels" not in page(model).text
    empty, tumour = np.zeros((2, 4, 24, 24), np.uint8)
    tumour[0, 0, 0] = 2
    scores = case_scores(empty, tumour, LABELS, (1, 1, 1), id="case0")
    records.save(model.fold(0).summary, summarize([scores], LABELS))
    text = page(model).text
    assert "Absent labels" in text
    assert "<i>liver & co 3 0 0 1 tumour 3 1 0 0" in text


def test_a_moved_model_still_shows_its_cases(model: ModelFolder, tmp_path: Path) -> None:
    moved = ModelFolder(tmp_path / "elsewhere" / "model")
    moved.root.parent.mkdir()
    model.root.rename(moved.root)
    assert len(page(moved).links) == 5


def test_without_images_the_page_says_so(model: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "images" / "case3.nii.gz").unlink()
    found = page(model)
    assert len(found.links) == 4
    assert "No picture" in found.text


def test_before_any_validation_there_are_facts_and_plan(model: ModelFolder) -> None:
    for fold in (0, 1):
        model.fold(fold).summary.unlink()
        model.fold(fold).log.unlink()
    model.fingerprint.unlink()
    found = page(model)
    assert "No fold has been validated yet." in found.text
    assert found.links == []
    assert "The patch holds whole images" in found.text


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"dataset\.json does not exist"):
        write_report(ModelFolder(tmp_path))
