"""Seconds per step of networks that were not timed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from autoseg.nets import traits_of
from autoseg.nets.cost import training_cost
from autoseg.planning.clock import with_width
from autoseg.planning.step_time import step_time, with_half_patch
from autoseg.schema.plan import Configuration, Cost
from tests.planning.examples import PLAN, configuration


def network(operations: int, parameters: int, edge: int = 64) -> Configuration:
    cost = Cost(parameters=parameters, memory_bytes=1, flops=operations)
    return replace(configuration(), patch_size=(edge,) * 3, cost=cost)


def machine(one: Configuration) -> float:
    """A machine of 100 GFLOP/s, whose optimizer takes 20 ns per parameter and whose samples take 100 ns per voxel."""
    return 1e-11 * one.cost.flops + 2e-8 * one.cost.parameters + 1e-7 * one.batch_size * math.prod(one.patch_size)


TIMED = [network(15 * 10**9, 350_000), network(57 * 10**9, 1_400_000), network(8 * 10**9, 1_400_000, edge=32)]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(network(230 * 10**9, 5_600_000), id="wider"),
        pytest.param(network(190 * 10**9, 1_400_000, edge=96), id="a larger patch"),
        pytest.param(replace(network(228 * 10**9, 1_400_000), batch_size=8), id="a larger batch"),
        pytest.param(network(50 * 10**9, 340_000), id="a stage less"),
    ],
)
def test_parameters_operations_and_voxels_are_told_apart(other: Configuration) -> None:
    assert step_time([(one, machine(one)) for one in TIMED])(other) == pytest.approx(machine(other), rel=1e-6)


def test_one_timed_step_is_scaled_by_operations() -> None:
    assert step_time([(TIMED[1], 2.0)])(network(114 * 10**9, 1)) == pytest.approx(4.0)


def test_two_widths_leave_parameters_out() -> None:
    # Wide stages are capped, so parameters grow less than operations.
    timed = [(network(45 * 10**9, 1_414_000), 0.454), (network(179 * 10**9, 5_649_000), 0.861)]
    wide = step_time(timed)(network(707 * 10**9, 14_980_000))
    rate = (0.861 - 0.454) / (179 - 45)
    assert wide == pytest.approx(0.861 + rate * (707 - 179), rel=1e-3)


@pytest.mark.parametrize("seconds", [0.2012, 0.25, 0.3, 0.5])
def test_two_patches_of_one_width_say_that_others_follow_operations(seconds: float) -> None:
    large, small = network(57 * 10**9, 1_400_000), network(57 * 10**9 // 8, 1_400_000, edge=32)
    predicted = step_time([(large, 1.0), (small, seconds)])
    assert predicted(network(228 * 10**9, 5_600_000)) == pytest.approx(4 * predicted(large), rel=1e-6)


def test_no_rate_is_below_zero() -> None:
    # A larger patch that was timed faster, as on a machine that was busy for a moment.
    timed = [(network(57 * 10**9, 1_400_000), 1.0), (network(190 * 10**9, 1_400_000, edge=96), 0.9)]
    predicted = step_time(timed)
    assert 0 < predicted(network(10**9, 10_000, edge=16)) < predicted(network(57 * 10**9, 1_400_000)) < 1.0


def test_half_a_patch_fits_the_strides_and_has_its_own_cost() -> None:
    odd = replace(with_width(PLAN, configuration(), 8, traits_of("unet"), cost=training_cost), patch_size=(96, 80, 32))
    half = with_half_patch(PLAN, odd, cost=training_cost)
    assert half is not None
    # Four strides of 2 make 16, and the last stage keeps two voxels.
    assert half.patch_size == (48, 48, 32)
    assert half.cost == training_cost(
        odd.architecture, odd.topology, ndim=3, patch_size=(48, 48, 32), batch_size=2, in_channels=1, num_heads=3
    )
    assert with_half_patch(PLAN, replace(odd, patch_size=(32, 32, 32)), cost=training_cost) is None
