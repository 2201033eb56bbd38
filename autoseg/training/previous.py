"""What the second stage of a cascade sees besides the image: the segmentation of the stage before.

It is read as a second channel of the label, so that it is cut, turned and mirrored exactly as the label is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from autoseg.io.label_maps import open_label_map
from autoseg.io.store import Sliced, StoredCase
from autoseg.nets.label_channels import Groups, add_label_channels
from autoseg.schema.folders import ModelFolder
from autoseg.training.mask_noise import disturb_labels


@dataclass(frozen=True, kw_only=True)
class PreviousStage:
    """``files`` are the stored segmentations of a fold's cases; ``identity`` changes with what made any of them."""

    files: Mapping[str, Path]
    identity: str


@dataclass(frozen=True, kw_only=True)
class EarlierStage:
    """The model of the stage before, and what each fold of the second stage gets of it.

    ``seconds`` of this command went into training it out of its own share of a time budget.
    """

    model: ModelFolder
    folds: Mapping[str, PreviousStage]
    seconds: float


@dataclass(frozen=True)
class LabelPair:
    """Label and previous segmentation (2, z, y, x), read where it is sliced."""

    label: Sliced
    previous: Sliced

    @property
    def shape(self) -> tuple[int, ...]:
        return (2, *self.label.shape[1:])

    def __getitem__(self, box: tuple[slice, ...]) -> np.ndarray:
        return np.concatenate([self.label[box].astype(np.int16), self.previous[box].astype(np.int16)])

    @property
    def mapped_bytes(self) -> int:
        return self.label.mapped_bytes + self.previous.mapped_bytes

    def forget(self) -> None:
        self.label.forget()
        self.previous.forget()


def with_previous(case: StoredCase, files: Mapping[str, Path]) -> StoredCase:
    """The case with its previous segmentation as second channel of its label."""
    return replace(case, label=LabelPair(case.label, open_label_map(files[case.id])))


def previous_as_channels(
    image: torch.Tensor, target: torch.Tensor, groups: Groups, generators: Sequence[np.random.Generator]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the second channel of a target channels of the image.

    Args:
        image: (b, c, *patch).
        target: (b, 2, *patch) int16: label and previous segmentation, both of internal indices.
        generators: one per sample, to draw faults of the previous segmentation from; none in validation.

    Returns:
        (b, c + groups, *patch) and (b, 1, *patch).
    """
    previous = target[:, 1:].contiguous()
    foreground = sorted({index for group in groups for index in group if index > 0})
    for sample, generator in zip(previous[:, 0], generators, strict=bool(generators)):
        disturb_labels(sample, foreground, generator)
    return add_label_channels(image, previous, groups), target[:, :1].contiguous()
