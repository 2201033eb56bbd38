"""Places, differences and words of a race, from scores that are known."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoseg.pipeline.ranking import rank, ranking_csv, ranking_table, verdict
from autoseg.schema.folders import RaceFolder
from autoseg.schema.report import RaceQuestion, RaceReport, RaceRound, RaceTraining

FOLDER = RaceFolder(Path("race"))


def trained(
    arch: str, scores: np.ndarray, *, steps: int = 5000, seconds: float = 500.0, params: int = 10
) -> RaceTraining:
    return RaceTraining(
        arch=arch,
        configuration="2d",
        parameters=params,
        steps=steps,
        seconds=seconds,
        dice={f"case_{index}": float(value) for index, value in enumerate(scores)},
    )


def report(*rounds: tuple[RaceTraining, ...], refused: dict[str, str] | None = None) -> RaceReport:
    names = tuple(item.arch for item in rounds[0])
    question = RaceQuestion(
        arch=names,
        configuration=None,
        fold=("0",),
        time_budget=60.0,
        device="cpu",
        seed=0,
        plan="",
        files="",
        splits="",
    )
    heats = tuple(
        RaceRound(entrants=tuple(item.arch for item in trainings), seconds=1.0, trainings=trainings)
        for trainings in rounds
    )
    made = RaceReport(
        dataset="Dataset001_Made", question=question, preparation_seconds=0.0, refused=refused or {}, rounds=heats
    )
    return replace(made, ranking=rank(made, FOLDER))


def cases(count: int, mean: float, *, spread: float = 0.1, seed: int = 0) -> np.ndarray:
    return mean + spread * np.random.default_rng(seed).uniform(-1, 1, count)


def test_a_later_round_ranks_higher_and_differences_are_of_equal_time() -> None:
    early, late = cases(30, 0.7), cases(30, 0.9)
    made = report(
        (trained("a", early), trained("b", early - 0.05), trained("c", early - 0.2, seconds=100.0)),
        (trained("a", late - 0.02), trained("b", late)),
    )
    first, second, third = made.ranking
    assert [first.arch, second.arch, third.arch] == ["b", "a", "c"]
    assert [place.rounds for place in made.ranking] == [2, 2, 1]
    assert first.dice.mean == pytest.approx(late.mean())
    assert (first.difference.mean, second.difference.mean) == pytest.approx((0.0, -0.02))
    # In round 1 the winner had 0.65, and that is what the loser of round 1 is held against.
    assert third.difference.mean == pytest.approx(-0.15)
    assert third.model == "round_1/c_2d"


def test_what_failed_has_no_place_but_a_line() -> None:
    scores = cases(30, 0.7)
    failed = replace(trained("c", scores), dice={}, failure="round 2: the training loss became nan")
    made = report(
        (trained("a", scores), trained("b", scores - 0.3), trained("c", scores + 0.1), trained("d", scores - 0.4)),
        (trained("a", scores), failed),
        refused={"e": "does not fit"},
    )
    assert [place.arch for place in made.ranking] == ["a", "b", "d"]
    rows = list(csv.DictReader(io.StringIO(ranking_csv(made))))
    assert [row["architecture"] for row in rows] == ["a", "b", "d", "e", "c"]
    assert [row["rank"] for row in rows] == ["1", "2", "3", "", ""]
    assert rows[3]["failure"] == "does not fit"
    assert rows[4]["failure"] == "round 2: the training loss became nan"
    assert float(rows[1]["difference"]) == pytest.approx(-0.3)


def test_a_clear_winner_is_said_to_be_better() -> None:
    scores = cases(30, 0.8)
    made = report((trained("a", scores), trained("b", scores - cases(30, 0.03, spread=0.01, seed=1))))
    words = verdict(made.ranking, folds=1)
    assert words.startswith("a is better than b")
    assert len(words.splitlines()) == 1


@pytest.mark.parametrize(("seconds", "advice"), [(250.0, "Take b, the cheaper one"), (900.0, "a is also the cheaper")])
def test_if_it_may_be_chance_the_cheaper_one_is_named(seconds: float, advice: str) -> None:
    scores = cases(30, 0.8)
    rival = trained("b", scores - cases(30, 0.005, spread=0.08, seed=1), seconds=seconds)
    words = verdict(report((trained("a", scores), rival)).ranking, folds=1)
    assert "a is not clearly better than b" in words
    assert advice in words


def test_a_loser_of_an_early_round_that_may_be_as_good_is_named() -> None:
    scores = cases(30, 0.8)
    unlucky = trained("c", scores - cases(30, 0.005, spread=0.2, seed=3))
    made = report(
        (trained("a", scores), trained("b", scores - 0.001), unlucky),
        (trained("a", scores), trained("b", scores - 0.1)),
    )
    assert "Nor can it be ruled out that c" in verdict(made.ranking, folds=1)


def test_few_cases_and_few_steps_are_said() -> None:
    two = report((trained("a", cases(2, 0.8)), trained("b", cases(2, 0.5))))
    assert "2 cases are too few to say that a is better" in verdict(two.ranking, folds=1)
    twelve = report((trained("a", cases(12, 0.8)), trained("b", cases(12, 0.5))))
    assert "12 cases are few, so these intervals are too narrow" in verdict(twelve.ranking, folds=1)
    assert "steps are few" not in verdict(twelve.ranking, folds=1)
    assert "500 steps are few" in verdict(twelve.ranking, folds=10)


def test_alone_nothing_is_compared() -> None:
    assert "nothing was compared" in verdict(report((trained("a", cases(9, 0.5)),)).ranking, folds=1)


def test_the_table_fits_a_terminal() -> None:
    scores = cases(30, 0.8)
    made = report(
        (trained("unet2022:large", scores, steps=123456, seconds=86000.0), trained("unet", scores - 0.1)),
    )
    lines = ranking_table(made.ranking).splitlines()
    assert max(len(line) for line in lines) <= 100
    assert lines[2].split()[:2] == ["1", "unet2022:large"]
    assert "-0.100 [-0.100, -0.100]" in lines[3]
    mixed = [replace(made.ranking[0], configuration="3d_fullres"), made.ranking[1]]
    assert "unet (2d)" in ranking_table(mixed)
