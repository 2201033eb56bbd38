"""Fingerprint, plan, preprocess: from a folder of labelled images to a store that training reads.

Each stage looks at what is there already and does only what is missing or out of date. Only planning, and checking a
plan that somebody edited, load torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from autoseg import records
from autoseg.errors import AutosegError, DatasetError, SettingError, WorkerError, joined
from autoseg.fingerprint import CaseStats, content_hash, merge
from autoseg.io.discover import find_dataset, read_dataset, resolve_workspace
from autoseg.io.store import CaseStore
from autoseg.io.verify import Fault, check_spec, fault_table
from autoseg.log import get_logger, progress, size
from autoseg.parallel import map_cases
from autoseg.pipeline.cases import inspect_case, store_case
from autoseg.pipeline.stores import store_of
from autoseg.planning import CostFunction, check_plan, make_plan, plan_table, refuse_other_dataset
from autoseg.planning.choice import AUTO
from autoseg.schema.dataset import DatasetSpec
from autoseg.schema.fingerprint import Fingerprint
from autoseg.schema.folders import PreparedFolder, Workspace
from autoseg.schema.plan import Configuration, Plan, PlanOrigin
from autoseg.schema.settings import PrepareSettings

_LOG = get_logger(__name__)

# Peak bytes per voxel and channel, the label being one more, while a case is resampled (float32 copies).
PREPROCESS_BYTES_PER_VOXEL = 16


def plan_and_preprocess(settings: PrepareSettings) -> Plan:
    """Fingerprint, plan and preprocess a dataset; the three stages one after the other."""
    made = plan(settings)
    preprocess(settings, made)
    return made


def fingerprint(settings: PrepareSettings) -> Fingerprint:
    """Read every file of the dataset once: check it, and measure shapes, spacings, labels and intensities.

    Raises:
        DatasetError: with one table of all faulty cases.
    """
    workspace, spec = _open(settings)
    folder = workspace.prepared(spec.name)
    records.remove_partial(folder.root)
    identity = content_hash(spec)
    if not settings.clean and folder.fingerprint.exists() and folder.dataset.exists():
        known = _load_or_none(folder)
        whole = known is not None and (len(known.cases) == len(spec.cases) or not settings.verify)
        if known is not None and whole and known.content_hash == identity:
            # The same files may have moved: their paths are those of today.
            records.save(folder.dataset, spec)
            _LOG.info("fingerprint of %s: unchanged, %d cases", spec.name, len(known.cases))
            return known
    stats, faults = _inspect(spec, settings)
    warnings = [fault for fault in faults if not fault.fatal]
    if warnings:
        _LOG.warning("%d cases are unusual:\n%s", len({fault.case for fault in warnings}), fault_table(warnings))
    if settings.verify:
        _refuse_faults(faults)
    elif any(fault.fatal for fault in faults):
        skipped = [fault for fault in faults if fault.fatal]
        _LOG.warning("%d cases are left out:\n%s", len({fault.case for fault in skipped}), fault_table(skipped))
    if not stats:
        raise DatasetError(f"no case of {spec.name} can be used", hint="mend the files listed above")
    order = {case.id: index for index, case in enumerate(spec.cases)}
    stats.sort(key=lambda item: order[item.id])
    result = merge(stats, dataset=spec.name, content_hash=identity)
    records.save(folder.dataset, spec)
    records.save(folder.fingerprint, result)
    _LOG.info("fingerprint of %s: %d cases, %s", spec.name, len(result.cases), folder.fingerprint)
    return result


def _load_or_none(folder: PreparedFolder) -> Fingerprint | None:
    try:
        return records.load(Fingerprint, folder.fingerprint)
    except AutosegError:
        return None


def _open(settings: PrepareSettings) -> tuple[Workspace, DatasetSpec]:
    if not settings.dataset:
        raise SettingError("no dataset was named", hint="give its number, name or folder: -d 3")
    workspace = resolve_workspace(settings.workdir)
    return workspace, read_dataset(find_dataset(settings.dataset, workspace))


def _refuse_faults(faults: Sequence[Fault]) -> None:
    fatal = [fault for fault in faults if fault.fatal]
    if fatal:
        count = len({fault.case for fault in fatal})
        raise DatasetError(
            f"{count} {'case is' if count == 1 else 'cases are'} faulty:\n{fault_table(fatal)}",
            hint="mend or remove these files, then run the same command again",
        )


def _inspect(spec: DatasetSpec, settings: PrepareSettings) -> tuple[list[CaseStats], list[Fault]]:
    stats: list[CaseStats] = []
    faults: list[Fault] = []
    faults.extend(check_spec(spec))
    # Every worker gets one case at a time; the list of all would travel with each.
    work = partial(inspect_case, spec=replace(spec, cases=()), tolerance=settings.tolerance)
    needed = _largest_file(spec) * 8
    outcomes = map_cases(
        work, spec.cases, workers=settings.workers, bytes_per_item=needed, memory=_worker_memory(settings)
    )
    for outcome in progress(outcomes, total=len(spec.cases), label="fingerprint"):
        found, wrong = outcome.unwrap()
        faults.extend(wrong)
        if found is not None:
            stats.append(found)
    order = {case.id: index for index, case in enumerate(spec.cases)}
    faults.sort(key=lambda fault: order.get(fault.case, -1))
    return stats, faults


def _worker_memory(settings: PrepareSettings) -> int | None:
    """What preparing may use: the stated memory, unless that is a GPU's."""
    return None if settings.device.startswith("cuda") else settings.memory


