"""Every registered architecture with what a training of it would cost on a dataset; nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from autoseg import records
from autoseg.errors import DatasetError, SettingError
from autoseg.io.discover import resolve_workspace
from autoseg.log import progress
from autoseg.nets import NETS, paper_modes_of, traits_of
from autoseg.pipeline.alternative import spacing_of
from autoseg.pipeline.context import choose_dataset, memory_budget
from autoseg.pipeline.prepare import cost_function, load_plan, planned_device
from autoseg.planning import CONFIGURATIONS, CostFunction, plan_only
from autoseg.planning.choice import AUTO, choose_architecture
from autoseg.schema.architecture import Preset
from autoseg.schema.dataset import DatasetSpec
from autoseg.schema.fingerprint import Fingerprint, Spacing
from autoseg.schema.folders import PreparedFolder, Workspace
from autoseg.schema.listing import ArchitectureListing, ListedArchitecture, PlannedSize, PublishedSize
from autoseg.schema.plan import Plan, PlanOrigin
from autoseg.schema.settings import ArchitecturesSettings, PrepareSettings


@dataclass(frozen=True, kw_only=True)
class _Budget:
    """``of_plan``: both are those of the dataset's plan."""

    device: str
    memory_bytes: int
    of_plan: bool


@dataclass(frozen=True, kw_only=True)
class _Target:
    """A dataset to plan for."""

    spec: DatasetSpec
    fingerprint: Fingerprint
    configuration: str | None
    spacing: Spacing | None
    budget: _Budget
    cost: CostFunction


def architectures(settings: ArchitecturesSettings) -> ArchitectureListing:
    """List the architectures and plan each for a dataset, or only list them where no dataset was planned yet.

    Raises:
        DatasetError: the dataset does not exist or was not measured.
        SettingError: an architecture, preset, configuration or device that does not exist.
    """
    workspace = resolve_workspace(settings.workdir)
    folder = _folder(settings, workspace)
    plan = load_plan(folder, PrepareSettings()) if folder is not None and folder.plan.exists() else None
    budget = _budget(settings, plan)
    for label in settings.arch:
        # One that was asked for and does not exist is an error, not a row.
        _choice(label, budget)
    choice, why = _automatic(folder, budget)
    target = None if folder is None else _target(settings, folder, plan, budget)
    names = [label for label in settings.arch or NETS.names() if ":" not in label]
    listed = [_listed(name) for name in dict.fromkeys(names)]
    asked = [label for label in settings.arch if ":" in label]
    presets = [_listed(label) for label in dict.fromkeys([*_presets(names), *asked])]
    if target is not None:
        listed, presets = _planned(listed, presets, target)
    return ArchitectureListing(
        dataset=None if target is None else target.spec.name,
        device=budget.device,
        memory_bytes=budget.memory_bytes,
        choice=choice,
        why=why,
        architectures=tuple(listed),
        presets=tuple(presets),
    )


def _folder(settings: ArchitecturesSettings, workspace: Workspace) -> PreparedFolder | None:
    """What is known of the dataset; None where none was named and none was planned."""
    if settings.dataset is None and not workspace.current.exists():
        return None
    name = choose_dataset(settings.dataset, workspace)
    folder = workspace.prepared(name)
    if not (folder.fingerprint.exists() and folder.dataset.exists()):
        raise DatasetError(f"{name} has not been measured yet", hint=f"run autoseg_fingerprint -d {name} first")
    return folder


def _budget(settings: ArchitecturesSettings, plan: Plan | None) -> _Budget:
    """Device and memory of the flags, else of the plan, else of this machine."""
    if plan is not None and settings.device in {None, plan.device}:
        memory = settings.memory or plan.memory_bytes
        return _Budget(device=plan.device, memory_bytes=memory, of_plan=memory == plan.memory_bytes)
    wanted = PrepareSettings(device=settings.device or "auto", memory=settings.memory)
    memory = memory_budget(wanted.device, wanted.memory)
    return _Budget(device=planned_device(wanted), memory_bytes=memory, of_plan=False)


