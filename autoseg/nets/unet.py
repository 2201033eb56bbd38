"""The plain U-Net in the form of nnU-Net, 2D and 3D.

Ronneberger et al. 2015 (2D) and Çiçek et al. 2016 (3D) in the configuration of Isensee et al. 2021: strided
convolutions in place of pooling, transposed convolutions with kernel = stride, instance normalisation, LeakyReLU and
deep supervision. Generalised: kernel, stride and width of every stage come from the plan.

Shapes for S stages, widths f, and R(s) the patch divided by the strides up to stage s:
    encoder stage s    (b, f[s], *R(s)), two blocks, the first one with the stage's stride
    decoder step s     (b, f[s+1], *R(s+1)) -> up -> (b, f[s], *R(s)) -> concatenated with the skip (b, 2 f[s], *R(s))
                       -> two blocks with the kernel of encoder stage s -> (b, f[s], *R(s))
    head s             1x1 convolution -> (b, heads, *R(s))
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoseg.errors import SettingError
from autoseg.nets.blocks import CONV, ConvStack, initialize, upsampler
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology


class UNet(nn.Module):
    """Plain U-Net; every decoder step has a head (S - 1 logits in training, the finest one in evaluation).

    Args:
        blocks_per_stage: convolution blocks of an encoder stage.
        blocks_per_step: convolution blocks of a decoder step.

    Raises:
        SettingError: fewer than two stages, or a patch that the strides do not divide.
    """

    def __init__(
        self,
        *,
        topology: Topology,
        ndim: int,
        in_channels: int,
        num_heads: int,
        patch_size: Shape,
        blocks_per_stage: int = 2,
        blocks_per_step: int = 2,
    ) -> None:
        super().__init__()
        _check(topology, patch_size)
        widths, kernels, strides = topology.features, topology.kernels, topology.strides
        c_in = (in_channels, *widths)
        self.encoder = nn.ModuleList(
            ConvStack(c_in[s], widths[s], kernel=kernels[s], stride=strides[s], depth=blocks_per_stage)
            for s in range(topology.num_stages)
        )
        steps = range(topology.num_stages - 1)
        one = (1,) * ndim
        self.up = nn.ModuleList(upsampler(widths[s + 1], widths[s], stride=strides[s + 1]) for s in steps)
        self.decoder = nn.ModuleList(
            ConvStack(2 * widths[s], widths[s], kernel=kernels[s], stride=one, depth=blocks_per_step) for s in steps
        )
        self.heads = nn.ModuleList(CONV[ndim](widths[s], num_heads, 1) for s in steps)
        self.apply(initialize)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(b, c, *spatial)`` to logits ``(b, heads, *spatial)``, finest first."""
        skips: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        outputs: list[Tensor] = []
        x = skips.pop()
        for step in reversed(range(len(self.up))):
            x = self.decoder[step](torch.cat((self.up[step](x), skips.pop()), dim=1))
            if self.training or step == 0:
                outputs.append(self.heads[step](x))
        return tuple(reversed(outputs))


def _check(topology: Topology, patch_size: Shape) -> None:
    if topology.num_stages < 2:
        raise SettingError(
            "a U-Net needs at least two stages and the topology has one",
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
