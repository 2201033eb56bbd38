"""A plan fitted to a time budget: which network is worth training in it, by its measured pace on this machine."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from autoseg import records
from autoseg.errors import ResourceError
from autoseg.log import get_logger
from autoseg.nets import traits_of
from autoseg.nets.device import choose_device, choose_precision, gpu_name
from autoseg.parallel import cores
from autoseg.pipeline.context import versions
from autoseg.pipeline.prepare import cost_function
from autoseg.planning.clock import NEARLY, Paced, choose_width, possible_widths, with_width
from autoseg.planning.step_time import step_time, with_half_patch
from autoseg.records import write_text
from autoseg.schema.plan import Configuration, Plan

_LOG = get_logger(__name__)

# What finding out may take: a share of the budget, and never more than this.
PROBE_SHARE = 0.05
PROBE_SECONDS = 60.0

# The least that ``StepSeconds`` takes.
STEPS_TIMED = 5
# Times steps of a configuration of a plan, for about so many seconds.
StepSeconds = Callable[[Plan, Configuration, float], float]
# Seconds of a fold that are not training, from a configuration and its seconds per step.
Beside = Callable[[Configuration, float], float]


def fit_to_time(
    plan: Plan,
    configuration: Configuration,
    *,
    total: float,
    folds: int,
    device: str,
    optimizer: str,
    paces: Path,
    step_seconds: StepSeconds,
    beside: Beside = lambda configuration, pace: 0.0,
    as_planned: bool = False,
) -> tuple[Plan, Paced]:
    """The plan with the network for ``total`` seconds of ``folds`` folds, and its configuration and pace; both say why.

    Args:
        total: a twentieth of it, but no more than a minute, may go into timing.
        device: the user's choice of device.
        optimizer: what the timed steps are taken with.
        paces: where measured paces are kept for the next command.
        beside: seconds of a fold that are not training.
        as_planned: time the planned network alone, and keep it.

    Raises:
        SettingError: the time is too short for any network.
        ResourceError: a step does not fit into the memory.
    """
    traits = traits_of(configuration.architecture.name)
    cost = cost_function(choose_device(device).type)
    widths = () if as_planned else possible_widths(configuration, traits)
    candidates = [with_width(plan, configuration, width, traits, cost=cost) for width in widths] or [configuration]
    candidates = [one for one in candidates if one.cost.memory_bytes <= plan.memory_bytes] or candidates[:1]
    middle = len(candidates) // 2
    # The one in the middle comes first, and a smaller patch of it tells voxels from operations.
    smaller = with_half_patch(plan, candidates[middle], cost=cost) if len(candidates) > 1 else None
    probes = [candidates[middle], *([smaller] if smaller else []), *candidates[:middle], *candidates[middle + 1 :]]
    pace = _paces(
        plan,
        {_key(plan, one, device, optimizer): one for one in probes},
        limit=min(PROBE_SECONDS, PROBE_SHARE * total) / len(probes),
        paces=paces,
        step_seconds=step_seconds,
    )
    options = [
        Paced(configuration=one, seconds=seconds, beside=beside(one, seconds))
        for one in candidates
        if (seconds := pace(one)) is not None
    ]
    chosen, why = choose_width(options, total / folds, folds=folds)
    _LOG.info("time: %s", why)
    if not widths:
        return plan, chosen
    kept = [line for line in configuration.why if not line.startswith("width ")]
    fitted = replace(chosen.configuration, why=(*kept, why))
    return plan.with_configuration(fitted), replace(chosen, configuration=fitted)


def _paces(
    plan: Plan,
    probes: Mapping[str, Configuration],
    *,
    limit: float,
    paces: Path,
    step_seconds: StepSeconds,
) -> Callable[[Configuration], float | None]:
    """Seconds per step: timed where there is time for it, else known or predicted; None if the memory is too small.

    The first probe is timed every time, because a machine is busier at one time than at another; what is known of the
    others is scaled by how much it changed.
    """
    known = _load(paces)
    change = None
    timed: list[tuple[Configuration, float]] = []
    too_large = []
    for key, one in probes.items():
        if change is None:
            seconds = step_seconds(plan, one, limit)
            change = seconds / known.setdefault(key, seconds)
        elif key in known:
            seconds = change * known[key]
        elif STEPS_TIMED * step_time(timed)(one) < 2 * limit:
            try:
                seconds = step_seconds(plan, one, limit)
            except ResourceError as error:
                # Others may hold memory today that the plan counted on.
                _LOG.info("width %d is left out: %s", one.topology.features[0], error.message)
                too_large.append(one)
                continue
            known[key] = seconds / change
        else:
            continue
        timed.append((one, seconds))
    write_text(paces, json.dumps(known, indent=1) + "\n")
    predicted = step_time(timed)

    def pace(one: Configuration) -> float | None:
        if one in too_large:
            return None
        return next((seconds for known, seconds in timed if known == one), predicted(one))

    return pace


def _load(paces: Path) -> dict[str, float]:
    try:
        found = json.loads(paces.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: pace for key, pace in found.items() if isinstance(pace, float) and 0 < pace < math.inf}


def _key(plan: Plan, configuration: Configuration, device: str, optimizer: str) -> str:
    """What a pace depends on: the machine and its libraries, and everything that a step computes."""
    chosen, libraries = choose_device(device), versions()
    machine = (
        platform.machine(),
        cores(),
        str(chosen),
        gpu_name() or "",
        str(choose_precision(chosen)),
        libraries["torch"],
        libraries["autoseg"],
    )
    step = (
        records.to_json(configuration.architecture),
        records.to_json(configuration.topology),
        configuration.patch_size,
        configuration.batch_size,
        plan.input_channels(configuration),
        plan.labels.num_heads,
        optimizer,
    )
    return hashlib.sha256(repr((machine, step)).encode()).hexdigest()[:16]


def nearly_planned_for(plan: Plan, name: str, seconds: float, *, folds: int) -> bool:
    """Whether a configuration of the plan was chosen for about this time per fold."""
    if plan.time_budget is None or name not in plan.timed:
        return False
    ratio = seconds / (plan.time_budget / folds)
    return 1 / NEARLY <= ratio <= NEARLY
