"""The public names, and how functions take their settings."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import autoseg
from autoseg.cli.commands import COMMANDS
from autoseg.cli.options import build_settings
from autoseg.errors import SettingError
from autoseg.schema.settings import EvaluateSettings, PredictSettings, PrepareSettings, TrainSettings

STAGES = (
    "fingerprint",
    "plan",
    "preprocess",
    "plan_and_preprocess",
    "train",
    "race",
    "predict",
    "evaluate",
    "architectures",
    "calibrate",
    "select",
    "ensemble",
    "postprocess",
    "import_dataset",
    "export",
    "install",
    "move_plan",
    "plot",
    "doctor",
)


def test_public_names_are_these() -> None:
    assert set(autoseg.__all__) == {
        *STAGES,
        "Predictor",
        "PrepareSettings",
        "TrainSettings",
        "RaceSettings",
        "PredictSettings",
        "EvaluateSettings",
        "ArchitecturesSettings",
        "CalibrateSettings",
        "SelectSettings",
        "EnsembleSettings",
        "PostprocessSettings",
        "ImportSettings",
        "ExportSettings",
        "InstallSettings",
        "MovePlanSettings",
        "PlotSettings",
        "DoctorSettings",
        "__version__",
    }


@pytest.mark.parametrize("name", autoseg.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(autoseg, name) is not None
    assert name in dir(autoseg)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = autoseg.nothing_like_this


@pytest.mark.parametrize("first", ["import autoseg.fingerprint", "from autoseg import fingerprint", "pass"])
def test_fingerprint_is_the_stage_whatever_was_imported_before(first: str) -> None:
    # The subpackage of the same name would hide the function once it has been imported.
    code = f"{first}\nimport autoseg\nassert autoseg.fingerprint.__module__ == 'autoseg.api', autoseg.fingerprint"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_documented_and_has_a_command(stage: str) -> None:
    assert inspect.getdoc(getattr(autoseg, stage))
    # "import" is a word of Python.
    assert stage.removesuffix("_dataset") in COMMANDS


@pytest.mark.parametrize("verb", COMMANDS)
def test_the_target_of_every_command_exists(verb: str) -> None:
    assert callable(COMMANDS[verb].load())


def test_keyword_arguments_take_what_people_write() -> None:
    made = build_settings(
        TrainSettings, {"dataset": 3, "fold": 0, "time_budget": "1h30m", "lr": 1, "workdir": Path("work")}
    )
    assert made == TrainSettings(dataset=("3",), fold=("0",), time_budget=5400.0, lr=1.0, workdir="work")
    assert type(made.lr) is float


def test_lists_become_tuples_and_sizes_are_read() -> None:
    made = build_settings(PrepareSettings, {"configurations": ["2d"], "patch_size": [8, 16, 16], "memory": "8GB"})
    assert made == PrepareSettings(configurations=("2d",), patch_size=(8, 16, 16), memory=8 * 10**9)
    assert build_settings(PrepareSettings, {"spacing": (1, 0.5, 0.5)}).spacing == (1.0, 0.5, 0.5)


def test_all_wrong_keywords_are_named_at_once() -> None:
    with pytest.raises(SettingError) as caught:
        build_settings(TrainSettings, {"epoch": 3, "lr": "much", "mirror": 1, "seed": True})
    message = str(caught.value)
    for part in (
        "'epoch'; did you mean 'epochs'?",
        "lr: 'much' is not a number",
        "mirror: 1 is not",
        "seed: True is not",
    ):
        assert part in message


def test_a_record_and_keywords_together_are_refused() -> None:
    with pytest.raises(SettingError, match="both a TrainSettings and epochs"):
        autoseg.train(TrainSettings(), epochs=3)


def test_the_wrong_record_is_refused() -> None:
    with pytest.raises(SettingError, match="is not a TrainSettings"):
        autoseg.train(PredictSettings(inputs="a", outputs="b"))


def test_what_the_command_line_requires_is_required_here_too() -> None:
    with pytest.raises(SettingError, match="outputs must be given"):
        autoseg.predict(inputs="in")


@pytest.mark.parametrize("kind", [PrepareSettings, TrainSettings, PredictSettings, EvaluateSettings])
def test_a_record_goes_through_keywords_unchanged(kind: type) -> None:
    record = kind()
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    assert build_settings(kind, fields) == record


@pytest.mark.parametrize(
    ("stage", "fields", "sentence"),
    [
        ("train", {"epochs": 0}, "epochs: 0 is too small"),
        ("train", {"lr": float("nan")}, "lr: nan is not a finite number"),
        ("train", {"lr": 0}, "lr: 0 is too small"),
        ("plan", {"spacing": (float("inf"), 1.0, 1.0)}, "spacing: inf is not a finite number"),
        ("evaluate", {"references": "a", "predictions": "b", "tolerance": -0.5}, "tolerance: -0.5 is too small"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(stage: str, fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        getattr(autoseg, stage)(**fields)
