"""Where networks run and with which numbers: chosen once, the same way for training and for prediction."""

from __future__ import annotations

import time
from functools import cache

import torch
from torch.nn import functional as F

from autoseg.errors import SettingError
from autoseg.log import get_logger

_LOG = get_logger(__name__)

# Half precision must win clearly: its rounding is a cost too, and a busy machine times with some noise.
_WORTHWHILE = 0.8
_ROUNDS = 3


def choose_device(name: str = "auto") -> torch.device:
    """``auto`` (a GPU if there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        SettingError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingError(f"{name!r} is not a device", hint="write cpu, cuda or cuda:1") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = device.index or 0
        if index >= count:
            raise SettingError(
                f"device {name!r} is not there: this machine shows {count} CUDA devices",
                hint="choose --device cpu, or check the driver and CUDA_VISIBLE_DEVICES",
            )
        return torch.device("cuda", index)
    if device.type != "cpu":
        raise SettingError(f"autoseg does not run on device {name!r}", hint="write cpu, cuda or cuda:1")
    return torch.device("cpu")


@cache
def choose_precision(device: torch.device) -> torch.dtype | None:
    """The autocast type that is faster than float32 on a device, or None where float32 is best.

    A GPU uses bfloat16 where the hardware has it, else float16 where it has tensor cores. On a CPU bfloat16 can be
    four times as fast as float32 or thirty times slower, and no flag tells which, so a small convolution is timed,
    forward and backward. The answer holds for the life of the process.
    """
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        chosen = torch.bfloat16 if major >= 8 else torch.float16 if major >= 7 else None
    else:
        chosen = torch.bfloat16 if _pays(torch.bfloat16) else None
    _LOG.debug("precision on %s: %s", device, chosen or torch.float32)
    return chosen


def _pays(dtype: torch.dtype) -> bool:
    """Whether a training step of one CPU convolution is clearly faster in ``dtype``; False where it does not run."""
    full = min(_time_step(None) for _ in range(_ROUNDS))
    best = float("inf")
    for _ in range(_ROUNDS):
        try:
            best = min(best, _time_step(dtype))
        except RuntimeError:
            return False
        if best > 1.5 * full:
            # Emulated half precision can be thirty times slower: more rounds would only cost time.
            return False
    return best < _WORTHWHILE * full


@torch.inference_mode(False)
@torch.enable_grad()
def _time_step(dtype: torch.dtype | None) -> float:
    """Seconds for forward and backward of a 3x3x3 convolution, 16 to 16 channels, 24^3 voxels, channels last."""
    # Constants, not random numbers: a probe must leave the generators of training as they are.
    x = torch.full((1, 16, 24, 24, 24), 0.5).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    weight = torch.full((16, 16, 3, 3, 3), 0.01, requires_grad=True)
    started = time.perf_counter()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        y = F.conv3d(x, weight, padding=1)
    y.float().sum().backward()
    return time.perf_counter() - started


def tune(device: torch.device) -> None:
    """Let cuDNN time its algorithms: patches have one shape, so the trial is made once and pays in every step."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True


def gpu_bytes(device: torch.device) -> int:
    """All memory of a CUDA device."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def gpu_name() -> str | None:
    """The name of the first GPU, or None."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
