"""Training learns, can be stopped anywhere and goes on bit for bit, and says clearly when it cannot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from autoseg import records
from autoseg.errors import DivergenceError, RecordError, StoppedError
from autoseg.schema.report import FoldRun
from autoseg.training.checkpoint import load_weights
from autoseg.training.fold import FoldTask, train_fold
from autoseg.training.state import TrainState
from autoseg.training.step import Kitchen

MakeTask = Callable[..., FoldTask]


def never() -> bool:
    return False


def stop_after(steps: int) -> Callable[[], bool]:
    """True from the ``steps + 1``-th question on."""
    answers: Iterator[bool] = iter([False] * steps)
    return lambda: next(answers, True)


def same_weights(first: FoldTask, second: FoldTask) -> bool:
    a, b = load_weights(first.folder.weights), load_weights(second.folder.weights)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("ndim", "dice"), [(2, 0.2), (3, 0.6)])
def test_it_learns_what_a_threshold_could_do(make_task: MakeTask, ndim: int, dice: float) -> None:
    task = make_task(ndim=ndim, epochs=4, iterations=20, val_iterations=8, lr=0.02)
    run = train_fold(task, stop=never)
    lines = [json.loads(line) for line in task.folder.log.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"] - 0.3
    assert lines[-1]["mean_dice"] > dice
    assert set(lines[-1]["dice"]) == {"small", "large"}
    assert (run.status, run.steps, run.epochs) == ("trained", 80, 4)
    assert records.load(FoldRun, task.folder.run) == run


@pytest.mark.parametrize("steps", [3, 4, 6])
def test_stopped_anywhere_it_goes_on_bit_for_bit(make_task: MakeTask, steps: int) -> None:
    whole, parts = make_task(folder="whole"), make_task(folder="parts")
    train_fold(whole, stop=never)
    with pytest.raises(StoppedError, match=f"after {steps} steps"):
        train_fold(parts, stop=stop_after(steps))
    assert not parts.folder.weights.exists()
    assert records.load(FoldRun, parts.folder.run).status == "training"
    train_fold(parts, stop=never)
    assert same_weights(whole, parts)
    losses = [[json.loads(line)["train_loss"] for line in task.folder.log.open()] for task in (whole, parts)]
    assert losses[0] == losses[1]


def test_the_number_of_loading_workers_changes_nothing(make_task: MakeTask) -> None:
    alone, helped = make_task(folder="alone", workers=0), make_task(folder="helped", workers=2)
    train_fold(alone, stop=never)
    train_fold(helped, stop=never)
    assert same_weights(alone, helped)


def test_seed_and_fold_change_the_weights(make_task: MakeTask) -> None:
    first, seed, fold = make_task(folder="a"), make_task(folder="b", seed=1), make_task("1", folder="c")
    for task in (first, seed, fold):
        train_fold(task, stop=never)
    assert not same_weights(first, seed)
    assert not same_weights(first, fold)


def test_a_finished_fold_is_left_alone_and_more_epochs_extend_it(make_task: MakeTask) -> None:
    task = make_task()
    train_fold(task, stop=never)
    before = task.folder.weights.stat().st_mtime_ns
    assert train_fold(task, stop=never).epochs == 2
    assert task.folder.weights.stat().st_mtime_ns == before
    longer = replace(task, settings=replace(task.settings, epochs=3))
    assert train_fold(longer, stop=never).epochs == 3
    assert len(task.folder.log.read_text().splitlines()) == 3


def test_a_time_budget_ends_on_an_annealed_learning_rate(make_task: MakeTask) -> None:
    task = make_task(iterations=1000)
    run = train_fold(task, stop=never, target_seconds=lambda state, kitchen: 4.0)
    lines = [json.loads(line) for line in task.folder.log.read_text().splitlines()]
    assert run.seconds >= 4.0
    assert lines[-1]["learning_rate"] < 0.2 * lines[0]["learning_rate"]
    assert run.target_seconds == 4.0
    assert task.folder.weights.exists()


def test_the_time_is_asked_for_again_after_each_epoch(make_task: MakeTask) -> None:
    """A machine that got busy: what was to be a minute ends with the epoch in which it is known to be over."""
    asked = []

    def target(state: TrainState, kitchen: Kitchen) -> float:
        asked.append(state.epoch)
        return 60.0 if state.epoch < 2 else state.elapsed

    task = make_task(iterations=2)
    run = train_fold(task, stop=never, target_seconds=target)
    assert asked == [0, 1, 2]
    assert (run.epochs, run.steps, run.target_seconds) == (2, 4, run.seconds)


def test_weights_of_an_earlier_end_are_not_taken_for_those_of_this_one(make_task: MakeTask) -> None:
    task = make_task()
    train_fold(task, stop=never)
    before = load_weights(task.folder.weights)
    longer = replace(task, settings=replace(task.settings, epochs=4))
    with pytest.raises(StoppedError):
        train_fold(longer, stop=stop_after(3))
    shorter = replace(task, settings=replace(task.settings, epochs=1))
    assert train_fold(shorter, stop=never).steps == 11
    after = load_weights(task.folder.weights)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_other_settings_do_not_go_on_from_this_checkpoint(make_task: MakeTask) -> None:
    task = make_task()
    train_fold(task, stop=never)
    other = replace(task, settings=replace(task.settings, seed=7, epochs=9))
    with pytest.raises(RecordError, match="another plan, split, seed") as caught:
        train_fold(other, stop=never)
    assert str(task.folder.checkpoint) in caught.value.message


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut"])
def test_a_damaged_checkpoint_is_one_sentence(make_task: MakeTask, content: bytes) -> None:
    task = make_task()
    task.folder.root.mkdir(parents=True)
    task.folder.checkpoint.write_bytes(content)
    with pytest.raises(RecordError, match=r"checkpoint\.pt"):
        train_fold(task, stop=never)


def test_a_checkpoint_with_code_in_it_is_refused(make_task: MakeTask) -> None:
    task = make_task()
    task.folder.root.mkdir(parents=True)
    torch.save({"version": 1, "call": print}, task.folder.checkpoint)
    with pytest.raises(RecordError, match="something else than tensors"):
        train_fold(task, stop=never)


def test_a_loss_that_explodes_stops_training_and_says_so(make_task: MakeTask) -> None:
    task = make_task(lr=1e30, iterations=8)
    with pytest.raises(DivergenceError, match="training loss became"):
        train_fold(task, stop=never)
    assert not task.folder.weights.exists()
