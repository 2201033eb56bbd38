"""Looking a plan over again, because a person may have edited it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from autoseg.errors import SettingError, joined
from autoseg.log import size
from autoseg.planning.budget import usable_memory
from autoseg.planning.normalization import SCHEMES
from autoseg.planning.situation import CostFunction, cost_of
from autoseg.schema.dataset import DatasetSpec
from autoseg.schema.plan import Configuration, Plan


def check_plan(plan: Plan, *, cost: CostFunction) -> Plan:
    """Check every configuration and return the plan with the costs of what it says now.

    A configuration whose parameters and operations are those recorded was not edited where it matters; its memory
    is not judged again, because a plan made for a GPU may well be used on a CPU.

    Raises:
        SettingError: with every problem of the plan.
    """
    problems = [*_plan_problems(plan)]
    checked = []
    for configuration in plan.configurations:
        found = list(_configuration_problems(plan, configuration))
        if not found:
            configuration, found = _with_cost(plan, configuration, cost)
        problems += [f"{configuration.name}: {problem}" for problem in found]
        checked.append(configuration)
    if problems:
        raise SettingError(
            f"the plan of {plan.dataset} does not hold together:\n{joined(problems)}",
            hint="correct plan.json, or plan again with --clean",
        )
    return replace(plan, configurations=tuple(checked))


def refuse_other_dataset(plan: Plan, spec: DatasetSpec) -> None:
    """A plan is for the labels and channels that a dataset had when it was made.

    Raises:
        SettingError: the dataset has others by now.
    """
    pairs = (("labels", plan.labels, spec.labels), ("channels", plan.channels, spec.channels))
    changed = [what for what, planned, today in pairs if planned != today]
    if changed:
        raise SettingError(
            f"the {' and '.join(changed)} of {spec.name} changed since it was planned",
            hint=f"plan it again: autoseg_plan -d {spec.name}",
        )


def _plan_problems(plan: Plan) -> Iterator[str]:
    if sorted(plan.transpose) != [0, 1, 2]:
        yield f"transpose {plan.transpose} is not an order of the axes 0, 1, 2"
    if not plan.configurations:
        yield "there is no configuration"
    if len(set(plan.names)) != len(plan.names):
        yield "two configurations have the same name"
    for configuration in plan.configurations:
        if configuration.previous_stage is not None and configuration.previous_stage not in plan.names:
            yield f"{configuration.name}: there is no configuration {configuration.previous_stage} before it"


def _configuration_problems(plan: Plan, configuration: Configuration) -> Iterator[str]:
    ndim, topology = configuration.ndim, configuration.topology
    if ndim not in {2, 3}:
        yield f"ndim is {ndim}, it must be 2 or 3"
        return
    per_axis = {
        "spacing": configuration.spacing,
        "median_shape": configuration.median_shape,
        "patch_size": configuration.patch_size,
        **{f"stride {stage}": stride for stage, stride in enumerate(topology.strides)},
        **{f"kernel {stage}": kernel for stage, kernel in enumerate(topology.kernels)},
    }
    wrong = [name for name, values in per_axis.items() if len(values) != ndim]
    if wrong:
        yield f"{', '.join(wrong)} must have {ndim} entries"
        return
    if min(min(values) for values in per_axis.values()) <= 0:
        yield "spacings, shapes, strides and kernels must be above zero"
        return
    if any(size % divisor for size, divisor in zip(configuration.patch_size, topology.divisor, strict=True)):
        yield f"patch_size {configuration.patch_size} is not a multiple of {topology.divisor}, the product of strides"
    if any(width % 2 == 0 for kernel in topology.kernels for width in kernel):
        yield "kernels must be odd"
    if any(step != 1 for step in topology.strides[0]):
        yield "the first stage must not stride"
    if configuration.batch_size < 1:
        yield f"batch_size is {configuration.batch_size}, it must be 1 or more"
    if len(configuration.normalization) != len(plan.channels):
        yield f"{len(configuration.normalization)} normalisations for {len(plan.channels)} channels"
    unknown = {item.scheme for item in configuration.normalization} - set(SCHEMES)
    if unknown:
        yield f"there is no normalisation {', '.join(sorted(unknown))}; there are {', '.join(SCHEMES)}"


def _with_cost(plan: Plan, configuration: Configuration, cost: CostFunction) -> tuple[Configuration, list[str]]:
    try:
        now = cost_of(plan, configuration, cost)
    except SettingError as error:
        return configuration, [error.message]
    recorded = configuration.cost
    if (now.parameters, now.flops) == (recorded.parameters, recorded.flops):
        return configuration, []
    usable = usable_memory(plan.device, plan.memory_bytes)
    if now.memory_bytes > usable:
        return configuration, [
            f"training needs {size(now.memory_bytes)} and {size(usable)} of {size(plan.memory_bytes)} are usable"
        ]
    return replace(configuration, cost=now), []
