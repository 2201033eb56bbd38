"""Which cases train and which validate, per fold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Fold:
    train: tuple[str, ...]
    val: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Splits:
    VERSION: ClassVar[int] = 1

    version: int = 1
    seed: int
    folds: tuple[Fold, ...]