def _largest_file(spec: DatasetSpec) -> int:
    # Compressed images grow by about four when read.
    sizes = [sum(Path(path).stat().st_size for path in case.images if Path(path).exists()) for case in spec.cases]
    return 4 * max(sizes, default=0)


def plan(settings: PrepareSettings) -> Plan:
    """Decide spacing, patch, batch and network for each configuration, and say why.

    A plan that a person has edited is kept and checked again; a plan whose dataset or settings changed is made anew.

    Raises:
        SettingError: an edited plan or a setting does not fit; every problem is listed.
    """
    from autoseg.nets import traits_of
    from autoseg.pipeline.context import memory_budget, remember_dataset

    measured = fingerprint(settings)
    workspace, spec = _open(settings)
    folder = workspace.prepared(spec.name)
    device = planned_device(settings)
    memory = memory_budget(settings.device, settings.memory)
    cost = cost_function(device)
    # Free RAM changes from minute to minute; only a budget that the user states is a reason to plan again.
    origin = PlanOrigin(
        plan_hash="",
        fingerprint_hash=measured.content_hash,
        settings={
            "arch": settings.arch,
            "device": device,
            "memory": settings.memory,
            "spacing": settings.spacing,
            "patch_size": settings.patch_size,
            "batch_size": settings.batch_size,
            "time_budget": settings.time_budget,
        },
    )
    kept = None if settings.clean else _kept_plan(folder, origin, spec, cost)
    if kept is not None:
        made = kept
    else:
        made = make_plan(
            spec, measured, settings=settings, device=device, memory_bytes=memory, cost=cost, traits_of=traits_of
        )
        if settings.time_budget is not None:
            from autoseg.pipeline.pace import plan_to_time

            made = plan_to_time(made, settings, folder)
        save_plan(folder, made, origin)
    remember_dataset(spec.name, workspace)
    budget = size(made.memory_bytes)
    _LOG.info("plan of %s for %s with %s: %s\n%s", spec.name, made.device, budget, folder.plan, plan_table(made))
    return made


def planned_device(settings: PrepareSettings) -> str:
    """``cpu`` or ``cuda``; with a stated memory also for a GPU that this machine does not have."""
    if settings.memory is not None and settings.device.startswith("cuda"):
        return "cuda"
    from autoseg.nets.device import choose_device

    return choose_device(settings.device).type


