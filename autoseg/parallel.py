"""The only module that starts processes or threads.

``map_cases`` runs one function over many cases in worker processes: as many as cores *and* memory allow, one
``Outcome`` per item whatever happens, and a worker that the system kills is survived and named.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Generic, TypeVar

from autoseg.errors import AutosegError, WorkerError

I = TypeVar("I")  # noqa: E741 - the item
V = TypeVar("V")

# Starting worker processes takes about this long, most of it to import.
SECONDS_TO_START_WORKERS = 3.0
# Where Linux states a container's limits (control groups, version 2).
_CGROUP = Path("/sys/fs/cgroup")
# Linux, prctl(2): the signal that a process gets when its parent ends.
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[I, V]):
    """What became of one item: a value, or the error that stopped it."""

    item: I
    value: V | None = None
    error: Exception | None = None

    def unwrap(self) -> V:
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


def cores() -> int:
    """Processor cores that this process may use (affinity and container quota count)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (_CGROUP / "cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            allowed = min(allowed, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return max(1, allowed)


def available_memory() -> int:
    """Bytes of RAM that can be taken without swapping: the system's figure, or the container's if that is less."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        if limit != "max":
            free = min(free, max(0, int(limit) - used))
    except (OSError, ValueError):
        pass
    return free


def resident_memory() -> int:
    """Bytes of RAM that this process holds."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def worker_count(*, requested: int | None, items: int, bytes_per_item: float, memory: int | None = None) -> int:
    """How many workers fit: the request or all cores, and no more than 80% of ``memory`` (None: what is free) holds."""
    free = available_memory() if memory is None else min(memory, available_memory())
    fitting = max(1, int(0.8 * free / max(bytes_per_item, 1.0)))
    return max(1, min(requested or cores(), fitting, items))


def map_cases(
    function: Callable[[I], V],
    items: Sequence[I],
    *,
    workers: int | None = None,
    bytes_per_item: float = 0.0,
    memory: int | None = None,
    executor: Executor | None = None,
) -> Iterator[Outcome[I, V]]:
    """Run ``function`` over ``items`` and yield an ``Outcome`` for each, in the order in which they finish.

    Args:
        function: importable (a module-level function or a partial of one); may run twice for an item if a
            worker dies, so it must write atomically.
        workers: processes; 0 runs everything in this process, None takes what cores and memory allow.
        bytes_per_item: expected peak memory of one item, to keep the sum below the memory.
        memory: bytes that all workers together may use; None: what is free.
        executor: any ``concurrent.futures`` executor (Dask, a Slurm bridge) in place of local processes.
    """
    if not items:
        return
    if workers == 0 and executor is None:
        for item in items:
            yield _run(function, item)
        return
    if executor is not None:
        yield from _drain(executor, function, deque(items), width=2 * len(items), lost=deque())
        return
    width = worker_count(requested=workers, items=len(items), bytes_per_item=bytes_per_item, memory=memory)
    pending = deque(items)
    while pending:
        lost: deque[I] = deque()
        with _pool(width) as pool:
            yield from _drain(pool, function, pending, width=2 * width, lost=lost)
        for item in lost:
            # One item a process: whoever dies now is the guilty one.
            with _pool(1) as pool:
                alone: deque[I] = deque()
                yield from _drain(pool, function, deque([item]), width=1, lost=alone)
                if alone:
                    yield Outcome(item=item, error=_killed(item))
        width = max(1, width // 2)


def _pool(width: int) -> ProcessPoolExecutor:
    _refuse_unguarded_main()
    threads = max(1, cores() // width)
    return ProcessPoolExecutor(width, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(threads,))


def _start_worker(threads: int) -> None:
    # Several workers that each start a thread per core fight for the same cores.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLOSC_NTHREADS"):
        os.environ[name] = str(threads)
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)


def _refuse_unguarded_main() -> None:
    # A spawned worker imports the user's script again; without a __main__ guard it would start workers in turn.
    if get_context().current_process().name.startswith("SpawnProcess"):
        raise WorkerError(
            "a worker process tried to start workers of its own",
            hint='put the calls of your script under: if __name__ == "__main__":',
        )


def _drain(
    pool: Executor, function: Callable[[I], V], pending: deque[I], *, width: int, lost: deque[I]
) -> Iterator[Outcome[I, V]]:
    """Keep ``width`` items in flight; when the pool breaks, put the unfinished ones into ``lost`` and return."""
    flying: dict[Future[Outcome[I, V]], I] = {}
    while pending or flying:
        try:
            while pending and len(flying) < width:
                future = pool.submit(_run, function, pending[0])
                flying[future] = pending.popleft()
        except BrokenProcessPool:
            lost.extend(flying.values())
            return
        done, _ = wait(flying, return_when=FIRST_COMPLETED)
        for future in done:
            item = flying.pop(future)
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                lost.extend([item, *flying.values()])
                return
            yield Outcome(item=item, error=_as_exception(error)) if error else future.result()


def _run(function: Callable[[I], V], item: I) -> Outcome[I, V]:
    try:
        return Outcome(item=item, value=function(item))
    except AutosegError as error:
        return Outcome(item=item, error=error)
    except MemoryError:
        return Outcome(item=item, error=_killed(item))
    except Exception as error:
        import traceback

        trace = traceback.format_exc(limit=-4)
        return Outcome(item=item, error=WorkerError(f"{_name(item)}: {error!r}\n{trace}"))


def _as_exception(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else WorkerError(repr(error))


def _killed(item: Any) -> WorkerError:
    return WorkerError(
        f"{_name(item)}: the worker process died, most likely stopped by the system for want of memory",
        hint="run it again with fewer --workers, or close other programs",
    )


def _name(item: Any) -> str:
    return str(getattr(item, "id", item))


_END = object()


def prefetch(iterator: Iterator[V], *, depth: int = 2) -> Iterator[V]:
    """Draw from ``iterator`` in one background thread, at most ``depth`` items ahead; its errors come through."""
    buffer: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(value: Any) -> bool:
        while not stop.is_set():
            try:
                buffer.put(value, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for item in iterator:
                if not put((item, None)):
                    return
            put((_END, None))
        except BaseException as error:
            put((_END, error))

    thread = threading.Thread(target=produce, name="autoseg-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = buffer.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stop.set()
        thread.join(timeout=5)


def become_worker() -> None:
    """Make a forked process a worker: Ctrl-C is the parent's to handle, and no worker outlives its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def in_main_thread() -> bool:
    """Whether this is the thread that receives signals."""
    return threading.current_thread() is threading.main_thread()
