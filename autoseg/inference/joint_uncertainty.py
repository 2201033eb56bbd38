"""How sure several models are together: entropy and case score of the mean of what each of them believes.

Labels are those of ``joint``. Beside the planes that decide them, each model sends the mean probabilities of its folds
and mirror images at its own temperature (``uncertainty``), through the same windows and in step; models count alike,
whatever the number of their folds, as they do for labels. The mean of probabilities that are honest one by one is a
little less sure than it could be (Gneiting & Ranjan 2013, section 2: a linear pool of calibrated forecasts is
underconfident), which errs on the side of caution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import tee

import numpy as np
import torch

from autoseg.inference.joint import JointPredictor, mean_planes, turned
from autoseg.inference.predictor import Predictor, Segmentation
from autoseg.inference.stitch import Sweep, stitch
from autoseg.inference.uncertainty import Doubt, DoubtSums, head_of, voxel_entropy, with_probabilities
from autoseg.io.volume import Volume
from autoseg.preprocessing.case import PreprocessedCase
from autoseg.preprocessing.fields import restored_planes
from autoseg.preprocessing.planes import PlaneProbabilities


@dataclass(frozen=True, kw_only=True)
class DoubtfulJointPredictor:
    """A ``JointPredictor`` whose segmentations come with their doubt; ``temperatures`` are by model, in its order."""

    predictor: JointPredictor
    temperatures: dict[str, float]

    @property
    def temperature(self) -> float:
        """There is none for all of them."""
        return float("nan")

    def segment(self, volume: Volume, *, probabilities: bool = False) -> Segmentation:
        """Preprocess, predict and restore one image; errors as ``Predictor.segment``."""
        return self.infer(self.predictor.prepare(volume), probabilities=probabilities)

    def infer(self, cases: Sequence[PreprocessedCase], *, probabilities: bool = False) -> Segmentation:
        """Labels as ``JointPredictor.infer``, with ``doubt``; ``probabilities`` are those that the entropy is of."""
        members, labels = self.predictor.members, self.predictor.members[0].plan.labels
        heads, shape, regions = labels.num_heads, cases[0].trace.shape, labels.has_regions
        restorers = self.predictor.restorers(cases)
        axis = restorers[0].axis
        sweeps = self.predictor.sweeps(cases, axis, kept=1 + heads * probabilities, more=heads)
        entropy = np.empty(shape, dtype=np.float16)
        kept = np.empty((heads, *shape), dtype=np.float16) if probabilities else None
        decided: np.ndarray | None = None
        sums = DoubtSums(labels)
        parts = zip(members, cases, restorers, sweeps, self.temperatures.values(), strict=True)
        with torch.inference_mode():
            for index, both in enumerate(mean_planes([_both_planes(*part, axis) for part in parts])):
                values = restorers[0].decide(both[:heads])
                if decided is None:
                    decided = np.empty(shape, dtype=values.dtype)
                np.moveaxis(decided, axis, 0)[index] = values
                plane = both[heads:]
                np.moveaxis(entropy, axis, 0)[index] = voxel_entropy(plane, regions=regions)
                sums.add(plane)
                if kept is not None:
                    np.moveaxis(kept, axis + 1, 1)[:, index] = plane
        assert decided is not None
        case = replace(sums.doubt(self.temperature), temperatures=self.temperatures)
        return Segmentation(decided, kept, Doubt(entropy, case))


def _both_planes(
    member: Predictor,
    case: PreprocessedCase,
    restorer: PlaneProbabilities,
    sweep: Sweep,
    temperature: float,
    axis: int,
) -> Iterator[np.ndarray]:
    """Per plane across ``axis`` the probabilities that decide, and below them those that the doubt is of."""
    labels = member.plan.labels
    heads = labels.num_heads
    evaluate = partial(
        with_probabilities,
        member.ensemble,
        per_batch=sweep.per_batch,
        temperature=temperature,
        regions=labels.has_regions,
    )
    # Both halves ask for the same planes, so that hardly anything waits between them.
    first, second = tee(stitch(member.network_image(case), evaluate, sweep, head=head_of(member.ensemble)))
    field = restored_planes((piece[heads:] for piece in second), case.trace, resampling=member.configuration.resampling)
    pairs = zip(restorer.planes(piece[:heads] for piece in first), restorer.placed(field), strict=True)
    return turned((np.concatenate(pair) for pair in pairs), case.trace.shape, restorer.axis, axis)


__all__ = ["DoubtfulJointPredictor"]
