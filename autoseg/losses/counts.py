"""Sums of voxels per class without one-hot tensors, and the counts behind the online Dice."""

from __future__ import annotations

import torch
from torch import Tensor

from autoseg.schema.dataset import Labels

# On a GPU every voxel of a class adds to one number; spread over this many they do not queue up behind each other.
_LANES = 256
_FIXED = 2.0**32


def class_sums(index: Tensor, num_classes: int, weights: Tensor | None = None) -> Tensor:
    """Per sample and class, how many voxels there are, or the sum of their weights.

    Args:
        index: (b, n) int64 in 0 .. num_classes - 1.
        weights: (b, n) floating, or None to count. Has no gradient.

    Returns:
        (b, num_classes); float64 for weights, else int64. Never waits for the device.
    """
    if index.device.type != "cpu":
        return lane_sums(index, num_classes, weights)
    b = len(index)
    bins = (index + torch.arange(b).unsqueeze(1) * num_classes).flatten()
    # In double precision, because bincount adds one voxel after the other.
    values = None if weights is None else weights.flatten().double()
    return torch.bincount(bins, values, minlength=b * num_classes).view(b, num_classes)


def lane_sums(index: Tensor, num_classes: int, weights: Tensor | None = None) -> Tensor:
    """``class_sums`` for a GPU: many additions at once, and yet the same sum every time. Weights are at most 1."""
    lanes = torch.arange(index.shape[1], device=index.device) % _LANES
    # Fixed point, because integer additions give the same sum in any order.
    values = torch.ones_like(index) if weights is None else (weights.double() * _FIXED).round().to(torch.int64)
    sums = torch.zeros((len(index), num_classes * _LANES), dtype=torch.int64, device=index.device)
    total = sums.scatter_add_(1, index * _LANES + lanes, values).view(len(index), num_classes, _LANES).sum(2)
    return total if weights is None else total.double() / _FIXED


def region_table(labels: Labels, device: torch.device) -> Tensor:
    """(internal indices, regions) bool: which region holds which leaf; the row of the ignore index is False.

    A row of ``labels.ambiguous`` is True where the region holds every leaf that is possible.
    """
    count = len(labels.leaves) + 1
    table = torch.zeros((count + len(labels.ambiguous), len(labels.foreground)), dtype=torch.bool)
    for column, label in enumerate(labels.foreground):
        members = labels.internal(label)
        table[list(members), column] = True
        table[count:, column] = torch.tensor([set(leaves) <= set(members) for leaves in labels.ambiguous])
    return table.to(device)


def possible_table(labels: Labels, device: torch.device) -> Tensor:
    """(internal indices, leaves) bool: which leaves a voxel may truly be; an ignored one may be any."""
    count = len(labels.leaves)
    table = torch.eye(count, dtype=torch.bool)
    rows = torch.ones((1 + len(labels.ambiguous), count), dtype=torch.bool)
    for row, leaves in enumerate(labels.ambiguous, start=1):
        rows[row] = torch.isin(torch.arange(count), torch.tensor(leaves))
    return torch.cat([table, rows]).to(device)


def known_regions(index: Tensor, labels: Labels) -> Tensor:
    """Internal indices (b, n) int64 -> (b, regions, n) bool: whether a voxel's membership is known."""
    possible = possible_table(labels, index.device)
    columns = []
    for label in labels.foreground:
        members = torch.zeros(len(labels.leaves), dtype=torch.bool, device=index.device)
        members[list(labels.internal(label))] = True
        undecided = (possible & members).any(1) & (possible & ~members).any(1)
        columns.append(~undecided[index])
    return torch.stack(columns, dim=1)


def region_masks(index: Tensor, labels: Labels) -> Tensor:
    """Internal indices (b, n) int64 -> (b, regions, n) bool."""
    table = region_table(labels, index.device)
    return torch.stack([table[:, column][index] for column in range(table.shape[1])], dim=1)


@torch.no_grad()
def dice_counts(logits: Tensor, target: Tensor, labels: Labels) -> tuple[Tensor, Tensor, Tensor]:
    """True positives, false positives and false negatives per foreground label, over batch and voxels.

    Args:
        logits: (b, heads, *spatial); a label's prediction is the argmax, a region's is a logit above 0.
        target: (b, 1, *spatial) internal indices; ignored voxels count nowhere, and ambiguous ones only where the
            prediction is certainly wrong.

    Returns:
        Three int64 tensors (len(labels.foreground),) on the device of the logits; nothing waits for the device.
    """
    index = target.flatten(1).to(device=logits.device, dtype=torch.int64)
    if labels.has_regions:
        return _region_counts(logits.flatten(2) > 0, index, labels)
    predicted = logits.argmax(1).flatten(1)
    # Voxels to leave out go to a bin behind the last class.
    bins = len(labels.leaves) + 1
    outside = torch.full_like(index, bins - 1)
    if labels.ignore_index is not None:
        predicted = torch.where(index == labels.ignore_index, outside, predicted)
    if labels.partial:
        ambiguous = index >= bins
        perhaps = ambiguous & possible_table(labels, index.device)[index, predicted.clamp(max=bins - 2)]
        predicted = torch.where(perhaps, outside, predicted)
        index = torch.where(ambiguous, outside, index)
    agreed = torch.where(index == predicted, index, outside)
    columns = [labels.internal(label)[0] for label in labels.foreground]
    tp, in_prediction, in_target = (class_sums(voxels, bins).sum(0)[columns] for voxels in (agreed, predicted, index))
    return tp, in_prediction - tp, in_target - tp


def _region_counts(predicted: Tensor, index: Tensor, labels: Labels) -> tuple[Tensor, Tensor, Tensor]:
    truth = region_masks(index, labels)
    if labels.ignore_index is not None:
        predicted = predicted & (index != labels.ignore_index).unsqueeze(1)
    if labels.partial:
        predicted = predicted & known_regions(index, labels)
    tp, fp, fn = predicted & truth, predicted & ~truth, truth & ~predicted
    return tp.sum((0, 2)), fp.sum((0, 2)), fn.sum((0, 2))