def cost_function(device: str) -> CostFunction:
    """What a training step costs on a planned device, in the precision that would be used there."""
    from autoseg.nets.cost import training_cost
    from autoseg.nets.device import choose_device, choose_precision

    mixed = device == "cuda" or choose_precision(choose_device("cpu")) is not None
    return partial(training_cost, precision="mixed" if mixed else "float32")


def save_plan(folder: PreparedFolder, made: Plan, origin: PlanOrigin) -> None:
    """Make ``made`` the dataset's plan, as the answer to ``origin``, whose hash is filled in."""
    text = records.to_json(made)
    records.write_text(folder.plan, text)
    records.save(folder.plan_origin, replace(origin, plan_hash=_hash(text)))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _kept_plan(folder: PreparedFolder, origin: PlanOrigin, spec: DatasetSpec, cost: CostFunction) -> Plan | None:
    """The plan on disk, if it is still the answer to the same question or was edited by hand.

    Raises:
        SettingError: an edited plan does not go with the dataset or with the flags of today.
    """
    if not folder.plan.exists() or not folder.plan_origin.exists():
        return None
    text = folder.plan.read_text(encoding="utf-8")
    known = records.load(PlanOrigin, folder.plan_origin)
    if _hash(text) != known.plan_hash:
        _LOG.info("%s was edited by hand: it is kept and checked again (--clean plans anew)", folder.plan)
        edited = records.from_json(Plan, text, source=str(folder.plan))
        _refuse_contradictions(folder, edited, known, origin, spec)
        return check_plan(edited, cost=cost)
    if known.adopted and origin.settings["arch"] == AUTO:
        # A race on the data themselves is better evidence than what the choice goes by.
        origin = replace(origin, settings={**origin.settings, "arch": known.adopted})
    if _same(known, origin):
        if known.adopted:
            _LOG.info("%s is for %s, which won a race: it is kept (--clean plans anew)", folder.plan, known.adopted)
        return records.from_json(Plan, text, source=str(folder.plan))
    if known.adopted:
        _LOG.info(
            "the plan for %s, which won a race, was for other data or settings: planning anew (--arch %s keeps to it)",
            known.adopted,
            known.adopted,
        )
    return None


def _refuse_contradictions(
    folder: PreparedFolder, edited: Plan, known: PlanOrigin, wanted: PlanOrigin, spec: DatasetSpec
) -> None:
    problems = []
    if edited.labels != spec.labels or edited.channels != spec.channels:
        problems.append("its labels or channels are not those of dataset.json")
    before = known.settings
    today = json.loads(records.to_json(wanted))["settings"]
    for name in ("memory", "spacing", "patch_size", "batch_size", "time_budget"):
        if today[name] is not None and today[name] != before.get(name):
            problems.append(f"--{name.replace('_', '-')} asks for something else")
    if problems:
        raise SettingError(
            f"{folder.plan} was edited by hand, but:\n{joined(problems)}",
            hint="edit it again, or plan anew with --clean",
        )


def plan_identity(made: Plan) -> str:
    """Changes when anything in a plan changes."""
    return _hash(records.to_json(made))


def _same(known: PlanOrigin, wanted: PlanOrigin) -> bool:
    def plain(origin: PlanOrigin) -> str:
        # Plans of earlier versions knew of no time.
        settings = {"time_budget": None, **origin.settings}
        return records.to_json(replace(origin, plan_hash="", adopted="", settings=dict(sorted(settings.items()))))

    return plain(known) == plain(wanted)


def preprocess(settings: PrepareSettings, made: Plan | None = None) -> None:
    """Crop, normalise and resample every case into the store of each configuration; only missing cases are done.

    Raises:
        WorkerError: some cases failed; all of them are listed and the others are kept.
    """
    workspace, spec = _open(settings)
    folder = workspace.prepared(spec.name)
    if made is None:
        made = _unedited_plan(folder) or load_plan(folder, settings)
        if records.load(Fingerprint, folder.fingerprint).content_hash != content_hash(spec):
            raise DatasetError(
                f"{spec.name} changed since it was measured", hint=f"run autoseg_plan_and_preprocess -d {spec.name}"
            )
    refuse_other_dataset(made, spec)
    for name in settings.configurations or (made.default_configuration,):
        if settings.clean:
            # Another hash empties the store.
            store_of(folder, made, made.configuration(name)).begin("")
        preprocess_configuration(
            spec,
            made,
            made.configuration(name),
            folder,
            workers=settings.workers,
            memory=_worker_memory(settings),
        )


