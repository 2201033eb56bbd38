"""A time budget is kept whatever the machine does, chooses the network, and goes on with a finished model."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autoseg import records
from autoseg.errors import AutosegError, ResourceError, SettingError
from autoseg.nets import traits_of
from autoseg.pipeline.budget import open_budget
from autoseg.pipeline.pace import in_time
from autoseg.pipeline.prepare import cost_function, plan, plan_and_preprocess
from autoseg.pipeline.set_up import set_up
from autoseg.pipeline.timed import fit_to_time
from autoseg.pipeline.train import train
from autoseg.planning.clock import with_width
from autoseg.schema.architecture import Recipe
from autoseg.schema.folders import ModelFolder, Workspace
from autoseg.schema.plan import Configuration, Plan
from autoseg.schema.report import FoldRun, RunReport
from autoseg.schema.settings import PrepareSettings, TrainSettings
from autoseg.training.checkpoint import load_weights
from autoseg.training.distributed import World
from autoseg.training.fit import OnlineScores, fit
from autoseg.training.schedule import Schedule
from autoseg.training.state import TrainState
from tests.synthetic import write_pictures

NAME = "Dataset008_Pictures"


class Machine:
    """A clock, and what moves it: steps of one second, or of more while others use the machine."""

    def __init__(self, busy: Callable[[float], float]) -> None:
        self.now = 500.0
        self.busy = busy
        self.rates: list[float] = []

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds * self.busy(self.now - 500.0)

    def step(self, state: TrainState) -> torch.Tensor:
        self.work(1.0)
        self.rates.append(state.optimizer.param_groups[0]["lr"])
        return torch.zeros(())

    def validate(self, state: TrainState) -> OnlineScores:
        self.work(2.0)
        return OnlineScores(loss=0.0, dice={})


@pytest.mark.parametrize(
    "busy",
    [
        pytest.param(lambda now: 1.0, id="quiet"),
        pytest.param(lambda now: 3.0 if now > 700 else 1.0, id="busy from the middle on"),
        pytest.param(lambda now: 4.0 if now < 700 else 1.0, id="busy at first"),
        pytest.param(lambda now: 2.0 if now % 100 < 50 else 1.0, id="busy now and then"),
    ],
)
@pytest.mark.parametrize("folds", [("0",), ("0", "1", "2")])
def test_the_time_is_kept_and_every_fold_is_annealed(busy: Callable[[float], float], folds: tuple[str, ...]) -> None:
    machine, total, validation = Machine(busy), 1800.0, 60.0
    runs: dict[str, FoldRun] = {}
    budget = open_budget(total, folds, runs, started=machine(), clock=machine)
    trained = []
    for name in folds:
        network = torch.nn.Linear(1, 1)
        state = TrainState(network=network, optimizer=torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.9))

        deadline = budget.deadline(name)

        def aim(current: TrainState, deadline: float = deadline) -> float:
            # As a real estimate: right for the load of the moment.
            expected = validation * machine.busy(machine.now - 500.0)
            return budget.training_seconds(deadline, trained=current.elapsed, validation=expected)

        machine.rates.clear()
        fit(
            state,
            machine.step,
            validate=machine.validate,
            schedule=Schedule(steps=None, seconds=aim(state), iterations=250),
            recipe=Recipe(fitted=False),
            device=torch.device("cpu"),
            world=World(rank=0, size=1, local_rank=0),
            aim=aim,
            clock=machine,
        )
        trained.append(state.elapsed)
        assert machine.rates[-1] < 0.15 * max(machine.rates)
        machine.work(validation)
    assert machine.now - 500.0 == pytest.approx(total, rel=0.03)
    assert max(trained) < 1.6 * min(trained)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("timed")
    write_pictures(workdir / "raw")
    plan_and_preprocess(
        PrepareSettings(dataset="8", workdir=str(workdir), workers=0, device="cpu", memory=10**9, quiet=True)
    )
    return workdir


def loaded(workdir: Path) -> tuple[Plan, Configuration]:
    made = records.load(Plan, Workspace(workdir).prepared(NAME).plan)
    return made, made.configuration("2d")


def paces(seconds: dict[int, float], asked: list[int]) -> Callable[[Plan, Configuration, float], float]:
    """Seconds per step by width; a smaller patch takes half of them and is noted as the width below zero."""

    def measure(plan: Plan, configuration: Configuration, limit: float) -> float:
        width = configuration.topology.features[0]
        small = configuration.patch_size != plan.configuration(configuration.name).patch_size
        asked.append(-width if small else width)
        return seconds[width] / (2 if small else 1)

    return measure


def test_paces_are_remembered_and_scaled_by_how_busy_the_machine_is(planned: Path, tmp_path: Path) -> None:
    made, flat = loaded(planned)
    asked: list[int] = []
    common = {"folds": 1, "device": "cpu", "optimizer": "sgd", "paces": tmp_path / "paces.json"}
    before = fit_to_time(made, flat, step_seconds=paces({8: 0.1, 16: 0.15, 32: 0.4}, asked), total=600.0, **common)[
        1
    ].configuration
    assert sorted(asked) == [-16, 8, 16, 32]
    asked.clear()
    after = fit_to_time(made, flat, step_seconds=paces({16: 0.3}, asked), total=1200.0, **common)[1].configuration
    assert asked == [16]
    # Twice as slow and twice the time are the same steps, and the same network.
    assert after.topology == before.topology
    assert "32: 0.8 s a step" in after.why[-1]
    assert not any("width 16 instead of 32" in line for line in after.why)


def linear(asked: list[Configuration]) -> Callable[[Plan, Configuration, float], float]:
    """A machine that takes so long for an operation and so long for a voxel."""

    def measure(plan: Plan, configuration: Configuration, limit: float) -> float:
        asked.append(configuration)
        voxels = configuration.batch_size * math.prod(configuration.patch_size)
        return configuration.cost.flops / 1e11 + voxels / 1e6

    return measure


def test_what_there_is_no_time_for_is_predicted(
    planned: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, flat = loaded(planned)
    caplog.set_level("INFO", logger="autoseg")
    asked: list[Configuration] = []
    pace = {
        width: linear([])(made, with_width(made, flat, width, traits_of("unet"), cost=cost_function("cpu")), 0.0)
        for width in (8, 16, 32)
    }
    common = {"folds": 1, "device": "cpu", "optimizer": "sgd"}
    # A twentieth of the time is enough for five steps of two widths, not for those of the third.
    total = 20 * 5 * 1.2 * (pace[16] + pace[8])
    _, chosen = fit_to_time(made, flat, total=total, step_seconds=linear(asked), paces=tmp_path / "some.json", **common)
    assert [one.topology.features[0] for one in asked] == [16, 8]
    assert f"32: {pace[32]:.3g} s a step" in chosen.configuration.why[-1]
    assert not any("would take" in record.getMessage() for record in caplog.records)
    # With time for all, batch and patch are foretold too.
    _, chosen = fit_to_time(made, flat, total=6e4, step_seconds=linear([]), paces=tmp_path / "all.json", **common)
    twice = chosen.configuration.cost.flops * 2 / 1e11 + 4 * math.prod(flat.patch_size) / 1e6
    said = [record.getMessage() for record in caplog.records if "would take" in record.getMessage()]
    assert len(said) == 1 and f"{twice:.3g} s with batch 4 of {flat.patch_size[0]}x{flat.patch_size[1]}" in said[0]


def test_a_patch_that_cannot_be_smaller_is_not_timed(planned: Path, tmp_path: Path) -> None:
    made, flat = loaded(planned)
    flat = replace(flat, patch_size=tuple(2 * by for by in flat.topology.divisor))
    asked: list[Configuration] = []
    wanted = {"folds": 1, "device": "cpu", "optimizer": "sgd", "paces": tmp_path / "paces.json"}
    fit_to_time(made, flat, total=600.0, step_seconds=linear(asked), **wanted)
    assert sorted(one.topology.features[0] for one in asked) == [8, 16, 32]


def test_with_little_time_only_the_planned_network_is_timed(planned: Path, tmp_path: Path) -> None:
    made, flat = loaded(planned)
    asked: list[int] = []
    fit_to_time(
        made,
        flat,
        total=6.0,
        folds=1,
        device="cpu",
        optimizer="sgd",
        paces=tmp_path / "paces.json",
        step_seconds=paces({16: 0.2}, asked),
    )
    assert asked == [16]


def counting(step: float) -> Callable[[], float]:
    """A clock that moves a little whenever it is read, so that time is a number of steps."""
    now = 0.0

    def read() -> float:
        nonlocal now
        now += step
        return now

    return read


def settings(workdir: Path, **changes: object) -> TrainSettings:
    common = {"dataset": ("8",), "fold": ("0",), "workdir": str(workdir), "device": "cpu", "workers": 0, "quiet": True}
    return TrainSettings(**{**common, **changes})  # type: ignore[arg-type]


def width_of(model: ModelFolder) -> int:
    return records.load(Plan, model.plan).configuration("2d").topology.features[0]


def test_a_finished_model_goes_on_for_the_time_once_more(
    planned: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = ModelFolder(tmp_path / "model")
    caplog.set_level("INFO", logger="autoseg")
    train(settings(planned, time_budget=8.0), model=model, clock=counting(0.05))
    first, weights = records.load(FoldRun, model.fold("0").run), load_weights(model.fold("0").weights)
    width, recipe = width_of(model), records.load(RunReport, model.run).settings["recipe"]
    assert recipe["optimizer"] == "muon"
    train(settings(planned, time_budget=8.0), model=model, clock=counting(0.05))
    second, later = records.load(FoldRun, model.fold("0").run), load_weights(model.fold("0").weights)
    assert (first.round, first.status, second.round, second.status) == (0, "validated", 1, "validated")
    assert second.before == first.seconds
    assert second.steps > 1.5 * first.steps
    assert any(not torch.equal(weights[name], later[name]) for name in weights)
    assert (width_of(model), records.load(RunReport, model.run).settings["recipe"]) == (width, recipe)
    # The last epoch is a fortieth of the time, a few steps.
    lines = [json.loads(line) for line in model.fold("0").log.read_text().splitlines()]
    assert lines[-1]["learning_rate"] < 0.2 * max(line["learning_rate"] for line in lines)
    assert any("twice the time" in record.getMessage() for record in caplog.records)


def test_a_time_too_short_is_refused_before_anything_is_written(planned: Path, tmp_path: Path) -> None:
    model = ModelFolder(tmp_path / "model")
    with pytest.raises(SettingError, match="too few for anything useful") as caught:
        train(settings(planned, time_budget=0.5), model=model, clock=counting(0.05))
    assert "give at least --time-budget" in caught.value.hint
    assert not model.root.exists()


@pytest.mark.parametrize("content", ["", "[]", '{"x": 0.0, "y": NaN}', "half"])
def test_damaged_paces_are_measured_again(planned: Path, tmp_path: Path, content: str) -> None:
    made, flat = loaded(planned)
    asked: list[int] = []
    (tmp_path / "paces.json").write_text(content)
    wanted = {"total": 600.0, "folds": 1, "device": "cpu", "optimizer": "sgd", "paces": tmp_path / "paces.json"}
    fit_to_time(made, flat, step_seconds=paces({8: 0.1, 16: 0.15, 32: 0.4}, asked), **wanted)
    assert sorted(asked) == [-16, 8, 16, 32]
    assert len(json.loads((tmp_path / "paces.json").read_text())) == 4


def test_a_width_that_does_not_fit_today_is_left_out(planned: Path, tmp_path: Path) -> None:
    made, flat = loaded(planned)

    def measure(plan: Plan, configuration: Configuration, limit: float) -> float:
        if configuration.topology.features[0] == 32:
            raise ResourceError("memory ran out", hint="")
        return 0.01

    wanted = {"total": 6e5, "folds": 1, "device": "cpu", "optimizer": "sgd", "paces": tmp_path / "paces.json"}
    assert fit_to_time(made, flat, step_seconds=measure, **wanted)[1].width == 16


def test_what_is_not_training_comes_off_the_time(planned: Path, tmp_path: Path) -> None:
    made, flat = loaded(planned)
    wanted = {"folds": 2, "device": "cpu", "optimizer": "sgd", "paces": tmp_path / "paces.json"}
    paced = paces({8: 0.1, 16: 0.15, 32: 0.4}, [])
    with pytest.raises(SettingError, match="5 min 00 s for each of 2 folds are 20 training steps"):
        fit_to_time(made, flat, total=600.0, step_seconds=paced, beside=lambda one, pace: 298.0, **wanted)


def test_an_edited_plan_is_trained_with_its_own_network(planned: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "work"
    shutil.copytree(planned, workdir)
    path = Workspace(workdir).prepared(NAME).plan
    made = json.loads(path.read_text())
    features = made["configurations"][0]["topology"]["features"]
    made["configurations"][0]["topology"]["features"] = [min(12 * 2**i, 512) for i in range(len(features))]
    path.write_text(json.dumps(made))
    model = ModelFolder(tmp_path / "model")
    train(settings(workdir, time_budget=8.0, validate=False), model=model, clock=counting(0.05))
    assert width_of(model) == 12


def test_folds_of_one_model_have_one_network_whatever_their_time(planned: Path, tmp_path: Path) -> None:
    model = ModelFolder(tmp_path / "model")
    train(settings(planned, time_budget=40.0, validate=False), model=model, clock=counting(0.1))
    train(settings(planned, time_budget=8.0, validate=False, fold=("1",)), model=model, clock=counting(0.1))
    assert model.finished_folds() == ("0", "1")
    # Without a time, the full recipe would be another model.
    with pytest.raises(AutosegError) as caught:
        train(settings(planned, epochs=1, iterations=1, validate=False), model=model)
    assert caught.value.hint.startswith("give --time-budget again to go on")


def test_a_plan_for_a_time_is_trained_for_it(tmp_path: Path) -> None:
    write_pictures(tmp_path / "raw")
    wanted = PrepareSettings(dataset="8", workdir=str(tmp_path), workers=0, device="cpu", memory=10**9, quiet=True)
    made = plan_and_preprocess(replace(wanted, time_budget=600.0))
    assert (made.time_budget, made.timed) == (600.0, ("2d",))
    assert made.configuration("2d").why[-1].startswith("width ")
    assert records.load(Plan, Workspace(tmp_path).prepared(NAME).plan) == made
    # One fold of five has a fifth of it, and epochs of the user's count before it.
    assert set_up(settings(tmp_path)).settings.time_budget == 120.0
    assert set_up(settings(tmp_path, fold=())).settings.time_budget == 600.0
    assert set_up(settings(tmp_path, epochs=5)).settings.time_budget is None
    assert set_up(settings(tmp_path, time_budget=30.0)).settings.time_budget == 30.0
    training = in_time(set_up(settings(tmp_path)), clock=counting(0.05))
    assert training.configuration == made.configuration("2d")
    # Asked for the full recipe again, the plan is made anew.
    assert plan(wanted).time_budget is None
