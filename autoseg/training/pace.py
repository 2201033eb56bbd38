"""How long a training step takes on this machine: a few real ones, reading and augmentation included."""

from __future__ import annotations

import time
from collections.abc import Callable

from autoseg.nets.device import choose_device, tune
from autoseg.training.distributed import read_world, world_device
from autoseg.training.fold import FoldTask, make_kitchen, make_state, memory_errors, open_steps, training_heap

# The first steps compile kernels, fill the heap and open files.
_WARM_UP = 2
_FEWEST = 3
_MOST = 12


def step_seconds(task: FoldTask, *, seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """The median time of a step of this task, from three to twelve of them after two that warm up.

    Nothing is read from the task's folder and nothing is written there.

    Args:
        seconds: no new step is begun after so many.

    Raises:
        ResourceError: it does not fit into the memory.
    """
    world = read_world()
    device = world_device(choose_device(task.settings.device), world)
    tune(device)
    kitchen = make_kitchen(task, device, world)
    times: list[float] = []
    with memory_errors(task):
        state = make_state(task, kitchen)
        with (
            training_heap([task], kitchen, state),
            open_steps(task, kitchen, world, state.network, first_step=0) as take_step,
        ):
            began = clock()
            while len(times) < _WARM_UP + _FEWEST or (len(times) < _WARM_UP + _MOST and clock() - began < seconds):
                started = clock()
                # Reading one number waits for the device.
                float(take_step(state))
                state.step += 1
                times.append(clock() - started)
    kept = sorted(times[_WARM_UP:])
    return kept[len(kept) // 2]
