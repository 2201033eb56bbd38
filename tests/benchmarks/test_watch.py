"""The bench's own instrument: what it reads must be what a process took."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.bench import Differs, Row, Side, measure
from benchmarks.watch import RunError, Usage, run

HOLD = "import time; block = bytearray(200_000_000); block[::4096] = b'x' * len(block[::4096]); time.sleep({})"
# Both must be seen at their largest, however late the second one starts on a busy machine.
LONG = HOLD.format(4)
PARENT = (
    f"import subprocess, sys; [p.wait() for p in [subprocess.Popen([sys.executable, '-c', {LONG!r}]) for _ in 'ab']]"
)
REPORT = "from benchmarks.watch import report; report(1.5, loss=0.25)"


def watched(program: str, folder: Path) -> Usage:
    root = str(Path(__file__).resolve().parents[2])
    return run([sys.executable, "-c", program], env={"PYTHONPATH": root}, cwd=folder, log=folder / "log")


def test_the_peak_is_the_sum_over_all_processes(tmp_path: Path) -> None:
    alone, two = watched(HOLD.format(0.5), tmp_path), watched(PARENT, tmp_path)
    assert 200e6 < alone.peak_bytes < 260e6
    assert 400e6 < two.peak_bytes < 500e6


def test_processor_time_is_that_of_the_processes(tmp_path: Path) -> None:
    busy = watched("import time\nwhile time.process_time() < 0.5: pass", tmp_path)
    assert 0.45 < busy.cpu_seconds < 1.0
    assert watched(HOLD.format(0.5), tmp_path).cpu_seconds < 0.45


def test_a_program_reports_the_time_of_its_stage_and_facts(tmp_path: Path) -> None:
    usage = watched(REPORT, tmp_path)
    assert (usage.seconds, dict(usage.facts)) == (1.5, {"loss": 0.25})
    assert usage.wall_seconds != usage.seconds


def test_a_failing_program_stops_the_row_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such luck"):
        watched("raise SystemExit('no such luck')", tmp_path)


def test_a_row_with_another_answer_is_not_measured(tmp_path: Path) -> None:
    def compare(ours: Usage, theirs: Usage) -> str:
        if ours.facts["loss"] != theirs.facts["loss"]:
            raise Differs("another loss")
        return "same loss"

    def row(theirs: str) -> Row:
        side = Side(command=[sys.executable, "-c", REPORT])
        peer = Side(command=[sys.executable, "-c", theirs])
        return Row(stage="s", task="t", ours=side, peer=peer, compare=compare, repeats=1)

    slower = REPORT.replace("1.5", "4.5")
    result = measure(row(slower), repeats=None, log=tmp_path)
    assert (result.time_ratio, result.verdict) == (3.0, "same loss")
    with pytest.raises(Differs):
        measure(row(slower.replace("0.25", "0.75")), repeats=None, log=tmp_path)
