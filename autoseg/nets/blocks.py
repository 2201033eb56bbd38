"""Building pieces that several networks share, for 2D and 3D."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from autoseg.errors import SettingError
from autoseg.nets.small_maps import Conv2d, Conv3d
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology

CONV: dict[int, Callable[..., nn.Module]] = {2: Conv2d, 3: Conv3d}
TRANSPOSED_CONV: dict[int, Callable[..., nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
INSTANCE_NORM: dict[int, Callable[..., nn.Module]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
BATCH_NORM: dict[int, Callable[..., nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX_POOL: dict[int, Callable[..., nn.Module]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}

# The negative slope of every LeakyReLU; the initialisation has to know it too.
SLOPE = 0.01


def initialize(module: nn.Module) -> None:
    """He initialisation (He et al. 2015, eq. 15, with the slope of the LeakyReLU) and zero biases; for ``apply``."""
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def upsampler(c_in: int, c_out: int, *, stride: Shape) -> nn.Module:
    """A transposed convolution whose kernel is its stride: every input voxel makes its own block of output."""
    return TRANSPOSED_CONV[len(stride)](c_in, c_out, stride, stride)


def norm(kind: str, channels: int, *, ndim: int) -> nn.Module:
    """``instance`` or ``batch`` normalisation with affine parameters, or ``none``.

    Paper modes of older networks use batch normalisation; its statistics over a batch of two are noise.

    Raises:
        SettingError: another kind.
    """
    if kind == "instance":
        return INSTANCE_NORM[ndim](channels, eps=1e-5, affine=True)
    if kind == "batch":
        return BATCH_NORM[ndim](channels)
    if kind == "none":
        return nn.Identity()
    raise SettingError(f"there is no normalisation {kind!r}", hint="choose one of: instance, batch, none")


def resize(x: Tensor, shape: Shape, *, smooth: bool = True) -> Tensor:
    """``(b, c, *spatial)`` to ``(b, c, *shape)``: bilinear or trilinear (pixel centres aligned), or nearest."""
    if not smooth:
        return F.interpolate(x, shape, mode="nearest")
    return F.interpolate(x, shape, mode={2: "bilinear", 3: "trilinear"}[len(shape)], align_corners=False)


def stage_shapes(topology: Topology, patch_size: Shape) -> tuple[Shape, ...]:
    """The spatial shape at every stage, finest first."""
    shapes = [tuple(patch_size)]
    for stride in topology.strides[1:]:
        shapes.append(tuple(size // step for size, step in zip(shapes[-1], stride, strict=True)))
    return tuple(shapes)


def check_topology(topology: Topology, patch_size: Shape) -> None:
    """What every network needs of a plan.

    Raises:
        SettingError: fewer than two stages, or a patch that the strides do not divide or shrink to a single voxel.
    """
    if topology.num_stages < 2:
        raise SettingError(
            "a network needs at least two stages and the topology has one",
            hint="give a patch with an axis of at least 8 voxels",
        )
    if any(size % divisor for size, divisor in zip(patch_size, topology.divisor, strict=True)):
        raise SettingError(
            f"the patch {patch_size} is not a multiple of {topology.divisor}, the product of the strides",
            hint="change patch_size or the strides of the topology",
        )
    if tuple(patch_size) == topology.divisor:
        raise SettingError(
            f"the patch {patch_size} leaves a single voxel at the last of {topology.num_stages} stages",
            hint="give a larger patch or fewer stages: instance normalisation needs more than one value",
        )
