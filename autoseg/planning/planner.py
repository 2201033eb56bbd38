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
from autoseg.planning.tiny import tiny_targets
from autoseg.schema.architecture import Traits
from autoseg.schema.dataset import DatasetSpec
from autoseg.schema.fingerprint import Fingerprint, Shape, Spacing
from autoseg.schema.plan import Configuration, Plan
from autoseg.schema.settings import PrepareSettings

CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """Full resolution in the plan's order of axes; ``median`` is exact (halves occur)."""

    order: Shape
    spacing: Spacing
    median: tuple[float, ...]
    why: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Question:
    """What a plan answers; ``why`` is what was decided before any configuration."""

    situation: Situation
    grid: _Grid
    num_foreground: int
    memory_bytes: int
    why: tuple[str, ...]

    @property
    def voxels(self) -> float:
        """Of all cases at full resolution."""
        return math.prod(self.grid.median) * self.situation.num_cases

    @property
    def has_depth(self) -> bool:
        return self.grid.median[0] > 1

    @property
    def possible_ndims(self) -> tuple[int, ...]:
        """For which the architecture makes sense and the images have slices."""
        return tuple(ndim for ndim in self.situation.traits.ndims if ndim == 2 or self.has_depth)


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
    question = _question(
        spec,
        fingerprint,
        settings=settings,
        device=device,
        memory_bytes=memory_bytes,
        cost=cost,
        traits_of=traits_of,
    )
    configurations, cascade_why = _configurations(question)
    plan = Plan(
        dataset=spec.name,
        device=device,
        memory_bytes=question.memory_bytes,
        transpose=question.grid.order,
        channels=spec.channels,
        labels=spec.labels,
        configurations=tuple(configurations),
        why=(
            *question.why,
            *cascade_why,
            *tiny_targets(spec, fingerprint),
            f"of {size(question.memory_bytes)} on {device}, {size(question.situation.usable)} are for a training step "
            "and the rest for what surrounds it",
        ),
    )
    _, mirror_why = mirror_axes(plan, plan.configuration(plan.default_configuration))
    return replace(plan, why=(*plan.why, mirror_why)) if mirror_why else plan


def plan_only(
    name: str | None,
    spec: DatasetSpec,
    fingerprint: Fingerprint,
    *,
    settings: PrepareSettings,
    device: str,
    memory_bytes: int,
    cost: CostFunction,
    traits_of: Callable[[str], Traits],
) -> Configuration:
    """One configuration of the plan that ``make_plan`` would make, without those that it does not build on.

    Patch, batch, network and cost are those of the plan. Whether the Dice loss of ``3d_fullres`` is over the whole
    batch is left open: for that the low resolution would have to be planned, which takes most of the time.

    Args:
        name: None stands for the configuration that is trained when nobody chooses.

    Raises:
        SettingError: as ``make_plan``, or the plan would have no such configuration.
    """
    question = _question(
        spec,
        fingerprint,
        settings=settings,
        device=device,
        memory_bytes=memory_bytes,
        cost=cost,
        traits_of=traits_of,
    )
    name = name or ("3d_fullres" if 3 in question.possible_ndims else "2d")
    _check_name(name, question)
    if name == "2d":
        return _flat(question)
    fullres = _fullres(question)
    if name == "3d_fullres":
        return fullres
    lowres, why = plan_lowres(question.situation, fullres, question.grid.median)
    if lowres is None:
        raise SettingError(why, hint="choose another configuration")
    return lowres if name == "3d_lowres" else _cascade(question, replace(fullres, batch_dice=True), lowres)


def _check_name(name: str, question: _Question) -> None:
    if name not in CONFIGURATIONS:
        raise SettingError(f"there is no configuration {name!r}", hint=f"choose one of: {', '.join(CONFIGURATIONS)}")
    ndim = int(name[0])
    if ndim == 3 and not question.has_depth:
        raise SettingError(f"no {name}: the images have one slice", hint="choose 2d")
    if ndim not in question.possible_ndims:
        raise SettingError(
            f"no {name}: {question.situation.architecture.name} has no meaning in {ndim}D",
            hint="choose another configuration or architecture",
        )


def _question(
    spec: DatasetSpec,
    fingerprint: Fingerprint,
    *,
    settings: PrepareSettings,
    device: str,
    memory_bytes: int,
    cost: CostFunction,
    traits_of: Callable[[str], Traits],
) -> _Question:
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
    question = _Question(
        situation=situation,
        grid=grid,
        num_foreground=len(spec.labels.foreground),
        memory_bytes=memory_bytes,
        why=(chosen.why, *grid.why, *norm_why),
    )
    _check_settings(settings, three_d=question.has_depth)
    if not question.possible_ndims:
        raise SettingError(
            f"{chosen.architecture.name} needs images with more than one slice", hint="plan another architecture"
        )
    return question


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


def _configurations(question: _Question) -> tuple[list[Configuration], tuple[str, ...]]:
    situation, median = question.situation, question.grid.median
    flat = [_flat(question)] if 2 in question.possible_ndims else []
    if not question.has_depth:
        return flat, ("only 2d: the images have one slice",)
    if 3 not in question.possible_ndims:
        return flat, (f"only 2d: {situation.architecture.name} has no meaning in 3D",)
    fullres = _fullres(question)
    lowres, why = plan_lowres(situation, fullres, median)
    if lowres is None:
        return [*flat, fullres], (why,)
    fullres = replace(
        fullres,
        batch_dice=True,
        why=(*fullres.why, "Dice loss over the whole batch: a patch sees only a small part of an image"),
    )
    try:
        cascade = _cascade(question, fullres, lowres)
    except SettingError as error:
        # One more channel per label may not fit, but that is no reason to train nothing.
        return [*flat, fullres, lowres], (why, f"no 3d_cascade_fullres: {error.message}")
    return [*flat, fullres, lowres, cascade], (why,)


def _flat(question: _Question) -> Configuration:
    return plan_configuration(
        "2d",
        question.situation,
        spacing=question.grid.spacing[1:],
        median=question.grid.median[1:],
        dataset_voxels=question.voxels,
        batch_dice=True,
        why=("Dice loss over the whole batch: a single slice often lacks a class",),
    )


def _fullres(question: _Question) -> Configuration:
    return plan_configuration(
        "3d_fullres",
        question.situation,
        spacing=question.grid.spacing,
        median=question.grid.median,
        dataset_voxels=question.voxels,
        batch_dice=False,
    )


def _cascade(question: _Question, fullres: Configuration, lowres: Configuration) -> Configuration:
    return plan_cascade(question.situation, fullres, lowres, question.num_foreground, question.voxels)
