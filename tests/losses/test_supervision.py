from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from autoseg.errors import SettingError
from autoseg.losses import segmentation_loss
from autoseg.losses.supervision import downsample_nearest
from autoseg.nets.outputs import halving_weights
from autoseg.schema.dataset import Label, Labels

LABELS = Labels(foreground=(Label(name="a", values=(1,)), Label(name="b", values=(2,))))


def test_weights_of_five_outputs_are_the_published_ones() -> None:
    assert halving_weights(5) == pytest.approx((8 / 15, 4 / 15, 2 / 15, 1 / 15, 0))


def test_weights_of_small_networks_count_every_output() -> None:
    assert halving_weights(1) == (1.0,)
    assert halving_weights(2) == pytest.approx((2 / 3, 1 / 3))
    assert halving_weights(3) == pytest.approx((2 / 3, 1 / 3, 0))


def test_no_outputs_is_an_error() -> None:
    with pytest.raises(SettingError, match="at least one output"):
        halving_weights(0)


@pytest.mark.parametrize(
    ("shape", "small"), [((8, 12, 4), (4, 6, 2)), ((9, 7, 5), (5, 4, 5)), ((10, 40, 33), (10, 5, 17))]
)
def test_targets_shrink_as_nearest_exact(shape: tuple[int, ...], small: tuple[int, ...]) -> None:
    target = torch.randint(0, 100, (2, 1, *shape), dtype=torch.int16)
    expected = F.interpolate(target.float(), small, mode="nearest-exact").to(torch.int16)
    assert torch.equal(downsample_nearest(target, small), expected)


def outputs_and_target() -> tuple[list[torch.Tensor], torch.Tensor]:
    torch.manual_seed(0)
    outputs = [torch.randn(2, 3, 8 >> level, 8 >> level, 4).requires_grad_() for level in range(3)]
    return outputs, torch.randint(0, 3, (2, 1, 8, 8, 4))


def test_the_loss_is_the_weighted_sum_over_resolutions() -> None:
    outputs, target = outputs_and_target()
    single = segmentation_loss(LABELS, batch_dice=False, weights=(1.0,))
    half = F.interpolate(target.float(), (4, 4, 4), mode="nearest-exact").long()
    expected = 2 / 3 * single((outputs[0],), target) + 1 / 3 * single((outputs[1],), half)
    value = segmentation_loss(LABELS, batch_dice=False, weights=halving_weights(3))(tuple(outputs), target)
    torch.testing.assert_close(value, expected)


def test_an_output_without_weight_is_never_used() -> None:
    outputs, target = outputs_and_target()
    spoiled = torch.full_like(outputs[2], float("nan")).requires_grad_()
    value = segmentation_loss(LABELS, batch_dice=True, weights=halving_weights(3))((*outputs[:2], spoiled), target)
    value.backward()
    assert torch.isfinite(value)
    assert spoiled.grad is None
    assert all(torch.isfinite(output.grad).all() for output in outputs[:2])


def test_one_output_of_an_evaluating_network_counts_in_full() -> None:
    outputs, target = outputs_and_target()
    values = [
        segmentation_loss(LABELS, batch_dice=False, weights=halving_weights(n))((outputs[0],), target) for n in (1, 3)
    ]
    torch.testing.assert_close(values[0], values[1])


def test_another_number_of_outputs_is_an_error() -> None:
    outputs, target = outputs_and_target()
    with pytest.raises(SettingError, match="made for 4 outputs, the network gave 3"):
        segmentation_loss(LABELS, batch_dice=False, weights=halving_weights(4))(tuple(outputs), target)


def test_importing_the_packages_does_not_import_torch() -> None:
    code = "import autoseg.losses, autoseg.augment, sys; assert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    import autoseg.augment
    import autoseg.losses

    for package in (autoseg.losses, autoseg.augment):
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            _ = package.nothing
        for name in package.__all__:
            assert getattr(package, name) is not None
