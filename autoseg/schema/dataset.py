"""A labelled dataset as autoseg understands it: channels, labels and the files of every case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autoseg.errors import DatasetError


@dataclass(frozen=True, kw_only=True)
class Label:
    """A name and the integers in the label files that it stands for (several for a region)."""

    name: str
    values: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The foreground of a dataset, in the order of the network's heads; the background is the integer 0.

    ``leaves`` are all integers that occur in label files, background first, without ``ignore``. Inside autoseg
    a voxel holds the *position* of its integer in ``leaves`` (0 .. K), and K + 1 where it is to be ignored; the
    integers of the files come back on export.
    """

    foreground: tuple[Label, ...]
    ignore: int | None = None
    regions_class_order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.has_regions and len(self.regions_class_order or ()) != len(self.foreground):
            raise DatasetError(
                "the labels hold regions (lists of integers) but regions_class_order does not have one integer each",
                hint='add "regions_class_order" to dataset.json: one output integer per region, later ones win',
            )

    @property
    def has_regions(self) -> bool:
        return any(len(label.values) > 1 for label in self.foreground)

    @property
    def leaves(self) -> tuple[int, ...]:
        return tuple(sorted({0, *(value for label in self.foreground for value in label.values)}))

    @property
    def ignore_index(self) -> int | None:
        """The internal index of ignored voxels, or None."""
        return None if self.ignore is None else len(self.leaves)

    @property
    def num_heads(self) -> int:
        """Output channels of a network: one per region, or background and one per label."""
        return len(self.foreground) if self.has_regions else len(self.leaves)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.foreground)

    def internal(self, label: Label) -> tuple[int, ...]:
        """The internal indices that a foreground label stands for."""
        return tuple(self.leaves.index(value) for value in label.values)


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """One case: absolute paths of its images in channel order, and of its label (None for a case to predict)."""

    id: str
    images: tuple[str, ...]
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """A dataset folder, read and understood. ``channels`` are names in channel order ("CT", "T2", ...)."""

    VERSION: ClassVar[int] = 1

    version: int = 1
    name: str
    channels: tuple[str, ...]
    labels: Labels
    file_ending: str
    cases: tuple[CaseFiles, ...]


@dataclass(frozen=True, kw_only=True)
class CurrentDataset:
    """The dataset that was planned last in a work directory."""

    dataset: str
