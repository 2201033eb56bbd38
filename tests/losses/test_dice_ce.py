"""The fused loss against a plain one written with one-hot tensors in float64, and against values known in advance."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from autoseg.errors import SettingError
from autoseg.losses import LOSSES
from autoseg.losses.dice_ce import dice_ce_loss
from autoseg.schema.dataset import Label, Labels

PLAIN = Labels(foreground=tuple(Label(name=f"organ {value}", values=(value,)) for value in (1, 2, 5)))
MANY = Labels(foreground=tuple(Label(name=f"l{value}", values=(value,)) for value in range(1, 20)))
PLAIN_IGNORE = Labels(foreground=PLAIN.foreground, ignore=9)
REGIONS = Labels(
    foreground=(
        Label(name="whole", values=(1, 2, 3)),
        Label(name="core", values=(2, 3)),
        Label(name="spot", values=(3,)),
    ),
    regions_class_order=(1, 2, 3),
)
REGIONS_IGNORE = Labels(foreground=REGIONS.foreground, regions_class_order=(1, 2, 3), ignore=4)
ALL = [PLAIN, PLAIN_IGNORE, REGIONS, REGIONS_IGNORE]


def naive_loss(logits: torch.Tensor, target: torch.Tensor, labels: Labels, batch_dice: bool) -> torch.Tensor:
    known = torch.ones_like(target, dtype=logits.dtype)
    if labels.ignore_index is not None:
        known = (target != labels.ignore_index).to(logits.dtype)
    if labels.has_regions:
        truth = torch.stack(
            [
                sum((target[:, 0] == i) for i in labels.internal(region)).to(logits.dtype)
                for region in labels.foreground
            ],
            1,
        )
        p, first = logits.sigmoid(), 0
        ce = -(truth * F.logsigmoid(logits) + (1 - truth) * F.logsigmoid(-logits)) * known
        ce = ce.sum() / (known.sum().clamp(min=1) * truth.shape[1])
    else:
        classes = logits.shape[1]
        truth = F.one_hot(target[:, 0].long(), classes + 1)[..., :classes].movedim(-1, 1).to(logits.dtype)
        p, first = logits.softmax(1), 1
        ce = -(truth * logits.log_softmax(1) * known).sum() / known.sum().clamp(min=1)
    axes = (0, *range(2, logits.ndim)) if batch_dice else tuple(range(2, logits.ndim))
    p, truth = p * known, truth * known
    dice = (2 * (p * truth).sum(axes) + 1e-5) / (p.sum(axes) + truth.sum(axes) + 1e-5)
    return ce - dice[..., first:].mean()


def draw(labels: Labels, shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn((shape[0], labels.num_heads, *shape[1:]), generator=generator, dtype=torch.float64)
    highest = len(labels.leaves) + (labels.ignore is not None)
    target = torch.randint(0, highest, (shape[0], 1, *shape[1:]), generator=generator, dtype=torch.int16)
    return logits, target


@pytest.mark.parametrize("labels", ALL)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("shape", [(3, 7, 6), (2, 4, 5, 6)])
def test_value_and_gradient_equal_the_plain_loss(labels: Labels, batch_dice: bool, shape: tuple[int, ...]) -> None:
    logits, target = draw(labels, shape)
    expected_in = logits.clone().requires_grad_()
    expected = naive_loss(expected_in, target, labels, batch_dice)
    expected.backward()
    for kind, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        given = logits.to(kind, copy=True).requires_grad_()
        value = dice_ce_loss(labels, batch_dice=batch_dice)(given, target)
        (2.5 * value).backward()
        assert value.dtype == kind
        torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(given.grad.double(), 2.5 * expected_in.grad, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize("labels", ALL)
@pytest.mark.parametrize("batch_dice", [False, True])
def test_gradcheck(labels: Labels, batch_dice: bool) -> None:
    logits, target = draw(labels, (2, 2, 3, 2), seed=1)
    loss = dice_ce_loss(labels, batch_dice=batch_dice)
    assert torch.autograd.gradcheck(lambda z: loss(z, target), (logits.requires_grad_(),))


@pytest.mark.parametrize("labels", [PLAIN, PLAIN_IGNORE, MANY])
def test_memory_order_changes_nothing_and_is_kept(labels: Labels) -> None:
    logits, target = draw(labels, (2, 4, 5, 6))
    plain = logits.float().requires_grad_()
    last = logits.float().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    loss = dice_ce_loss(labels, batch_dice=False)
    values = [loss(z, target) for z in (plain, last)]
    first, second = (torch.autograd.grad(value, z)[0] for value, z in zip(values, (plain, last), strict=True))
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(first, second)
    assert second.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("labels", ALL)
@pytest.mark.parametrize("magnitude", [1e4, 1e30])
def test_extreme_logits_stay_finite(labels: Labels, magnitude: float) -> None:
    logits, target = draw(labels, (2, 5, 6))
    given = (logits.sign() * magnitude).float().requires_grad_()
    value = dice_ce_loss(labels, batch_dice=False)(given, target)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(given.grad).all()


def test_perfect_prediction_is_minus_one_and_a_sure_error_costs_its_margin() -> None:
    _, target = draw(PLAIN, (2, 6, 6))
    sure = 1e4 * F.one_hot(target[:, 0].long(), 4).movedim(-1, 1).float()
    loss = dice_ce_loss(PLAIN, batch_dice=True)
    assert float(loss(sure, target)) == pytest.approx(-1.0, abs=1e-6)
    shifted = sure.roll(1, dims=1)
    assert float(loss(shifted, target)) == pytest.approx(1e4, rel=1e-4)


def test_uniform_prediction() -> None:
    target = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]).view(1, 1, 8, 1)
    value = dice_ce_loss(PLAIN, batch_dice=False)(torch.zeros(1, 4, 8, 1), target)
    # Each class: probability 1/4 on 8 voxels, 2 of them its own.
    assert float(value) == pytest.approx(math.log(4) - 2 * 0.5 / (2 + 2), rel=1e-5)


def test_an_absent_class_is_rewarded_only_without_any_mass() -> None:
    target = torch.zeros(1, 1, 10, 10, dtype=torch.uint8)
    loss = dice_ce_loss(PLAIN, batch_dice=False)
    logits = torch.zeros(1, 4, 10, 10)
    logits[:, 0] = 5.0
    mass = logits.softmax(1)[0, 1].sum()
    cross_entropy = F.cross_entropy(logits, target[:, 0].long())
    assert float(cross_entropy - loss(logits, target)) == pytest.approx(float(1e-5 / (mass + 1e-5)), rel=0.02)
    logits[:, 0] = 100.0
    assert float(loss(logits, target)) == pytest.approx(-1.0, abs=1e-6)


@pytest.mark.parametrize("labels", [PLAIN_IGNORE, REGIONS_IGNORE])
def test_ignored_voxels_have_no_say(labels: Labels) -> None:
    logits, target = draw(labels, (2, 6, 6))
    hidden = (target == labels.ignore_index).expand_as(logits)
    assert hidden.any()
    given = logits.float().requires_grad_()
    loss = dice_ce_loss(labels, batch_dice=False)
    value = loss(given, target)
    value.backward()
    assert (given.grad[hidden] == 0).all()
    changed = torch.where(hidden, 50.0, given.detach())
    torch.testing.assert_close(loss(changed, target), value.detach())


@pytest.mark.parametrize("labels", [PLAIN_IGNORE, REGIONS_IGNORE])
def test_nothing_annotated_gives_no_gradient(labels: Labels) -> None:
    logits, target = draw(labels, (2, 4, 4))
    given = logits.float().requires_grad_()
    value = dice_ce_loss(labels, batch_dice=False)(given, torch.full_like(target, labels.ignore_index or 0))
    value.backward()
    assert torch.isfinite(value)
    assert (given.grad == 0).all()


@pytest.mark.parametrize("labels", ALL)
def test_autocast_computes_in_float32(labels: Labels) -> None:
    logits, target = draw(labels, (2, 5, 6, 4))
    rounded = logits.to(torch.bfloat16)
    exact_in = rounded.double().requires_grad_()
    exact = naive_loss(exact_in, target, labels, False)
    exact.backward()
    given = rounded.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = dice_ce_loss(labels, batch_dice=False)(given, target)
        value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-6)
    # Only the rounding of the result to bfloat16 is left.
    torch.testing.assert_close(given.grad.double(), exact_in.grad, rtol=2**-8, atol=1e-7)


def test_gradients_may_be_taken_twice() -> None:
    logits, target = draw(PLAIN, (1, 4, 4))
    logits.requires_grad_()
    value = dice_ce_loss(PLAIN, batch_dice=False)(logits, target)
    first = torch.autograd.grad(value, logits, retain_graph=True)[0].clone()
    torch.testing.assert_close(torch.autograd.grad(value, logits)[0], first, rtol=0, atol=0)


def test_an_unknown_loss_is_named() -> None:
    with pytest.raises(SettingError, match=r"no loss called 'diece'[\s\S]*dice_ce"):
        LOSSES.get("diece")
