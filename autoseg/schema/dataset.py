"""A labelled dataset as autoseg understands it: channels, labels and the files of every case."""

from __future__ import annotations

from dataclasses import dataclass, field
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

    ``partial`` are the sets of names that were annotated in cases in which not all were, each set once. Where such a
    case leaves several indices possible, the preprocessed voxel holds K + 2 + i for the i-th set in ``ambiguous``.
    """

    foreground: tuple[Label, ...]
    ignore: int | None = None
    regions_class_order: tuple[int, ...] | None = None
    # Not in repr, of which the hashes of fingerprints and stores are made: that of a case says it all.
    partial: tuple[tuple[str, ...], ...] = field(default=(), repr=False, metadata={"omit_default": True})

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
        return (0, *sorted({value for label in self.foreground for value in label.values} - {0}))

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

    def candidates(self, annotated: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        """Per internal index, the indices that its voxels may truly have where only these labels were annotated.

        They are those that the annotated labels do not tell apart: of an annotated plain label only itself, of the
        background also every label that nobody looked for.
        """
        looked_for = [self.internal(label) for label in self.foreground if label.name in annotated]
        seen = [tuple(index in members for members in looked_for) for index in range(len(self.leaves))]
        return tuple(tuple(other for other, same in enumerate(seen) if same == own) for own in seen)

    @property
    def ambiguous(self) -> tuple[tuple[int, ...], ...]:
        """The sets of internal indices, two or more each, between which some partial case leaves the choice."""
        found = {indices for names in self.partial for indices in self.candidates(names) if len(indices) > 1}
        return tuple(sorted(found))


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """One case: absolute paths of its images in channel order, and of its label (None for a case to predict).

    ``annotated`` are the names of the labels that somebody looked for, None for all of them.
    """

    id: str
    images: tuple[str, ...]
    label: str | None = None
    annotated: tuple[str, ...] | None = field(default=None, metadata={"omit_default": True})


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
