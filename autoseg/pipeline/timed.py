"""A plan fitted to a time budget: which network is worth training in it, by its measured pace on this machine."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
from autoseg.planning.situation import CostFunction, cost_of
from autoseg.planning.step_time import Timed, step_time, with_half_patch
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
        total: about a twentieth of it, but no more than about a minute, goes into timing.
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
    middle = candidates[len(candidates) // 2]
    smaller = with_half_patch(plan, middle, cost=cost) if widths else None
    # From the middle the others are predicted best; the smaller patch, which nobody chooses, has what time is left.
    probes = [middle, *(one for one in candidates if one != middle), *([smaller] if smaller is not None else [])]
    found = _probe(
        plan,
        {_key(plan, one, device, optimizer): one for one in probes},
        seconds=min(PROBE_SECONDS, PROBE_SHARE * total),
        paces=paces,
        step_seconds=step_seconds,
    )
    options = [
        Paced(configuration=one, seconds=seconds, beside=beside(one, seconds))
        for one in candidates
        if (seconds := found.seconds(one)) is not None
    ]
    chosen, why = choose_width(options, total / folds, folds=folds)
    if not widths:
        return plan, chosen
    _LOG.info("time: %s", why)
    if smaller is not None and found.seconds_timed(smaller) is not None:
        _LOG.info("time: %s", _other_steps(plan, chosen.configuration, found, device=device, cost=cost))
    kept = [line for line in configuration.why if not line.startswith("width ")]
    fitted = replace(chosen.configuration, why=(*kept, why))
    return plan.with_configuration(fitted), replace(chosen, configuration=fitted)


@dataclass(frozen=True, kw_only=True)
class _Probe:
    """Steps that were timed, today or scaled to today; and configurations that the memory is too small for."""

    timed: tuple[Timed, ...]
    too_large: tuple[Configuration, ...]

    def seconds_timed(self, wanted: Configuration) -> float | None:
        return next((seconds for one, seconds in self.timed if one == wanted), None)

    def seconds(self, wanted: Configuration) -> float | None:
        """Seconds per step, predicted if it was not timed; None if it does not fit."""
        if wanted in self.too_large:
            return None
        return self.seconds_timed(wanted) or step_time(self.timed)(wanted)


def _probe(
    plan: Plan, probes: Mapping[str, Configuration], *, seconds: float, paces: Path, step_seconds: StepSeconds
) -> _Probe:
    """Time what there is time for.

    The first is timed every time, because a machine is busier at one time than at another; what is known of the others
    is scaled by how much it changed.
    """
    known = _load(paces)
    (first_key, first), *others = probes.items()
    limit = seconds / len(probes)
    pace = step_seconds(plan, first, limit)
    change = pace / known.setdefault(first_key, pace)
    timed, too_large = [(first, pace)], []
    left = seconds - max(limit, STEPS_TIMED * pace)
    for waiting, (key, one) in zip(range(len(others), 0, -1), others, strict=True):
        if key not in known and STEPS_TIMED * step_time(timed)(one) < left:
            limit = left / waiting
            try:
                pace = step_seconds(plan, one, limit)
            except ResourceError as error:
                # Others may hold memory today that the plan counted on.
                _LOG.info("width %d is left out: %s", one.topology.features[0], error.message)
                too_large.append(one)
                continue
            known[key] = pace / change
            left -= max(limit, STEPS_TIMED * pace)
        if key in known:
            timed.append((one, change * known[key]))
    write_text(paces, json.dumps(known, indent=1) + "\n")
    return _Probe(timed=tuple(timed), too_large=tuple(too_large))


def _other_steps(plan: Plan, chosen: Configuration, found: _Probe, *, device: str, cost: CostFunction) -> str:
    """What steps of other sizes would take, for who would rather choose them."""
    larger = replace(chosen, batch_size=2 * chosen.batch_size)
    smaller = with_half_patch(plan, chosen, cost=cost)
    others = [replace(larger, cost=cost_of(plan, larger, cost)), *([smaller] if smaller is not None else [])]
    precision = str(choose_precision(choose_device(device)) or "torch.float32").removeprefix("torch.")
    steps = (
        f"{found.seconds(one):.3g} s with batch {one.batch_size} of {'x'.join(map(str, one.patch_size))}"
        for one in others
    )
    return f"a step of width {chosen.topology.features[0]} in {precision} would take about {' and '.join(steps)}"


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
