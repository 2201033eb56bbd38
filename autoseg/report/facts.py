"""The sections of the report that need no prediction: dataset, plan and command."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

from autoseg.log import size
from autoseg.report import html
from autoseg.schema.dataset import DatasetSpec
from autoseg.schema.fingerprint import CaseFingerprint, Fingerprint
from autoseg.schema.plan import Configuration, Plan
from autoseg.schema.report import RunReport


def dataset_section(spec: DatasetSpec, fingerprint: Fingerprint | None) -> list[str]:
    """Channels, labels, and the ranges of what was measured."""
    labels = ", ".join(f"{label.name} ({', '.join(map(str, label.values))})" for label in spec.labels.foreground)
    rows = [
        ("cases", str(len(spec.cases))),
        ("channels", ", ".join(spec.channels)),
        ("labels", labels),
        ("files", spec.file_ending),
    ]
    if spec.labels.ignore is not None:
        rows.append(("ignored integer", str(spec.labels.ignore)))
    parts = [html.heading("Dataset"), html.word_table(rows)]
    if fingerprint is None or not fingerprint.cases:
        return parts
    parts += [html.heading("Geometry", level=3), _geometry_table(fingerprint.cases)]
    parts += [html.heading("Labels", level=3), _class_table(fingerprint.cases)]
    parts += [html.heading("Intensities within the labels", level=3), _intensity_table(spec, fingerprint)]
    return parts


def _geometry_table(cases: Sequence[CaseFingerprint]) -> str:
    def row(name: str, pick: Callable[[CaseFingerprint], Sequence[float]], digits: int) -> list[str]:
        columns = list(zip(*(pick(case) for case in cases), strict=True))
        return [name, *(_sizes([figure(column) for column in columns], digits) for figure in (min, median, max))]

    rows = [
        row("voxels (z, y, x)", lambda case: case.shape, 0),
        row("voxels after cropping", lambda case: case.cropped_shape, 0),
        row("spacing in mm", lambda case: case.spacing, 2),
        row("field of view in mm", lambda case: [n * s for n, s in zip(case.shape, case.spacing, strict=True)], 0),
    ]
    return html.number_table(["", "smallest", "median", "largest"], rows)


def _class_table(cases: Sequence[CaseFingerprint]) -> str:
    rows = []
    for index, count in enumerate(cases[0].classes):
        volumes = sorted(
            case.classes[index].voxels * math.prod(case.spacing) / 1000 for case in cases if case.classes[index].voxels
        )
        parts = [case.classes[index].components for case in cases if case.classes[index].voxels]
        if not volumes:
            rows.append([count.name, "0", "-", "-", "-", "-"])
            continue
        ranges = (volumes[0], median(volumes), volumes[-1])
        rows.append([count.name, str(len(volumes)), *(f"{volume:.3g}" for volume in ranges), f"{median(parts):g}"])
    header = ["label", "cases that have it", "smallest ml", "median ml", "largest ml", "median parts"]
    return html.number_table(header, rows)


def _intensity_table(spec: DatasetSpec, fingerprint: Fingerprint) -> str:
    rows = [
        [
            name,
            *(
                f"{value:.4g}"
                for value in (
                    channel.mean,
                    channel.std,
                    channel.minimum,
                    channel.percentile_00_5,
                    channel.median,
                    channel.percentile_99_5,
                    channel.maximum,
                )
            ),
        ]
        for name, channel in zip(spec.channels, fingerprint.intensities, strict=False)
    ]
    return html.number_table(["channel", "mean", "std", "minimum", "0.5 %", "median", "99.5 %", "maximum"], rows)


def plan_section(plan: Plan, name: str) -> list[str]:
    """The figures of the configuration that was trained, and the reasons for them."""
    configuration = plan.configuration(name)
    parts = [html.heading("Plan"), html.word_table(_configuration_rows(plan, configuration))]
    reasons = [*plan.why, *configuration.why]
    if reasons:
        parts += [html.heading("Why", level=3), html.bullets(reasons)]
    return parts


def _configuration_rows(plan: Plan, configuration: Configuration) -> list[tuple[str, str]]:
    topology, cost = configuration.topology, configuration.cost
    return [
        ("configuration", configuration.name),
        ("planned for", f"{plan.device} with {size(plan.memory_bytes)}"),
        ("axes", " ".join("zyx"[axis] for axis in plan.transpose)),
        ("spacing in mm", _sizes(configuration.spacing, 3)),
        ("median shape", _sizes(configuration.median_shape, 0)),
        ("patch", _sizes(configuration.patch_size, 0)),
        ("batch", str(configuration.batch_size)),
        ("normalisation", ", ".join(item.scheme for item in configuration.normalization)),
        ("network", f"{configuration.architecture.name}, {topology.num_stages} stages"),
        ("features", ", ".join(map(str, topology.features))),
        ("strides", ", ".join(_sizes(stride, 0) for stride in topology.strides)),
        ("kernels", ", ".join(_sizes(kernel, 0) for kernel in topology.kernels)),
        ("parameters", f"{cost.parameters / 1e6:.1f} million"),
        ("one training step", f"{size(cost.memory_bytes)}, {cost.flops / 1e9:.0f} GFLOP"),
    ]


def run_section(run: RunReport) -> list[str]:
    """The command that trained the model, its settings, and what it ran on."""
    settings = [(key, _setting(value)) for key, value in run.settings.items()]
    versions = [("machine", run.machine), *run.versions.items()]
    return [
        html.heading("Command"),
        html.preformatted(run.command),
        html.word_table([(name, text) for name, text in versions if text]),
        html.folded("All settings", html.word_table(settings)),
    ]


def _setting(value: object) -> str:
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "default"
    return str(value)


def _sizes(values: Sequence[float], digits: int) -> str:
    return " x ".join(f"{value:.{digits}f}" for value in values)
