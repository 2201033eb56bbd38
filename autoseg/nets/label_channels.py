"""A segmentation as input of a network: one channel of zeros and ones per foreground label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autoseg.schema.dataset import Labels

Groups = tuple[tuple[int, ...], ...]


def label_groups(labels: Labels) -> Groups:
    """Per foreground label, the internal indices whose voxels its channel shows; several for a region."""
    return tuple(labels.internal(label) for label in labels.foreground)


def integer_groups(labels: Labels) -> Groups:
    """Per foreground integer, in ascending order, its internal index: the channels of a cascade of nnU-Net."""
    return tuple((index,) for index in range(1, len(labels.leaves)))


def add_label_channels(image: Tensor, label: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """The image (b, c, *spatial) with one more channel per group.

    Args:
        label: internal indices (b, 1, *spatial), of any type that holds them exactly.
    """
    channels = []
    for group in groups:
        inside = label == group[0]
        for index in group[1:]:
            inside |= label == index
        channels.append(inside.to(image.dtype))
    return torch.cat([image, *channels], dim=1)
