"""3D U²-Net, a universal U-Net for several domains (Huang et al., MICCAI 2019), 2D and 3D. A domain is a dataset.

The idea (section 2.1 of the paper): what neighbours mean to each other differs between domains, what channels mean to
each other does not. So every convolution of stride 1 is separable, and the parts belong to different owners:
    domain   depthwise filters, all instance normalisations, input and output convolutions, deep supervision
    shared   pointwise convolutions, and the full convolutions that stride (kernel 3 on every axis)
``U2Net3D`` is the network of one domain, a network like any other. ``UniversalU2Net`` ties the shared parts of several
together; each of them stays a complete network that can be saved and used alone. ``adapt`` makes the network of a new
domain on frozen shared weights.

Shapes for S stages, widths f, and R(s) the patch divided by the strides up to stage s; "unit" is depthwise -> norm ->
LeakyReLU -> pointwise -> norm:
    input            convolution, norm, LeakyReLU -> (b, f[0], *R(0))
    encoder stage s  strided convolution, norm, LeakyReLU (not for s = 0) -> (b, f[s], *R(s))
                     -> unit -> LeakyReLU -> unit -> add the stage's input -> LeakyReLU
    decoder step s   (b, f[s+1], *R(s+1)) -> nearest neighbour -> (b, f[s+1], *R(s)) -> unit, LeakyReLU
                     -> (b, f[s], *R(s)) -> concatenate with the skip (b, 2 f[s], *R(s)) -> unit, LeakyReLU
                     -> (b, f[s], *R(s)) -> unit, LeakyReLU; no residual here
    logits           a 1x1 convolution at step 0, plus the sum of 1x1 convolution -> norm -> LeakyReLU at steps 2 and 1,
                     upsampled by nearest neighbours: deep supervision inside the network, a single output

Generalised: two axes, any number of stages, and kernels and strides per domain from its topology; steps 2 and 1 are
supervised as far as they exist. The strided convolution keeps its kernel of 3 where a topology has 1, so that all
domains can share it; its zeros are placed as by TensorFlow ("same"), after the data where the stride is 2.
Where paper and released code differ, the code is followed: the last unit of a decoder step, "1x1" in the paper, has its
depthwise filter, and the strided convolutions are not separable (4.7 of 6.6 million parameters for five domains: with
equal widths 4.9% of five separate networks, where the abstract says 1%). The loss is autoseg's, not Lovász and focal.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoseg.errors import SettingError
from autoseg.nets.blocks import CONV, SLOPE, check_topology, initialize, norm, resize
from autoseg.nets.units import ConvUnit, Style
from autoseg.schema.architecture import PaperMode, Recipe, Traits
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology

CONVOLVE: dict[int, Callable[..., Tensor]] = {2: F.conv2d, 3: F.conv3d}

DOWN_KERNEL = 3
UNITS_PER_STAGE = 2
# So many decoder steps above the finest add logits of their own to its logits.
SUPERVISED_STEPS = 2


def activate(x: Tensor) -> Tensor:
    """LeakyReLU in place, for outputs of normalisations, which need only their input for backward."""
    return F.leaky_relu(x, SLOPE, inplace=True)


# What all domains share --------------------------------------------------------------------------------------------


class Down(nn.Module):
    """A full convolution whose stride is chosen at each call, as it may differ between domains."""

    def __init__(self, c_in: int, c_out: int, *, ndim: int) -> None:
        super().__init__()
        self.convolution = CONV[ndim](c_in, c_out, DOWN_KERNEL)

    def forward(self, x: Tensor, stride: Shape) -> Tensor:
        """``(b, c_in, *spatial)`` to ``(b, c_out, *spatial / stride)``."""
        padding: list[int] = []
        for step in reversed(stride):
            missing = max(DOWN_KERNEL - step, 0)
            padding += [missing // 2, missing - missing // 2]
        own = self.convolution
        return CONVOLVE[len(stride)](F.pad(x, padding), own.weight, own.bias, stride=stride)


class SharedParts(nn.Module):
    """Convolutions that mix channels, a function of widths and number of axes alone.

    ``encoder[s]`` and ``decoder[s]`` hold one pointwise convolution per unit, ``down[s]`` leads from stage s to s + 1.
    """

    def __init__(self, widths: Sequence[int], *, ndim: int) -> None:
        super().__init__()
        pairs = tuple(itertools.pairwise(widths))
        self.down = nn.ModuleList(Down(fine, coarse, ndim=ndim) for fine, coarse in pairs)
        self.encoder = nn.ModuleList(
            nn.ModuleList(CONV[ndim](width, width, 1) for _ in range(UNITS_PER_STAGE)) for width in widths
        )
        self.decoder = nn.ModuleList(
            nn.ModuleList(CONV[ndim](c_in, fine, 1) for c_in in (coarse, 2 * fine, fine)) for fine, coarse in pairs
        )


# What each domain has of its own -----------------------------------------------------------------------------------


class Unit(nn.Module):
    """A domain's part of a separable convolution; the pointwise convolution comes with the call."""

    def __init__(self, c_in: int, c_out: int, *, kernel: Shape) -> None:
        super().__init__()
        ndim = len(kernel)
        padding = tuple((size - 1) // 2 for size in kernel)
        self.depthwise = CONV[ndim](c_in, c_in, kernel, padding=padding, groups=c_in)
        self.inner_norm = norm("instance", c_in, ndim=ndim)
        self.outer_norm = norm("instance", c_out, ndim=ndim)

    def forward(self, x: Tensor, pointwise: nn.Module) -> Tensor:
        """``(b, c_in, *spatial)`` to ``(b, c_out, *spatial)``, not activated."""
        return cast(Tensor, self.outer_norm(pointwise(activate(self.inner_norm(self.depthwise(x))))))


class EncoderStage(nn.Module):
    """Two units and a residual, behind the normalisation of the strided convolution (not at the finest stage)."""

    def __init__(self, width: int, *, kernel: Shape, stride: Shape | None) -> None:
        super().__init__()
        self.stride = stride
        self.norm = None if stride is None else norm("instance", width, ndim=len(kernel))
        self.units = nn.ModuleList(Unit(width, width, kernel=kernel) for _ in range(UNITS_PER_STAGE))

    def forward(self, x: Tensor, down: nn.Module | None, pointwise: nn.ModuleList) -> Tensor:
        """``(b, f[s-1], *R(s-1))`` to ``(b, f[s], *R(s))``; without ``down`` the shape stays."""
        if down is not None and self.norm is not None:
            x = activate(self.norm(down(x, self.stride)))
        first, second = self.units
        residual = second(activate(first(x, pointwise[0])), pointwise[1])
        return activate(x + residual)


class DecoderStep(nn.Module):
    """Three units: after upsampling, after the concatenation, and one more."""

    def __init__(self, coarse: int, fine: int, *, kernel: Shape) -> None:
        super().__init__()
        self.units = nn.ModuleList(Unit(c_in, fine, kernel=kernel) for c_in in (coarse, 2 * fine, fine))

    def forward(self, x: Tensor, skip: Tensor, pointwise: nn.ModuleList) -> Tensor:
        """``(b, f[s+1], *R(s+1))`` and a skip ``(b, f[s], *R(s))`` to ``(b, f[s], *R(s))``."""
        up, merge, last = self.units
        x = activate(up(resize(x, tuple(skip.shape[2:]), smooth=False), pointwise[0]))
        x = activate(merge(torch.cat((x, skip), dim=1), pointwise[1]))
        return activate(last(x, pointwise[2]))


class Adapter(nn.Module):
    """All that belongs to one domain: about 2.5% of the network at the paper's size."""

    def __init__(self, topology: Topology, *, ndim: int, in_channels: int, num_heads: int) -> None:
        super().__init__()
        widths, kernels, strides = topology.features, topology.kernels, topology.strides
        steps = range(topology.num_stages - 1)
        self.entry = ConvUnit(in_channels, widths[0], kernel=kernels[0], style=Style())
        self.encoder = nn.ModuleList(
            EncoderStage(widths[s], kernel=kernels[s], stride=strides[s] if s else None)
            for s in range(topology.num_stages)
        )
        self.decoder = nn.ModuleList(DecoderStep(widths[s + 1], widths[s], kernel=kernels[s]) for s in steps)
        self.heads = nn.ModuleList([CONV[ndim](widths[0], num_heads, 1)])
        for s in steps[1 : 1 + SUPERVISED_STEPS]:
            self.heads.append(ConvUnit(widths[s], num_heads, kernel=(1,) * ndim, style=Style()))

    def forward(self, x: Tensor, shared: SharedParts) -> Tensor:
        """``(b, c, *spatial)`` to logits ``(b, heads, *spatial)``."""
        x = self.entry(x)
        skips: list[Tensor] = []
        for stage, down, pointwise in zip(self.encoder, (None, *shared.down), shared.encoder, strict=True):
            x = stage(x, down, pointwise)
            skips.append(x)
        x = skips.pop()
        outputs: list[Tensor] = []
        for step in reversed(range(len(self.decoder))):
            x = self.decoder[step](x, skips.pop(), shared.decoder[step])
            if step < len(self.heads):
                outputs.append(self.heads[step](x))
        logits, *finer = outputs
        for own in finer:
            logits = own + resize(logits, tuple(own.shape[2:]), smooth=False)
        return logits


# Networks ----------------------------------------------------------------------------------------------------------


class U2Net3D(nn.Module):
    """3D U²-Net of one domain: ``adapter`` is the domain's own part, ``shared`` the part that others can use too.

    Raises:
        SettingError: fewer than two stages, or a patch that the strides do not divide.
    """

    traits: ClassVar[Traits] = Traits(
        paper="Huang et al. 2019",
        summary="separable U-Net; several datasets can share all but 2.5% of its weights",
        base_width=16,
        base_width_cpu=8,
        max_width={2: 512, 3: 512},
        recipe=Recipe(optimizer="adam", lr=3e-4, weight_decay=5e-4, momentum=0.9),
    )
    paper_modes: ClassVar[tuple[PaperMode, ...]] = (
        PaperMode(
            name="one domain",
            topology=Topology(
                strides=((1,) * 3, *(((2,) * 3,) * 5)),
                kernels=((3,) * 3,) * 6,
                features=(16, 32, 64, 128, 256, 512),
            ),
            patch_size=(128, 128, 128),
            in_channels=1,
            num_heads=2,
            parameters=5_998_430,
            note="the released code with five poolings on every axis",
        ),
    )

    def __init__(self, *, topology: Topology, ndim: int, in_channels: int, num_heads: int, patch_size: Shape) -> None:
        super().__init__()
        check_topology(topology, patch_size)
        self.ndim = ndim
        self.features = tuple(topology.features)
        self.output_weights = (1.0,)
        self.shared = SharedParts(self.features, ndim=ndim)
        self.adapter = Adapter(topology, ndim=ndim, in_channels=in_channels, num_heads=num_heads)
        self.apply(initialize)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """``(b, c, *spatial)`` to logits ``(b, heads, *spatial)``, in training and evaluation alike."""
        return (self.adapter(x, self.shared),)


class UniversalU2Net(nn.Module):
    """Several domains in one network. The given networks become its ``domains`` and from then on share weights.

    The shared weights are those of the first network. Channels, heads, strides and kernels may differ between domains.
    In training, a step works on one domain; clear gradients to None, or weight decay and momentum would change the
    other domains' adapters too.

    Raises:
        SettingError: no network, one given twice, or networks of different widths, stages or axes.
    """

    def __init__(self, networks: Sequence[U2Net3D]) -> None:
        super().__init__()
        if not networks:
            raise SettingError("a universal network needs at least one domain", hint="give it networks of u2net3d")
        first, *others = networks
        for number, network in enumerate(others, start=1):
            if any(network is earlier for earlier in networks[:number]):
                raise SettingError(
                    f"the network of domain {number} is given twice", hint="build one network for each domain"
                )
            _check_same(first, network.features, network.ndim, who=f"domain {number}")
        for network in others:
            network.shared = first.shared
        self.domains = nn.ModuleList(networks)
        self.output_weights = first.output_weights

    def forward(self, x: Tensor, domain: int) -> tuple[Tensor]:
        """Images of one domain, ``(b, c, *spatial)``, to logits ``(b, heads, *spatial)``."""
        return cast("tuple[Tensor]", self.domains[domain](x))

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Those that every domain trains."""
        return cast(U2Net3D, self.domains[0]).shared.parameters()

    def adapter_parameters(self, domain: int) -> Iterator[nn.Parameter]:
        """Those of one domain alone."""
        return cast(U2Net3D, self.domains[domain]).adapter.parameters()


def adapt(network: U2Net3D, *, topology: Topology, in_channels: int, num_heads: int, patch_size: Shape) -> U2Net3D:
    """The network of a new domain: a fresh adapter on a frozen copy of the shared weights.

    Only the adapter's parameters require gradients. ``network`` and the domains that it is tied to stay as they are.

    Raises:
        SettingError: the topology has other widths, another number of stages or axes.
    """
    _check_same(network, tuple(topology.features), len(topology.strides[0]), who="the new domain")
    new = U2Net3D(
        topology=topology,
        ndim=network.ndim,
        in_channels=in_channels,
        num_heads=num_heads,
        patch_size=patch_size,
    )
    new.shared = copy.deepcopy(network.shared).requires_grad_(False)
    new.adapter.to(next(network.shared.parameters()).device)
    return new


def _check_same(first: U2Net3D, features: tuple[int, ...], ndim: int, *, who: str) -> None:
    """Raise a SettingError unless the shared parts of ``first`` fit a network of these widths and axes."""
    if ndim != first.ndim:
        raise SettingError(
            f"{who} has {ndim} spatial axes and the shared weights have {first.ndim}",
            hint="a universal network is 2D or 3D for all of its domains",
        )
    if len(features) != len(first.features):
        raise SettingError(
            f"{who} has {len(features)} stages and the shared weights have {len(first.features)}",
            hint="plan all domains with the same number of stages; strides and kernels may differ",
        )
    if features != first.features:
        raise SettingError(
            f"{who} has the widths {features} and the shared weights have {first.features}",
            hint="plan all domains with the same base width; strides and kernels may differ",
        )
