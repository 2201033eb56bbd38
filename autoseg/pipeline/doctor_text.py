"""The doctor's report as a person reads it in a terminal, or as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from autoseg.log import size
from autoseg.schema.health import ADVICE, FAULT, GOOD, DoctorReport, Finding, MachineFacts
from autoseg.schema.tools import DoctorSettings

_WIDTH = 100
_LABEL = 12


def report_text(report: DoctorReport, settings: DoctorSettings) -> str:
    """What the command prints: facts, then what is in order, then what to change; or one JSON document."""
    if settings.json:
        from autoseg import records

        return records.to_json(report)
    parts = [_facts(report.facts), _section("In order", report.of(GOOD))]
    changes = report.of(FAULT) + report.of(ADVICE)
    parts.append(_section("What to change", changes) if changes else "There is nothing to change.\n")
    return "\n".join(parts)


def _facts(facts: MachineFacts) -> str:
    features = ", ".join(facts.cpu_features) or "no vector instructions that matter"
    rows = [
        ("system", facts.system),
        ("processor", f"{facts.cpu}; {features}"),
        ("cores", f"{facts.cores} of {facts.processors} may be used; load {facts.load:.1f}"),
        ("memory", f"{size(facts.free_memory_bytes)} of {size(facts.memory_bytes)} free"),
        ("versions", _named(facts.versions)),
        ("extras", _named(facts.extras) or "none"),
    ]
    if facts.torch is not None:
        build = f"CUDA {facts.torch.cuda_build}" if facts.torch.cuda_build else "CPU only"
        rows.append(("torch", f"{build}, {facts.torch.threads} threads, {facts.torch.instruction_set}"))
    if facts.open_files:
        rows.append(("open files", f"at most {facts.open_files}"))
    rows.append(("compiler", facts.compiler or "none"))
    return "".join(_wrapped(f"{label:<{_LABEL}}{text}", _LABEL) for label, text in rows)


def _named(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {text}" for name, text in versions.items())


def _section(title: str, findings: tuple[Finding, ...]) -> str:
    lines = [f"{title}\n"]
    for finding in findings:
        mark = "!! " if finding.severity == FAULT else "-  "
        lines.append(_wrapped(f"{mark}{finding.text}", 3))
        if finding.remedy:
            lines.append(_wrapped(f"   -> {finding.remedy}", 6))
    return "".join(lines)


def _wrapped(text: str, indent: int) -> str:
    kept = {"subsequent_indent": " " * indent, "break_on_hyphens": False, "break_long_words": False}
    return textwrap.fill(text, _WIDTH, drop_whitespace=True, **kept) + "\n"  # type: ignore[arg-type]
