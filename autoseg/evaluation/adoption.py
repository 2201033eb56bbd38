"""Which post-processing helps: candidates, what they are judged by, and the rule by which one is adopted.

**The figure.** Dice of every label of a case, labels that nobody annotated left out; where reference and segmentation
are both empty it is 1. So a comparison is over the same labels of the same cases before and after, and taking away
what was found where there is nothing is a gain. The figure of a case is the mean over *all* its labels: what a step
does to labels that it was not meant for counts as much as what it was meant for.

**The rule.** Stages are walked through once: the largest component of the whole foreground, then for each label, in
their order, the best of its component rules (minimum sizes, largest component), then its holes. Of a stage the
candidate with the highest mean is tried. It is adopted if the mean over cases rises by at least ``SMALLEST_GAIN`` and
the lower end of the 95% bootstrap interval of the gain, case by case, is not below 0. A step that helps some cases and
harms none passes; one that harms some must help clearly. With a single case nothing is adopted.

nnU-Net adopts the rule for the foreground if the mean rises and no label falls, and a rule for a label if that label's
mean rises, whatever happens to others; it knows neither sizes nor holes. Ours is stricter where chance or damage to
others is possible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from autoseg.evaluation.intervals import paired_difference
from autoseg.schema.dataset import Labels
from autoseg.schema.postprocessing import FILL_HOLES, FOREGROUND, KEEP_LARGEST, REMOVE_SMALL, PostStep
from autoseg.schema.report import Interval
from autoseg.schema.selection import StepTrial

Chain = tuple[PostStep, ...]
# Case -> Dice of every label.
Scores = Mapping[str, Sequence[float]]

# A table shows four digits.
SMALLEST_GAIN = 1e-4

# Minimum sizes that are tried, as shares of the median volume of the label in the cases that have it.
SIZE_SHARES = (0.01, 0.03, 0.1, 0.3)


def label_dice(
    reference: np.ndarray, prediction: np.ndarray, labels: Labels, annotated: Sequence[str] | None = None
) -> tuple[float, ...]:
    """Dice of every label; 1 where both are empty, NaN where ``annotated`` does not name the label.

    Args:
        reference: integers as in label files, any shape; ``labels.ignore`` belongs to no mask.
        prediction: the same shape.
    """
    if labels.ignore is not None:
        counted = reference != labels.ignore
        reference, prediction = reference[counted], prediction[counted]
    result = []
    for label in labels.foreground:
        if annotated is not None and label.name not in annotated:
            result.append(math.nan)
            continue
        first, second = (_mask(array, label.values) for array in (reference, prediction))
        total = int(np.count_nonzero(first)) + int(np.count_nonzero(second))
        result.append(2 * int(np.count_nonzero(first & second)) / total if total else 1.0)
    return tuple(result)


def _mask(array: np.ndarray, values: Sequence[int]) -> np.ndarray:
    return array == values[0] if len(values) == 1 else np.isin(array, values)


def case_means(scores: Scores) -> dict[str, float]:
    """Case -> mean over its annotated labels; cases in which none is annotated are left out."""
    known = {case: [value for value in dice if not math.isnan(value)] for case, dice in scores.items()}
    return {case: math.fsum(dice) / len(dice) for case, dice in known.items() if dice}


def stages(labels: Labels, volumes: Mapping[str, float]) -> tuple[tuple[PostStep, ...], ...]:
    """The candidates, stage by stage, gentle ones first.

    Args:
        volumes: label -> median volume in mm^3 over the reference labels that have it; labels without are not sized.
    """
    result: list[tuple[PostStep, ...]] = []
    everything = tuple(value for value in labels.leaves if value != 0)
    if len(labels.foreground) > 1:
        result.append((PostStep(rule=KEEP_LARGEST, label=FOREGROUND, values=everything),))
    for number, label in enumerate(labels.foreground):
        sizes = sorted({_rounded(share * volumes.get(label.name, 0.0)) for share in SIZE_SHARES} - {0.0})
        small = [PostStep(rule=REMOVE_SMALL, label=label.name, values=label.values, minimum_mm3=size) for size in sizes]
        result.append((*small, PostStep(rule=KEEP_LARGEST, label=label.name, values=label.values)))
        fill = (labels.regions_class_order or ())[number] if labels.has_regions else label.values[0]
        result.append((PostStep(rule=FILL_HOLES, label=label.name, values=label.values, fill=fill),))
    return tuple(result)


def _rounded(volume: float) -> float:
    return float(f"{volume:.2g}")


def adopted(gain: Interval) -> bool:
    """The rule of this module."""
    return gain.mean >= SMALLEST_GAIN and gain.low >= 0


def choose_chain(
    candidates: Sequence[Sequence[PostStep]], score: Callable[[Sequence[Chain]], Mapping[Chain, Scores]]
) -> tuple[Chain, tuple[StepTrial, ...]]:
    """Walk through the stages; returns what was adopted, and the best of every stage with its gain.

    Args:
        candidates: of every stage, as ``stages`` makes them.
        score: chains to the Dice of every label of every case, for the same cases each time.
    """
    chain: Chain = ()
    trials = []
    for stage in candidates:
        chains = [(*chain, step) for step in stage]
        found = score([chain, *chains])
        before = case_means(found[chain])
        best = max(chains, key=lambda one: math.fsum(case_means(found[one]).values()))
        gain = paired_difference(case_means(found[best]), before)
        trials.append(StepTrial(step=best[-1], gain=gain, adopted=adopted(gain)))
        if adopted(gain):
            chain = best
    return chain, tuple(trials)
