"""Deep supervision: one loss over all resolutions that a network predicts at."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from autoseg.errors import SettingError
from autoseg.losses import LOSSES
from autoseg.schema.dataset import Labels


def deep_supervision_weights(num_outputs: int) -> tuple[float, ...]:
    """The weight of each output, finest first: halved at every step, summing to 1.

    The coarsest of three or more counts nothing, as in nnU-Net. Of one or two all count: without the coarsest a
    network of three stages would have no deep supervision left, and one of two stages no loss.

    Raises:
        SettingError: fewer than one output.
    """
    if num_outputs < 1:
        raise SettingError(f"a network needs at least one output, not {num_outputs}")
    weights = [0.5**level for level in range(num_outputs)]
    if num_outputs >= 3:
        weights[-1] = 0.0
    return tuple(weight / sum(weights) for weight in weights)


def segmentation_loss(
    labels: Labels, *, batch_dice: bool, num_outputs: int, name: str = "dice_ce"
) -> Callable[[tuple[Tensor, ...], Tensor], Tensor]:
    """The training loss of a network with ``num_outputs`` resolutions.

    Args:
        labels: labels with several integers make it a loss over regions; an ignore label is masked.
        batch_dice: whether Dice sums run over the batch, or each sample has its own.
        name: a name in ``LOSSES``.

    Returns:
        A function of the outputs, logits (b, heads, *spatial) finest first, and the target (b, 1, *spatial) of
        internal indices at the finest resolution. It gives a scalar, and never reads an output whose weight is 0.
        A single output is taken as the finest of a network in evaluation mode and counts in full.

    Raises:
        SettingError: there is no loss of that name, or (when called) the number of outputs is another one.
    """
    single = LOSSES.get(name)(labels, batch_dice=batch_dice)
    weights = deep_supervision_weights(num_outputs)

    def loss(outputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
        if len(outputs) == 1:
            return single(outputs[0], target)
        if len(outputs) != num_outputs:
            raise SettingError(f"the loss was made for {num_outputs} outputs, the network gave {len(outputs)}")
        terms = [
            weight * single(logits, downsample_nearest(target, tuple(logits.shape[2:])))
            for weight, logits in zip(weights, outputs, strict=True)
            if weight > 0
        ]
        return torch.stack(terms).sum()

    return loss


def downsample_nearest(target: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(b, 1, *spatial) -> (b, 1, *shape): the voxel that holds the centre of each new one, as "nearest-exact"."""
    for axis, size in enumerate(shape, start=2):
        length = target.shape[axis]
        if size != length:
            # The integer form of floor((i + 1/2) length / size), free of rounding.
            centres = (2 * torch.arange(size, device=target.device) + 1) * length // (2 * size)
            target = target.index_select(axis, centres)
    return target
