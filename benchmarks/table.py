"""The results as JSON and as a section of docs/benchmarks.md."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from autoseg import records
from benchmarks.bench import Result

BEGIN, END = "<!-- side by side: begin, written by python -m benchmarks -->", "<!-- side by side: end -->"


def write(results: Sequence[Result], *, machine: str, folder: Path) -> None:
    """Update ``benchmarks.json`` (rows that were measured now replace the old ones) and the section of the page."""
    path = folder / "benchmarks.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    fresh = [_as_json(result) for result in results]
    names = {(row["stage"], row["task"]) for row in fresh}
    rows = [row for row in known if (row["stage"], row["task"]) not in names] + fresh
    records.write_text(path, json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    page = folder / "benchmarks.md"
    text = page.read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    records.write_text(page, f"{head}{BEGIN}\n{_section(rows, machine)}\n{END}{tail}")


def _as_json(result: Result) -> dict:
    row = dataclasses.asdict(result)
    row["time_ratio"], row["memory_ratio"] = result.time_ratio, result.memory_ratio
    return row


def _section(rows: Sequence[dict], machine: str) -> str:
    lines = [
        machine,
        "",
        "| stage | task | ours | peer | **times faster** | least | peak ours | peak peer | **times smaller** | least "
        "| same answer? | of the machine's limit |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(_line, rows)])


def _line(row: dict) -> str:
    ours, peer = row["ours"], row["peer"]
    limit = f"{row['limit_seconds'] / ours['seconds']:.0%} ({row['limit']})" if row["limit_seconds"] else row["limit"]
    cells = [
        row["stage"],
        row["task"],
        _seconds(ours),
        _seconds(peer) if peer else "-",
        _ratio(row["time_ratio"]),
        _ratio(row["least_time"]),
        _bytes(ours["peak_bytes"]),
        _bytes(peer["peak_bytes"]) if peer else "-",
        _ratio(row["memory_ratio"]),
        _ratio(row["least_memory"]),
        row["verdict"],
        limit,
    ]
    return "| " + " | ".join(cells) + " |"


def _seconds(measured: dict) -> str:
    return f"{_short(measured['seconds'])} s ({_short(measured['fastest'])} to {_short(measured['slowest'])})"


def _short(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 100 else f"{seconds:.3g}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}x"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def summary(result: Result) -> str:
    """One line for the terminal."""
    row = _as_json(result)
    peer = _seconds(row["peer"]) if result.peer else "-"
    return (
        f"  ours {_seconds(row['ours'])}, peer {peer}: {_ratio(result.time_ratio)} (least {_ratio(result.least_time)});"
        f" memory {_bytes(result.ours.peak_bytes)} to {_bytes(result.peer.peak_bytes) if result.peer else '-'}:"
        f" {_ratio(result.memory_ratio)} (least {_ratio(result.least_memory)}); {result.verdict}"
    )
