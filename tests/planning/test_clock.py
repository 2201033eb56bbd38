"""How wide a network is for the time that there is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autoseg.errors import SettingError
from autoseg.nets import traits_of
from autoseg.nets.cost import training_cost
from autoseg.planning.clock import Paced, choose_width, possible_widths, steps_needed, with_width
from autoseg.schema.plan import Architecture
from tests.planning.examples import PLAN, configuration


def test_widths_double_per_stage_up_to_256_and_the_cost_is_that_of_the_network() -> None:
    traits = traits_of("unet")
    wide = with_width(PLAN, configuration(), 32, traits, cost=training_cost)
    assert wide.topology.features == (32, 64, 128, 256, 256)
    expected = training_cost(
        wide.architecture, wide.topology, ndim=3, patch_size=(64,) * 3, batch_size=2, in_channels=1, num_heads=3
    )
    assert wide.cost == expected
    assert with_width(PLAN, configuration(), 16, traits, cost=training_cost) == configuration()


@pytest.mark.parametrize(
    ("arch", "widths"),
    [
        (Architecture(name="unet"), (8, 16, 32)),
        (Architecture(name="unetpp"), ()),
        (Architecture(name="unet", preset="large"), ()),
    ],
)
def test_only_the_plain_unet_has_evidence_for_other_widths(arch: Architecture, widths: tuple[int, ...]) -> None:
    assert possible_widths(configuration(arch=arch), traits_of("unet")) == widths


def paced(*seconds: float) -> list[Paced]:
    return [
        Paced(configuration=configuration(width), seconds=pace)
        for width, pace in zip((8, 16, 32), seconds, strict=True)
    ]


def test_too_little_time_names_the_least_that_would_do() -> None:
    with pytest.raises(SettingError, match=r"30 s are 15 training steps") as caught:
        choose_width(paced(2.0, 3.0, 6.0), 30.0)
    assert caught.value.hint == "give at least --time-budget 60s"
    options = [replace(one, beside=20.0) for one in paced(2.0, 3.0, 6.0)]
    with pytest.raises(SettingError, match=r"30 s for each of 5 folds are 5 training steps") as caught:
        choose_width(options, 30.0, folds=5)
    assert "--time-budget 400s, or train fewer folds" in caught.value.hint
    assert choose_width(options, 220.0, folds=5)[0].width == 8


def test_the_reason_names_the_steps_and_the_paces() -> None:
    chosen, why = choose_width(paced(0.1, 0.2, 0.4), 1e6)
    assert chosen.width == 32
    assert "2,500,000 steps" in why
    assert "8: 0.1 s a step, 16: 0.2 s a step, 32: 0.4 s a step" in why


def test_a_network_of_one_width_is_what_it_is() -> None:
    one = replace(paced(0.1, 0.2, 0.4)[1], seconds=1.0)
    assert choose_width([one], 150.0)[0] == one


@pytest.mark.parametrize(
    ("steps", "width"),
    [
        # Steps of widths 8, 16 and 32 in three minutes, and the best of the grid or what is within 0.01 of it.
        pytest.param((1030, 549, 153), 16, id="hippocampus"),
        pytest.param((367, 149, 45), 16, id="CT"),
        pytest.param((264, 124, 40), 8, id="electron microscopy"),
        pytest.param((589, 292, 90), 16, id="nuclei"),
        pytest.param((50, 20, 8), 8, id="hardly any"),
        pytest.param((9000, 4000, 1100), 32, id="plenty"),
    ],
)
def test_the_network_for_a_time_is_that_of_the_grid(steps: tuple[float, float, float], width: int) -> None:
    chosen, why = choose_width(paced(*(180.0 / count for count in steps)), 180.0)
    assert chosen.width == width
    assert why.startswith(f"width {width}: 3 min 00 s are")


def test_a_width_twice_as_large_needs_eight_times_the_steps() -> None:
    assert [steps_needed(width) for width in (8, 16, 32)] == [16, 128, 1024]
