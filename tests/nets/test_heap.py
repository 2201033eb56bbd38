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

def stays():
    before = resident()
    block = torch.ones(60_000_000)
    del block
    return resident() - before

weight = torch.zeros(1, requires_grad=True)
weight.grad = torch.zeros(1)
optimizer = torch.optim.SGD([weight], lr=0.1)
before = resident()
with reused_heap({largest}, optimizer):
    # Hooks of others go on working.
    optimizer.register_step_post_hook(lambda *_: None)
    early = stays()
    optimizer.step()
    late = stays()
print(early, late, resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc's heap is told")
@pytest.mark.parametrize(("largest", "kept"), [(2**20, True), (2**30, False)])
def test_freed_blocks_stay_with_the_process_from_the_first_step_to_the_end(largest: int, kept: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(largest=largest)], capture_output=True, text=True, check=True
    )
    early, late, after = map(int, done.stdout.split())
    assert early < 50e6
    assert (late > 200e6) is kept
    assert after < 50e6
