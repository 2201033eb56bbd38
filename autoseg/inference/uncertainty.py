"""How sure a model is: the entropy of every voxel, and for each case the Dice that it expects of itself.

Probabilities are the mean of softmax (of sigmoid for regions) over all folds and mirror images, after dividing each
one's logits by a temperature that ``autoseg_calibrate`` fits (Guo et al. 2017, section 4.2). Unlike labels, which
follow the mean of logits (``ensemble``) and are the same with and without uncertainty, a mean of probabilities keeps
what members disagree about: with sure members of different opinion its entropy is high (Lakshminarayanan et al. 2017).
Sums over windows and resizing are linear, so probabilities stream beside the logits, plane by plane.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from autoseg.inference.budget import choose_sweep
from autoseg.inference.ensemble import Ensemble
from autoseg.inference.predictor import Predictor, Segmentation
from autoseg.inference.stitch import stitch
from autoseg.io.volume import Volume
from autoseg.ops.crop import crop
from autoseg.preprocessing.case import PreprocessedCase
from autoseg.preprocessing.fields import restored_planes
from autoseg.preprocessing.restore import Restorer
from autoseg.schema.calibration import CaseDoubt, LabelDoubt
from autoseg.schema.dataset import Labels

# What is less likely than this does not count as expected: over a large image, tiny probabilities, which a temperature
# above 1 makes larger, would add up to more than a label has, and bring the cases out of order (docs/uncertainty.md).
LEAST_PROBABILITY = 0.05
# Below so many expected voxels a label that was not found counts as absent, and says nothing about the case.
LEAST_VOXELS = 1.0


@dataclass(frozen=True)
class Doubt:
    """``entropy`` float16 (z, y, x) in nats, 0 to ln(labels); of regions, the mean of their binary entropies."""

    entropy: np.ndarray
    case: CaseDoubt


def infer_with_doubt(
    predictor: Predictor,
    case: PreprocessedCase,
    *,
    temperature: float = 1.0,
    probabilities: bool = False,
) -> Segmentation:
    """Labels as ``Predictor.infer``, with ``doubt``; ``probabilities`` are those that the entropy is of.

    Raises:
        DivergenceError, ResourceError: as ``Predictor.infer``.
    """
    labels, ensemble, trace = predictor.plan.labels, predictor.ensemble, case.trace
    heads, voxels = labels.num_heads, int(np.prod(trace.shape))
    features = ensemble.features
    sweep = choose_sweep(
        case.image.shape[1:],
        predictor.configuration,
        heads=2 * heads,
        features=None if features is None else features + heads,
        step=predictor.step_size,
        device=ensemble.device,
        memory=predictor.memory,
        extra_bytes=voxels * (4 + 2 * heads * probabilities),
    )
    resampling = predictor.configuration.resampling
    restorer = Restorer(trace, labels=labels, resampling=resampling)
    regions = labels.has_regions

    def evaluate(windows: Tensor) -> Tensor:
        return with_probabilities(
            ensemble, windows, per_batch=sweep.per_batch, temperature=temperature, regions=regions
        )

    entropy = np.zeros(trace.shape, dtype=np.float16)
    target = crop(entropy.transpose(trace.transpose), trace.box)
    kept = _no_probabilities(heads, trace.shape, regions=regions) if probabilities else None
    axes = (0, *(axis + 1 for axis in trace.transpose))
    place = None if kept is None else crop(kept.transpose(axes), trace.box)
    sums = DoubtSums(labels)

    image = predictor.network_image(case)
    with torch.inference_mode():
        pieces = stitch(image, evaluate, sweep, head=head_of(ensemble))

        def seen() -> Iterator[np.ndarray]:
            for piece in pieces:
                restorer.add(piece[:heads])
                yield piece[heads:]

        for z, plane in enumerate(restored_planes(seen(), trace, resampling=resampling)):
            target[z] = voxel_entropy(plane, regions=regions)
            sums.add(plane)
            if place is not None:
                place[:, z] = plane
    return Segmentation(restorer.finish(), kept, Doubt(entropy, sums.doubt(temperature)))


def head_of(ensemble: Ensemble) -> Callable[[Tensor], Tensor] | None:
    """The head for what ``with_probabilities`` returns, None where networks return logits."""
    features = ensemble.features
    if features is None:
        return None
    return lambda values: torch.cat([ensemble.head(values[:, :features]), values[:, features:]], dim=1)


def with_probabilities(
    ensemble: Ensemble, windows: Tensor, *, per_batch: int, temperature: float, regions: bool
) -> Tensor:
    """What ``Ensemble.evaluate`` returns, and below it the mean probabilities of all members: float32."""
    total: Tensor | None = None
    count = 0

    def watch(index: int, output: Tensor) -> None:
        nonlocal total, count
        logits = ensemble.heads[index](output) if ensemble.heads else output
        scaled = logits.float() / temperature
        found = torch.sigmoid(scaled) if regions else torch.softmax(scaled, dim=1)
        total = found if total is None else total + found
        count += 1

    mean = ensemble.evaluate(windows, per_batch=per_batch, watch=watch)
    assert total is not None
    probabilities = total / count
    return torch.cat([mean.float(), probabilities.unsqueeze(2) if ensemble.ndim == 2 else probabilities], dim=1)


def _no_probabilities(heads: int, shape: tuple[int, ...], *, regions: bool) -> np.ndarray:
    """Probabilities outside of the crop: background is certain."""
    result = np.zeros((heads, *shape), dtype=np.float16)
    if not regions:
        result[0] = 1
    return result


def voxel_entropy(probabilities: np.ndarray, *, regions: bool) -> np.ndarray:
    """Entropy in nats, float32 (...), of probabilities (heads, ...); of regions, the mean of binary entropies.

    Classes that exclude each other are scaled to a sum of 1, which half precision and resizing miss a little.
    """
    if regions:
        both = _information(probabilities) + _information(1 - probabilities)
        return np.asarray(both.mean(axis=0))
    return np.asarray(_information(probabilities / probabilities.sum(axis=0)).sum(axis=0))


def _information(p: np.ndarray) -> np.ndarray:
    """``-p ln p``, 0 at 0."""
    result: np.ndarray = -p * np.log(np.maximum(p, np.finfo(np.float32).tiny))
    return result


class DoubtSums:
    """Voxels found, voxels expected, and both at once, per head; gathered plane by plane."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        heads = labels.num_heads
        self._found = np.zeros(heads)
        self._expected = np.zeros(heads)
        self._overlap = np.zeros(heads)

    def add(self, probabilities: np.ndarray) -> None:
        """A plane of probabilities (heads, rows, columns)."""
        heads = len(probabilities)
        flat = probabilities.reshape(heads, -1)
        self._expected += (flat * (flat >= LEAST_PROBABILITY)).sum(axis=1, dtype=np.float64)
        if self._labels.has_regions:
            on = flat > 0.5
            self._found += on.sum(axis=1)
            self._overlap += (flat * on).sum(axis=1, dtype=np.float64)
        else:
            decided = flat.argmax(axis=0)
            self._found += np.bincount(decided, minlength=heads)
            self._overlap += np.bincount(decided, weights=flat.max(axis=0), minlength=heads)

    def doubt(self, temperature: float) -> CaseDoubt:
        labels = self._labels
        heads = range(labels.num_heads)
        if not labels.has_regions:
            heads = [labels.internal(label)[0] for label in labels.foreground]  # type: ignore[assignment]
        found = [self._label(name, head) for name, head in zip(labels.names, heads, strict=True)]
        known = [item.expected_dice for item in found if not np.isnan(item.expected_dice)]
        return CaseDoubt(
            temperature=temperature,
            score=1 - float(np.mean(known)) if known else float("nan"),
            labels=tuple(found),
        )

    def _label(self, name: str, head: int) -> LabelDoubt:
        found, expected = float(self._found[head]), float(self._expected[head])
        absent = not found and expected < LEAST_VOXELS
        return LabelDoubt(
            label=name,
            expected_dice=float("nan") if absent else 2 * float(self._overlap[head]) / (found + expected),
            voxels=int(found),
            expected_voxels=expected,
        )