def _unedited_plan(folder: PreparedFolder) -> Plan | None:
    """The plan on disk if it is as it was written, checked; checking it again would cost more than preprocessing."""
    if not folder.plan.exists() or is_edited(folder):
        return None
    return records.load(Plan, folder.plan)


def is_edited(folder: PreparedFolder) -> bool:
    """Whether a person wrote the plan, or something in it; the plan is there."""
    if not folder.plan_origin.exists():
        return True
    return _hash(folder.plan.read_text(encoding="utf-8")) != records.load(PlanOrigin, folder.plan_origin).plan_hash


def load_plan(folder: PreparedFolder, settings: PrepareSettings) -> Plan:
    """The plan on disk, checked again.

    Raises:
        DatasetError: there is none.
        SettingError: it does not fit.
    """
    if not folder.plan.exists():
        raise DatasetError(
            f"{folder.root.name} has no plan yet", hint=f"run autoseg_plan_and_preprocess -d {folder.root.name} first"
        )
    return check_plan(records.load(Plan, folder.plan), cost=cost_function(planned_device(settings)))


def preprocess_configuration(
    spec: DatasetSpec,
    made: Plan,
    configuration: Configuration,
    folder: PreparedFolder,
    *,
    workers: int | None = None,
    memory: int | None = None,
) -> CaseStore:
    """Bring the store of one configuration up to date and return it; ``workers`` and ``memory`` as in ``map_cases``."""
    measured = records.load(Fingerprint, folder.fingerprint)
    store = store_of(folder, made, configuration)
    store.begin(_store_hash(measured, made, configuration))
    usable = {case.id for case in measured.cases}
    missing = [case for case in spec.cases if case.id in usable and not store.is_complete(case.id)]
    label = f"preprocess {configuration.name}"
    if not missing:
        _LOG.info("%s: all %d cases are there", label, len(usable))
        return store
    if len(missing) < len(usable):
        _LOG.info("%s: %d of %d cases are there already", label, len(usable) - len(missing), len(usable))
    work = partial(
        store_case, spec=replace(spec, cases=()), made=made, configuration=configuration, root=str(store.root)
    )
    voxels = max(_voxels(case.shape, case.spacing, made, configuration) for case in measured.cases)
    bytes_per_case = voxels * (len(spec.channels) + 1) * PREPROCESS_BYTES_PER_VOXEL
    outcomes = map_cases(work, missing, workers=workers, bytes_per_item=bytes_per_case, memory=memory)
    problems = [str(outcome.error) for outcome in progress(outcomes, total=len(missing), label=label) if outcome.error]
    if problems:
        raise WorkerError(
            f"{len(problems)} of {len(missing)} cases could not be preprocessed:\n{joined(problems)}",
            hint="the other cases are kept; run the same command again after mending these",
        )
    return store


def _voxels(shape: Sequence[int], spacing: Sequence[float], made: Plan, configuration: Configuration) -> float:
    """Voxels of a case before or after resampling, whichever is more."""
    before = float(np.prod(shape))
    order = made.transpose[-configuration.ndim :]
    ratio = np.prod([spacing[axis] / target for axis, target in zip(order, configuration.spacing, strict=True)])
    return max(before, before * float(ratio))


def _store_hash(measured: Fingerprint, made: Plan, configuration: Configuration) -> str:
    """Changes when the raw data, or anything that preprocessing does, change; not with batch or network."""
    parts = [
        measured.content_hash,
        str(made.transpose),
        repr(configuration.spacing),
        repr(configuration.normalization),
        repr(configuration.resampling),
        repr(made.labels),
        "store 1",
    ]
    return _hash("\n".join(parts))
