"""A residual encoder with additive skips, and an autoencoder branch that regularises it, 2D and 3D.

Myronenko 2018, "3D MRI brain tumor segmentation using autoencoder regularization" (BrainLes; figure 1, tables 1
and 2). Blocks are pre-activated: GroupNorm, ReLU and convolution, twice, plus the input.

Shapes for S stages, widths f, and R(s) the patch divided by the strides up to stage s:
    encoder stage s   convolution with the stage's stride -> (b, f[s], *R(s)) -> 1, 2, 2, 4, 4, .. residual blocks
    decoder step s    1x1x1 to f[s] -> resized linearly to R(s) -> plus encoder stage s -> 1 residual block
    head              GroupNorm, ReLU, 1x1x1 -> (b, heads, *R(0))
    branch            ``nets.vae``, only in training: it yields a scalar that is added to the loss,
                      0.1 reconstruction + 0.1 divergence

Generalised: strides, kernels, widths and the number of stages come from the plan; stages beyond the fourth have four
blocks like it. GroupNorm does not mix samples, so the default keeps it. Where paper and code differ:
    branch     the paper's, with a decoder of its own; MONAI's runs through the decoder of the segmentation. Latent
               standard deviations are estimated; MONAI fixes them.
    block      the input itself is added, as in the paper and in MONAI; MedicalZoo adds the activated input.
    head       the paper draws the 1x1x1 convolution alone; GroupNorm and ReLU in front of it are MONAI's.
    biases     none but in the two last convolutions and in dense layers, as in MONAI; the paper does not say.
    penalty    the paper sums squared errors and divides the divergence by the number of voxels; both are per voxel
               here, or the reconstruction would drown the segmentation.
Without the branch and with MONAI's weights the logits were MONAI's to the last bit, in 2D and 3D (SegResNet 1.6.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autoseg.errors import SettingError
from autoseg.nets.blocks import CONV, check_topology, initialize, resize, stage_shapes
from autoseg.nets.vae import ResidualBlock, VariationalBranch, convolution, norm_act, penalties
from autoseg.schema.architecture import PaperMode, Preset, Recipe, Traits
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology

DROPOUT: dict[int, Any] = {2: nn.Dropout2d, 3: nn.Dropout3d}


def _paper_modes() -> tuple[PaperMode, ...]:
    def mode(name: str, parameters: int, note: str, **arguments: Any) -> PaperMode:
        return PaperMode(
            name=name,
            topology=Topology(
                strides=((1, 1, 1), *((2, 2, 2),) * 3), kernels=((3, 3, 3),) * 4, features=(32, 64, 128, 256)
            ),
            patch_size=(160, 192, 128),
            in_channels=4,
            num_heads=3,
            parameters=parameters,
            arguments={"dropout": 0.2} | arguments,
            note=note,
        )

    return (
        mode(
            "without branch",
            18_798_627,
            "MONAI's SegResNet; the paper's has 64 fewer, no GroupNorm at the head",
            vae=False,
        ),
        mode(
            "with branch",
            26_032_935,
            "the paper's branch has 7,234,308 by its table 2, convolutions without bias: squeeze 111,104, "
            "dense 3,932,416 and 1,981,440, decoder 1,209,216, image 132",
        ),
    )


class SegResNetVAE(nn.Module):
    """Residual U-Net with a variational autoencoder that takes part in training only.

    Args:
        vae: whether the branch exists. Without it all other weights keep their names, and so do the outputs.
        blocks: residual blocks per encoder stage; the last number is repeated for further stages.
        dropout: of whole channels after the first convolution.
        groups: of GroupNorm; for a width that they do not divide, the greatest common divisor.
        latent: values that the branch draws.
        reconstruction_weight: of the squared error of the rebuilt image; ``divergence_weight`` of the latent values.

    Raises:
        SettingError: fewer than two stages, a patch that the strides do not divide, or a size below 1.
    """

    traits: ClassVar[Traits] = Traits(
        paper="Myronenko 2018",
        summary="residual encoder, additive skips, and an autoencoder branch as a regulariser in training",
        base_width=32,
        base_width_cpu=8,
        max_stages=5,
        recipe=Recipe(optimizer="adam", lr=1e-4, weight_decay=1e-5, momentum=0.9, schedule="poly"),
        presets={"plain": Preset(arguments={"vae": False})},
        inference_arguments={"vae": False},
    )
    paper_modes: ClassVar[tuple[PaperMode, ...]] = _paper_modes()

    def __init__(
        self,
        *,
        topology: Topology,
        ndim: int,
        in_channels: int,
        num_heads: int,
        patch_size: Shape,
        vae: bool = True,
        blocks: Sequence[int] = (1, 2, 2, 4),
        dropout: float = 0.0,
        groups: int = 8,
        latent: int = 128,
        reconstruction_weight: float = 0.1,
        divergence_weight: float = 0.1,
    ) -> None:
        super().__init__()
        check_topology(topology, patch_size)
        if not blocks or min(*blocks, groups, latent) < 1:
            raise SettingError(
                f"a residual encoder cannot have blocks {blocks}, groups {groups} and a latent size of {latent}",
                hint="all of them have to be at least 1",
            )
        widths, kernels = topology.features, topology.kernels
        self.encoder = nn.ModuleList()
        for s in range(topology.num_stages):
            first = convolution(
                widths[s - 1] if s else in_channels, widths[s], kernel=kernels[s], stride=topology.strides[s]
            )
            between = [DROPOUT[ndim](dropout)] if dropout and s == 0 else []
            depth = blocks[min(s, len(blocks) - 1)]
            residual = (ResidualBlock(widths[s], kernel=kernels[s], groups=groups) for _ in range(depth))
            self.encoder.append(nn.Sequential(first, *between, *residual))
        steps, one = range(topology.num_stages - 1), (1,) * ndim
        self.narrow = nn.ModuleList(convolution(widths[s + 1], widths[s], kernel=one) for s in steps)
        self.decoder = nn.ModuleList(ResidualBlock(widths[s], kernel=kernels[s], groups=groups) for s in steps)
        self.head = nn.Sequential(*norm_act(widths[0], groups), CONV[ndim](widths[0], num_heads, 1))
        self.apply(initialize)
        self.branch: VariationalBranch | None = None
        self.penalty_weights = (reconstruction_weight, divergence_weight)
        if vae:
            # After everything else has its weights: the same seed gives them with and without the branch.
            self.branch = VariationalBranch(
                features=widths,
                kernels=kernels,
                coarsest=stage_shapes(topology, patch_size)[-1],
                image_channels=in_channels,
                latent=latent,
                groups=groups,
            )
            self.branch.apply(initialize)
        self.output_weights = (1.0,)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(b, c, *spatial)`` to logits ``(b, heads, *spatial)``, followed by the branch's penalty in training."""
        image, skips = x, []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        shapes = [tuple(skip.shape[2:]) for skip in skips]
        for step in reversed(range(len(self.decoder))):
            x = self.decoder[step](resize(self.narrow[step](x), shapes[step]) + skips[step])
        logits = self.head(x)
        if self.branch is None or not self.training:
            return (logits,)
        terms = penalties(image, *self.branch(skips[-1], shapes))
        return logits, torch.stack(
            [weight * term for weight, term in zip(self.penalty_weights, terms, strict=True)]
        ).sum()
