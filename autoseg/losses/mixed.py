"""A loss over voxels plus one over volumes, by name, for labels and regions, also where annotation is partial.

With probabilities p, targets y, and sums over voxels (and over the batch for ``batch_dice``), per class c::

    overlap_c = (2 tp + s) / (2 tp + 2 a fp + 2 b fn + s)      tp = sum(p y), fp = sum(p) - tp, fn = sum(y) - tp
    loss      = voxel term - mean(overlap_c)                   s = 1e-5

a = b = 1/2 is the Dice of ``dice_ce``; a = 0.3, b = 0.7 the Tversky index of Salehi et al. (MLMI 2017), in which a
missed voxel costs more than a false one. The voxel term is the mean of

ce      -log q, with q the probability of the truth
focal   -(1 - q)^2 log q (Lin et al., ICCV 2017)
topk    -log q over the tenth of the voxels where it is largest (Wu et al. 2016; as nnU-Net's DiceTopK10)

Regions are as many binary problems, and q of a voxel stands for that of each region. Class weights multiply -log q and
are scaled to a mean of 1 over the batch.

**Partial annotation.** Where a voxel may be one of several classes, q is the sum of their probabilities (the marginal
cross-entropy of Shi et al., Medical Image Analysis 2021, "Marginal loss and exclusion loss for partially supervised
multi-organ segmentation"; in the words of Fidon et al., MICCAI 2021, a marginalised label-set loss). The overlap of a
class leaves out every sample in which the class has undecided voxels, so that unannotated classes are neither wanted
nor punished (the marginal Dice of Shi et al.; in the leaf-Dice of Fidon et al. their mass counts as false). Their
exclusion loss is not used: the cross-entropy of annotated voxels says the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from autoseg.errors import SettingError
from autoseg.losses.counts import known_regions, possible_table, region_masks
from autoseg.losses.dice_ce import SMOOTH, dice_ce_loss
from autoseg.schema.dataset import Labels

GAMMA = 2.0
TOP_SHARE = 0.1

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a loss is made of: ``false_positives`` and ``false_negatives`` are a and b of the overlap."""

    voxel: str = "ce"
    false_positives: float = 0.5
    false_negatives: float = 0.5


@dataclass(frozen=True)
class _View:
    """What output and target say of each voxel.

    Attributes:
        nll: (b, e, n) -log q; e is 1 for labels, else one per region.
        used: (b, e, n) bool, which of these count.
        weight: (b or 1, e, n or 1) class weights, or None.
        p, truth, known: (b, heads, n) per foreground class: probability, target, and whether the target is known.
        whole: (b, heads) whether nothing but ignored voxels is unknown; None if that is sure.
    """

    nll: Tensor
    used: Tensor
    weight: Tensor | None
    p: Tensor
    truth: Tensor
    known: Tensor
    whole: Tensor | None


def mixed_loss(
    labels: Labels, *, batch_dice: bool, class_weights: tuple[float, ...] | None = None, terms: Terms
) -> Loss:
    """The loss of one output, as ``dice_ce_loss``; plain autograd, with a few tensors of the size of the logits.

    Args:
        class_weights: per leaf, background first, or per region.

    Raises:
        SettingError: another number of weights.
    """
    expected = labels.num_heads
    if class_weights is not None and len(class_weights) != expected:
        raise SettingError(f"{len(class_weights)} class weights for {expected} outputs", hint=weights_hint(labels))
    look = _look_at_regions if labels.has_regions else _look_at_labels

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        z = logits.flatten(2)
        with torch.autocast(z.device.type, enabled=False):
            z = z if z.dtype == torch.float64 else z.float()
            view = look(z, target.flatten(1).to(device=z.device, dtype=torch.int64), labels, class_weights)
            return _voxel_term(view, terms.voxel) - _overlap(view, terms, batch_dice)

    return loss


def weights_hint(labels: Labels) -> str:
    """Which weights are wanted, in their order."""
    names = labels.names if labels.has_regions else ("background", *_leaf_names(labels))
    return f"give {len(names)} numbers, for {', '.join(names)}"


def _leaf_names(labels: Labels) -> list[str]:
    by_value = {label.values[0]: label.name for label in labels.foreground}
    return [by_value[value] for value in labels.leaves if value != 0]


