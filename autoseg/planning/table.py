"""A plan as a person reads it in a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from autoseg.log import size, table
from autoseg.schema.plan import Configuration, Plan

WIDTH = 100
_HEADER = (
    "configuration",
    "spacing (mm)",
    "median shape",
    "patch",
    "batch",
    "stages",
    "parameters",
    "memory",
    "per step",
)


def plan_table(plan: Plan) -> str:
    """The configurations as a table, then the reasons for what was decided."""
    rows = [_row(configuration) for configuration in plan.configurations]
    parts = [table(rows, header=_HEADER), "", "Why, for all configurations:", *_bullets(plan.why)]
    for configuration in plan.configurations:
        parts += ["", f"Why, for {configuration.name}:", *_bullets(configuration.why)]
    return "\n".join(parts)


def _row(configuration: Configuration) -> tuple[str, ...]:
    cost = configuration.cost
    return (
        configuration.name,
        " ".join(f"{step:.3g}" for step in configuration.spacing),
        _times(configuration.median_shape),
        _times(configuration.patch_size),
        str(configuration.batch_size),
        str(configuration.topology.num_stages),
        f"{cost.parameters / 1e6:.1f} M",
        size(cost.memory_bytes),
        _operations(cost.flops),
    )


def _times(lengths: Sequence[int]) -> str:
    return " x ".join(map(str, lengths))


def _operations(flops: int) -> str:
    return f"{flops / 1e12:.1f} TFLOP" if flops >= 1e12 else f"{flops / 1e9:.0f} GFLOP"


def _bullets(sentences: Sequence[str]) -> list[str]:
    return [
        textwrap.fill(sentence, WIDTH, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False)
        for sentence in sentences
    ]
