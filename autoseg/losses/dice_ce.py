"""Dice plus cross-entropy, the loss of nnU-Net (Isensee et al., Nature Methods 2021), computed without one-hot tensors.

Per class c, with probabilities p, target y and sums over voxels (and over the batch for ``batch_dice``)::

    dice_c = (2 sum(p_c y_c) + s) / (sum(p_c) + sum(y_c) + s)        s = 1e-5
    loss   = cross-entropy - mean(dice_c)

so a perfect prediction has loss -1. The background is left out of the Dice of labels; regions have none.

A class that is absent from the target has dice_c = s / (sum(p_c) + s): close to 1 only while its predicted mass is
below s, so in practice it is rewarded by nothing and punished by nothing, and cross-entropy alone drives it out.
s keeps the denominator above zero. Ignored voxels enter neither term; a target with nothing else has cross-entropy 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from autoseg.losses.counts import class_sums, region_masks
from autoseg.schema.dataset import Labels

SMOOTH = 1e-5
# Classes that lie side by side are a vector to a processor if there are so many, and else single numbers: with fewer,
# classes one after the other take a half to a third of the time.
_CLASSES_OF_A_VECTOR = 16


def dice_ce_loss(labels: Labels, *, batch_dice: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of one output: softmax for labels, sigmoid for regions.

    Returns:
        A function of logits (b, heads, *spatial) and target (b, 1, *spatial) of internal indices, giving a scalar in
        float32 whatever the type of the logits (float64 for float64).
    """

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        index = target.flatten(1).to(torch.int64)
        valid = None if labels.ignore_index is None else index != labels.ignore_index
        if labels.has_regions:
            return _region_loss(logits, region_masks(index, labels), valid, batch_dice)
        return _SoftmaxDiceCE.apply(logits, index if valid is None else index * valid, valid, batch_dice)

    return loss


class _SoftmaxDiceCE(torch.autograd.Function):
    """The softmax is all that is kept between forward and backward; no other tensor of its size lives in forward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, valid: Tensor | None, batch_dice: bool) -> Tensor:
        logp = _log_softmax(logits.flatten(2))
        b, c, n = logp.shape
        voxels = index.unsqueeze(1)
        log_target = logp.gather(1, voxels).squeeze(1)
        p = logp.exp_()
        count: Tensor | int = b * n
        truth_index, classes = index, c
        if valid is not None:
            log_target = log_target * valid
            p.mul_(valid.unsqueeze(1))
            count = valid.sum().clamp_(min=1)
            # Ignored voxels are counted in a bin of their own behind the last class.
            truth_index, classes = torch.where(valid, index, c), c + 1
        ce = -log_target.sum() / count
        intersection = class_sums(truth_index, classes, p.gather(1, voxels).squeeze(1))[:, :c]
        truth = class_sums(truth_index, classes)[:, :c]
        dice, slope_hit, slope_mass = _dice_terms(intersection, truth, p.sum(2).double(), batch_dice)
        ctx.save_for_backward(p, index, valid, slope_hit.to(p.dtype), slope_mass.to(p.dtype))
        ctx.count, ctx.shape, ctx.dtype, ctx.layout = count, logits.shape, logits.dtype, _layout(logits)
        return ce - dice.to(p.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        p, index, valid, slope_hit, slope_mass = ctx.saved_tensors
        voxels = index.unsqueeze(1)
        slope_hit, slope_mass = slope_hit * upstream, slope_mass * upstream
        ce = upstream / ctx.count
        hit = p.gather(1, voxels).squeeze(1) * slope_hit.gather(1, index)
        # d loss / d z_k = p_k (g_k - sum_j g_j p_j) with g = d loss / d p; cross-entropy adds (p_k - y_k) / count.
        with torch.autocast(p.device.type, enabled=False):
            common = ce - hit - torch.bmm(slope_mass.unsqueeze(1), p).squeeze(1)
        gradient = torch.add(slope_mass.unsqueeze(2), common.unsqueeze(1), out=torch.empty_like(p)).mul_(p)
        gradient.scatter_add_(1, voxels, (hit - (ce if valid is None else ce * valid)).unsqueeze(1))
        return gradient.view(ctx.shape).to(ctx.dtype, memory_format=ctx.layout), None, None, None


def _layout(logits: Tensor) -> torch.memory_format:
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(logits.ndim)
    return last if last is not None and logits.is_contiguous(memory_format=last) else torch.preserve_format


def _log_softmax(logits: Tensor) -> Tensor:
    """Over axis 1 of (b, c, n), in float32 at least; always a new tensor, in whichever memory order is faster."""
    kind = torch.float64 if logits.dtype == torch.float64 else torch.float32
    if logits.stride(1) == 1 and logits.shape[1] > 1:
        if logits.device.type == "cpu" and logits.shape[1] < _CLASSES_OF_A_VECTOR:
            return torch.log_softmax(logits.to(kind, memory_format=torch.contiguous_format), 1)
        return torch.log_softmax(logits.transpose(1, 2), 2, dtype=kind).transpose(1, 2)
    return torch.log_softmax(logits, 1, dtype=kind)


def _dice_terms(
    intersection: Tensor, truth: Tensor, predicted: Tensor, batch_dice: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean foreground Dice from sums (b, c) in float64, and the slopes of *minus* that mean.

    The slopes (b, c) are by each p_c where the target is c, and by each p_c anywhere.
    """
    b = truth.shape[0]
    if batch_dice:
        intersection, truth, predicted = (sums.sum(0, keepdim=True) for sums in (intersection, truth, predicted))
    denominator = truth + predicted + SMOOTH
    dice = (2 * intersection + SMOOTH) / denominator
    slope_hit, slope_mass = -2 / denominator, dice / denominator
    foreground = dice[:, 1:]
    for slope in (slope_hit, slope_mass):
        slope /= foreground.numel()
        slope[:, 0] = 0
    return foreground.mean(), slope_hit.expand(b, -1), slope_mass.expand(b, -1)


def _region_loss(logits: Tensor, masks: Tensor, valid: Tensor | None, batch_dice: bool) -> Tensor:
    """Binary cross-entropy averaged over regions and annotated voxels, minus the mean Dice over all regions."""
    z = logits.flatten(2)
    z = z if z.dtype == torch.float64 else z.float()
    y = masks.to(z.dtype)
    p = z.sigmoid()
    bce = F.binary_cross_entropy_with_logits(z, y, reduction="none")
    if valid is None:
        mean_bce = bce.mean()
    else:
        known = valid.unsqueeze(1)
        y, p, bce = y * known, p * known, bce * known
        mean_bce = bce.sum() / (valid.sum().clamp(min=1) * z.shape[1])
    axes = (0, 2) if batch_dice else (2,)
    dice = (2 * (p * y).sum(axes) + SMOOTH) / (p.sum(axes) + y.sum(axes) + SMOOTH)
    return mean_bce - dice.mean()
