"""The machine's own limits, measured: how fast it copies memory and how fast it multiplies matrices."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.bench import Machine


def probe() -> Machine:
    """About three seconds."""
    return Machine(bandwidth=_bandwidth(), flops32=_flops(torch.float32), flops16=_flops(torch.bfloat16))


def _bandwidth() -> float:
    source = torch.ones(2**27)
    target = torch.empty_like(source)
    best = min(_seconds(lambda: target.copy_(source)) for _ in range(5))
    return 2 * source.numel() * 4 / best


def _flops(dtype: torch.dtype) -> float:
    size = 2048
    a, b = (torch.ones((size, size), dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(_seconds(lambda: a @ b) for _ in range(3))


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def describe(machine: Machine) -> str:
    """A sentence for the head of the table."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    flags = Path("/proc/cpuinfo").read_text()
    extras = [name for name in ("avx512f", "avx512_bf16", "amx_bf16") if f" {name}" in flags]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores of {model} ({', '.join(extras) or 'no AVX-512'}), {memory:.0f} GiB, no GPU; "
        f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}. Measured limits: "
        f"{machine.bandwidth / 1e9:.1f} GB/s copied, {machine.flops32 / 1e9:.0f} GFLOP/s in float32, "
        f"{machine.flops16 / 1e9:.0f} in bfloat16."
    )
