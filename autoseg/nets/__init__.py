"""Networks by name. Importing this package does not import torch; building a network does.

A network is a function of the plan. Its class takes the keyword arguments of ``build_network`` and, beyond them,
arguments of its own (JSON values from ``Architecture.arguments``). It has

* ``traits``, a ``Traits`` on the class: how to plan for it and train it;
* ``paper_modes``, ``PaperMode`` records on the class: its published settings (may be empty);
* ``output_weights`` on the instance: how much each training output counts, finest first, summing to 1;
* ``forward``: ``(b, c, *spatial)`` to a tuple of logits ``(b, heads, *spatial)``, finest first: as many as there are
  ``output_weights`` in ``train()``, exactly one in ``eval()``. In ``train()`` a scalar may follow the logits: a loss
  term of the network's own, which is added to the segmentation loss as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autoseg.errors import SettingError
from autoseg.registry import Registry
from autoseg.schema.architecture import PaperMode, Traits
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Architecture, Topology

if TYPE_CHECKING:
    from torch import nn

NETS = Registry(
    "architecture",
    {
        "attention_unet": "autoseg.nets.attention_unet:AttentionUNet",
        "fcn": "autoseg.nets.fcn:FCN",
        "multiresunet": "autoseg.nets.multiresunet:MultiResUNet",
        "nonewnet": "autoseg.nets.nonewnet:NoNewNet",
        "resenc_unet": "autoseg.nets.resenc_unet:ResidualEncoderUNet",
        "segresnet_vae": "autoseg.nets.segresnet_vae:SegResNetVAE",
        "swin_unet": "autoseg.nets.swin_unet:SwinUNet",
        "transunet": "autoseg.nets.transunet:TransUNet",
        "u2net3d": "autoseg.nets.u2net3d:U2Net3D",
        "uctransnet": "autoseg.nets.uctransnet:UCTransNet",
        "uctransnet_u2": "autoseg.nets.uctransnet_u2:UCTransNetU2",
        "unet": "autoseg.nets.unet:UNet",
        "unet2022": "autoseg.nets.unet2022:UNet2022",
        "unet3p": "autoseg.nets.unet3p:UNet3Plus",
        "unetpp": "autoseg.nets.unetpp:UNetPlusPlus",
        "unetr": "autoseg.nets.unetr:UNETR",
        "vnet": "autoseg.nets.vnet:VNet",
    },
    plugins="autoseg.nets",
)


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
    traits = traits_of(architecture.name)
    if ndim not in traits.ndims:
        raise SettingError(
            f"{architecture.name} has no meaning with {ndim} spatial axes",
            hint="choose another architecture, or a configuration with "
            + " or ".join(f"{possible} axes" for possible in traits.ndims),
        )
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


def traits_of(name: str) -> Traits:
    """The traits of a registered network; one that declares none is planned and trained like the plain U-Net."""
    traits: Traits = getattr(NETS.get(name), "traits", None) or Traits()
    return traits


def paper_modes_of(name: str) -> tuple[PaperMode, ...]:
    """The published settings of a registered network."""
    modes: tuple[PaperMode, ...] = getattr(NETS.get(name), "paper_modes", ())
    return modes


def build_paper_mode(name: str, mode: PaperMode) -> nn.Module:
    """A published setting with fresh weights, on torch's current default device."""
    arguments: dict[str, Any] = dict(mode.arguments)
    return build_network(
        Architecture(name=name, arguments=arguments),
        mode.topology,
        ndim=len(mode.patch_size),
        in_channels=mode.in_channels,
        num_heads=mode.num_heads,
        patch_size=mode.patch_size,
    )


__all__ = ["NETS", "build_network", "build_paper_mode", "paper_modes_of", "traits_of"]
