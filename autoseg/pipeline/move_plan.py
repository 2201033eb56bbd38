"""``autoseg_move_plan``: plan a dataset like another one, so that the networks of both are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autoseg import records
from autoseg.errors import SettingError, joined
from autoseg.interop.nnunet_model import as_model_folder, is_nnunet_model
from autoseg.io.discover import resolve_workspace
from autoseg.log import get_logger
from autoseg.pipeline.context import choose_dataset, memory_budget, remember_dataset
from autoseg.pipeline.prepare import cost_function, fingerprint, planned_device
from autoseg.planning import check_plan, cost_of, plan_table
from autoseg.planning.normalization import choose_normalization
from autoseg.planning.spacing import median_shape, transposed
from autoseg.schema.dataset import DatasetSpec
from autoseg.schema.fingerprint import Fingerprint
from autoseg.schema.folders import PreparedFolder
from autoseg.schema.plan import Configuration, Normalization, Plan, PlanOrigin
from autoseg.schema.settings import PrepareSettings
from autoseg.schema.tools import MovePlanSettings

_LOG = get_logger(__name__)

# A plan for voxels of one size sees little use in images whose voxels are three times smaller or larger.
_FAR_SPACING = 3.0


@dataclass(frozen=True, kw_only=True)
class MovedPlan:
    """``changes`` are sentences: what is not as in the source. ``doubts`` may be right, and should be looked at."""

    plan: Plan
    changes: tuple[str, ...]
    doubts: tuple[str, ...]


def move_plan(settings: MovePlanSettings) -> MovedPlan:
    """Write the source's plan, adapted to the target's labels, as the plan of the target.

    Later stages take it for a plan that was edited by hand: it stays until ``--clean``.

    Raises:
        DatasetError: no such dataset, or its files are faulty.
        SettingError: dimensions do not fit, or the target has a plan already.
        ModelFolderError: the source is a model of nnU-Net that cannot be translated.
    """
    workspace = resolve_workspace(settings.workdir)
    source = _source(settings)
    # Measured before, or now: preprocessing needs it anyway.
    preparing = PrepareSettings(dataset=settings.target, workdir=settings.workdir)
    measured = fingerprint(preparing)
    folder = workspace.prepared(measured.dataset)
    spec = records.load(DatasetSpec, folder.dataset)
    moved = fit_plan(source, spec, measured, configurations=settings.configurations)
    plan = moved.plan if moved.plan.memory_bytes else _planned_here(moved.plan, preparing)
    moved = replace(moved, plan=check_plan(plan, cost=cost_function(plan.device)))
    _write(folder, moved.plan, measured, force=settings.force)
    remember_dataset(spec.name, workspace)
    for doubt in moved.doubts:
        _LOG.warning("%s", doubt)
    _LOG.info("plan of %s for %s: %s\n%s", source.dataset, spec.name, folder.plan, plan_table(moved.plan))
    _LOG.info("changed:\n%s", joined(list(moved.changes)))
    return moved


def fit_plan(
    source: Plan, spec: DatasetSpec, measured: Fingerprint, *, configurations: tuple[str, ...] = ()
) -> MovedPlan:
    """The source's plan for another dataset: its labels and names, everything else as it was.

    Spacing, patch, batch, network, normalisation and its intensities stay, because weights depend on them. Channels of
    a known name keep their normalisation and the others are planned from the images; as many channels without any name
    in common go by their places.

    Raises:
        SettingError: every reason why the dataset cannot have this plan.
    """
    chosen = tuple(source.configuration(name) for name in configurations) or source.configurations
    problems = _problems(source, measured, chosen)
    if problems:
        raise SettingError(
            f"{spec.name} cannot have the plan of {source.dataset}:\n{joined(problems)}",
            hint="plan it on its own with autoseg_plan, or choose configurations that fit with --configurations",
        )
    adapted = tuple(
        replace(
            item,
            median_shape=_median_shape(item, source, measured),
            normalization=_normalization(item, source, spec, measured),
            # What is trained here sees the stage before as autoseg shows it.
            previous_as_nnunet=False,
        )
        for item in chosen
    )
    why = (f"the plan of {source.dataset}, moved by autoseg_move_plan", *source.why)
    plan = replace(
        source, dataset=spec.name, channels=spec.channels, labels=spec.labels, configurations=adapted, why=why
    )
    return MovedPlan(
        plan=plan,
        changes=tuple(_changes(source, plan)),
        doubts=tuple(_doubts(source, plan, measured)),
    )


def _source(settings: MovePlanSettings) -> Plan:
    path = Path(settings.source).expanduser()
    model = _model_of(path)
    if path.suffix == ".json" and path.is_file() and path.name != "plans.json":
        return records.load(Plan, path)
    if (model / "plan.json").is_file():
        return records.load(Plan, model / "plan.json")
    if is_nnunet_model(model):
        cache = resolve_workspace(settings.workdir).translated
        only = settings.configurations[0] if len(settings.configurations) == 1 else None
        return records.load(Plan, as_model_folder(model, cache, configuration=only, stages=False) / "plan.json")
    if path.suffix == ".json":
        return records.load(Plan, path)
    workspace = resolve_workspace(settings.source_workdir or settings.workdir)
    folder = workspace.prepared(choose_dataset(settings.source, workspace))
    if not folder.plan.exists():
        raise SettingError(f"{settings.source} has no plan in {workspace.root}", hint="run autoseg_plan for it first")
    return records.load(Plan, folder.plan)


def _model_of(path: Path) -> Path:
    """The model, which has the plan, of one of its folds, of a checkpoint of nnU-Net or of a file beside its folds."""
    if path.suffix == ".pth":
        return path.parent.parent
    return path.parent if path.suffix == ".json" or path.name.startswith("fold_") else path


def _planned_here(plan: Plan, settings: PrepareSettings) -> Plan:
    """A plan that does not tell its device and memory, as nnU-Net's do not, with those of this machine.

    What it needs is taken as it is: such a network was trained somewhere.
    """
    device = planned_device(settings)
    cost = cost_function(device)
    configurations = tuple(replace(item, cost=cost_of(plan, item, cost)) for item in plan.configurations)
    memory = memory_budget(settings.device, settings.memory)
    return replace(plan, device=device, memory_bytes=memory, configurations=configurations)


def _problems(source: Plan, measured: Fingerprint, chosen: tuple[Configuration, ...]) -> list[str]:
    found = []
    if measured.is_2d:
        found += [f"{item.name} is for volumes, its images are pictures" for item in chosen if item.ndim == 3]
        if source.transpose != (0, 1, 2):
            found.append("its images are pictures, and the plan reorders the axes of volumes")
    return found


def _normalization(
    item: Configuration, source: Plan, spec: DatasetSpec, measured: Fingerprint
) -> tuple[Normalization, ...]:
    if _by_place(source.channels, spec.channels):
        return item.normalization
    known = dict(zip((name.casefold() for name in source.channels), item.normalization, strict=True))
    planned, _ = choose_normalization(spec.channels, measured)
    return tuple(known.get(name.casefold(), own) for name, own in zip(spec.channels, planned, strict=True))


def _by_place(old: Sequence[str], new: Sequence[str]) -> bool:
    """Whether channels go by their place, as with ``autoseg_train --init``: as many, and no name in common."""
    return len(old) == len(new) and not {name.casefold() for name in old} & {name.casefold() for name in new}


def _median_shape(item: Configuration, source: Plan, measured: Fingerprint) -> tuple[int, ...]:
    """The median shape of the target at the plan's spacing, in the plan's axes."""
    spacing = [sorted(case.spacing[axis] for case in measured.cases)[len(measured.cases) // 2] for axis in range(3)]
    for axis, step in zip(source.transpose[-item.ndim :], item.spacing, strict=True):
        spacing[axis] = step
    shape = transposed(median_shape(measured, spacing), source.transpose)
    return tuple(round(length) for length in shape[-item.ndim :])


def _changes(source: Plan, plan: Plan) -> list[str]:
    found = [f"dataset: {source.dataset} -> {plan.dataset}"]
    if source.channels != plan.channels:
        found.append(f"channels: {', '.join(source.channels)} -> {', '.join(plan.channels)}")
    if source.labels != plan.labels:
        found.append(f"labels: {', '.join(source.labels.names)} -> {', '.join(plan.labels.names)}")
    if source.labels.num_heads != plan.labels.num_heads:
        found.append(f"outputs of the network: {source.labels.num_heads} -> {plan.labels.num_heads}")
    dropped = [name for name in source.names if name not in plan.names]
    if dropped:
        found.append(f"configurations left out: {', '.join(dropped)}")
    for item in plan.configurations:
        before = source.configuration(item.name).median_shape
        if before != item.median_shape:
            found.append(f"{item.name}, median shape: {_times(before)} -> {_times(item.median_shape)}")
    return found


def _doubts(source: Plan, plan: Plan, measured: Fingerprint) -> list[str]:
    found = _channel_doubts(source, plan)
    if any(scheme.scheme == "ct" for item in plan.configurations for scheme in item.normalization):
        found.append(f"intensities are clipped and scaled by those of {source.dataset}, on purpose")
    for item in plan.configurations:
        own = [sorted(case.spacing[axis] for case in measured.cases)[len(measured.cases) // 2] for axis in range(3)]
        ratios = [own[axis] / step for axis, step in zip(plan.transpose[-item.ndim :], item.spacing, strict=True)]
        if max(*ratios, *(1 / ratio for ratio in ratios)) > _FAR_SPACING:
            found.append(
                f"{item.name} works at {_times(item.spacing)} mm, the images of {plan.dataset} have mostly "
                f"{_times(own)} mm (z, y, x)"
            )
    return found


def _channel_doubts(source: Plan, plan: Plan) -> list[str]:
    if _by_place(source.channels, plan.channels):
        pairs = enumerate(zip(source.channels, plan.channels, strict=True))
        return [
            f"channel {position} was {old} and is {new}: it is normalised as {old} was"
            for position, (old, new) in pairs
        ]
    known = {name.casefold() for name in source.channels}
    new = [name for name in plan.channels if name.casefold() not in known]
    return [f"the plan knows no channel {', '.join(new)}: normalised as planned from the images"] if new else []


def _write(folder: PreparedFolder, plan: Plan, measured: Fingerprint, *, force: bool) -> None:
    text = records.to_json(plan)
    if folder.plan.exists() and not force and folder.plan.read_text(encoding="utf-8") != text:
        raise SettingError(
            f"{folder.root.name} has a plan already: {folder.plan}", hint="keep it, or replace it with --force"
        )
    if not folder.plan_origin.exists():
        # No plan has this hash: from now on the plan counts as edited by hand.
        records.save(folder.plan_origin, PlanOrigin(plan_hash="", fingerprint_hash=measured.content_hash, settings={}))
    records.write_text(folder.plan, text)


def _times(values: tuple[float, ...] | list[float]) -> str:
    return "x".join(f"{value:.3g}" for value in values)
