"""Plans for other architectures than the one that a dataset was planned for, from the same settings."""

from __future__ import annotations

from autoseg import records
from autoseg.log import get_logger
from autoseg.nets import traits_of
from autoseg.pipeline.prepare import cost_function, load_plan, plan_identity
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
    path = folder.alternative(architecture)
    settings = {"arch": architecture, "plan": plan_identity(main)}
    origin_path = path.with_suffix(".origin.json")
    if path.exists() and origin_path.exists() and records.load(PlanOrigin, origin_path).settings == settings:
        return check_plan(records.load(Plan, path), cost=cost)
    measured = records.load(Fingerprint, folder.fingerprint)
    made = make_plan(
        records.load(DatasetSpec, folder.dataset),
        measured,
        settings=PrepareSettings(arch=architecture, spacing=_spacing(main)),
        device=main.device,
        memory_bytes=main.memory_bytes,
        cost=cost,
        traits_of=traits_of,
    )
    records.save(path, made)
    origin = PlanOrigin(plan_hash="", fingerprint_hash=measured.content_hash, settings=settings)
    records.save(origin_path, origin)
    _LOG.info("%s is planned like %s: %s", architecture, _label(main), path)
    return made


def _label(plan: Plan) -> str:
    return plan.configuration(plan.default_configuration).architecture.label


def _spacing(plan: Plan) -> Spacing | None:
    """The plan's spacing (z, y, x), so that all architectures read the same preprocessed images."""
    configuration = plan.configuration(plan.default_configuration)
    if configuration.ndim == 2:
        # Of the slices' distance nothing is known here; pictures have no such axis.
        return configuration.spacing if plan.transpose == (0, 1, 2) else None
    spacing = [0.0] * 3
    for axis, step in zip(plan.transpose, configuration.spacing, strict=True):
        spacing[axis] = step
    return tuple(spacing)
