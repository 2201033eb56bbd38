"""Plans for other architectures than the one that a dataset was planned for, from the same settings."""

from __future__ import annotations

from dataclasses import replace

from autoseg import records
from autoseg.log import get_logger
from autoseg.nets import traits_of
from autoseg.pipeline.prepare import cost_function, load_plan, plan_identity, save_plan
from autoseg.planning import check_plan, make_plan
from autoseg.schema.dataset import DatasetSpec
from autoseg.schema.fingerprint import Fingerprint, Spacing
from autoseg.schema.folders import PreparedFolder
from autoseg.schema.plan import Plan, PlanOrigin
from autoseg.schema.settings import PrepareSettings

_LOG = get_logger(__name__)


def plan_for(folder: PreparedFolder, architecture: str | None, *, device: str) -> Plan:
    """The dataset's plan, or one for another architecture with the same device, memory and spacing.

    The latter is kept beside the plan and made anew when that has changed.

    Args:
        architecture: NAME or NAME:PRESET; None stands for that of the plan.
        device: the user's choice of device for today.

    Raises:
        DatasetError: the dataset was not planned.
        SettingError: no such architecture, or it does not fit into the memory.
    """
    main = load_plan(folder, PrepareSettings(device=device))
    if architecture is None or architecture == _label(main):
        return main
    cost = cost_function(main.device)
    path, origin_path = folder.alternative(architecture), folder.alternative_origin(architecture)
    settings = _question(architecture, main)
    if path.exists() and origin_path.exists() and records.load(PlanOrigin, origin_path).settings == settings:
        return check_plan(records.load(Plan, path), cost=cost)
    measured = records.load(Fingerprint, folder.fingerprint)
    made = make_plan(
        records.load(DatasetSpec, folder.dataset),
        measured,
        settings=PrepareSettings(arch=architecture, spacing=spacing_of(main, measured)),
        device=main.device,
        memory_bytes=main.memory_bytes,
        cost=cost,
        traits_of=traits_of,
    )
    _save(folder, made, architecture, main=main, fingerprint_hash=measured.content_hash)
    _LOG.info("%s is planned like %s: %s", architecture, _label(main), path)
    return made


def adopt(folder: PreparedFolder, architecture: str, *, device: str, why: str) -> Plan:
    """Make the plan for another architecture the dataset's plan; the former plan stays as that of its architecture.

    Args:
        architecture: NAME or NAME:PRESET.
        device: as for ``plan_for``.
        why: the first of the new plan's reasons.

    Raises:
        DatasetError, SettingError: as ``plan_for``.
    """
    main = load_plan(folder, PrepareSettings(device=device))
    if architecture == _label(main):
        return main
    made = plan_for(folder, architecture, device=device)
    made = replace(made, why=(why, *made.why))
    known = records.load(PlanOrigin, folder.plan_origin)
    # Plans for other architectures take no patch or batch of the user's.
    settings = {**known.settings, "arch": architecture, "patch_size": None, "batch_size": None}
    _save(folder, main, _label(main), main=made, fingerprint_hash=known.fingerprint_hash)
    save_plan(folder, made, replace(known, settings=settings, adopted=architecture))
    return made


def _save(folder: PreparedFolder, made: Plan, architecture: str, *, main: Plan, fingerprint_hash: str) -> None:
    """Keep ``made`` beside the dataset's plan ``main``."""
    records.save(folder.alternative(architecture), made)
    origin = PlanOrigin(plan_hash="", fingerprint_hash=fingerprint_hash, settings=_question(architecture, main))
    records.save(folder.alternative_origin(architecture), origin)


def _question(architecture: str, main: Plan) -> dict[str, str]:
    return {"arch": architecture, "plan": plan_identity(main)}


def _label(plan: Plan) -> str:
    return plan.configuration(plan.default_configuration).architecture.label


def spacing_of(plan: Plan, fingerprint: Fingerprint) -> Spacing | None:
    """The plan's spacing (z, y, x), so that all architectures read the same preprocessed images."""
    configuration = plan.configuration(plan.default_configuration)
    if configuration.ndim == 2:
        # Of the slices' distance such a plan knows nothing; pictures have no such axis.
        return configuration.spacing if fingerprint.is_2d else None
    spacing = [0.0] * 3
    for axis, step in zip(plan.transpose, configuration.spacing, strict=True):
        spacing[axis] = step
    return tuple(spacing)
