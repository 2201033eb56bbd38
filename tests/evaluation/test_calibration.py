"""Temperature and calibration error against known temperatures, brute force and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax
from sklearn.metrics import log_loss

from autoseg.evaluation.calibration import (
    confidences,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
)


def honest(rng: np.random.Generator, count: int, heads: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels drawn from their softmax: at temperature 1 they are right as often as they say."""
    logits = rng.normal(0, 2, (count, heads))
    labels = (softmax(logits, axis=1).cumsum(axis=1) < rng.uniform(size=(count, 1))).sum(axis=1)
    return logits, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7, 4.0])
def test_the_temperature_of_generated_logits_is_found(temperature: float) -> None:
    logits, truth = honest(np.random.default_rng(0), 60_000, 4)
    assert fit_temperature(logits * temperature, truth) == pytest.approx(temperature, rel=0.03)


def test_the_temperature_of_generated_regions_is_found() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (40_000, 2))
    truth = rng.uniform(size=logits.shape) < expit(logits)
    assert fit_temperature(logits * 2.5, truth, regions=True) == pytest.approx(2.5, rel=0.03)


def test_after_fitting_the_calibration_error_is_small_and_decisions_stay() -> None:
    logits, truth = honest(np.random.default_rng(2), 60_000, 3)
    sure = 3 * logits
    fitted = fit_temperature(sure, truth)
    before, after = (expected_calibration_error(*confidences(sure, truth, temperature=t)) for t in (1.0, fitted))
    assert before > 0.05
    assert after < 0.01
    right = [confidences(sure, truth, temperature=t)[1] for t in (1.0, fitted)]
    assert np.array_equal(*right)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_likelihood_is_that_of_scikit_learn(temperature: float) -> None:
    logits, truth = honest(np.random.default_rng(3), 500, 3)
    expected = log_loss(truth, softmax(logits / temperature, axis=1), labels=[0, 1, 2])
    assert negative_log_likelihood(logits, truth, temperature=temperature) == pytest.approx(expected)
    assert negative_log_likelihood(logits * 300, truth) == pytest.approx(
        -log_softmax(logits * 300, axis=1)[np.arange(500), truth].mean()
    )


def test_likelihood_of_regions_is_binary_cross_entropy() -> None:
    rng = np.random.default_rng(4)
    logits, truth = rng.normal(0, 3, (300, 2)), rng.uniform(size=(300, 2)) < 0.4
    p = expit(logits / 1.5)
    expected = -np.where(truth, np.log(p), np.log1p(-p)).mean()
    assert negative_log_likelihood(logits, truth, temperature=1.5, regions=True) == pytest.approx(expected)


def test_confidences_are_the_largest_probabilities() -> None:
    logits, truth = honest(np.random.default_rng(5), 200, 3)
    share, right = confidences(logits, truth, temperature=1.3)
    np.testing.assert_allclose(share, softmax(logits / 1.3, axis=1).max(axis=1))
    np.testing.assert_array_equal(right, logits.argmax(axis=1) == truth)
    share, right = confidences(logits, truth[:, None] == [0, 1, 2], regions=True)
    np.testing.assert_allclose(share, np.maximum(expit(logits), expit(-logits)).ravel())
    np.testing.assert_array_equal(right, ((logits > 0) == (truth[:, None] == [0, 1, 2])).ravel())


def test_calibration_error_is_that_of_a_loop_over_bins() -> None:
    rng = np.random.default_rng(6)
    confidence = np.concatenate([rng.uniform(0.3, 1, 997), [1.0, 0.6, 0.2]])
    correct = rng.uniform(size=1000) < confidence**2
    expected = 0.0
    for index in range(15):
        inside = [i for i, c in enumerate(confidence) if index / 15 < c <= (index + 1) / 15]
        if inside:
            expected += len(inside) / 1000 * abs(np.mean(correct[inside]) - np.mean(confidence[inside]))
    assert expected_calibration_error(confidence, correct) == pytest.approx(expected)
    assert expected_calibration_error(np.ones(8), np.ones(8, bool)) == 0
    assert expected_calibration_error(np.full(8, 0.75), np.arange(8) < 4) == pytest.approx(0.25)
