"""All architectures on one fold of a dataset, each with the same time: Dice, size, speed and memory as a table.

    python benchmarks/architectures.py Dataset004_Hippocampus --workdir work --time-budget 5m

The dataset has to be planned already (autoseg_plan_and_preprocess). Every architecture is planned for the same device,
memory and spacing, trained by autoseg_train in a process of its own and scored on the fold's validation cases at
original geometry. The time budget holds for everything that autoseg_train does, validation included. Runs that are
finished are not repeated; --jobs runs several at once, which is fair if each has as many threads as it has cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from autoseg.log import table
from autoseg.nets import NETS

LOCK = threading.Lock()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--time-budget", default="5m")
    parser.add_argument("--arch", nargs="+", default=list(NETS.names()))
    parser.add_argument("--fold", default="0")
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    with ThreadPoolExecutor(asked.jobs) as pool:
        rows = list(pool.map(lambda name: measure(name, asked), asked.arch))
    header = ["architecture", "Dice", "parameters", "patch", "batch", "steps", "s/step", "estimated", "process peak"]
    rows.sort(key=lambda row: row[1], reverse=True)
    sys.stdout.write(table(rows, header=header) + "\n")


def measure(name: str, asked: argparse.Namespace) -> list[str]:
    """Train one architecture (or read what a finished training left) and return its row."""
    root = asked.workdir / "benchmark_architectures" / asked.dataset
    root.mkdir(parents=True, exist_ok=True)
    result = root / f"{name.replace(':', '-')}.json"
    if not result.exists():
        command = ["autoseg_train", "-d", asked.dataset, "--workdir", str(asked.workdir), "--arch", name]
        command += ["-f", asked.fold, "--time-budget", asked.time_budget, "--quiet"]
        log = (root / f"{name.replace(':', '-')}.log").open("w")
        process = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            return [name, "failed", *["-"] * 7]
        result.write_text(json.dumps(facts(name, asked, peak=usage.ru_maxrss * 1024)))
    known = json.loads(result.read_text())
    with LOCK:
        sys.stderr.write(f"{name}: {known['dice']:.3f}\n")
    return [
        name,
        f"{known['dice']:.3f}",
        f"{known['parameters'] / 1e6:.2f} M",
        "x".join(map(str, known["patch"])),
        str(known["batch"]),
        str(known["steps"]),
        f"{known['seconds'] / max(known['steps'], 1):.2f}",
        f"{known['estimated'] / 1e9:.2f} GB",
        f"{known['peak'] / 1e9:.2f} GB",
    ]


def facts(name: str, asked: argparse.Namespace, *, peak: int) -> dict[str, object]:
    """What the model's folder says about a finished training."""
    found = sorted((asked.workdir / "results" / asked.dataset).glob(f"{name.replace(':', '-')}_[23]d*"))
    plan = json.loads((found[0] / "plan.json").read_text())
    run = json.loads((found[0] / f"fold_{asked.fold}" / "fold.json").read_text())
    summary = json.loads((found[0] / f"fold_{asked.fold}" / "validation" / "summary.json").read_text())
    used = json.loads((found[0] / "run.json").read_text())["settings"]["configuration"]
    configuration = next(item for item in plan["configurations"] if item["name"] == used)
    return {
        "dice": summary["foreground_dice"],
        "parameters": configuration["cost"]["parameters"],
        "estimated": configuration["cost"]["memory_bytes"],
        "patch": configuration["patch_size"],
        "batch": configuration["batch_size"],
        "steps": run["steps"],
        "seconds": run["seconds"],
        "peak": peak,
    }


if __name__ == "__main__":
    main()
