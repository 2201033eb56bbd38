"""Attention U-Net (Oktay et al. 2018, "Attention U-Net: Learning Where to Look for the Pancreas"), 2D and 3D.

A U-Net with max-pooling and interpolation whose skips pass additive attention gates (section 2.1, figures 1 and 2,
equations 1 and 2): the coarser decoder map decides where the skip is worth looking at.

Shapes for S stages, widths f, and R(s) the patch divided by the strides up to stage s:
    encoder stage s   max-pool by the stage's stride, two convolutions -> (b, f[s], *R(s))
    gate s            skip (b, f[s], *R(s)) and signal (b, f[s+1], *R(s+1)), both brought to (b, i, *R(s+1)), added,
                      ReLU, one channel, sigmoid, interpolated to R(s), multiplied with the skip -> (b, f[s], *R(s))
    decoder step s    (b, f[s+1], *R(s+1)) -> interpolated to R(s) -> concatenated with the gated skip
                      -> two convolutions -> (b, f[s], *R(s))
    head s            1x1 convolution -> (b, heads, *R(s))

Layout ``grid`` is that of the authors' code, which is followed where the paper says less: the signal of the deepest
gate is the bottom map after a 1x1 unit; i = f[s]; every skip but the finest is gated, by two gates with projections of
their own, which a 1x1 unit joins. Layout ``port`` is the common 2D port (LeeJunHyun/Image_Segmentation): every skip is
gated, at its own resolution, by the up-convolved map; i = f[s] / 2; norms inside the gate, no projection behind it.

Differences: paper and code add the logits of all steps up in one output (``supervision="fused"``); here every step has
an output of its own by default. The paper starts gates open, its code does not, and neither does this. Generalised:
strides, kernels and widths of the plan; in two stages the only skip is gated although it is the finest.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoseg.errors import SettingError
from autoseg.nets.blocks import CONV, check_topology, initialize, norm, resize
from autoseg.nets.outputs import halving_weights
from autoseg.nets.units import ConvUnit, Style, UnitStack, pools, regular_topology
from autoseg.schema.architecture import PaperMode, Recipe, Traits
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology

LAYOUTS = ("grid", "port")
SUPERVISIONS = ("scales", "fused", "none")

_OF_2018 = {"normalization": "batch", "activation": "relu"}
_PAPER_3D: dict[str, Any] = {
    "topology": regular_topology((16, 32, 64, 128, 256), ndim=3),
    "patch_size": (64, 64, 64),
    "in_channels": 1,
    "num_heads": 2,
}


class AttentionGate(nn.Module):
    """Skip ``(b, c, *x)`` and signal ``(b, c_signal, *x / stride)`` to the gated skip, of the shape of the skip.

    Args:
        inner: channels in which skip and signal are added.
        stride: from skip to signal; all ones if the signal has the skip's resolution.
        grid: the authors' gate (bare convolutions inside, projection behind) and not that of the port.
    """

    def __init__(
        self, channels: int, c_signal: int, inner: int, *, stride: Shape, grid: bool, normalization: str
    ) -> None:
        super().__init__()
        ndim = len(stride)
        conv, kind = CONV[ndim], "none" if grid else normalization
        self.of_skip = nn.Sequential(conv(channels, inner, stride, stride, bias=not grid), norm(kind, inner, ndim=ndim))
        self.of_signal = nn.Sequential(conv(c_signal, inner, 1), norm(kind, inner, ndim=ndim))
        self.score = nn.Sequential(conv(inner, 1, 1), norm(kind, 1, ndim=ndim))
        self.project = nn.Sequential()
        if grid:
            self.project.extend((conv(channels, channels, 1), norm(normalization, channels, ndim=ndim)))

    def attention(self, skip: Tensor, signal: Tensor) -> Tensor:
        """``(b, 1, *x)`` between 0 and 1."""
        score = torch.sigmoid(self.score(F.relu(self.of_skip(skip) + self.of_signal(signal))))
        return score if score.shape[2:] == skip.shape[2:] else resize(score, tuple(skip.shape[2:]))

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        out: Tensor = self.project(skip * self.attention(skip, signal))
        return out


class JoinedGates(nn.Module):
    """Several gates on one skip, joined by a 1x1 unit: ``(b, c, *x)`` to ``(b, c, *x)``."""

    def __init__(self, number: int, channels: int, c_signal: int, *, stride: Shape, style: Style) -> None:
        super().__init__()
        self.gates = nn.ModuleList(
            AttentionGate(channels, c_signal, channels, stride=stride, grid=True, normalization=style.normalization)
            for _ in range(number)
        )
        self.join = ConvUnit(number * channels, channels, kernel=(1,) * len(stride), style=style)

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        out: Tensor = self.join(torch.cat([gate(skip, signal) for gate in self.gates], dim=1))
        return out


class GridStep(nn.Module):
    """One decoder step of the authors: ``(b, c_coarse, *x / stride)`` and a skip ``(b, c, *x)`` to ``(b, c, *x)``.

    Args:
        gates: how many gates the skip passes.
    """

    def __init__(self, channels: int, c_coarse: int, *, kernel: Shape, stride: Shape, gates: int, style: Style) -> None:
        super().__init__()
        self.gate = JoinedGates(gates, channels, c_coarse, stride=stride, style=style) if gates else None
        self.convolve = UnitStack(channels + c_coarse, (channels, channels), kernel=kernel, style=style)

    def forward(self, coarse: Tensor, skip: Tensor, signal: Tensor) -> Tensor:
        if self.gate is not None:
            skip = self.gate(skip, signal)
        out: Tensor = self.convolve(torch.cat((skip, resize(coarse, tuple(skip.shape[2:]))), dim=1))
        return out


class PortStep(nn.Module):
    """One decoder step of the 2D port, shapes as in ``GridStep``; the up-convolved map is the signal."""

    def __init__(self, channels: int, c_coarse: int, *, kernel: Shape, style: Style) -> None:
        super().__init__()
        one = (1,) * len(kernel)
        self.up = ConvUnit(c_coarse, channels, kernel=kernel, style=style)
        self.gate = AttentionGate(
            channels, channels, max(1, channels // 2), stride=one, grid=False, normalization=style.normalization
        )
        self.convolve = UnitStack(2 * channels, (channels, channels), kernel=kernel, style=style)

    def forward(self, coarse: Tensor, skip: Tensor, _: Tensor) -> Tensor:
        up = self.up(resize(coarse, tuple(skip.shape[2:]), smooth=False))
        out: Tensor = self.convolve(torch.cat((self.gate(skip, up), up), dim=1))
        return out


class AttentionUNet(nn.Module):
    """U-Net with attention gates on its skips.

    Args:
        layout: ``grid``, of the authors, or ``port``, of the 2D port (module docstring).
        gates: how many gates a skip passes in layout ``grid``; with 0 it is the paper's U-Net.
        supervision: ``scales`` (an output per decoder step), ``fused`` (one output, a 1x1 convolution of the logits of
            all steps) or ``none`` (only the finest step has logits).
        normalization: ``instance``, ``batch`` or ``none``.
        activation: ``leaky_relu`` or ``relu``; inside the gates it is always ReLU.

    Raises:
        SettingError: fewer than two stages, a patch that the strides do not divide, or a choice that does not exist.
    """

    traits: ClassVar[Traits] = Traits(
        paper="Oktay et al. 2018",
        summary="U-Net whose coarser maps gate the skips",
        base_width_cpu=12,
        recipe=Recipe(optimizer="adam", lr=1e-4, weight_decay=1e-6, momentum=0.9),
    )
    paper_modes: ClassVar[tuple[PaperMode, ...]] = (
        PaperMode(
            name="attention unet 2D",
            topology=regular_topology((64, 128, 256, 512, 1024), ndim=2),
            patch_size=(256, 256),
            in_channels=3,
            num_heads=1,
            parameters=34_878_573,
            arguments={**_OF_2018, "layout": "port", "supervision": "none"},
            note="the common 2D port; the paper is 3D only",
        ),
        PaperMode(
            name="attention unet 3D",
            parameters=6_472_784,
            arguments={**_OF_2018, "supervision": "fused"},
            note="the authors' code (two gates a skip); the paper prints 6.40 M",
            **_PAPER_3D,
        ),
        PaperMode(
            name="U-Net of the attention unet 3D",
            parameters=5_887_466,
            arguments={**_OF_2018, "supervision": "fused", "gates": 0},
            note="the authors' code without gates; the paper prints 5.88 M",
            **_PAPER_3D,
        ),
    )

    def __init__(
        self,
        *,
        topology: Topology,
        ndim: int,
        in_channels: int,
        num_heads: int,
        patch_size: Shape,
        layout: str = "grid",
        gates: int = 2,
        supervision: str = "scales",
        normalization: str = "instance",
        activation: str = "leaky_relu",
    ) -> None:
        super().__init__()
        check_topology(topology, patch_size)
        _check_choices(layout, gates, supervision)
        style = Style(normalization=normalization, activation=activation)
        widths, kernels, strides = topology.features, topology.kernels, topology.strides
        steps = range(topology.num_stages - 1)
        c_in = (in_channels, *widths)
        self.pools = pools(topology)
        self.encoder = nn.ModuleList(
            UnitStack(c_in[s], (widths[s], widths[s]), kernel=kernels[s], style=style)
            for s in range(topology.num_stages)
        )
        self.signal: nn.Module = nn.Identity()
        self.decoder = nn.ModuleList()
        for s in steps:
            if layout == "port":
                self.decoder.append(PortStep(widths[s], widths[s + 1], kernel=kernels[s], style=style))
                continue
            number = gates if s > 0 or len(steps) == 1 else 0
            self.decoder.append(
                GridStep(widths[s], widths[s + 1], kernel=kernels[s], stride=strides[s + 1], gates=number, style=style)
            )
        if layout == "grid" and gates:
            self.signal = ConvUnit(widths[-1], widths[-1], kernel=(1,) * ndim, style=style)
        num_logits = 1 if supervision == "none" else len(steps)
        self.heads = nn.ModuleList(CONV[ndim](widths[s], num_heads, 1) for s in range(num_logits))
        self.fuse = CONV[ndim](num_logits * num_heads, num_heads, 1) if supervision == "fused" else None
        self.output_weights = halving_weights(num_logits if supervision == "scales" else 1)
        self.apply(initialize)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(b, c, *spatial)`` to logits ``(b, heads, *spatial)``, finest first."""
        skips: list[Tensor] = []
        for pool, stage in zip(self.pools, self.encoder, strict=True):
            x = stage(pool(x))
            skips.append(x)
        x = skips.pop()
        signal = self.signal(x)
        outputs: list[Tensor] = []
        for step in reversed(range(len(self.decoder))):
            x = signal = self.decoder[step](x, skips.pop(), signal)
            if step == 0 or (step < len(self.heads) and (self.training or self.fuse is not None)):
                outputs.append(self.heads[step](x))
        outputs.reverse()
        if self.fuse is None:
            return tuple(outputs)
        finest = tuple(outputs[0].shape[2:])
        return (self.fuse(torch.cat([outputs[0], *(resize(coarse, finest) for coarse in outputs[1:])], dim=1)),)


def _check_choices(layout: str, gates: int, supervision: str) -> None:
    if layout not in LAYOUTS:
        raise SettingError(f"there is no layout {layout!r}", hint=f"choose one of: {', '.join(LAYOUTS)}")
    if supervision not in SUPERVISIONS:
        raise SettingError(f"there is no supervision {supervision!r}", hint=f"choose one of: {', '.join(SUPERVISIONS)}")
    if gates < 0:
        raise SettingError(f"a skip cannot pass {gates} gates", hint="give 0 or more; the paper's code has 2")
