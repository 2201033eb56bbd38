"""Run a command and watch it: wall time, processor time and the peak memory of all its processes together."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_POLL_SECONDS = 0.05
_MARK = "BENCH "


class RunError(Exception):
    """A command of a benchmark failed; the text ends with what it printed last."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one run took.

    ``seconds`` is of the stage itself where the program reports it, else of the whole command. ``peak_bytes`` is the
    largest sum over all processes of their proportional set size (shared pages count once), looked at
    every 50 ms or more, and at least the high-water mark of any. ``facts``: what the program reported beside its time.
    """

    seconds: float
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    facts: Mapping[str, Any]


def report(seconds: float, **facts: Any) -> None:
    """Called by a benchmark program at its end: the time of the stage alone, and numbers for the comparison."""
    print(_MARK + json.dumps({"seconds": seconds, **facts}), flush=True)  # noqa: T201


def run(command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> Usage:
    """Run to the end.

    Raises:
        RunError: an exit status other than 0.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, env={**os.environ, **env}, cwd=cwd, stdout=stream, stderr=subprocess.STDOUT, text=True
        )
        peak = _Peak(process.pid)
        status = process.wait()
        wall = time.perf_counter() - started
        peak.stop()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = log.read_text(errors="replace").splitlines()
    if status:
        raise RunError(
            f"{' '.join(command)}\nended with status {status}; its last lines ({log}):\n" + "\n".join(lines[-15:])
        )
    reported = [json.loads(line[len(_MARK) :]) for line in lines if line.startswith(_MARK)]
    facts = reported[-1] if reported else {}
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Usage(
        seconds=facts.pop("seconds", wall), wall_seconds=wall, cpu_seconds=cpu, peak_bytes=peak.bytes, facts=facts
    )


class _Peak:
    def __init__(self, root: int) -> None:
        self.bytes = 0
        self._root = root
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        pause = _POLL_SECONDS
        while not self._over.wait(pause):
            family = _family(self._root)
            self.bytes = max(self.bytes, *map(_high_water, family))
            if len(family) > 1:
                started = time.thread_time()
                self.bytes = max(self.bytes, sum(map(_pss, family)))
                # Reading it walks all pages and holds up the process: that must stay below a fiftieth of the time.
                pause = max(_POLL_SECONDS, 50 * (time.thread_time() - started))


def _family(root: int) -> list[int]:
    found = [root]
    for pid in found:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:
                continue
    return found


def _pss(pid: int) -> int:
    return _field(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")


def _high_water(pid: int) -> int:
    return _field(Path(f"/proc/{pid}/status"), "VmHWM:")


def _field(path: Path, name: str) -> int:
    try:
        for line in path.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    # A process that has just ended has no figures any more.
    return 0
