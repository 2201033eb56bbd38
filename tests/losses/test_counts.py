from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from autoseg.losses import dice_counts, segmentation_loss
from autoseg.losses.counts import class_sums, lane_sums
from autoseg.schema.dataset import Label, Labels

# The heads follow the integers, the foreground its own order.
LABELS = Labels(foreground=(Label(name="late", values=(7,)), Label(name="early", values=(2,))), ignore=9)
REGIONS = Labels(
    foreground=(Label(name="whole", values=(1, 2)), Label(name="core", values=(2,))),
    regions_class_order=(1, 2),
    ignore=3,
)


@pytest.mark.parametrize("sums", [class_sums, lane_sums])
def test_sums_per_class(sums: Callable[..., torch.Tensor]) -> None:
    rng = np.random.default_rng(0)
    index, weights = rng.integers(0, 5, (3, 1000)), rng.random((3, 1000)).astype(np.float32)
    counts = sums(torch.from_numpy(index), 6).numpy()
    total = sums(torch.from_numpy(index), 6, torch.from_numpy(weights)).numpy()
    for sample in range(3):
        assert np.array_equal(counts[sample], np.bincount(index[sample], minlength=6))
        expected = np.bincount(index[sample], weights[sample], minlength=6)
        np.testing.assert_allclose(total[sample], expected, rtol=1e-9)


def test_counts_of_labels_follow_the_foreground_and_skip_ignored_voxels() -> None:
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.normal(size=(2, 3, 6, 7, 5)))
    target = torch.from_numpy(rng.integers(0, 4, (2, 1, 6, 7, 5)).astype(np.int16))
    predicted, truth = logits.argmax(1).numpy(), target[:, 0].numpy()
    known = truth != 3
    counts = dice_counts(logits, target, LABELS)
    for column, index in enumerate((2, 1)):
        a, b = (predicted == index) & known, (truth == index) & known
        assert [int(each[column]) for each in counts] == [(a & b).sum(), (a & ~b).sum(), (b & ~a).sum()]


def test_counts_of_regions_overlap() -> None:
    rng = np.random.default_rng(2)
    logits = torch.from_numpy(rng.normal(size=(2, 2, 9, 8)))
    target = torch.from_numpy(rng.integers(0, 4, (2, 1, 9, 8)))
    truth = target[:, 0].numpy()
    known = truth != 3
    counts = dice_counts(logits, target, REGIONS)
    for column, members in enumerate(((1, 2), (2,))):
        a, b = (logits[:, column].numpy() > 0) & known, np.isin(truth, members) & known
        assert [int(each[column]) for each in counts] == [(a & b).sum(), (a & ~b).sum(), (b & ~a).sum()]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("labels", [LABELS, REGIONS])
def test_a_gpu_gives_what_the_cpu_gives(labels: Labels) -> None:
    rng = np.random.default_rng(3)
    logits = torch.from_numpy(rng.normal(size=(2, labels.num_heads, 20, 24, 16)).astype(np.float32))
    target = torch.from_numpy(rng.integers(0, len(labels.leaves) + 1, (2, 1, 20, 24, 16)).astype(np.int16))
    loss = segmentation_loss(labels, batch_dice=False)
    results = []
    for device in ("cpu", "cuda"):
        given = logits.to(device, copy=True).requires_grad_()
        value = loss((given,), target.to(device))
        value.backward()
        counts = torch.stack(dice_counts(given.detach(), target.to(device), labels))
        results.append((value.detach().cpu(), given.grad.cpu(), counts.cpu()))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-9)
    assert torch.equal(results[0][2], results[1][2])
