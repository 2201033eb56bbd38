"""Intervals against closed forms and an independent bootstrap; pairing finds what is lost in the spread of cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from autoseg.errors import DatasetError
from autoseg.evaluation.intervals import mean_interval, paired_difference


def test_of_many_normal_values_it_is_students() -> None:
    values = np.random.default_rng(1).normal(0.8, 0.1, 400)
    found = mean_interval(list(values))
    low, high = stats.t.interval(0.95, 399, loc=values.mean(), scale=stats.sem(values))
    assert found.mean == pytest.approx(values.mean(), abs=1e-12)
    assert found.low == pytest.approx(low, abs=0.001)
    assert found.high == pytest.approx(high, abs=0.001)


def test_of_a_symmetric_sample_it_is_the_percentile_bootstrap() -> None:
    values = np.array([0.5, 0.6, 0.7, 0.8, 0.9])
    means = np.random.default_rng(7).choice(values, (200_000, 5)).mean(axis=1)
    found = mean_interval(list(values))
    assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.021)


def test_skewed_scores_have_the_longer_arm_on_the_long_side() -> None:
    found = mean_interval([0.95, 0.94, 0.96, 0.93, 0.95, 0.94, 0.96, 0.40])
    assert found.mean - found.low > 2 * (found.high - found.mean)


def test_the_same_scores_give_the_same_interval() -> None:
    values = list(np.random.default_rng(3).uniform(size=9))
    assert mean_interval(values) == mean_interval(values)


def test_equal_scores_have_an_interval_of_no_width_and_one_score_has_none() -> None:
    equal, single = mean_interval([0.25] * 4), mean_interval([0.5])
    assert (equal.mean, equal.low, equal.high) == (0.25, 0.25, 0.25)
    assert single.mean == 0.5
    assert math.isnan(single.low)
    assert math.isnan(single.high)


def test_pairing_finds_a_small_difference_among_cases_of_all_kinds() -> None:
    rng = np.random.default_rng(0)
    hard = rng.uniform(0.3, 0.95, 12)
    first = {f"case_{index}": value for index, value in enumerate(hard)}
    second = {name: value - 0.02 + rng.normal(0, 0.005) for name, value in first.items()}
    found = paired_difference(dict(reversed(second.items())), first)
    assert found.mean == pytest.approx(np.mean([second[name] - first[name] for name in first]), abs=1e-12)
    assert -0.03 < found.low < found.high < -0.01
    # Unpaired, the two are not to be told apart.
    assert mean_interval(list(second.values())).high > mean_interval(list(first.values())).low


def test_scores_of_other_cases_are_not_paired() -> None:
    with pytest.raises(DatasetError, match="b, c"):
        paired_difference({"a": 0.5, "b": 0.5}, {"a": 0.5, "c": 0.5})
