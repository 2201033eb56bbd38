"""Building pieces that several networks share, for 2D and 3D."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from autoseg.schema.fingerprint import Shape

CONV: dict[int, Callable[..., nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED_CONV: dict[int, Callable[..., nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
INSTANCE_NORM: dict[int, Callable[..., nn.Module]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}

# The negative slope of every LeakyReLU; the initialisation has to know it too.
SLOPE = 0.01


class ConvNormAct(nn.Sequential):
    """Convolution with bias, instance normalisation with affine parameters, LeakyReLU.

    ``(b, c_in, *spatial)`` becomes ``(b, c_out, *spatial / stride)``; odd kernels keep the size at stride 1.
    """

    def __init__(self, c_in: int, c_out: int, *, kernel: Shape, stride: Shape) -> None:
        ndim = len(kernel)
        super().__init__(
            CONV[ndim](c_in, c_out, kernel, stride, padding=tuple((size - 1) // 2 for size in kernel)),
            INSTANCE_NORM[ndim](c_out, eps=1e-5, affine=True),
            nn.LeakyReLU(SLOPE, inplace=True),
        )


class ConvStack(nn.Sequential):
    """``depth`` blocks in a row; the first one strides and changes the width."""

    def __init__(self, c_in: int, c_out: int, *, kernel: Shape, stride: Shape, depth: int) -> None:
        one = (1,) * len(kernel)
        super().__init__(
            *(
                ConvNormAct(c_out if i else c_in, c_out, kernel=kernel, stride=one if i else stride)
                for i in range(depth)
            )
        )


def initialize(module: nn.Module) -> None:
    """He initialisation (He et al. 2015, eq. 15, with the slope of the LeakyReLU) and zero biases; for ``apply``."""
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def upsampler(c_in: int, c_out: int, *, stride: Shape) -> nn.Module:
    """A transposed convolution whose kernel is its stride: every input voxel makes its own block of output."""
    return TRANSPOSED_CONV[len(stride)](c_in, c_out, stride, stride)
