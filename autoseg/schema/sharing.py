"""The one file that a model is shared in: which members it has, and what its card says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from autoseg.schema.fingerprint import Spacing
from autoseg.schema.folders import FIRST_STAGE, NO_MODELS
from autoseg.schema.postprocessing import PostStep

MANIFEST = "autoseg.json"
CARD = "card.json"
READABLE_CARD = "CARD.md"
LICENCE = "LICENCE.txt"

# Everything that a file may hold, by full name. Nothing else is ever written to a disk.
_MEMBERS = re.compile(
    r"(?:card|postprocessing|calibration)\.json|CARD\.md|LICENCE\.txt"
    rf"|(?:{FIRST_STAGE}/)?(?:(?:plan|dataset|run)\.json"
    r"|fold_(?:all|0|[1-9][0-9]{0,2})/(?:weights\.safetensors|fold\.json|validation/summary\.json))"
)
_WEIGHTS = re.compile(r"(?P<stage>.+/)?fold_(?P<fold>[^/]+)/weights\.safetensors")
_RECORDS = ("plan.json", "dataset.json", "run.json")
_TEXTS = (CARD, READABLE_CARD, LICENCE)


def is_member(name: str) -> bool:
    """Whether a file of autoseg may have a member of this name, beside the manifest."""
    return _MEMBERS.fullmatch(name) is not None


def missing_members(names: set[str]) -> list[str]:
    """What a complete model lacks; at least one fold must have weights, in a cascade one of each stage."""
    stages = ("", f"{FIRST_STAGE}/") if any(name.startswith(f"{FIRST_STAGE}/") for name in names) else ("",)
    required = [f"{stage}{name}" for stage in stages for name in _RECORDS] + list(_TEXTS)
    required += [f"{stage}fold_0/weights.safetensors" for stage in stages if not _folds(names, stage)]
    return [name for name in required if name not in names]


def _folds(names: Iterable[str], stage: str) -> tuple[str, ...]:
    matches = filter(None, map(_WEIGHTS.fullmatch, names))
    return tuple(match["fold"] for match in matches if (match["stage"] or "") == stage)


def is_folder_name(text: str) -> bool:
    """Whether a text from a file can name one visible folder and nothing else."""
    printable = text.isprintable() and not set(text) & set('/\\:*?"<>|')
    return printable and 0 < len(text.encode()) <= 200 and text[0] not in ". " and text[-1] not in ". "


def is_model_name(text: str) -> bool:
    """Whether a model may have this name among those of its dataset, also where capitals make no difference."""
    return is_folder_name(text) and text.casefold() not in NO_MODELS


@dataclass(frozen=True, kw_only=True)
class Member:
    name: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The first member of the file: where the model belongs, and every other member with its checksum."""

    VERSION: ClassVar[int] = 1

    version: int = 1
    dataset: str
    model: str
    licence: str
    autoseg: str
    members: tuple[Member, ...]

    @property
    def folds(self) -> tuple[str, ...]:
        return _folds((member.name for member in self.members), "")

    @property
    def first_folds(self) -> tuple[str, ...]:
        """Those of the first stage of a cascade; of any other model none."""
        return _folds((member.name for member in self.members), f"{FIRST_STAGE}/")


@dataclass(frozen=True, kw_only=True)
class FoldFacts:
    """How long a fold was trained, and its Dice on held-out cases (NaN if it was not validated)."""

    fold: str
    epochs: int
    steps: int
    seconds: float
    dice: float


@dataclass(frozen=True, kw_only=True)
class LabelScores:
    """Means of cross-validation over the cases in which a figure is defined; distances in mm."""

    label: str
    cases: int
    dice: float
    surface_dice: float
    hd95: float


@dataclass(frozen=True, kw_only=True)
class StageFacts:
    """The first stage of a cascade."""

    configuration: str
    architecture: str
    parameters: int
    working_spacing: Spacing
    patch_size: tuple[int, ...]
    folds: tuple[FoldFacts, ...]


@dataclass(frozen=True, kw_only=True)
class Card:
    """What somebody who uses the model should know. Spacings are (z, y, x) in mm, empty if they were not measured.

    ``labels`` are the integers of the output by name.
    """

    VERSION: ClassVar[int] = 1

    version: int = 1
    dataset: str
    cases: int
    channels: tuple[str, ...]
    labels: dict[str, tuple[int, ...]]
    smallest_spacing: Spacing
    median_spacing: Spacing
    largest_spacing: Spacing
    configuration: str
    architecture: str
    parameters: int
    working_spacing: Spacing
    patch_size: tuple[int, ...]
    folds: tuple[FoldFacts, ...]
    surface_tolerance_mm: float
    scores: tuple[LabelScores, ...]
    training: dict[str, Any]
    versions: dict[str, str]
    licence: str
    intended_use: str
    # Left out where there is none, so that the cards and checksums of all other models stay as they were.
    first_stage: StageFacts | None = field(default=None, metadata={"omit_default": True})


@dataclass(frozen=True, kw_only=True)
class Terms:
    """On what terms a model is given away: the licence in one line and its text, and what the model is for."""

    licence: str
    licence_text: str
    intended_use: str


@dataclass(frozen=True, kw_only=True)
class OnnxModel:
    """``model.json`` beside ONNX graphs: everything that is done before and after them.

    The order is that of ``onnx_runner.py``: transpose the axes, cut out the box of non-zero voxels, normalise each
    channel, resample to ``spacing``, run every graph over windows and average logits, resample logits back, decide,
    put the decisions where the box was, undo the transposition, apply ``postprocessing``.

    Attributes:
        graphs: file names; each takes ``input`` (1, channels, *patch_size) float32, axes transposed, and returns
            ``output`` (1, heads, *patch_size). Their mean is the answer.
        sha256: of each graph.
        largest_difference: between logits of a graph in onnxruntime and of autoseg, on noise.
        transpose: ``transpose[i]`` is the (z, y, x) axis that becomes axis i.
        ndim: 2 means that every plane along the first transposed axis is segmented on its own.
        spacing: mm, of the last ``ndim`` transposed axes; the first axis of a 2D model keeps its own.
        normalization: one scheme per channel with its numbers.
        resampling: spline orders, and the ratio above which the coarse axis is resampled apart.
        step_size: distance of windows as a fraction of the patch.
        window_sigma: of the Gaussian weights of a window, as a fraction of the patch; ``window_floor`` is the least.
        mirror_axes: axes of the patch along which mirror images may be averaged too.
        regions: a head is on where its logit is above 0, and later heads win; else the largest logit wins.
        output_values: the integer for each decision: of each head, or (with regions) of none and of each head.
        postprocessing: steps on connected components of the label map, in order; ``PostStep`` says what they do.
        licence: one line; the whole text is in ``LICENCE.txt``.
    """

    VERSION: ClassVar[int] = 1

    version: int = 1
    dataset: str
    configuration: str
    architecture: str
    channels: tuple[str, ...]
    labels: dict[str, tuple[int, ...]]
    graphs: tuple[str, ...]
    sha256: dict[str, str]
    largest_difference: float
    input: str
    output: str
    heads: int
    ndim: int
    transpose: tuple[int, ...]
    spacing: Spacing
    patch_size: tuple[int, ...]
    normalization: tuple[dict[str, Any], ...]
    resampling: dict[str, Any]
    step_size: float
    window_sigma: float
    window_floor: float
    mirror_axes: tuple[int, ...]
    regions: bool
    output_values: tuple[int, ...]
    postprocessing: tuple[PostStep, ...]
    licence: str
    intended_use: str
    autoseg: str
