"""How a person or a scheduler ends training cleanly: Ctrl-C, SIGTERM, or a stop file."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from autoseg.log import get_logger
from autoseg.parallel import in_main_thread

_LOG = get_logger(__name__)


@contextmanager
def stop_requests(stop_file: Path) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether to stop. A second Ctrl-C interrupts at once.

    Outside the main thread only the stop file works, because Python delivers signals to the main thread.
    """
    asked: list[str] = []

    def receive(number: int, _: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(signal.Signals(number).name)
        _LOG.info("%s received: finishing this step and writing a checkpoint", asked[-1])

    def requested() -> bool:
        if not asked and stop_file.exists():
            asked.append(stop_file.name)
            _LOG.info("%s found: writing a checkpoint", stop_file)
        return bool(asked)

    if not in_main_thread():
        yield requested
        return
    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
