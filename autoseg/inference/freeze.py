"""A trained network in the form that runs fastest on a CPU, and its head taken off where that saves work.

Instance normalisation in PyTorch is batch normalisation of a copy that has the samples as channels; of images whose
channels lie last, that costs two changes of layout per layer. Batch normalisation of one sample at a time is the same
without them, and in place, where nothing else sees what a convolution returned.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoseg.nets.lean_norm import normalize_samples

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_INSTANCE_NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d)


def freeze(network: nn.Module, precision: torch.dtype | None) -> nn.Module:
    """Change a network in ``eval()`` without gradients on the CPU for prediction, and return it.

    Weights of convolutions and linear layers are rounded to ``precision`` now instead of by autocast at every call;
    with None they stay float32. Modules of any other kind are left alone.
    """
    if precision is not None:
        for module in network.modules():
            # Subclasses may do something else with their weights.
            if type(module) in (*_CONVOLUTIONS, nn.Linear):
                module.to(precision)
    _replace_norms(network)
    return network


def _replace_norms(module: nn.Module) -> None:
    before: nn.Module | None = None
    for name, child in module.named_children():
        if isinstance(child, nn.InstanceNorm2d | nn.InstanceNorm3d) and _is_plain(child):
            alone = isinstance(module, nn.Sequential) and isinstance(before, _CONVOLUTIONS)
            setattr(module, name, FrozenInstanceNorm(child, in_place=alone))
        else:
            _replace_norms(child)
        before = child


def _is_plain(norm: nn.InstanceNorm2d | nn.InstanceNorm3d) -> bool:
    return type(norm) in _INSTANCE_NORMS and not norm.track_running_stats


class FrozenInstanceNorm(nn.Module):
    """``(b, c, *spatial)`` to the same shape and type: every channel of every sample to mean 0 and variance 1, then
    affine. Statistics are float32 whatever the type of the input; ``in_place`` overwrites it.
    """

    def __init__(self, norm: nn.InstanceNorm2d | nn.InstanceNorm3d, *, in_place: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        result = x if self.in_place else torch.empty_like(x)
        normalize_samples(x, self.weight, self.bias, self.eps, out=result)
        return result


def take_off_head(network: nn.Module, windows: Tensor) -> nn.Conv2d | nn.Conv3d | None:
    """Make a network return the features below its logits, if a pointwise convolution is the last thing it does.

    Such a head is linear, as is the mean over windows: taken after it, the head is applied once per voxel, and a sum
    has as many channels as there are features, which for a hundred classes are the fewer.

    Args:
        windows: an example (b, c, *patch), which passes through the network once.

    Returns:
        The head, or None for a network without one, which stays as it is.
    """
    seen: dict[nn.Conv2d | nn.Conv3d, Tensor] = {}
    heads = {
        module: (parent, name)
        for parent in network.modules()
        for name, module in parent.named_children()
        if isinstance(module, nn.Conv2d | nn.Conv3d) and _is_pointwise(module)
    }
    hooks = [module.register_forward_hook(lambda head, _, output: seen.update({head: output})) for module in heads]
    logits = network(windows)[0]
    for hook in hooks:
        hook.remove()
    for module, output in seen.items():
        if output is logits:
            parent, name = heads[module]
            setattr(parent, name, nn.Identity())
            return module
    return None


def _is_pointwise(module: nn.Conv2d | nn.Conv3d) -> bool:
    alike = set(module.kernel_size) | set(module.stride)
    return alike == {1} and module.groups == 1 and set(module.padding) == {0}
