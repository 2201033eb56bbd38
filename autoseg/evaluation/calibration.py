"""Whether probabilities are honest, and the one number that makes them so."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar

BINS = 15
# Of logarithms of temperatures; what lies beyond says that the model knows nothing, or everything.
_BOUNDS = (np.log(0.05), np.log(20.0))


def fit_temperature(logits: np.ndarray, truth: np.ndarray, *, regions: bool = False) -> float:
    """The temperature T that minimises the negative log-likelihood of logits / T (Guo et al. 2017, section 4.2).

    The likelihood has one maximum, because it is concave in 1 / T. The largest logit stays the largest.

    Args:
        logits: (n, heads).
        truth: the right head of each, integers (n,); of regions, which heads are right, bool (n, heads).
    """
    wide = np.asarray(logits, dtype=np.float64)

    def loss(exponent: float) -> float:
        return negative_log_likelihood(wide, truth, temperature=float(np.exp(exponent)), regions=regions)

    return float(np.exp(minimize_scalar(loss, bounds=_BOUNDS, method="bounded", options={"xatol": 1e-4}).x))


def negative_log_likelihood(
    logits: np.ndarray, truth: np.ndarray, *, temperature: float = 1.0, regions: bool = False
) -> float:
    """Mean of ``-ln p(truth)`` in nats, per voxel (of regions, per voxel and region); arguments as above."""
    scaled = logits / temperature
    if regions:
        return float(np.mean(np.logaddexp(0, np.where(truth, -scaled, scaled))))
    top = scaled.max(axis=1)
    total = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
    return float(np.mean(total - scaled[np.arange(len(scaled)), truth]))


def confidences(
    logits: np.ndarray, truth: np.ndarray, *, temperature: float = 1.0, regions: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The probability of every decision, and whether it was right: float64 and bool (n,), of regions (n * heads,)."""
    scaled = logits / temperature
    if regions:
        decided = scaled > 0
        return 1 / (1 + np.exp(-np.abs(scaled))).ravel(), (decided == truth).ravel()
    top = scaled.max(axis=1)
    share = 1 / np.exp(scaled - top[:, None]).sum(axis=1)
    return share, scaled.argmax(axis=1) == truth


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, *, bins: int = BINS) -> float:
    """Mean distance between confidence and accuracy over ``bins`` of equal width in (0, 1], weighted by their voxels.

    Naeini et al. 2015; Guo et al. 2017, equation 3. A confidence on the edge of two bins belongs to the lower one.
    """
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(place, weights=correct.astype(np.float64) - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


__all__ = ["BINS", "confidences", "expected_calibration_error", "fit_temperature", "negative_log_likelihood"]
