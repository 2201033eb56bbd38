"""What a network says about itself: how to plan for it, how to train it, and its published settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology

OPTIMIZERS = ("sgd", "adam", "adamw", "muon")
SCHEDULES = ("poly", "cosine", "constant")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is optimised; the defaults are nnU-Net's (Isensee et al. 2021).

    Args:
        optimizer: ``sgd`` (Nesterov momentum), ``adam``, ``adamw`` or ``muon``.
        lr: the highest learning rate.
        momentum: of SGD and Muon, or the first beta of Adam.
        schedule: ``poly`` (exponent 0.9), ``cosine`` to zero, or ``constant``.
        warmup: share of training in which the learning rate rises linearly from 0.
        clip_norm: gradients are scaled down to this norm.
        fitted: in a short training, momentum and learning rate are fitted to its length (``training/recipe.py``).
    """

    optimizer: str = "sgd"
    lr: float = 0.01
    weight_decay: float = 3e-5
    momentum: float = 0.99
    schedule: str = "poly"
    warmup: float = 0.0
    clip_norm: float = 12.0
    fitted: bool = True


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named size, asked for as ``--arch NAME:PRESET``.

    Args:
        base_width: in place of the architecture's, also on a CPU.
        memory_bytes: plan for no more than this, even where the device has more.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    base_width: int | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What planner and trainer need to know about a network; its class carries one as ``traits``.

    Widths double per stage from ``base_width`` up to ``max_width``. No axis is halved below ``minimum_edge``
    voxels: instance normalisation needs values to normalise over.

    Args:
        paper: authors and year.
        summary: what is particular about it, in one line.
        ndims: the numbers of axes for which it makes sense.
        max_width: widest stage by number of axes.
        min_stages: a topology has at least so many; small images are padded for it.
        max_stages: and at most so many.
        prunable: takes an argument ``prune`` and then is a shallower network with a part of the same weights.
        inference_arguments: replace the plan's in prediction, where branches that only train are left out.
    """

    paper: str = ""
    summary: str = ""
    ndims: tuple[int, ...] = (2, 3)
    base_width: int = 32
    # On a CPU the samples seen within the time matter more than width (planning/README.md, rule 9).
    base_width_cpu: int = 16
    max_width: Mapping[int, int] = field(default_factory=lambda: {2: 512, 3: 320})
    min_stages: int = 2
    max_stages: int | None = None
    minimum_edge: int = 4
    recipe: Recipe = field(default_factory=Recipe)
    presets: Mapping[str, Preset] = field(default_factory=dict)
    prunable: bool = False
    inference_arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PaperMode:
    """A published setting, built with ``nets.build_paper_mode``, and its published or measured size.

    Args:
        arguments: of the network's own, beyond those of the plan.
        parameters: the integer that the setting must have.
        counted: ``parameters``; ``stored`` also counts running statistics of batch normalisation, as Keras does;
            ``without norms`` leaves out the affine parameters of normalisations.
        note: where paper and code differ, which of them is followed.
    """

    name: str
    topology: Topology
    patch_size: Shape
    in_channels: int
    num_heads: int
    parameters: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    counted: str = "parameters"
    note: str = ""