def _look_at_labels(z: Tensor, index: Tensor, labels: Labels, weights: tuple[float, ...] | None) -> _View:
    logp = z.log_softmax(1)
    count = len(labels.leaves)
    used = index != count
    possible = possible_table(labels, z.device)
    if labels.partial:
        member = possible[index].movedim(-1, 1)
        nll = -logp.masked_fill(~member, -torch.inf).logsumexp(1, keepdim=True)
        member = member[:, 1:]
        several = possible.sum(1)[index].unsqueeze(1) > 1
        truth, known = member & ~several, ~(member & several)
        whole = (known | ~used.unsqueeze(1)).all(2)
    else:
        nll = -logp.gather(1, torch.where(used, index, 0).unsqueeze(1))
        truth = index.unsqueeze(1) == torch.arange(1, count, device=z.device).view(1, -1, 1)
        known, whole = used.unsqueeze(1).expand_as(truth), None
    lowest = possible.to(torch.uint8).argmax(1)
    weight = None
    if weights is not None:
        weight = torch.tensor(weights, dtype=z.dtype, device=z.device)[lowest][index].unsqueeze(1)
    return _View(nll, used.unsqueeze(1), weight, logp.exp()[:, 1:], truth, known, whole)


def _look_at_regions(z: Tensor, index: Tensor, labels: Labels, weights: tuple[float, ...] | None) -> _View:
    truth = region_masks(index, labels)
    used = index != len(labels.leaves)
    known = used.unsqueeze(1).expand_as(truth)
    whole = None
    if labels.partial:
        decided = known_regions(index, labels)
        whole = (decided | ~known).all(2)
        known = decided & known
    nll = F.binary_cross_entropy_with_logits(z, truth.to(z.dtype), reduction="none")
    weight = None if weights is None else torch.tensor(weights, dtype=z.dtype, device=z.device).view(1, -1, 1)
    return _View(nll, known, weight, z.sigmoid(), truth, known, whole)


def _voxel_term(view: _View, kind: str) -> Tensor:
    nll = view.nll
    if kind == "focal":
        nll = nll * (1 - (-nll).exp()) ** GAMMA
    nll = nll * view.used
    count = view.used.sum().clamp(min=1)
    if view.weight is not None:
        weight = (view.weight * view.used).expand_as(nll)
        nll = nll * weight * (count / weight.sum().clamp(min=torch.finfo(nll.dtype).eps))
    if kind == "topk":
        return nll.flatten().topk(max(1, int(count * TOP_SHARE))).values.mean()
    return nll.sum() / count


def _overlap(view: _View, terms: Terms, over_batch: bool) -> Tensor:
    known = view.known.to(view.p.dtype)
    truth = view.truth * known
    hit, predicted, there = ((view.p * truth).sum(2), (view.p * known).sum(2), truth.sum(2))
    part = torch.ones_like(hit) if view.whole is None else view.whole.to(hit.dtype)
    if over_batch:
        hit, predicted, there = ((sums * part).sum(0) for sums in (hit, predicted, there))
        part = part.amax(0)
    wrong = 2 * terms.false_positives * (predicted - hit) + 2 * terms.false_negatives * (there - hit)
    overlap = (2 * hit + SMOOTH) / (2 * hit + wrong + SMOOTH)
    return (overlap * part).sum() / part.sum().clamp(min=1)


def dice_ce(labels: Labels, *, batch_dice: bool, class_weights: tuple[float, ...] | None = None) -> Loss:
    """Dice and cross-entropy; the fused form wherever that can be used."""
    if class_weights is None and not labels.partial:
        return dice_ce_loss(labels, batch_dice=batch_dice)
    return mixed_loss(labels, batch_dice=batch_dice, class_weights=class_weights, terms=Terms())


dice_topk = partial(mixed_loss, terms=Terms(voxel="topk"))
dice_focal = partial(mixed_loss, terms=Terms(voxel="focal"))
tversky = partial(mixed_loss, terms=Terms(false_positives=0.3, false_negatives=0.7))


def small_objects(labels: Labels, *, batch_dice: bool, class_weights: tuple[float, ...] | None = None) -> Loss:
    """Dice and cross-entropy with the Dice over the batch, whatever the plan says.

    Most patches do not show a small object, and the Dice of a patch without one is noise.
    """
    return dice_ce(labels, batch_dice=True, class_weights=class_weights)
