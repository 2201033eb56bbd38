"""Which steps are adopted: damage to other labels counts, chance does not pass, nothing to gain means nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from sklearn.metrics import f1_score

from autoseg.evaluation.adoption import (
    Chain,
    adopted,
    case_means,
    choose_chain,
    label_dice,
    stages,
)
from autoseg.schema.dataset import Label, Labels
from autoseg.schema.postprocessing import FILL_HOLES, KEEP_LARGEST, REMOVE_SMALL, PostStep
from autoseg.schema.report import Interval

PLAIN = Labels(foreground=(Label(name="near", values=(5,)), Label(name="far", values=(9,))))
REGIONS = Labels(
    foreground=(Label(name="whole", values=(1, 2)), Label(name="core", values=(2,))), regions_class_order=(1, 2)
)


def step(rule: str, label: str = "near") -> PostStep:
    return PostStep(rule=rule, label=label, values=(5,), fill=5)


def test_dice_is_sklearns_and_empty_pairs_count_one() -> None:
    rng = np.random.default_rng(0)
    truth, guess = (rng.choice([0, 5, 9], size=(6, 7, 8), p=[0.6, 0.3, 0.1]) for _ in range(2))
    expected = [f1_score(truth.ravel() == value, guess.ravel() == value) for value in (5, 9)]
    np.testing.assert_allclose(label_dice(truth, guess, PLAIN), expected)
    whole, core = label_dice(np.where(truth == 5, 1, truth == 9), np.where(guess == 5, 1, guess == 9), REGIONS)
    assert (whole, core) == (pytest.approx(f1_score(truth.ravel() > 0, guess.ravel() > 0)), 1.0)
    assert label_dice(truth, np.where(guess == 9, 0, guess), PLAIN)[1] == 0
    empty = np.zeros_like(truth)
    assert label_dice(empty, empty, PLAIN) == (1.0, 1.0)
    assert math.isnan(label_dice(empty, empty, PLAIN, annotated=("far",))[0])


def test_ignored_voxels_belong_to_nothing() -> None:
    labels = Labels(foreground=PLAIN.foreground, ignore=255)
    truth, guess = np.array([[5, 5, 255, 0]]), np.array([[5, 5, 5, 0]])
    assert label_dice(truth, guess, labels) == (1.0, 1.0)


def test_stages_go_from_the_foreground_to_each_label_from_gentle_to_strong() -> None:
    found = stages(PLAIN, {"near": 1000.0, "far": 20.0})
    assert [len(stage) for stage in found] == [1, 5, 1, 5, 1]
    assert (found[0][0].label, found[0][0].values) == ("foreground", (5, 9))
    assert [one.minimum_mm3 for one in found[1][:-1]] == [10.0, 30.0, 100.0, 300.0]
    assert found[1][-1].rule == KEEP_LARGEST
    assert (found[4][0].rule, found[4][0].values, found[4][0].fill) == (FILL_HOLES, (9,), 9)
    # A label that never occurs has no size, a single label is the foreground.
    assert [len(stage) for stage in stages(Labels(foreground=PLAIN.foreground[:1]), {})] == [1, 1]
    assert stages(REGIONS, {})[2][0].fill == 1


@pytest.mark.parametrize(
    ("mean", "low", "passes"),
    [(0.01, 0.0, True), (0.01, -0.001, False), (0.00005, 0.00001, False), (0.01, math.nan, False), (-0.1, -0.2, False)],
)
def test_the_rule(mean: float, low: float, passes: bool) -> None:
    assert adopted(Interval(mean=mean, low=low, high=mean + 0.1)) is passes


class Table:
    """Dice of two labels in 20 cases: what each rule on ``near`` changes in both."""

    def __init__(self, changes: Mapping[str, tuple[float, float]], *, scatter: float = 0.0) -> None:
        self.changes, self.scatter, self.asked = changes, scatter, 0

    def __call__(self, chains: Sequence[Chain]) -> dict[Chain, dict[str, tuple[float, float]]]:
        self.asked += 1
        rng = np.random.default_rng(1)
        noise = {f"case {index:02d}": float(rng.normal()) for index in range(20)}
        result = {}
        for chain in chains:
            gains = [self.changes.get(one.rule, (0.0, 0.0)) for one in chain]
            near = 0.5 + sum(gain[0] for gain in gains)
            far = 0.5 + sum(gain[1] for gain in gains)
            scatter = self.scatter * len(chain)
            result[chain] = {case: (near + scatter * value, far) for case, value in noise.items()}
        return result


def test_the_best_of_a_stage_is_adopted_and_stages_add_up() -> None:
    table = Table({REMOVE_SMALL: (0.05, 0.0), KEEP_LARGEST: (0.1, 0.0), FILL_HOLES: (0.02, 0.0)})
    candidates = [[step(REMOVE_SMALL), step(KEEP_LARGEST)], [step(FILL_HOLES)]]
    chain, trials = choose_chain(candidates, table)
    assert [one.rule for one in chain] == [KEEP_LARGEST, FILL_HOLES]
    assert [trial.gain.mean for trial in trials] == [pytest.approx(0.05), pytest.approx(0.01)]


def test_damage_to_another_label_counts() -> None:
    candidates = [[step(KEEP_LARGEST)]]
    # As nnU-Net's rule for single labels would not: near gains, far loses more.
    assert choose_chain(candidates, Table({KEEP_LARGEST: (0.10, -0.12)}))[0] == ()
    assert choose_chain(candidates, Table({KEEP_LARGEST: (0.10, -0.02)}))[0] != ()


def test_a_gain_that_may_be_chance_is_not_adopted() -> None:
    candidates = [[step(KEEP_LARGEST)]]
    assert choose_chain(candidates, Table({KEEP_LARGEST: (0.02, 0.0)}, scatter=0.3))[0] == ()
    assert choose_chain(candidates, Table({KEEP_LARGEST: (0.02, 0.0)}, scatter=0.01))[0] != ()


def test_of_equals_the_gentler_one_is_taken_and_no_gain_is_no_step() -> None:
    both = Table({REMOVE_SMALL: (0.05, 0.0), KEEP_LARGEST: (0.05, 0.0)})
    chain, _ = choose_chain([[step(REMOVE_SMALL), step(KEEP_LARGEST)]], both)
    assert [one.rule for one in chain] == [REMOVE_SMALL]
    assert choose_chain([[step(KEEP_LARGEST)], [step(FILL_HOLES)]], Table({}))[0] == ()


def test_cases_without_annotated_labels_are_left_out() -> None:
    assert case_means({"a": (0.5, math.nan), "b": (math.nan, math.nan)}) == {"a": 0.5}


def test_negative_integers_are_foreground_too() -> None:
    labels = Labels(foreground=(Label(name="near", values=(-3,)), Label(name="far", values=(9,))))
    assert stages(labels, {})[0][0].values == (-3, 9)
