"""A plan fitted to a time budget: which network is worth training in it, by its measured pace on this machine."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from autoseg import records
from autoseg.log import get_logger
from autoseg.nets import traits_of
from autoseg.nets.device import choose_device, choose_precision, gpu_name
from autoseg.parallel import cores
from autoseg.pipeline.context import versions
from autoseg.pipeline.prepare import cost_function
from autoseg.planning.clock import NEARLY, Paced, choose_width, interpolate, possible_widths, with_width
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


def fit_to_time(
    plan: Plan,
    configuration: Configuration,
    *,
    seconds: float,
    total: float,
    device: str,
    paces: Path,
    step_seconds: StepSeconds,
    as_planned: bool = False,
) -> tuple[Plan, Paced]:
    """The plan with the network for ``seconds`` of training per fold, and its configuration and pace; both say why.

    Args:
        total: of the whole command; a twentieth of it, but no more than a minute, may go into timing.
        device: the user's choice of device.
        paces: where measured paces are kept for the next command.
        as_planned: time the planned network alone, and keep it.

    Raises:
        SettingError: the time is too short for any network.
        ResourceError: a step does not fit into the memory.
    """
    traits = traits_of(configuration.architecture.name)
    cost = cost_function(choose_device(device).type)
    candidates = [
        with_width(
            configuration,
            width,
            traits,
            cost=cost,
            in_channels=plan.input_channels(configuration),
            num_heads=plan.labels.num_heads,
        )
        for width in ((configuration.topology.features[0],) if as_planned else possible_widths(configuration, traits))
    ]
    candidates = [one for one in candidates if one.cost.memory_bytes <= plan.memory_bytes] or candidates[:1]
    limit = min(PROBE_SECONDS, PROBE_SHARE * total) / len(candidates)
    measured = _measured(plan, candidates, limit=limit, device=device, paces=paces, step_seconds=step_seconds)
    options = [Paced(configuration=one, seconds=interpolate(measured, one.cost.flops)) for one in candidates]
    chosen, why = choose_width(options, seconds)
    _LOG.info("time: %s", why)
    if as_planned:
        return plan, chosen
    kept = [line for line in configuration.why if not line.startswith("width ")]
    fitted = replace(chosen.configuration, why=(*kept, why))
    planned = tuple(fitted if one.name == fitted.name else one for one in plan.configurations)
    return replace(plan, configurations=planned), replace(chosen, configuration=fitted)


def _measured(
    plan: Plan,
    candidates: Sequence[Configuration],
    *,
    limit: float,
    device: str,
    paces: Path,
    step_seconds: StepSeconds,
) -> dict[int, float]:
    """Seconds per step by operations per step, of as many candidates as there is time for.

    The one in the middle is timed every time, because a machine is busier at one time than at another; what is known
    of the others is scaled by how much it changed.
    """
    known = _load(paces)
    first = candidates[len(candidates) // 2]
    key = _key(plan, first, device)
    measured = {first.cost.flops: step_seconds(plan, first, limit)}
    change = measured[first.cost.flops] / known.get(key, measured[first.cost.flops])
    known.setdefault(key, measured[first.cost.flops])
    for one in candidates:
        key = _key(plan, one, device)
        if key in known:
            measured.setdefault(one.cost.flops, change * known[key])
        elif STEPS_TIMED * interpolate(measured, one.cost.flops) < 2 * limit:
            measured[one.cost.flops] = step_seconds(plan, one, limit)
            known[key] = measured[one.cost.flops] / change
    write_text(paces, json.dumps(known, indent=1) + "\n")
    return measured


def _load(paces: Path) -> dict[str, float]:
    try:
        found = json.loads(paces.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, float)} if isinstance(found, dict) else {}


def _key(plan: Plan, configuration: Configuration, device: str) -> str:
    """What a pace depends on: the machine and its libraries, and everything that a step computes."""
    chosen = choose_device(device)
    machine = (
        platform.machine(),
        cores(),
        str(chosen),
        gpu_name() or "",
        str(choose_precision(chosen)),
        versions()["torch"],
        versions()["autoseg"],
    )
    step = (
        records.to_json(configuration.architecture),
        records.to_json(configuration.topology),
        configuration.patch_size,
        configuration.batch_size,
        plan.input_channels(configuration),
        plan.labels.num_heads,
    )
    return hashlib.sha256(repr((machine, step)).encode()).hexdigest()[:16]


def nearly_planned_for(plan: Plan, seconds: float, *, folds: int) -> bool:
    """Whether the plan was made for about this time per fold."""
    if plan.time_budget is None:
        return False
    ratio = seconds / (plan.time_budget / folds)
    return 1 / NEARLY <= ratio <= NEARLY
