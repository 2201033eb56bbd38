"""Successive halving: who goes on to the next round of a race, and how much time everyone gets.

Jamieson & Talwalkar 2016; one bracket of Hyperband (Li et al. 2018, section 3) with a reduction factor of 2. Every
round has the same share of the time, so that fewer entrants have more of it each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Heat:
    """One round: how many take part, and the seconds for one fold of each."""

    entrants: int
    seconds: float


def number_of_rounds(candidates: int) -> int:
    """ceil(log2 ``candidates``), at least 1: two are left for the last round."""
    return max(1, (candidates - 1).bit_length())


def kept(entrants: int) -> int:
    """How many of the entrants of a round go on: half, rounded up."""
    return (entrants + 1) // 2


def racing_seconds(budget: float, *, preparation: float) -> float:
    """What preparation leaves of the budget, but at least half of it: a race of no time would be for nothing."""
    return max(budget - preparation, budget / 2)


def seconds_each(total: float, *, rounds: int, entrants: int, folds: int) -> float:
    """The time for one fold of one entrant; ``total`` is for all rounds."""
    return total / (rounds * entrants * folds)


def schedule(candidates: int, *, total: float, folds: int) -> tuple[Heat, ...]:
    """All rounds, if nobody fails; together they take ``total`` seconds."""
    heats: list[Heat] = []
    rounds = number_of_rounds(candidates)
    entrants = candidates
    for _ in range(rounds):
        seconds = seconds_each(total, rounds=rounds, entrants=entrants, folds=folds)
        heats.append(Heat(entrants=entrants, seconds=seconds))
        entrants = kept(entrants)
    return tuple(heats)


def survivors(scores: Mapping[str, float], *, entrants: int) -> tuple[str, ...]:
    """Who goes on, best first. Those that failed have no score, but count as ``entrants``."""
    ranked = sorted(scores, key=lambda name: -scores[name])
    return tuple(ranked[: kept(entrants)])
