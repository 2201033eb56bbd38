"""From a fingerprint to a plan. Every rule is a function of its own; README.md lists them with their sources."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from autoseg.errors import SettingError
from autoseg.log import size
from autoseg.planning.budget import usable_memory
from autoseg.planning.choice import choose_architecture
from autoseg.planning.configuration import plan_configuration
from autoseg.planning.lowres import plan_cascade, plan_lowres
from autoseg.planning.mirroring import mirror_axes
from autoseg.planning.normalization import choose_normalization
from autoseg.planning.situation import CostFunction, Situation
from autoseg.planning.spacing import axis_order, median_shape, target_spacing, transposed
from autoseg.schema.architecture import Traits
from autoseg.schema.dataset import DatasetSpec
from autoseg.schema.fingerprint import Fingerprint, Shape, Spacing
from autoseg.schema.plan import Configuration, Plan
from autoseg.schema.settings import PrepareSettings


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """Full resolution in the plan's order of axes; ``median`` is exact (halves occur)."""

    order: Shape
    spacing: Spacing
    median: tuple[float, ...]
    why: tuple[str, ...]


def make_plan(
    spec: DatasetSpec,
    fingerprint: Fingerprint,
    *,
    settings: PrepareSettings,
    device: str,
    memory_bytes: int,
    cost: CostFunction,
    traits_of: Callable[[str], Traits],
) -> Plan:
    """Decide spacing, patch, batch and network for every configuration worth training.

    Args:
        settings: ``arch``, ``spacing``, ``patch_size`` and ``batch_size`` of the user's are honoured.
        device: ``cpu`` or the kind of another device.
        memory_bytes: what the device has, or what the user gives; a reserve is taken off (``budget.py``).
        cost: what a training step of a candidate costs.
        traits_of: what the network of a name says about itself.

    Returns:
        ``2d`` always; ``3d_fullres`` for images with more than one slice; ``3d_lowres`` and ``3d_cascade_fullres``
        where images are much larger than a patch.

    Raises:
        SettingError: a setting does not fit the data, or nothing fits into the memory.
    """
    if not fingerprint.cases:
        raise SettingError(f"{spec.name} has no case to plan for", hint="add labelled images to imagesTr and labelsTr")
    grid = _grid(fingerprint, settings)
    normalization, norm_why = choose_normalization(spec.channels, fingerprint)
    chosen = choose_architecture(
        settings.arch,
        traits_of=traits_of,
        device=device,
        memory_bytes=memory_bytes,
    )
    memory_bytes = min(memory_bytes, chosen.preset.memory_bytes or memory_bytes)
    situation = Situation(
        architecture=chosen.architecture,
        traits=chosen.traits,
        preset=chosen.preset,
        cost=cost,
        device=device,
        usable=usable_memory(device, memory_bytes),
        in_channels=len(spec.channels),
        num_heads=spec.labels.num_heads,
        num_cases=len(fingerprint.cases),
        normalization=normalization,
        patch_size=settings.patch_size,
        batch_size=settings.batch_size,
    )
    _check_settings(settings, three_d=grid.median[0] > 1)
    configurations, cascade_why = _configurations(situation, grid, num_foreground=len(spec.labels.foreground))
    plan = Plan(
        dataset=spec.name,
        device=device,
        memory_bytes=memory_bytes,
        transpose=grid.order,
        channels=spec.channels,
        labels=spec.labels,
        configurations=tuple(configurations),
        why=(
            chosen.why,
            *grid.why,
            *norm_why,
            *cascade_why,
            f"of {size(memory_bytes)} on {device}, {size(situation.usable)} are for a training step and the rest for "
            "what surrounds it",
        ),
    )
    _, mirror_why = mirror_axes(plan, plan.configuration(plan.default_configuration))
    return replace(plan, why=(*plan.why, mirror_why)) if mirror_why else plan


def _grid(fingerprint: Fingerprint, settings: PrepareSettings) -> _Grid:
    spacing, spacing_why = target_spacing(fingerprint)
    if settings.spacing is not None:
        spacing, spacing_why = _users_spacing(settings.spacing, spacing, fingerprint.is_2d)
    order, order_why = axis_order(spacing, is_2d=fingerprint.is_2d)
    return _Grid(
        order=order,
        spacing=transposed(spacing, order),
        median=transposed(median_shape(fingerprint, spacing), order),
        why=(spacing_why, order_why),
    )


def _users_spacing(given: Sequence[float], planned: Spacing, is_2d: bool) -> tuple[Spacing, str]:
    wanted = (2, 3) if is_2d else (3,)
    if len(given) not in wanted or min(given) <= 0:
        raise SettingError(
            f"--spacing {','.join(map(str, given))} does not fit: it needs {' or '.join(map(str, wanted))} "
            "numbers above zero",
            hint="give mm per axis in the order z,y,x" + (" (y,x for pictures)" if is_2d else ""),
        )
    return (*planned[: 3 - len(given)], *given), "the target spacing was given by the user"


def _check_settings(settings: PrepareSettings, *, three_d: bool) -> None:
    if settings.batch_size is not None and settings.batch_size < 1:
        raise SettingError(f"a batch of {settings.batch_size} is not possible", hint="give --batch-size 1 or more")
    possible = (2, 3) if three_d else (2,)
    if settings.patch_size is not None and len(settings.patch_size) not in possible:
        raise SettingError(
            f"--patch-size needs {' or '.join(map(str, possible))} numbers, not {len(settings.patch_size)}",
            hint="give voxels per axis in the plan's order: two for 2d" + (", three for 3d_fullres" if three_d else ""),
        )


def _configurations(
    situation: Situation, grid: _Grid, *, num_foreground: int
) -> tuple[list[Configuration], tuple[str, ...]]:
    voxels = math.prod(grid.median) * situation.num_cases
    name, ndims = situation.architecture.name, situation.traits.ndims
    if 2 not in ndims and grid.median[0] <= 1:
        raise SettingError(f"{name} needs images with more than one slice", hint="plan another architecture")
    flat = [_flat(situation, grid, voxels)] if 2 in ndims else []
    if grid.median[0] <= 1:
        return flat, ("only 2d: the images have one slice",)
    if 3 not in ndims:
        return flat, (f"only 2d: {name} has no meaning in 3D",)
    fullres = plan_configuration(
        "3d_fullres",
        situation,
        spacing=grid.spacing,
        median=grid.median,
        dataset_voxels=voxels,
        batch_dice=False,
    )
    lowres, why = plan_lowres(situation, fullres, grid.median)
    if lowres is None:
        return [*flat, fullres], (why,)
    fullres = replace(
        fullres,
        batch_dice=True,
        why=(*fullres.why, "Dice loss over the whole batch: a patch sees only a small part of an image"),
    )
    try:
        cascade = plan_cascade(situation, fullres, lowres, num_foreground, voxels)
    except SettingError as error:
        # One more channel per label may not fit, but that is no reason to train nothing.
        return [*flat, fullres, lowres], (why, f"no 3d_cascade_fullres: {error.message}")
    return [*flat, fullres, lowres, cascade], (why,)


def _flat(situation: Situation, grid: _Grid, dataset_voxels: float) -> Configuration:
    return plan_configuration(
        "2d",
        situation,
        spacing=grid.spacing[1:],
        median=grid.median[1:],
        dataset_voxels=dataset_voxels,
        batch_dice=True,
        why=("Dice loss over the whole batch: a single slice often lacks a class",),
    )
