"""What happens after each epoch: a line, a log file, and costly things now and then.

A hook is a function of the state.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoseg.log import duration, get_logger
from autoseg.records import write_text
from autoseg.training.schedule import Schedule
from autoseg.training.state import TrainState, history_rows

_LOG = get_logger(__name__)


def log_epoch(schedule: Schedule) -> Callable[[TrainState], None]:
    """One line per epoch: loss, Dice per class, time left."""

    def hook(state: TrainState) -> None:
        record = state.history[-1]
        total = f"/{schedule.steps // schedule.iterations}" if schedule.steps is not None else ""
        recent = state.history[-10:]
        steps = record.step - (state.history[-11].step if len(state.history) > 10 else 0)
        pace = sum(item.seconds for item in recent) / max(steps, 1)
        if schedule.steps is not None:
            left = (schedule.steps - state.step) * pace
        else:
            left = max(0.0, (state.target or 0.0) - state.elapsed)
        dice = "  ".join(f"{name} {_number(value)}" for name, value in record.dice.items())
        _LOG.info(
            "epoch %d%s  loss %.4f  val %s  Dice %s  lr %.5f  %s, %s left",
            record.epoch,
            total,
            record.train_loss,
            _number(record.val_loss, digits=4),
            dice,
            record.learning_rate,
            duration(record.seconds) if record.seconds >= 1 else f"{record.seconds:.1f} s",
            duration(left),
        )

    return hook


def _number(value: float | None, *, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def write_log(path: Path) -> Callable[[TrainState], None]:
    """``log.jsonl`` and ``log.csv``, one epoch a line, always the whole history: a resumed run leaves no line twice."""

    def hook(state: TrainState) -> None:
        rows = history_rows(state.history)
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        write_text(path.with_suffix(".csv"), _csv(rows))

    return hook


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table with a column ``dice NAME`` per label; what was not measured is left empty."""
    flat = [
        {
            **{name: value for name, value in row.items() if name != "dice"},
            **{f"dice {label}": value for label, value in row["dice"].items()},
        }
        for row in rows
    ]
    text = io.StringIO()
    writer = csv.DictWriter(
        text, fieldnames=list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def now_and_then(hook: Callable[[TrainState], None], *, seconds: float) -> Callable[[TrainState], None]:
    """Run a costly hook (a checkpoint, a plot) on the first epoch and then at most once in ``seconds``."""
    last: float | None = None

    def limited(state: TrainState) -> None:
        nonlocal last
        if last is None or time.monotonic() - last >= seconds:
            hook(state)
            last = time.monotonic()

    return limited
