"""What all configurations of a plan have in common while they are being planned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from autoseg.schema.architecture import Preset, Traits
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Architecture, Configuration, Cost, Normalization, Plan, Topology


class CostFunction(Protocol):
    """What one training step of a candidate costs; planning knows networks only through this."""

    def __call__(
        self,
        architecture: Architecture,
        topology: Topology,
        *,
        ndim: int,
        patch_size: Shape,
        batch_size: int,
        in_channels: int,
        num_heads: int,
    ) -> Cost: ...


def cost_of(plan: Plan, configuration: Configuration, cost: CostFunction) -> Cost:
    """What a training step of a configuration costs, one of the plan or a variant of one."""
    return cost(
        configuration.architecture,
        configuration.topology,
        ndim=configuration.ndim,
        patch_size=configuration.patch_size,
        batch_size=configuration.batch_size,
        in_channels=plan.input_channels(configuration),
        num_heads=plan.labels.num_heads,
    )


@dataclass(frozen=True, kw_only=True)
class Situation:
    """``usable`` are the bytes that a training step may take; ``patch_size`` and ``batch_size`` are the user's."""

    architecture: Architecture
    traits: Traits
    preset: Preset
    cost: CostFunction
    device: str
    usable: int
    in_channels: int
    num_heads: int
    num_cases: int
    normalization: tuple[Normalization, ...]
    patch_size: Shape | None
    batch_size: int | None

    @property
    def on_cpu(self) -> bool:
        return self.device.startswith("cpu")

    @property
    def base_width(self) -> int:
        if self.preset.base_width is not None:
            return self.preset.base_width
        return self.traits.base_width_cpu if self.on_cpu else self.traits.base_width

    def step_cost(self, topology: Topology, patch: Shape, batch: int) -> Cost:
        return self.cost(
            self.architecture,
            topology,
            ndim=len(patch),
            patch_size=patch,
            batch_size=batch,
            in_channels=self.in_channels,
            num_heads=self.num_heads,
        )
