"""Several models of one dataset as one: the mean of their probabilities, decided plane by plane.

Within a model folds are averaged as logits (see ``ensemble``). Models of different configurations or architectures
see other grids and have logits of other scales, so that the sharper one would outvote the others: here probabilities
are averaged, after each model's logits have come back to the image's grid, as in nnU-Net. Both models walk through
the image in step, and no volume of probabilities exists, on disk or in memory; except of a model whose plan orders the
axes in another way than that of the first: its probabilities are turned whole, in float16.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from autoseg.errors import ModelFolderError
from autoseg.inference.budget import choose_sweep, window_bytes
from autoseg.inference.predictor import Predictor, Segmentation
from autoseg.inference.stitch import Sweep, ring_bytes, stitch
from autoseg.io.volume import Volume
from autoseg.preprocessing.case import PreprocessedCase
from autoseg.preprocessing.planes import PlaneProbabilities


@dataclass(frozen=True, kw_only=True)
class JointPredictor:
    """Segments images with several models at once; ``members`` have the same channels and labels (``together``)."""

    members: tuple[Predictor, ...]

    @staticmethod
    def together(members: Sequence[Predictor]) -> JointPredictor:
        """Models as one.

        Raises:
            ModelFolderError: they have other channels or labels.
        """
        first, *others = members
        if any(one.plan.channels != first.plan.channels or one.plan.labels != first.plan.labels for one in others):
            raise ModelFolderError(
                "models with different channels or labels cannot decide together",
                hint="use models that were trained on the same dataset.json",
            )
        return JointPredictor(members=tuple(members))

    def segment(self, volume: Volume, *, probabilities: bool = False) -> Segmentation:
        """Preprocess, predict and restore one image; errors as ``Predictor.segment``."""
        return self.infer(self.prepare(volume), probabilities=probabilities)

    def prepare(self, volume: Volume) -> tuple[PreprocessedCase, ...]:
        """The image as each model wants it."""
        return tuple(member.prepare(volume) for member in self.members)

    def infer(self, cases: Sequence[PreprocessedCase], *, probabilities: bool = False) -> Segmentation:
        """Labels on the original grid; with ``probabilities`` also their means, float16 (heads, z, y, x)."""
        labels = self.members[0].plan.labels
        shape = cases[0].trace.shape
        restorers = self.restorers(cases)
        axis = restorers[0].axis
        sweeps = self.sweeps(cases, axis, kept=labels.num_heads * probabilities)
        kept = np.empty((labels.num_heads, *shape), dtype=np.float16) if probabilities else None
        decided: np.ndarray | None = None
        with torch.inference_mode():
            streams = [
                _planes(member, case, restorer, sweep, axis)
                for member, case, restorer, sweep in zip(self.members, cases, restorers, sweeps, strict=True)
            ]
            for index, mean in enumerate(mean_planes(streams)):
                values = restorers[0].decide(mean)
                if decided is None:
                    decided = np.empty(shape, dtype=values.dtype)
                np.moveaxis(decided, axis, 0)[index] = values
                if kept is not None:
                    np.moveaxis(kept, axis + 1, 1)[:, index] = mean
        assert decided is not None
        return Segmentation(decided, kept)

    def restorers(self, cases: Sequence[PreprocessedCase]) -> list[PlaneProbabilities]:
        """What brings the logits of each member back to the image's grid."""
        labels = self.members[0].plan.labels
        return [
            PlaneProbabilities(case.trace, labels=labels, resampling=member.configuration.resampling)
            for member, case in zip(self.members, cases, strict=True)
        ]

    def sweeps(self, cases: Sequence[PreprocessedCase], axis: int, *, kept: int, more: int = 0) -> list[Sweep]:
        """How each member passes over its image, so that all accumulators fit together.

        Args:
            axis: of the image, across which planes are handed on.
            kept: numbers of half precision that are kept per voxel of the image, beside its label.
            more: channels that gather beside the logits or features of a network.
        """
        heads = self.members[0].plan.labels.num_heads + more
        voxels = int(np.prod(cases[0].trace.shape))
        whole = sum(case.trace.transpose[0] != axis for case in cases)
        besides = voxels * (2 + 2 * (heads * whole + kept))
        least = [_least_bytes(member, case, more) for member, case in zip(self.members, cases, strict=True)]
        sweeps: list[Sweep] = []
        for index, (member, case) in enumerate(zip(self.members, cases, strict=True)):
            taken = sum(ring_bytes(_shape(cases[other]), sweep) for other, sweep in enumerate(sweeps))
            device = member.ensemble.device
            memory = member.memory
            if device.type == "cuda":
                share = torch.cuda.mem_get_info(device)[0] // len(cases)
                memory = share if memory is None else min(memory // len(cases), share)
            sweeps.append(
                choose_sweep(
                    _shape(case),
                    member.configuration,
                    heads=heads,
                    features=_features(member, more),
                    step=member.step_size,
                    device=device,
                    memory=memory,
                    extra_bytes=besides + taken + sum(least[index + 1 :]),
                )
            )
        return sweeps


def _shape(case: PreprocessedCase) -> tuple[int, ...]:
    return tuple(case.image.shape[1:])


def _features(member: Predictor, more: int) -> int | None:
    return None if member.ensemble.features is None else member.ensemble.features + more


def _least_bytes(member: Predictor, case: PreprocessedCase, more: int) -> int:
    """What a member needs at least: sums in float16 and one window."""
    configuration = member.configuration
    heads = member.plan.labels.num_heads + more
    patch = (1, *configuration.patch_size) if configuration.ndim == 2 else configuration.patch_size
    sweep = Sweep(
        patch=patch, heads=heads, features=_features(member, more), step=member.step_size, dtype=torch.float16
    )
    return ring_bytes(_shape(case), sweep) + window_bytes(configuration, sweep.channels)


def _planes(
    member: Predictor, case: PreprocessedCase, restorer: PlaneProbabilities, sweep: Sweep, axis: int
) -> Iterator[np.ndarray]:
    """The probabilities of one member across ``axis`` of the image, plane by plane."""
    ensemble = member.ensemble
    evaluate = partial(ensemble.evaluate, per_batch=sweep.per_batch)
    pieces = stitch(member.network_image(case), evaluate, sweep, head=ensemble.head if ensemble.heads else None)
    return turned(restorer.planes(pieces), case.trace.shape, restorer.axis, axis)


def mean_planes(streams: Sequence[Iterable[np.ndarray]]) -> Iterator[np.ndarray]:
    """The mean of planes that come one after the other from each member, who count alike."""
    for planes in zip(*streams, strict=True):
        mean = planes[0] / len(planes)
        for plane in planes[1:]:
            mean += plane / len(planes)
        yield mean


def turned(planes: Iterator[np.ndarray], shape: Sequence[int], axis: int, wanted: int) -> Iterator[np.ndarray]:
    """Planes across ``axis`` as planes across another axis: only whole, as float16, can they be turned."""
    return planes if axis == wanted else _across(planes, shape, axis, wanted)


def _across(planes: Iterable[np.ndarray], shape: Sequence[int], axis: int, wanted: int) -> Iterator[np.ndarray]:
    volume: np.ndarray | None = None
    for index, plane in enumerate(planes):
        if volume is None:
            volume = np.empty((len(plane), *shape), dtype=np.float16)
        np.moveaxis(volume, axis + 1, 1)[:, index] = plane
    assert volume is not None
    for index in range(shape[wanted]):
        yield np.moveaxis(volume, wanted + 1, 1)[:, index].astype(np.float32)
