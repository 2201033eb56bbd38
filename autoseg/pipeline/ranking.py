"""The result of a race: places, a table, a CSV file, and what the intervals allow to say."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence

from autoseg.evaluation.intervals import mean_interval, paired_difference
from autoseg.log import duration, table
from autoseg.schema.folders import RaceFolder
from autoseg.schema.report import Interval, RacePlace, RaceReport, RaceTraining

# Differences that all point one way are chance in 1 of 2 draws with 2 cases, and in 1 of 32 with 6 (sign test).
FEWEST_CASES = 6
# Measured on draws of Beta(9, 1), skewed like Dice: a 95% interval of 20 cases holds the true mean in 92 of 100, one of
# 6 cases in 82.
FEW_CASES = 20
# Of the 250 000 of a full training.
FEW_STEPS = 1000

_COLUMNS = (
    *("rank", "architecture", "configuration", "rounds", "cases", "dice", "dice_low", "dice_high"),
    *("difference", "difference_low", "difference_high", "parameters", "steps", "seconds", "model", "failure"),
)


def rank(report: RaceReport, folder: RaceFolder) -> tuple[RacePlace, ...]:
    """Everyone who never failed, best first: by the last round that they reached, then by the Dice there."""
    failed = report.failures
    rounds = [{item.arch: item for item in heat.trainings if item.arch not in failed} for heat in report.rounds]
    order: list[str] = []
    for trainings in reversed(rounds):
        fresh = [name for name in trainings if name not in order]
        order += sorted(fresh, key=lambda name: (-mean_dice(trainings[name]), trainings[name].parameters))
    places = []
    for name in order:
        number = max(index for index, trainings in enumerate(rounds, start=1) if name in trainings)
        training, winner = rounds[number - 1][name], rounds[number - 1][order[0]]
        places.append(
            RacePlace(
                arch=name,
                configuration=training.configuration,
                rounds=number,
                cases=len(training.dice),
                dice=mean_interval(list(training.dice.values())),
                difference=paired_difference(training.dice, winner.dice),
                parameters=training.parameters,
                steps=training.steps,
                seconds=training.seconds,
                model=str(folder.model(number, training.configuration, name).root.relative_to(folder.root)),
            )
        )
    return tuple(places)


def mean_dice(training: RaceTraining) -> float:
    """The mean over cases."""
    return math.fsum(training.dice.values()) / len(training.dice)


def verdict(ranking: Sequence[RacePlace], *, folds: int) -> str:
    """In a few lines: is the winner better, which one to take if not, and how far to trust it.

    Args:
        folds: how many folds each was trained on; ``steps`` of a place are of all of them.
    """
    winner, *others = ranking
    if not others:
        return f"{winner.arch} is the only one that finished: nothing was compared."
    more = "more folds (-f 0 1 2 3 4) bring more"
    if winner.cases < FEWEST_CASES:
        lines = [f"{winner.cases} cases are too few to say that {winner.arch} is better than the others; {more}."]
    else:
        lines = [*_comparison(winner, others)]
        if winner.cases < FEW_CASES:
            lines.append(f"{winner.cases} cases are few, so these intervals are too narrow; {more}.")
    steps = min(place.steps for place in ranking) // folds
    if steps < FEW_STEPS:
        lines.append(f"{steps} steps are few: this ranks who learns fast, not who learns most; give more time.")
    return "\n".join(lines)


def _comparison(winner: RacePlace, others: Sequence[RacePlace]) -> Iterator[str]:
    second, *rest = others
    interval = f"the interval of the difference, {second.difference.low:+.3f} to {second.difference.high:+.3f},"
    if second.difference.high < 0:
        yield f"{winner.arch} is better than {second.arch}: {interval} is below 0."
    else:
        yield f"{winner.arch} is not clearly better than {second.arch}: {interval} holds 0."
        costs = {place.arch: place.seconds / max(place.steps, 1) for place in (winner, second)}
        cheaper, dearer = sorted(costs, key=lambda name: costs[name])
        advice = f"Take {cheaper}, the cheaper one" if cheaper == second.arch else f"{cheaper} is also the cheaper one"
        yield f"{advice}: {costs[cheaper]:.3g} s a step, {dearer} needs {costs[dearer]:.3g} s."
    open_ = [place.arch for place in rest if not place.difference.high < 0]
    if open_:
        yield f"Nor can it be ruled out that {' or '.join(open_)} would have been as good."


def ranking_table(ranking: Sequence[RacePlace]) -> str:
    """The places as a person reads them; the configuration is shown where they differ in it."""
    mixed = len({place.configuration for place in ranking}) > 1
    rows = [
        [
            number,
            f"{place.arch} ({place.configuration})" if mixed else place.arch,
            _interval(place.dice),
            _interval(place.difference, sign="+") if number > 1 else "-",
            place.rounds,
            f"{place.parameters / 1e6:.1f} M",
            place.steps,
            duration(place.seconds),
        ]
        for number, place in enumerate(ranking, start=1)
    ]
    header = ["#", "architecture", "Dice [95%]", "to the winner [95%]", "round", "params", "steps", "time"]
    return table(rows, header=header)


def _interval(interval: Interval, *, sign: str = "") -> str:
    if math.isnan(interval.low):
        return f"{interval.mean:{sign}.3f}"
    return f"{interval.mean:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def ranking_csv(report: RaceReport) -> str:
    """One line per architecture; those that are out come last, without a rank and with the reason."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for number, place in enumerate(report.ranking, start=1):
        intervals = [*_ends(place.dice), *_ends(place.difference)]
        facts = [place.parameters, place.steps, round(place.seconds, 1), place.model]
        writer.writerow([number, place.arch, place.configuration, place.rounds, place.cases, *intervals, *facts, ""])
    for name, reason in report.failures.items():
        writer.writerow(["", name, *[""] * (len(_COLUMNS) - 3), reason])
    return text.getvalue()


def _ends(interval: Interval) -> list[float | str]:
    return ["" if math.isnan(value) else value for value in (interval.mean, interval.low, interval.high)]