def _choice(label: str, budget: _Budget) -> tuple[str, str]:
    chosen = choose_architecture(label, traits_of=traits_of, device=budget.device, memory_bytes=budget.memory_bytes)
    return chosen.architecture.label, chosen.why


def _automatic(folder: PreparedFolder | None, budget: _Budget) -> tuple[str, str]:
    """What ``--arch auto`` stands for, and why."""
    if folder is not None and budget.of_plan and folder.plan_origin.exists():
        adopted = records.load(PlanOrigin, folder.plan_origin).adopted
        if adopted:
            return adopted, f"{adopted}: it won a race on this dataset"
    return _choice(AUTO, budget)


def _target(settings: ArchitecturesSettings, folder: PreparedFolder, plan: Plan | None, budget: _Budget) -> _Target:
    measured = records.load(Fingerprint, folder.fingerprint)
    name = settings.configuration
    possible = CONFIGURATIONS[:1] if measured.is_2d else CONFIGURATIONS
    if name is not None and name not in possible:
        raise SettingError(
            f"{measured.dataset} has no configuration {name!r}", hint=f"choose one of: {', '.join(possible)}"
        )
    return _Target(
        spec=records.load(DatasetSpec, folder.dataset),
        fingerprint=measured,
        configuration=name,
        spacing=None if plan is None else spacing_of(plan, measured),
        budget=budget,
        cost=cost_function(budget.device),
    )


def _presets(names: Sequence[str]) -> list[str]:
    found = []
    for name in names:
        try:
            found += [f"{name}:{preset}" for preset in traits_of(name).presets]
        except SettingError:
            # Its row says that it cannot be loaded.
            continue
    return found


def _listed(label: str) -> ListedArchitecture:
    name, _, preset = label.partition(":")
    try:
        traits = traits_of(name)
    except SettingError as error:
        return ListedArchitecture(name=label, reason=error.message)
    return ListedArchitecture(
        name=label,
        paper=traits.paper,
        summary=traits.summary,
        ndims=traits.ndims,
        settings=_preset_settings(traits.presets[preset]) if preset else {},
        published=()
        if preset
        else tuple(
            PublishedSize(
                name=mode.name,
                patch_size=mode.patch_size,
                parameters=mode.parameters,
                counted=mode.counted,
                note=mode.note,
            )
            for mode in paper_modes_of(name)
        ),
    )


def _preset_settings(preset: Preset) -> dict[str, Any]:
    limits = {"base_width": preset.base_width, "memory_bytes": preset.memory_bytes}
    return {**preset.arguments, **{name: value for name, value in limits.items() if value is not None}}


def _planned(
    listed: Sequence[ListedArchitecture], presets: Sequence[ListedArchitecture], target: _Target
) -> tuple[list[ListedArchitecture], list[ListedArchitecture]]:
    everything = [*listed, *presets]
    rows = (_plan(row, target) for row in everything)
    done = list(progress(rows, total=len(everything), label=f"plan for {target.spec.name}"))
    return done[: len(listed)], done[len(listed) :]


def _plan(row: ListedArchitecture, target: _Target) -> ListedArchitecture:
    """The row with figures, or with the reason why there are none."""
    if row.reason:
        return row
    try:
        made = plan_only(
            target.configuration,
            target.spec,
            target.fingerprint,
            settings=PrepareSettings(arch=row.name, spacing=target.spacing),
            device=target.budget.device,
            memory_bytes=target.budget.memory_bytes,
            cost=target.cost,
            traits_of=traits_of,
        )
    except SettingError as error:
        return replace(row, reason=error.message)
    planned = PlannedSize(
        configuration=made.name,
        patch_size=made.patch_size,
        batch_size=made.batch_size,
        parameters=made.cost.parameters,
        flops=made.cost.flops,
        memory_bytes=made.cost.memory_bytes,
    )
    return replace(row, planned=planned)
