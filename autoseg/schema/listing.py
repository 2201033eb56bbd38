"""What ``autoseg_architectures`` lists: architectures, published sizes, and what each would cost on a dataset."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from autoseg.schema.fingerprint import Shape


@dataclass(frozen=True, kw_only=True)
class PublishedSize:
    """``parameters`` of a published setting; ``counted`` says which of them (see ``PaperMode``)."""

    name: str
    patch_size: Shape
    parameters: int
    counted: str
    note: str


@dataclass(frozen=True, kw_only=True)
class PlannedSize:
    """What a plan for the dataset would say: patch in voxels, and parameters, operations and peak bytes of a step."""

    configuration: str
    patch_size: Shape
    batch_size: int
    parameters: int
    flops: int
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class ListedArchitecture:
    """NAME or NAME:PRESET with what it says about itself.

    Args:
        settings: what a preset sets: arguments of the network, ``base_width``, ``memory_bytes``.
        planned: None without a dataset, and where ``reason`` says why it cannot be trained on it.
    """

    name: str
    paper: str = ""
    summary: str = ""
    ndims: tuple[int, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    published: tuple[PublishedSize, ...] = ()
    planned: PlannedSize | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class ArchitectureListing:
    """``dataset`` is None where none was planned; ``choice`` is what ``--arch auto`` stands for, and ``why``."""

    VERSION: ClassVar[int] = 1

    version: int = 1
    dataset: str | None
    device: str
    memory_bytes: int
    choice: str
    why: str
    architectures: tuple[ListedArchitecture, ...]
    presets: tuple[ListedArchitecture, ...]