@dataclass(frozen=True, kw_only=True)
class DoubtfulPredictor:
    """A ``Predictor`` whose segmentations come with their doubt.

    >>> predictor = DoubtfulPredictor(predictor=Predictor.load("model"), temperature=1.3)  # doctest: +SKIP
    >>> predictor.segment(volume).doubt.entropy  # doctest: +SKIP
    """

    predictor: Predictor
    temperature: float = 1.0

    @property
    def temperatures(self) -> dict[str, float]:
        """Those of several models, of which this is none."""
        return {}

    def segment(self, volume: Volume, *, probabilities: bool = False) -> Segmentation:
        """Preprocess, predict and restore one image; errors as ``Predictor.segment``."""
        case = self.predictor.prepare(volume)
        return infer_with_doubt(self.predictor, case, temperature=self.temperature, probabilities=probabilities)


def logit_planes(predictor: Predictor, case: PreprocessedCase) -> Iterator[np.ndarray]:
    """Mean logits of an image on its own grid: (heads, rows, columns) float32 for each plane of the crop in turn.

    Raises:
        DivergenceError, ResourceError: as ``Predictor.infer``.
    """
    ensemble = predictor.ensemble
    sweep = choose_sweep(
        case.image.shape[1:],
        predictor.configuration,
        heads=predictor.plan.labels.num_heads,
        features=ensemble.features,
        step=predictor.step_size,
        device=ensemble.device,
        memory=predictor.memory,
    )
    evaluate = partial(ensemble.evaluate, per_batch=sweep.per_batch)
    with torch.inference_mode():
        head = ensemble.head if ensemble.heads else None
        pieces = stitch(predictor.network_image(case), evaluate, sweep, head=head)
        yield from restored_planes(pieces, case.trace, resampling=predictor.configuration.resampling)


__all__ = [
    "Doubt",
    "DoubtSums",
    "DoubtfulPredictor",
    "head_of",
    "infer_with_doubt",
    "logit_planes",
    "voxel_entropy",
    "with_probabilities",
]
