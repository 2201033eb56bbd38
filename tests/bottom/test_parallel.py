"""Every item has an outcome, whatever happens to the worker that had it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from autoseg.errors import DatasetError, WorkerError
from autoseg.parallel import map_cases, prefetch, worker_count


def work(number: int) -> int:
    if number == 3:
        raise DatasetError("three is odd", hint="take four")
    if number == 5:
        raise ZeroDivisionError("five")
    return number * number


def die_on_seven(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


@pytest.mark.parametrize("workers", [0, 2])
def test_one_outcome_per_item(workers: int) -> None:
    outcomes = {outcome.item: outcome for outcome in map_cases(work, range(8), workers=workers)}
    assert sorted(outcomes) == list(range(8))
    assert {n: outcomes[n].unwrap() for n in (0, 1, 2, 4, 6, 7)} == {n: n * n for n in (0, 1, 2, 4, 6, 7)}
    assert isinstance(outcomes[3].error, DatasetError)
    assert outcomes[3].error.hint == "take four"
    assert isinstance(outcomes[5].error, WorkerError)
    assert "ZeroDivisionError" in str(outcomes[5].error)


def test_a_killed_worker_is_named_and_the_others_finish() -> None:
    outcomes = {outcome.item: outcome for outcome in map_cases(die_on_seven, range(10), workers=2)}
    assert sorted(outcomes) == list(range(10))
    assert isinstance(outcomes[7].error, WorkerError)
    assert "7" in str(outcomes[7].error)
    assert all(outcomes[n].unwrap() == n * n for n in range(10) if n != 7)


def test_any_executor_can_stand_in() -> None:
    with ThreadPoolExecutor(2) as pool:
        assert sorted(outcome.unwrap() for outcome in map_cases(abs, [-1, -2], executor=pool)) == [1, 2]


def test_memory_bounds_the_number_of_workers() -> None:
    assert worker_count(requested=8, items=100, bytes_per_item=1e15) == 1
    assert worker_count(requested=8, items=3, bytes_per_item=1.0) == 3


def test_prefetch_keeps_order_and_passes_errors_on() -> None:
    def numbers() -> Iterator[int]:
        yield from (1, 2, 3)
        raise DatasetError("broken file")

    stream = prefetch(numbers())
    assert [next(stream), next(stream), next(stream)] == [1, 2, 3]
    with pytest.raises(DatasetError, match="broken file"):
        next(stream)


def test_leaving_early_ends_the_thread() -> None:
    def endless() -> Iterator[int]:
        while True:
            yield 0

    stream = prefetch(endless())
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while any(thread.name == "autoseg-prefetch" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stated_memory_bounds_the_workers() -> None:
    assert worker_count(requested=8, items=100, bytes_per_item=1e8, memory=500_000_000) == 4
    assert worker_count(requested=8, items=100, bytes_per_item=1e8, memory=10**18) <= 8
