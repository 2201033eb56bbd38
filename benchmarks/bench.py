"""What a row of the table is, and how it is measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.watch import RunError, Usage, run

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Measured limits, with all threads: bytes per second that can be copied, operations per second of a matrix
    product (2 per multiply-add) in float32 and bfloat16."""

    bandwidth: float
    flops32: float
    flops16: float


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where everything is. ``data``: the folder of real datasets or None; ``quick``: smaller volumes, to try it out."""

    work: Path
    data: Path | None
    ours: Path
    peer: Path
    machine: Machine
    quick: bool

    def program(self, name: str, *arguments: object) -> list[str]:
        """A program of ``ours/`` or ``theirs/`` (``name`` as "ours.export"), in the environment that it belongs to."""
        python = self.ours if name.startswith("ours") else self.peer
        return [str(python), "-m", f"benchmarks.{name}", *map(str, arguments)]

    def tool(self, name: str, *arguments: object) -> list[str]:
        """A console command of one of the two environments, chosen by its name."""
        python = self.peer if name.startswith("nnUNet") else self.ours
        return [str(python.parent / name), *map(str, arguments)]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One program's part of a row. ``before`` is called ahead of every run: it removes what the last run left."""

    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    before: Callable[[], None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured task.

    Args:
        stage, task: name of the row, as "export" and "512x512x400, 25 classes".
        least_time, least_memory: how many times faster and smaller than the peer it must be, or None.
        compare: called after the runs; says in a few words how far both answers agree, raises ``Differs`` if not.
        limit_seconds: what the machine needs at least (None: no sensible bound), and why in words.
    """

    stage: str
    task: str
    ours: Side
    peer: Side
    least_time: float | None = None
    least_memory: float | None = None
    compare: Callable[[Usage, Usage], str]
    limit_seconds: float | None = None
    limit: str = ""
    repeats: int = 3


class Differs(Exception):
    """Both sides gave different answers, so their times must not be compared."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Median and range over the repeats of one side; memory is the largest seen."""

    seconds: float
    fastest: float
    slowest: float
    cpu_seconds: float
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """A row with its figures. ``peer`` is None where the peer could not finish; ``verdict`` then says why."""

    stage: str
    task: str
    ours: Measured
    peer: Measured | None
    least_time: float | None
    least_memory: float | None
    verdict: str
    limit_seconds: float | None
    limit: str

    @property
    def time_ratio(self) -> float | None:
        return self.peer.seconds / self.ours.seconds if self.peer else None

    @property
    def memory_ratio(self) -> float | None:
        return self.peer.peak_bytes / self.ours.peak_bytes if self.peer else None


def measure(row: Row, *, repeats: int | None, log: Path) -> Result:
    """Run both sides in turn, so that a slow minute of the machine hits both."""
    ours, peers, failed = [], [], ""
    for turn in range(repeats or row.repeats):
        ours.append(_once(row.ours, log / f"ours{turn}.log"))
        if not failed:
            try:
                peers.append(_once(row.peer, log / f"peer{turn}.log"))
            except RunError as error:
                failed = str(error)
    if failed and peers:
        raise RunError(failed)
    verdict = "the peer did not finish: " + failed.splitlines()[-1] if failed else row.compare(ours[-1], peers[-1])
    return Result(
        stage=row.stage,
        task=row.task,
        ours=_summary(ours),
        peer=_summary(peers) if peers else None,
        least_time=row.least_time,
        least_memory=row.least_memory,
        verdict=verdict,
        limit_seconds=row.limit_seconds,
        limit=row.limit,
    )


def _once(side: Side, log: Path) -> Usage:
    side.before()
    return run(side.command, env={"PYTHONPATH": str(ROOT), **side.env}, cwd=ROOT, log=log)


def _summary(runs: Sequence[Usage]) -> Measured:
    seconds = [one.seconds for one in runs]
    return Measured(
        seconds=statistics.median(seconds),
        fastest=min(seconds),
        slowest=max(seconds),
        cpu_seconds=statistics.median(one.cpu_seconds for one in runs),
        peak_bytes=max(one.peak_bytes for one in runs),
    )
