"""What autoseg decided: one ``Configuration`` per way to train, each with the reasons in words.

A plan is written once and read by every later stage; a person may edit the file. ``planning.check`` looks it over
again each time it is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from autoseg.errors import SettingError
from autoseg.schema.dataset import Labels
from autoseg.schema.fingerprint import Shape, Spacing


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """How one channel is normalised: ``ct``, ``zscore``, ``zscore_masked``, ``rescale_0_1``, ``rgb_0_1`` or ``none``.

    The four numbers are of the dataset's foreground and only ``ct`` uses them.
    """

    scheme: str
    mean: float = 0.0
    std: float = 1.0
    lower: float = 0.0
    upper: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """Spline orders; ``order_z`` is for the coarse axis where slices are resampled separately."""

    order_image: int = 3
    order_label: int = 1
    order_logits: int = 1
    order_z: int = 0
    anisotropy_threshold: float = 3.0


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A registered network, arguments of its own (JSON values), and the preset that they came from."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    preset: str = ""

    @property
    def label(self) -> str:
        """``NAME`` or ``NAME:PRESET``, as the user writes it."""
        return f"{self.name}:{self.preset}" if self.preset else self.name


@dataclass(frozen=True, kw_only=True)
class Topology:
    """One entry per stage, finest first: stride *into* the stage, kernel, and channel width."""

    strides: tuple[Shape, ...]
    kernels: tuple[Shape, ...]
    features: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.strides) == len(self.kernels) == len(self.features):
            raise SettingError("strides, kernels and features of a topology must have one entry per stage")

    @property
    def num_stages(self) -> int:
        return len(self.features)

    @property
    def divisor(self) -> Shape:
        """The product of all strides per axis: a patch must be a multiple of it."""
        result = [1] * len(self.strides[0])
        for stride in self.strides:
            result = [total * step for total, step in zip(result, stride, strict=True)]
        return tuple(result)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One training step: trainable parameters, peak bytes alive, and floating-point operations."""

    parameters: int
    memory_bytes: int
    flops: int


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One way to train. Shapes and spacings have ``ndim`` entries and follow the plan's transposed axes.

    A 2D configuration of 3D data works on slices along the first transposed axis, whose spacing stays as it is.
    """

    name: str
    ndim: int
    spacing: Spacing
    median_shape: Shape
    patch_size: Shape
    batch_size: int
    normalization: tuple[Normalization, ...]
    resampling: Resampling
    architecture: Architecture
    topology: Topology
    batch_dice: bool
    cost: Cost
    previous_stage: str | None = None
    why: tuple[str, ...] = ()
    # Only models that nnU-Net trained: they see the stage before as its label file, with a channel per integer.
    previous_as_nnunet: bool = field(default=False, repr=False, metadata={"omit_default": True})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """``transpose[i]`` is the original (z, y, x) axis that becomes axis i.

    ``time_budget`` are the seconds for five folds that the networks of the configurations in ``timed`` were chosen
    for, None for the full recipe.
    """

    VERSION: ClassVar[int] = 1

    version: int = 1
    dataset: str
    device: str
    memory_bytes: int
    transpose: Shape
    channels: tuple[str, ...]
    labels: Labels
    configurations: tuple[Configuration, ...]
    why: tuple[str, ...] = ()
    time_budget: float | None = field(default=None, metadata={"omit_default": True})
    timed: tuple[str, ...] = field(default=(), metadata={"omit_default": True})

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(configuration.name for configuration in self.configurations)

    @property
    def default_configuration(self) -> str:
        """The one that is trained when nobody chooses: full resolution in 3D, or 2D for pictures."""
        return "3d_fullres" if "3d_fullres" in self.names else self.configurations[0].name

    def input_channels(self, configuration: Configuration) -> int:
        """Channels of a network's input: the image's, and one per label that the stage before it segmented."""
        if configuration.previous_stage is None:
            return len(self.channels)
        labels = self.labels.leaves[1:] if configuration.previous_as_nnunet else self.labels.foreground
        return len(self.channels) + len(labels)

    def with_configuration(self, configuration: Configuration) -> Plan:
        """The plan with this configuration in place of the one of its name."""
        others = (configuration if one.name == configuration.name else one for one in self.configurations)
        return replace(self, configurations=tuple(others))

    def configuration(self, name: str) -> Configuration:
        for configuration in self.configurations:
            if configuration.name == name:
                return configuration
        raise SettingError(
            f"the plan of {self.dataset} has no configuration {name!r}", hint=f"choose one of: {', '.join(self.names)}"
        )


@dataclass(frozen=True, kw_only=True)
class PlanOrigin:
    """The question that a plan answers, and the plan's hash: tells an edited plan from an outdated one.

    ``adopted`` is the architecture of a plan that ``autoseg_race`` put in place of the planned one.
    """

    plan_hash: str
    fingerprint_hash: str
    settings: dict[str, Any]
    adopted: str = ""
