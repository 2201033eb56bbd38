"""What training carries from step to step: the only mutable object that crosses function borders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One line of ``log.jsonl``. ``dice`` has one entry per foreground label, None where none was seen."""

    epoch: int
    step: int
    learning_rate: float
    train_loss: float
    val_loss: float | None
    dice: dict[str, float | None]
    seconds: float
    elapsed: float

    @property
    def mean_dice(self) -> float | None:
        """Mean over the labels that were seen."""
        seen = [value for value in self.dice.values() if value is not None]
        return sum(seen) / len(seen) if seen else None


@dataclass(kw_only=True)
class TrainState:
    """``step`` counts finished steps and ``elapsed`` seconds of training over all runs of this fold.

    ``target`` are the seconds that training will take in all, as far as it is known, where time decides.
    The three ``epoch_*`` fields hold the epoch under way, so that stopping within it loses nothing.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None = None
    step: int = 0
    elapsed: float = 0.0
    target: float | None = None
    history: list[EpochRecord] = field(default_factory=list)
    epoch_steps: int = 0
    epoch_seconds: float = 0.0
    epoch_loss: torch.Tensor | None = None

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history)


def history_rows(history: list[EpochRecord]) -> list[dict[str, Any]]:
    """The history as plain dictionaries, for JSON lines and plots."""
    return [
        {
            "epoch": record.epoch,
            "step": record.step,
            "learning_rate": record.learning_rate,
            "train_loss": record.train_loss,
            "val_loss": record.val_loss,
            "mean_dice": record.mean_dice,
            "dice": record.dice,
            "seconds": round(record.seconds, 3),
            "elapsed": round(record.elapsed, 3),
        }
        for record in history
    ]
