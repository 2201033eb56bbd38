"""How wide a network should be when time is short: the rule.

A wide network learns more from a sample and sees fewer of them. Where many samples fit into the time the width of the
plan is best; where few do, half of it, and then half of that (docs/benchmarks.md has the grid that says so).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autoseg.errors import SettingError
from autoseg.log import duration
from autoseg.planning.situation import CostFunction, cost_of
from autoseg.schema.architecture import Traits
from autoseg.schema.plan import Configuration, Plan

# The architecture whose widths the grid compares; others are trained as they are planned.
RULED = "unet"
WIDTHS = (8, 16, 32)
# Deep stages of pictures would double to 512: four times the weights, half of the steps, and no better scores.
LARGEST_WIDTH = 256
# Fewer steps than this give nothing that anybody would use; 64 gave 0.81 on electron microscopy.
LEAST_STEPS = 30
# So many steps the narrowest width needs before it pays, and eight times as many one twice as wide: its step takes
# two to three times as long, and four times as many weights want to be taught.
_STEPS_AT_8 = 16
# A plan that was made for nearly this time is kept.
NEARLY = 1.25


@dataclass(frozen=True, kw_only=True)
class Paced:
    """A configuration, the seconds that one of its training steps takes, and those of a fold that are not training."""

    configuration: Configuration
    seconds: float
    beside: float = 0.0

    @property
    def width(self) -> int:
        return self.configuration.topology.features[0]

    def steps(self, seconds: float) -> float:
        """How many steps there are in ``seconds`` of a fold."""
        return max(0.0, seconds - self.beside) / self.seconds


def possible_widths(configuration: Configuration, traits: Traits) -> tuple[int, ...]:
    """The widths that the rule chooses among; none where the grid says nothing, and the network is as planned."""
    if configuration.architecture.name != RULED or configuration.architecture.preset:
        return ()
    planned = configuration.topology.features[0]
    return tuple(width for width in WIDTHS if width <= max(planned, traits.base_width))


def with_width(
    plan: Plan, configuration: Configuration, width: int, traits: Traits, *, cost: CostFunction
) -> Configuration:
    """A configuration with another first width; the others double per stage up to 256, or the network's largest."""
    topology = configuration.topology
    largest = min(traits.max_width[configuration.ndim], LARGEST_WIDTH)
    features = tuple(min(width * 2**stage, largest) for stage in range(topology.num_stages))
    if features == topology.features:
        return configuration
    wanted = replace(configuration, topology=replace(topology, features=features))
    return replace(wanted, cost=cost_of(plan, wanted, cost))


def choose_width(options: Sequence[Paced], seconds: float, *, folds: int = 1) -> tuple[Paced, str]:
    """The network for ``seconds`` of a fold, and the reason.

    Args:
        options: by width, in ascending order.
        folds: how many folds there are to train.

    Raises:
        SettingError: not even the fastest takes enough steps.
    """
    narrow = options[0]
    if narrow.steps(seconds) < LEAST_STEPS:
        least = math.ceil(folds * (LEAST_STEPS * narrow.seconds + narrow.beside))
        many = f" for each of {folds} folds" if folds > 1 else ""
        fewer = ", or train fewer folds, such as -f 0" if folds > 1 else ""
        raise SettingError(
            f"{duration(seconds)}{many} are {int(narrow.steps(seconds))} training steps, too few for anything useful",
            hint=f"give at least --time-budget {least}s{fewer}",
        )
    fitting = [option for option in options if option.steps(seconds) >= steps_needed(option.width)]
    chosen = fitting[-1] if fitting else narrow
    paces = ", ".join(f"{option.width}: {option.seconds:.3g} s a step" for option in options)
    return chosen, (
        f"width {chosen.width}: {duration(seconds)} are {int(chosen.steps(seconds)):,} steps of it, and it pays from "
        f"{steps_needed(chosen.width):,} on ({paces})"
    )


def steps_needed(width: int) -> int:
    """The steps from which on a width is worth more than half of it."""
    return round(_STEPS_AT_8 * (width / 8) ** 3)
