"""Freed blocks stay while a network trains, and go back afterwards: seen in the memory of a fresh process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import psutil, torch
from autoseg.nets.heap import reused_heap

def resident():
    return psutil.Process().memory_info().rss

torch.zeros(1)
before = resident()
with reused_heap({largest}):
    block = torch.ones(60_000_000)
    del block
    inside = resident()
print(inside - before, resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc's heap is told")
@pytest.mark.parametrize(("largest", "stays"), [(2**20, True), (2**30, False)])
def test_freed_blocks_stay_with_the_process_until_the_end(largest: int, stays: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(largest=largest)], capture_output=True, text=True, check=True
    )
    inside, after = map(int, done.stdout.split())
    assert (inside > 200e6) is stays
    assert after < 50e6
