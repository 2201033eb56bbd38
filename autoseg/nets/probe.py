"""How fast this machine convolves, and what torch sees of it."""

from __future__ import annotations

import time

import torch
from torch.nn import functional as F

from autoseg.nets.device import choose_device, choose_precision
from autoseg.schema.health import Gpu, Rate, TorchFacts

_CHANNELS = 32
_EDGE = {"cpu": 24, "cuda": 96}
_KERNEL = 3
# Forward, gradient of the input and gradient of the weights cost the same.
_PASSES = 3


def torch_facts(device: str = "auto", *, seconds: float) -> TorchFacts:
    """What torch sees, the precision that training would choose, and the speed of convolutions.

    Args:
        seconds: for the measurement of all precisions together; 0 measures nothing.

    Raises:
        SettingError: no such device.
    """
    chosen = choose_device(device)
    precision = choose_precision(chosen)
    return TorchFacts(
        device=str(chosen),
        precision=_name(precision),
        threads=torch.get_num_threads(),
        instruction_set=str(torch.backends.cpu.get_cpu_capability()),
        cuda_build=torch.version.cuda or "",
        gpus=_gpus(),
        rates=_rates(chosen, seconds) if seconds > 0 else (),
    )


def _name(precision: torch.dtype | None) -> str:
    return "float32" if precision is None else str(precision).removeprefix("torch.")


def _gpus() -> tuple[Gpu, ...]:
    if not torch.cuda.is_available():
        return ()
    built_for = set(torch.cuda.get_arch_list())
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, _ = torch.cuda.mem_get_info(index)
        newest = max((int(name.split("_")[1].rstrip("af")) for name in built_for if "_" in name), default=0)
        own = 10 * properties.major + properties.minor
        # Code for a device of the same generation runs; PTX of an older one is compiled when it is loaded.
        same = any(name.startswith(f"sm_{properties.major}") for name in built_for)
        found.append(
            Gpu(
                name=properties.name,
                memory_bytes=int(properties.total_memory),
                free_bytes=int(free),
                capability=f"{properties.major}.{properties.minor}",
                usable=same or (own > newest and any(name.startswith("compute_") for name in built_for)),
            )
        )
    return tuple(found)


def _rates(device: torch.device, seconds: float) -> tuple[Rate, ...]:
    kinds: tuple[torch.dtype | None, ...] = (None, torch.bfloat16)
    rates = []
    for kind in kinds:
        try:
            gflops = _gflops(device, kind, seconds / len(kinds))
        except RuntimeError:
            # This precision has no convolution here.
            gflops = 0.0
        rates.append(Rate(device=str(device), precision=_name(kind), gflops=round(gflops, 2)))
    return tuple(rates)


@torch.inference_mode(False)
@torch.enable_grad()
def _gflops(device: torch.device, precision: torch.dtype | None, seconds: float) -> float:
    """Median over the steps that fit into ``seconds`` (at least one), after one that warms up."""
    edge = _EDGE[device.type]
    shape = (1, _CHANNELS, edge, edge, edge)
    x = torch.full(shape, 0.5, device=device).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    weight = torch.full((_CHANNELS, _CHANNELS, *(_KERNEL,) * 3), 0.01, device=device, requires_grad=True)
    started = time.perf_counter()
    times: list[float] = []
    _step(x, weight, precision)
    while not times or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        _step(x, weight, precision)
        times.append(time.perf_counter() - before)
    operations = 2.0 * _PASSES * _CHANNELS**2 * _KERNEL**3 * edge**3
    return operations / sorted(times)[len(times) // 2] / 1e9


def _step(x: torch.Tensor, weight: torch.Tensor, precision: torch.dtype | None) -> None:
    with torch.autocast(x.device.type, precision, enabled=precision is not None):
        y = F.conv3d(x, weight, padding=_KERNEL // 2)
    # A sum would hand back one number seen everywhere, which convolutions take more slowly than a real gradient.
    y.backward(torch.ones_like(y))
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
