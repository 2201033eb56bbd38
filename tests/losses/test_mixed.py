"""Every loss by name against its formula in numpy, voxel by voxel, and its gradient against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from autoseg.errors import SettingError
from autoseg.losses import LOSSES, dice_counts, segmentation_loss
from autoseg.losses.dice_ce import dice_ce_loss
from autoseg.losses.mixed import dice_ce
from autoseg.schema.dataset import Label, Labels

PLAIN = Labels(foreground=tuple(Label(name=f"organ {value}", values=(value,)) for value in (3, 17, 255)), ignore=9)
REGIONS = Labels(
    foreground=(Label(name="whole", values=(1, 2)), Label(name="core", values=(2,))),
    regions_class_order=(1, 2),
    ignore=3,
)
# Cases with only the first or only the second organ, or only the outer or the inner region.
PLAIN_PARTIAL = Labels(foreground=PLAIN.foreground, ignore=9, partial=(("organ 17",), ("organ 3",)))
REGIONS_PARTIAL = Labels(
    foreground=REGIONS.foreground, regions_class_order=(1, 2), ignore=3, partial=(("core",), ("whole",))
)
ALL = [PLAIN, REGIONS, PLAIN_PARTIAL, REGIONS_PARTIAL]
NAMES = ["dice_ce", "dice_topk", "dice_focal", "tversky", "small_objects"]
OVERLAPS = {"tversky": (0.3, 0.7)}
SMOOTH = 1e-5


def possible_leaves(code: int, labels: Labels) -> set[int]:
    """Which leaves a voxel of this internal index may be."""
    count = len(labels.leaves)
    if code < count:
        return {code}
    return set(range(count)) if code == count else set(labels.ambiguous[code - count - 1])


def formula(
    logits: np.ndarray,
    target: np.ndarray,
    labels: Labels,
    name: str,
    batch_dice: bool,
    weights: tuple[float, ...] | None,
) -> float:
    """Loops over samples and voxels; logits (b, heads, n), target (b, n)."""
    ignore = len(labels.leaves)
    columns = [set(labels.internal(label)) for label in labels.foreground]
    if not labels.has_regions:
        columns = [{leaf} for leaf in range(1, ignore)]
    terms: list[tuple[float, float]] = []
    sums: list[dict[int, list[float]]] = []
    for z_of_sample, codes in zip(logits, target, strict=True):
        own: dict[int, list[float]] = {column: [0.0, 0.0, 0.0] for column in range(len(columns))}
        for z, code in zip(z_of_sample.T, codes, strict=True):
            if code == ignore:
                continue
            possible = possible_leaves(int(code), labels)
            softmax = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
            if not labels.has_regions:
                weight = 1.0 if weights is None else weights[min(possible)]
                terms.append((sum(softmax[leaf] for leaf in possible), weight))
            for column, members in enumerate(columns):
                p = 1 / (1 + math.exp(-z[column])) if labels.has_regions else softmax[column + 1]
                inside, outside = bool(possible & members), bool(possible - members)
                if inside and outside:
                    # Undecided: this class of this sample stays out of the overlap.
                    own.pop(column, None)
                    continue
                if labels.has_regions:
                    weight = 1.0 if weights is None else weights[column]
                    terms.append((p if inside else 1 - p, weight))
                if column in own:
                    for place, value in enumerate((p * inside, p, inside)):
                        own[column][place] += value
        sums.append(own)
    mean_weight = np.mean([weight for _, weight in terms])
    losses = np.array([-math.log(q) * weight / mean_weight for q, weight in terms])
    if name == "dice_topk":
        voxel = np.sort(losses)[::-1][: int(0.1 * len(losses))].mean()
    elif name == "dice_focal":
        voxel = np.mean([loss * (1 - q) ** 2 for loss, (q, _) in zip(losses, terms, strict=True)])
    else:
        voxel = losses.mean()
    a, b = OVERLAPS.get(name, (0.5, 0.5))
    if batch_dice or name == "small_objects":
        whole: dict[int, list[float]] = {}
        for own in sums:
            for column, values in own.items():
                whole[column] = [x + y for x, y in zip(whole.get(column, [0.0] * 3), values, strict=True)]
        sums = [whole]
    overlaps = [
        (2 * hit + SMOOTH) / (2 * hit + 2 * a * (mass - hit) + 2 * b * (there - hit) + SMOOTH)
        for own in sums
        for hit, mass, there in own.values()
    ]
    return float(voxel - (np.mean(overlaps) if overlaps else 0.0))


def draw(labels: Labels, voxels: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (3, heads, voxels) and targets: of a full case, and of two partial ones if there are such."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((3, labels.num_heads, voxels))
    target = rng.integers(0, len(labels.leaves) + 1, (3, 1, voxels))
    for sample, names in enumerate(labels.partial, start=1):
        for leaf, possible in enumerate(labels.candidates(names)):
            if len(possible) > 1:
                target[sample][target[sample] == leaf] = len(labels.leaves) + 1 + labels.ambiguous.index(possible)
    return torch.from_numpy(logits), torch.from_numpy(target.astype(np.int16))


@pytest.mark.parametrize("labels", ALL)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_value_is_that_of_the_formula(labels: Labels, name: str, batch_dice: bool, weighted: bool) -> None:
    logits, target = draw(labels)
    weights = tuple(1.0 + 2.0 * head for head in range(labels.num_heads)) if weighted else None
    chosen = {} if weights is None else {"class_weights": weights}
    value = LOSSES.get(name)(labels, batch_dice=batch_dice, **chosen)(logits, target)
    expected = formula(logits.numpy(), target[:, 0].numpy(), labels, name, batch_dice, weights)
    assert float(value) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("labels", ALL)
@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_that_of_finite_differences(labels: Labels, name: str) -> None:
    logits, target = draw(labels, voxels=22, seed=1)
    loss = LOSSES.get(name)(labels, batch_dice=False)
    assert torch.autograd.gradcheck(lambda z: loss(z, target), (logits.requires_grad_(),))


@pytest.mark.parametrize("labels", [PLAIN, REGIONS])
def test_without_flags_it_is_the_fused_loss_to_the_bit(labels: Labels) -> None:
    logits, target = draw(labels)
    losses = (segmentation_loss(labels, batch_dice=True), dice_ce_loss(labels, batch_dice=True))
    results = []
    for loss, wrapped in zip(losses, (True, False), strict=True):
        z = logits.float().requires_grad_()
        value = loss((z,) if wrapped else z, target)  # type: ignore[arg-type]
        value.backward()
        results.append((value.detach(), z.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("labels", [PLAIN_PARTIAL, REGIONS_PARTIAL])
@pytest.mark.parametrize("name", NAMES)
def test_undecided_classes_may_share_probability_as_they_like(labels: Labels, name: str) -> None:
    """Moving probability between the background and an organ that nobody looked for changes nothing."""
    logits, target = draw(labels, seed=2)
    sample = 1
    names = labels.partial[0]
    loss = LOSSES.get(name)(labels, batch_dice=False)
    undecided = target[sample, 0] > len(labels.leaves)
    assert undecided.any()
    if labels.has_regions:
        # "core" was looked for, "whole" was not: outside of the core its probability is free.
        changed = logits.clone()
        changed[sample, 0, undecided] += 3.0
    else:
        free = [leaf for leaf, possible in enumerate(labels.candidates(names)) if len(possible) > 1]
        p = logits[sample].softmax(0)
        swapped = p.clone()
        swapped[free] = torch.where(undecided, p[free].roll(1, 0), p[free])
        changed = logits.clone()
        changed[sample] = swapped.log()
    assert not torch.equal(changed, logits)
    torch.testing.assert_close(loss(changed, target), loss(logits, target))


def test_a_case_of_nothing_but_undecided_voxels_pulls_nowhere() -> None:
    labels = PLAIN_PARTIAL
    code = len(labels.leaves) + 1
    z = torch.zeros(1, 4, 8, dtype=torch.float64, requires_grad=True)
    dice_ce(labels, batch_dice=False)(z, torch.full((1, 1, 8), code)).backward()
    free = list(labels.ambiguous[0])
    # Only away from what it certainly is not.
    assert (z.grad[0, free] <= 0).all()
    others = [leaf for leaf in range(4) if leaf not in free]
    assert (z.grad[0, others] > 0).all()


@pytest.mark.parametrize("labels", [PLAIN_PARTIAL, REGIONS_PARTIAL])
def test_counts_leave_out_what_is_not_known(labels: Labels) -> None:
    logits, target = draw(labels, seed=3)
    counts = dice_counts(logits, target, labels)
    expected = np.zeros((3, len(labels.foreground)), dtype=int)
    for z, codes in zip(logits.numpy(), target[:, 0].numpy(), strict=True):
        for voxel, code in enumerate(codes):
            if code == len(labels.leaves):
                continue
            possible = possible_leaves(int(code), labels)
            for column, label in enumerate(labels.foreground):
                members = set(labels.internal(label))
                if possible & members and possible - members:
                    continue
                said = z[column, voxel] > 0 if labels.has_regions else int(z[:, voxel].argmax()) in members
                truth = bool(possible & members)
                expected[:, column] += [said and truth, said and not truth, truth and not said]
    assert [each.tolist() for each in counts] == expected.tolist()


def test_leaves_that_stay_possible() -> None:
    organs = PLAIN_PARTIAL
    # Indices: background, 3, 17, 255.
    assert organs.candidates(("organ 17",)) == ((0, 1, 3), (0, 1, 3), (2,), (0, 1, 3))
    assert organs.ambiguous == ((0, 1, 3), (0, 2, 3))
    # Outside of the whole there is no core either; within it, nobody knows.
    assert REGIONS_PARTIAL.candidates(("whole",)) == ((0,), (1, 2), (1, 2))


@pytest.mark.parametrize("name", NAMES)
def test_outputs_of_half_precision_give_a_finite_loss_in_float32(name: str) -> None:
    logits, target = draw(PLAIN)
    z = (1e4 * logits.sign()).to(torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = LOSSES.get(name)(PLAIN, batch_dice=False)(z, target)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("labels", [PLAIN, REGIONS])
def test_nothing_annotated_gives_no_gradient(name: str, labels: Labels) -> None:
    logits, target = draw(labels)
    z = logits.requires_grad_()
    value = LOSSES.get(name)(labels, batch_dice=False)(z, torch.full_like(target, labels.ignore_index or 0))
    value.backward()
    assert torch.isfinite(value)
    assert (z.grad == 0).all()


def refused(call: Callable[[], object]) -> SettingError:
    with pytest.raises(SettingError) as caught:
        call()
    return caught.value


def test_a_wrong_name_or_number_of_weights_is_one_sentence() -> None:
    assert "tversky" in refused(lambda: segmentation_loss(PLAIN, batch_dice=False, name="dice")).hint
    error = refused(lambda: segmentation_loss(PLAIN, batch_dice=False, class_weights=(1.0, 2.0)))
    assert "background, organ 3, organ 17, organ 255" in error.hint
    assert "whole, core" in refused(lambda: dice_ce(REGIONS, batch_dice=False, class_weights=(1.0,))).hint


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_in_which_every_voxel_weighs_nothing_is_finite(name: str) -> None:
    logits = torch.randn(2, 4, 6, 6, 6, requires_grad=True)
    loss = segmentation_loss(PLAIN, batch_dice=False, name=name, class_weights=(0.0, 1.0, 1.0, 1.0))
    value = loss((logits,), torch.zeros(2, 1, 6, 6, 6, dtype=torch.uint8))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()
