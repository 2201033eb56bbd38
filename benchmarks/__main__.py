"""python -m benchmarks [--stage help ...] [--task 192] [--repeats 3] [--quick]: both programs, stage by stage."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path

from benchmarks import machine, peer, stages, table
from benchmarks.bench import ROOT, Differs, Setting, measure
from benchmarks.watch import RunError

STAGES = tuple(sorted(module.name for module in pkgutil.iter_modules(stages.__path__)))


def main() -> int:
    asked = _arguments()
    peer_python = peer.environment(asked.peer.resolve())
    limits = machine.probe()
    data = asked.data.resolve() if asked.data.is_dir() else None
    setting = Setting(
        # Data of different sizes must not be taken for each other.
        work=asked.workdir.resolve() / ("quick" if asked.quick else "full"),
        data=data,
        ours=Path(sys.executable),
        peer=peer_python,
        machine=limits,
        quick=asked.quick,
    )
    results, failures = [], []
    for name in asked.stage:
        for row in importlib.import_module(f"benchmarks.stages.{name}").rows(setting):
            if asked.task not in row.task:
                continue
            _say(f"{row.stage}: {row.task} ...")
            try:
                result = measure(row, repeats=asked.repeats, log=setting.work / "logs" / f"{row.stage} {row.task}")
            except (RunError, Differs) as error:
                failures.append(f"{row.stage}, {row.task}: {error}")
                _say(f"  {error}")
                continue
            results.append(result)
            _say(table.summary(result))
            if not asked.quick:
                # After every row: whoever stops the bench keeps what was measured.
                table.write([result], machine=machine.describe(limits), folder=ROOT / "docs")
    _say("\n".join(["", f"{len(results)} rows measured", *failures]))
    return 1 if failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--task", default="", metavar="WORDS", help="only rows whose task has these words in it")
    parser.add_argument("--repeats", type=int, help="instead of what each row says")
    parser.add_argument("--quick", action="store_true", help="smaller volumes, and the docs are left as they are")
    parser.add_argument("--workdir", type=Path, default=ROOT / "build" / "benchmarks")
    parser.add_argument("--peer", type=Path, default=ROOT / "build" / "peer", help="environment of the peer")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of real datasets")
    return parser.parse_args()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
