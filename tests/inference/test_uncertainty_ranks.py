"""The score of a case against the Dice that it really has: a rank statistic over cases, some of them degraded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from scipy import ndimage, stats

from autoseg.inference.predictor import Predictor
from autoseg.inference.uncertainty import DoubtfulPredictor
from autoseg.io.volume import Geometry, Volume
from tests.conftest import WriteModel, small_network, small_plan

SIZE = 32
VALUES = (5, 9)
LEAST_AREA = 0.75


def scene(rng: np.random.Generator, *, noise: float, contrast: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A disc (1) and a brighter square (2) in soft noise: image and truth, both (y, x)."""
    y, x = np.indices((SIZE, SIZE))
    centre = rng.uniform(8, 12, 2)
    truth = (np.hypot(y - centre[0], x - centre[1]) < rng.uniform(4, 7)).astype(int)
    corner, side = rng.integers(18, 23, 2), rng.integers(6, 10)
    truth[corner[0] : corner[0] + side, corner[1] : corner[1] + side] = 2
    grain = ndimage.gaussian_filter(rng.normal(size=truth.shape), 0.8)
    return (contrast * truth + noise * grain / grain.std()).astype(np.float32), truth


def trained_network(rng: np.random.Generator) -> torch.nn.Module:
    """A few seconds of plain gradient descent on undegraded scenes."""
    network = small_network(small_plan(ndim=2, patch=SIZE), seed=0).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(80):
        images, truths = zip(*(scene(rng, noise=0.3) for _ in range(4)), strict=True)
        logits = network(torch.from_numpy(np.stack(images)[:, None]))[0]
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(np.stack(truths)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def mean_dice(found: np.ndarray, truth: np.ndarray) -> float:
    pairs = [(found == value, truth == number) for number, value in enumerate(VALUES, start=1)]
    return float(np.mean([2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) for ours, theirs in pairs]))


def judged(predictor: DoubtfulPredictor, rng: np.random.Generator, *, cases: int) -> Iterator[tuple[float, float]]:
    """(score, real mean Dice) of cases, of which every third is noisy, or faint, to some degree of its own."""
    for index in range(cases):
        kinds = {0: {"noise": rng.uniform(0.3, 1.2)}, 1: {"noise": 0.3, "contrast": rng.uniform(0.4, 1.0)}}
        image, truth = scene(rng, **kinds.get(index % 6, {"noise": 0.3}))
        segmentation = predictor.segment(Volume(image[None, None], Geometry.picture((1.0, 1.0))))
        assert segmentation.doubt is not None
        yield segmentation.doubt.case.score, mean_dice(segmentation.labels[0], truth)


def test_the_score_puts_cases_of_low_dice_first(write_model: WriteModel, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    model = write_model(tmp_path / "model", ndim=2, patch=SIZE)
    weights = trained_network(rng).state_dict()
    save_file(weights, model.fold("0").weights, {"configuration": "2d"})
    predictor = DoubtfulPredictor(predictor=Predictor.load(model.root, device="cpu"))
    scores, dices = map(np.array, zip(*judged(predictor, rng, cases=60), strict=True))
    worst = dices <= np.quantile(dices, 0.2)
    # Else there would be nothing to find.
    assert np.median(dices) > 0.8
    assert dices[worst].max() < np.median(dices) - 0.02
    # The area under the ROC curve is the share of pairs that are in the right order.
    area = stats.mannwhitneyu(scores[worst], scores[~worst]).statistic / (worst.sum() * (~worst).sum())
    assert area > LEAST_AREA
    assert stats.spearmanr(scores, dices).statistic < -0.3
