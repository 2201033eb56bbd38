"""python -m benchmarks.grid: which network gets furthest in a given time, as a table from trainings on real data.

Every cell of the grid is a training of fold 0 with the whole pipeline, scored on the fold's held-out cases at original
geometry without mirroring. A finished cell is a line of docs/grid.jsonl and is not repeated: stop it and go on, or add
widths, times and datasets. With --jobs above 1, cells run side by side on a share of the cores each, and their clock is
that of the processor, scaled by how much faster all cores are (measured first, on a quiet machine).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from autoseg import records
from autoseg.parallel import cores
from benchmarks import grid_page, machine
from benchmarks.bench import ROOT
from benchmarks.watch import run

_LOCK = threading.Lock()
DATASETS = ("Dataset004_Hippocampus", "Dataset120_EM", "Dataset121_DSB2018", "Dataset131_OpenKBP")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """``batch`` 0 and ``patch`` "" are the plan's; ``rounds`` are commands that share the minutes, each going on."""

    dataset: str
    width: int
    batch: int
    minutes: float
    optimizer: str
    seed: int
    device: str
    rounds: int = 1
    patch: str = ""

    @property
    def name(self) -> str:
        return grid_page.name_of(asdict(self))


@dataclass(frozen=True, kw_only=True)
class Bench:
    data: Path
    work: Path
    lines: Path
    jobs: int
    device: str
    machine: str

    @property
    def threads(self) -> int:
        return max(1, cores() // self.jobs)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grid", description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--workdir", type=Path, default=ROOT / "build" / "grid")
    parser.add_argument("--dataset", nargs="+", default=list(DATASETS))
    parser.add_argument("--width", nargs="+", type=int, default=[16, 8, 32])
    parser.add_argument("--batch", nargs="+", type=int, default=[0], help="0 is the plan's")
    parser.add_argument("--patch", nargs="+", default=[""], help="such as 48x48x48, in the order of the plan's axes")
    parser.add_argument("--minutes", nargs="+", type=float, default=[3.0, 10.0])
    parser.add_argument("--optimizer", nargs="+", default=["muon"])
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--rounds", type=int, default=1, help="commands that share the minutes, one after the other")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lines", type=Path, default=ROOT / "docs" / "grid.jsonl")
    asked = parser.parse_args()
    bench = Bench(
        data=asked.data,
        work=asked.workdir.resolve(),
        lines=asked.lines,
        jobs=asked.jobs,
        device=asked.device,
        machine=machine.describe(machine.probe()),
    )
    known = {grid_page.name_of(row) for row in records.read_lines(bench.lines)}
    chosen = itertools.product(
        asked.minutes, asked.optimizer, asked.width, asked.dataset, asked.batch, asked.patch, asked.seed
    )
    cells = [
        Cell(
            dataset=dataset,
            width=width,
            batch=batch,
            minutes=minutes,
            optimizer=optimizer,
            seed=seed,
            device=asked.device,
            rounds=asked.rounds,
            patch=patch,
        )
        for minutes, optimizer, width, dataset, batch, patch, seed in chosen
    ]
    todo = [cell for cell in cells if cell.name not in known]
    for dataset in dict.fromkeys(cell.dataset for cell in todo):
        _prepare(bench, dataset)
    with ThreadPoolExecutor(bench.jobs) as pool:
        list(pool.map(lambda cell: _train(bench, cell), todo))
    grid_page.write(records.read_lines(bench.lines), folder=ROOT / "docs")


def _prepare(bench: Bench, dataset: str) -> None:
    tool = Path(sys.executable).parent / "autoseg_plan_and_preprocess"
    command = [str(tool), "-d", str(bench.data / dataset), "--workdir", str(bench.work), "--device", bench.device]
    subprocess.run([*command, "--quiet"], check=True)
    if bench.jobs > 1:
        _scale(bench, dataset)


def _scale(bench: Bench, dataset: str) -> float:
    """Seconds of the whole machine that stand for a second of processor time of one job."""
    kept = bench.work / f"scale_{dataset}_{bench.jobs}.json"
    if not kept.exists():
        cell = Cell(dataset=dataset, width=16, batch=0, minutes=1.0, optimizer="muon", seed=0, device=bench.device)
        whole = _program(bench, cell, pace=True, threads=cores(), scale=0)
        part = _program(bench, cell, pace=True, threads=bench.threads, scale=0)
        kept.write_text(json.dumps(whole["seconds"] / part["processor"]))
    return float(json.loads(kept.read_text()))


def _train(bench: Bench, cell: Cell) -> None:
    scale = _scale(bench, cell.dataset) if bench.jobs > 1 else 0
    found = _program(bench, cell, threads=bench.threads if bench.jobs > 1 else 0, scale=scale)
    shutil.rmtree(bench.work / "cells" / cell.name, ignore_errors=True)
    with _LOCK:
        row = {**asdict(cell), **found, "jobs": bench.jobs, "machine": bench.machine}
        with bench.lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        sys.stdout.write(f"{cell.name}: Dice {found['dice']:.4f} after {found['steps']} steps\n")
        sys.stdout.flush()


def _program(bench: Bench, cell: Cell, *, threads: int, scale: float, pace: bool = False) -> dict:
    folder = bench.work / "cells" / cell.name
    asked = {
        **asdict(cell),
        "workdir": str(bench.work),
        "folder": str(folder),
        "threads": threads,
        "scale": scale,
        "pace": pace,
    }
    env = {"PYTHONPATH": str(ROOT), **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    usage = run(
        [sys.executable, "-m", "benchmarks.ours.budgeted", json.dumps(asked)],
        env={**os.environ, **env},
        cwd=ROOT,
        log=bench.work / "logs" / f"{cell.name}.log",
    )
    return {"seconds": usage.seconds, **usage.facts}


if __name__ == "__main__":
    main()
