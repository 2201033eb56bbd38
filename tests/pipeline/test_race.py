"""A race on generated pictures: everyone has the same folds and time, nothing is done twice, the winner is the plan."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import autoseg
from autoseg import records
from autoseg.errors import DatasetError, DivergenceError, SettingError, StoppedError
from autoseg.pipeline.alternative import adopt, plan_for
from autoseg.pipeline.prepare import load_plan
from autoseg.schema.folders import RaceFolder, Workspace
from autoseg.schema.plan import Plan
from autoseg.schema.report import EvaluationReport, FoldRun, RaceReport
from autoseg.schema.settings import PrepareSettings
from tests.synthetic import write_pictures

NAME = "Dataset008_Pictures"
# Networks of another package, which go wrong in the two ways that a race must survive.
PLUGIN = """
from dataclasses import replace
from autoseg.nets.unet import UNet
from autoseg.schema.architecture import Recipe

class Exploding(UNet):
    traits = replace(UNet.traits, recipe=Recipe(lr=1e30))

class Solid(UNet):
    traits = replace(UNet.traits, ndims=(3,))
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """``exploding`` and ``bursting`` diverge, ``solid`` and ``massive`` are for 3D only; installed like a package."""
    site = tmp_path_factory.mktemp("site")
    (site / "race_nets.py").write_text(PLUGIN)
    info = site / "race_nets-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: race_nets\nVersion: 1.0\n")
    nets = {"exploding": "Exploding", "bursting": "Exploding", "solid": "Solid", "massive": "Solid"}
    lines = [f"{name} = race_nets:{kind}\n" for name, kind in nets.items()]
    (info / "entry_points.txt").write_text("[autoseg.nets]\n" + "".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        yield


def prepare(workdir: Path, **settings: object) -> Plan:
    common = {"dataset": "8", "workdir": str(workdir), "workers": 0, "device": "cpu", "memory": "1GB", "quiet": True}
    plan: Plan = autoseg.plan_and_preprocess(**{**common, **settings})
    return plan


def race(workdir: Path, *arch: str, **settings: object) -> RaceReport:
    short = {"dataset": "8", "workdir": str(workdir), "time_budget": "2s", "device": "cpu", "workers": 0}
    report: RaceReport = autoseg.race(arch=arch or ("unet", "nonewnet"), **{**short, **settings})
    return report


def folder_of(workdir: Path) -> RaceFolder:
    return Workspace(workdir).race(NAME)


def label(plan: Plan) -> str:
    return plan.configuration(plan.default_configuration).architecture.label


def weights(workdir: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder_of(workdir).root.rglob("weights.safetensors")}


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planned for an architecture that takes no part in the races."""
    workdir = tmp_path_factory.mktemp("planned")
    write_pictures(workdir / "raw", cases=6, test_cases=0, colour=False)
    prepare(workdir, arch="segresnet_vae:plain")
    return workdir


@pytest.fixture
def workdir(planned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(planned, tmp_path / "work"))


@pytest.fixture(scope="module")
def finished(planned: Path, plugin: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RaceReport]:
    """A race of four: one cannot be planned, one diverges, two run two rounds."""
    workdir = Path(shutil.copytree(planned, tmp_path_factory.mktemp("finished") / "work"))
    return workdir, race(workdir, "unet", "solid", "nonewnet", "exploding")


def test_who_cannot_be_planned_or_diverges_is_out_and_the_race_goes_on(finished: tuple[Path, RaceReport]) -> None:
    _, report = finished
    assert set(report.failures) == {"solid", "exploding"}
    assert report.failures["solid"] == "solid needs images with more than one slice"
    assert "round 1: the training loss became" in report.failures["exploding"]
    assert report.rounds[0].entrants == ("unet", "nonewnet", "exploding")
    assert sorted(report.rounds[1].entrants) == ["nonewnet", "unet"]
    assert {place.arch for place in report.ranking} == {"unet", "nonewnet"}


def test_rounds_have_the_same_time_and_models_of_later_rounds_replace_earlier_ones(
    finished: tuple[Path, RaceReport],
) -> None:
    workdir, report = finished
    first, second = report.rounds
    assert 3 * first.seconds == pytest.approx(2 * second.seconds)
    assert 3 * first.seconds + 2 * second.seconds <= 2.0 + 1e-9
    made = {path.parent.parent.relative_to(folder_of(workdir).root).as_posix() for path in weights(workdir)}
    assert made == {"round_2/unet_2d", "round_2/nonewnet_2d"}
    assert {place.model for place in report.ranking} == made
    for place in report.ranking:
        run = records.load(FoldRun, folder_of(workdir).root / place.model / "fold_0" / "fold.json")
        assert (run.steps, run.seconds, run.budget) == (place.steps, place.seconds, second.seconds)


def test_scores_are_those_of_the_same_validation_cases(finished: tuple[Path, RaceReport]) -> None:
    workdir, report = finished
    splits = json.loads(Workspace(workdir).prepared(NAME).splits.read_text())
    for training in report.rounds[1].trainings:
        assert sorted(training.dice) == sorted(splits["folds"][0]["val"])
        model = folder_of(workdir).model(2, "2d", training.arch)
        summary = records.load(EvaluationReport, model.fold(0).summary)
        assert sum(training.dice.values()) / len(training.dice) == pytest.approx(summary.foreground_dice)
    best = max(report.rounds[1].trainings, key=lambda item: sum(item.dice.values()))
    assert report.ranking[0].arch == best.arch


def test_ordinary_models_are_untouched_and_the_result_is_on_disk(finished: tuple[Path, RaceReport]) -> None:
    workdir, report = finished
    assert [path.name for path in (Workspace(workdir).results / NAME).iterdir()] == ["race"]
    assert records.load(RaceReport, folder_of(workdir).report) == report
    lines = folder_of(workdir).table.read_text().splitlines()
    assert [line.split(",")[1] for line in lines[1:]] == [*(place.arch for place in report.ranking), *report.failures]


def test_the_winner_is_the_plan_and_stays_it(finished: tuple[Path, RaceReport], tmp_path: Path) -> None:
    workdir, report = finished
    winner = report.ranking[0].arch
    copy = Path(shutil.copytree(workdir, tmp_path / "work"))
    plan = load_plan(Workspace(copy).prepared(NAME), PrepareSettings(device="cpu"))
    assert label(plan) == winner
    assert plan.why[0].startswith(f"{winner}: won a race on 2 cases")
    assert prepare(copy) == plan
    assert prepare(copy, arch=winner) == plan


def test_the_same_command_again_trains_nothing(finished: tuple[Path, RaceReport]) -> None:
    workdir, report = finished
    before = weights(workdir)
    assert race(workdir, "unet", "solid", "nonewnet", "exploding") == report
    assert race(workdir, "nonewnet", "unet", "exploding", "solid", adopt=False) == report
    assert weights(workdir) == before


def test_other_arguments_are_refused_by_name(finished: tuple[Path, RaceReport]) -> None:
    workdir, _ = finished
    with pytest.raises(SettingError) as caught:
        race(workdir, "unet", "nonewnet", time_budget="1h", fold="1")
    for part in ("--arch was unet solid nonewnet exploding and is unet nonewnet now", "--fold was 0 and is 1 now"):
        assert part in caught.value.message
    assert "--time-budget was 2 s and is 1 h 00 min now" in caught.value.message
    assert "--seed" not in caught.value.message
    assert "--clean" in caught.value.hint


def test_another_plan_is_refused(finished: tuple[Path, RaceReport], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished[0], tmp_path / "work"))
    prepare(copy, arch="vnet")
    with pytest.raises(SettingError, match="the plan of the dataset changed since"):
        race(copy, "unet", "solid", "nonewnet", "exploding")


def stop_in(workdir: Path, arch: str) -> threading.Thread:
    """A person who creates STOP as soon as ``arch`` is being trained."""

    def watch() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not folder_of(workdir).model(1, "2d", arch).run.exists():
            time.sleep(0.005)
        folder_of(workdir).stop_file.touch()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_stopped_in_the_second_training_it_goes_on_there(workdir: Path) -> None:
    person = stop_in(workdir, "nonewnet")
    with pytest.raises(StoppedError, match="the race was stopped: ") as caught:
        race(workdir, clean=True)
    person.join()
    assert caught.value.hint.endswith("without --clean")
    state = records.load(RaceReport, folder_of(workdir).report)
    assert [item.arch for item in state.rounds[0].trainings] == ["unet"]
    assert state.ranking == ()
    before = weights(workdir)
    report = race(workdir, adopt=False)
    after = weights(workdir)
    unet = folder_of(workdir).model(1, "2d", "unet").fold(0).weights
    assert before[unet] == after[unet]
    assert report.rounds[0].trainings[0] == state.rounds[0].trainings[0]
    assert {place.arch for place in report.ranking} == {"unet", "nonewnet"}
    # --no-adopt
    assert report.adopted == ""
    assert label(load_plan(Workspace(workdir).prepared(NAME), PrepareSettings(device="cpu"))) == "segresnet_vae:plain"


def test_if_everyone_fails_it_is_an_error_and_tried_again(workdir: Path, plugin: None) -> None:
    for _ in range(2):
        with pytest.raises(DivergenceError, match="no architecture finished round 1") as caught:
            race(workdir, "exploding", "bursting")
        assert "exploding: round 1" in caught.value.message
        assert "bursting: round 1" in caught.value.message
        assert records.load(RaceReport, folder_of(workdir).report).rounds[0].trainings == ()


@pytest.mark.parametrize(
    ("arch", "settings", "sentence"),
    [
        (("unet", "unett"), {}, "there is no architecture called 'unett'"),
        (("unet", "segresnet_vae:tiny"), {}, "segresnet_vae has no preset 'tiny'"),
        (("unet",), {}, "a race needs two architectures, and only unet was named"),
        (("unet", "auto"), {}, "a race needs two architectures, and only unet was named"),
        (("unet", "nonewnet"), {"fold": "all"}, "fold all has none"),
        (("unet", "nonewnet"), {"fold": "7"}, "there is no fold 7"),
        (("unet", "nonewnet"), {"configuration": "4d"}, "has no configuration '4d'"),
        (("unet", "nonewnet"), {"time_budget": 0}, "time_budget: 0 is too small"),
        (("unet", "nonewnet"), {"time_budget": None}, "time_budget must be given"),
    ],
)
def test_a_mistake_is_one_sentence_before_any_training(
    workdir: Path, arch: tuple[str, ...], settings: dict[str, object], sentence: str
) -> None:
    with pytest.raises(SettingError) as caught:
        race(workdir, *arch, **settings)
    assert sentence in caught.value.message
    assert "\n" not in caught.value.message
    assert not folder_of(workdir).root.exists()


def test_nobody_can_be_planned(workdir: Path, plugin: None) -> None:
    with pytest.raises(SettingError, match="no architecture can take part") as caught:
        race(workdir, "solid", "massive")
    for name in ("solid", "massive"):
        assert f"{name}: {name} needs images with more than one slice" in caught.value.message
    assert not folder_of(workdir).root.exists()


def test_several_processes_are_refused(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingError, match="in one process"):
        race(workdir)


def test_before_planning_the_command_is_named(tmp_path: Path) -> None:
    write_pictures(tmp_path / "raw", cases=6, test_cases=0)
    with pytest.raises(DatasetError) as caught:
        race(tmp_path)
    assert "autoseg_plan_and_preprocess" in caught.value.hint


def test_an_adopted_plan_is_what_auto_means_until_something_else_is_asked_for(
    workdir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("autoseg"), "propagate", True)
    prepared = Workspace(workdir).prepared(NAME)
    former = prepare(workdir)
    assert label(former) == "unet"
    adopted = adopt(prepared, "nonewnet", device="cpu", why="nonewnet: won")
    assert plan_for(prepared, None, device="cpu") == adopted
    # The former plan is still there, whole, for who names its architecture.
    assert plan_for(prepared, "unet", device="cpu") == former
    with caplog.at_level(logging.INFO, logger="autoseg"):
        assert prepare(workdir) == adopted
        assert "nonewnet, which won a race: it is kept" in caplog.text
        assert label(prepare(workdir, memory="2GB")) == "unet"
        assert "planning anew (--arch nonewnet keeps to it)" in caplog.text


def test_an_adopted_plan_gives_way_to_an_architecture_that_is_named(workdir: Path) -> None:
    adopt(Workspace(workdir).prepared(NAME), "nonewnet", device="cpu", why="nonewnet: won")
    assert label(prepare(workdir, arch="segresnet_vae:plain")) == "segresnet_vae:plain"


def test_adopting_the_architecture_of_the_plan_changes_nothing(workdir: Path) -> None:
    prepared = Workspace(workdir).prepared(NAME)
    before = {path: path.read_bytes() for path in (prepared.plan, prepared.plan_origin)}
    adopt(prepared, "segresnet_vae:plain", device="cpu", why="won")
    assert {path: path.read_bytes() for path in before} == before
