"""Networks by name. Importing this package does not import torch; building a network does.

A network is a function of the plan. Its class takes the keyword arguments of ``build_network`` and, beyond them,
arguments of its own (JSON values from ``Architecture.arguments``). ``forward`` takes ``(b, c, *spatial)`` and returns
a tuple of logits ``(b, heads, *spatial)``, finest first: several for deep supervision in ``train()``, exactly one
in ``eval()``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoseg.errors import SettingError
from autoseg.registry import Registry
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Architecture, Topology

if TYPE_CHECKING:
    from torch import nn

NETS = Registry("architecture", {"unet": "autoseg.nets.unet:UNet"}, plugins="autoseg.nets")


def build_network(
    architecture: Architecture,
    topology: Topology,
    *,
    ndim: int,
    in_channels: int,
    num_heads: int,
    patch_size: Shape,
) -> nn.Module:
    """Build a registered network with fresh weights, on torch's current default device.

    Args:
        ndim: 2 or 3, the number of spatial axes of patch and topology.
        in_channels: image channels (plus one per foreground label in the second stage of a cascade).
        num_heads: output channels, ``Labels.num_heads``.

    Raises:
        SettingError: unknown name, arguments that the network does not take, or a patch that does not fit it.
    """
    if ndim not in {2, 3} or len(patch_size) != ndim or len(topology.strides[0]) != ndim:
        raise SettingError(
            f"{architecture.name} is asked for {ndim} axes with a patch of {len(patch_size)} "
            f"and strides of {len(topology.strides[0])}",
            hint="patch, strides and kernels need 2 or 3 entries, all the same number",
        )
    network = NETS.get(architecture.name)
    try:
        return network(
            topology=topology,
            ndim=ndim,
            in_channels=in_channels,
            num_heads=num_heads,
            patch_size=patch_size,
            **architecture.arguments,
        )
    except TypeError as error:
        raise SettingError(
            f"{architecture.name} cannot be built with the arguments {architecture.arguments}: {error}",
            hint="correct architecture.arguments in the plan",
        ) from error


__all__ = ["NETS", "build_network"]
