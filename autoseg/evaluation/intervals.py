"""How sure a mean over cases is, and how sure the difference of two methods is on the same cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import bootstrap

from autoseg.errors import DatasetError
from autoseg.schema.report import Interval

CONFIDENCE = 0.95
RESAMPLES = 9999
# Fixed: the same scores give the same interval every time it is asked for.
SEED = 0


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean and its bootstrap confidence interval, bias-corrected and accelerated (Efron 1987).

    Args:
        values: one per case, finite; at least one. Of a single value the interval is NaN.
    """
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) == 1:
        return Interval(mean=mean, low=float("nan"), high=float("nan"))
    if np.ptp(array) == 0:
        # Every resample is the same, and the acceleration would be 0 / 0.
        return Interval(mean=mean, low=mean, high=mean)
    interval = bootstrap(
        (array,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="BCa",
        random_state=np.random.default_rng(SEED),
    ).confidence_interval
    return Interval(mean=mean, low=float(interval.low), high=float(interval.high))


def paired_difference(values: Mapping[str, float], reference: Mapping[str, float]) -> Interval:
    """``values`` less ``reference`` case by case; pairing takes out that some cases are hard for everybody.

    Args:
        values: score by case.
        reference: score by case, of the same cases.

    Raises:
        DatasetError: the cases are not the same.
    """
    if values.keys() != reference.keys():
        odd = sorted(values.keys() ^ reference.keys())
        raise DatasetError(f"only one of two methods was scored on {', '.join(odd[:3])}", hint="score both again")
    return mean_interval([values[case] - reference[case] for case in sorted(values)])
