"""One look for everything that autoseg says: loggers, progress lines and tables.

Library code calls ``get_logger(__name__)`` and never prints. The command line calls ``configure`` once, in the
parent process; workers stay silent and hand their words back as values.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

_ROOT = "autoseg"


def get_logger(name: str) -> logging.Logger:
    return logging.getLogger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


def configure(*, quiet: bool = False, debug: bool = False) -> None:
    """Send autoseg's messages to standard error, plain text, one line each."""
    root = logging.getLogger(_ROOT)
    root.handlers.clear()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain())
    root.addHandler(handler)
    root.propagate = False
    root.setLevel(logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``8 s``, ``3 min 20 s``, ``2 h 05 min``, ``3 d 4 h``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size(count: float) -> str:
    """Bytes in decimal units: ``950 B``, ``1.5 MB``, ``8.0 GB``."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{int(count)} B"


def progress(items: Iterable[T], *, total: int, label: str) -> Iterator[T]:
    """Pass items through and show how far they are: one redrawn line on a terminal, else a line per tenth.

    Silent when the logger is above INFO (``--quiet``) and for a single item.
    """
    logger = get_logger(_ROOT)
    if not logger.isEnabledFor(logging.INFO) or total < 2:
        yield from items
        return
    terminal = sys.stderr.isatty()
    started = time.monotonic()
    shown = 0
    for done, item in enumerate(items, start=1):
        yield item
        elapsed = time.monotonic() - started
        left = elapsed / done * (total - done)
        text = f"{label}: {done}/{total}, {duration(elapsed)}"
        text += f", {duration(left)} left" if done < total else ""
        if terminal:
            sys.stderr.write(f"\r\x1b[K{text}" + ("\n" if done == total else ""))
            sys.stderr.flush()
        elif done * 10 // total > shown or done == total:
            shown = done * 10 // total
            logger.info(text)


def table(rows: Sequence[Sequence[object]], *, header: Sequence[str]) -> str:
    """A plain-text table: columns as wide as their widest cell, numbers right-aligned, two spaces between."""
    cells = [[str(cell) for cell in row] for row in rows]
    columns = list(zip(header, *cells, strict=True)) if cells else [(name,) for name in header]
    widths = [max(len(cell) for cell in column) for column in columns]
    numeric = [bool(cells) and all(_is_number(cell) for cell in column[1:]) for column in columns]

    def line(row: Sequence[str]) -> str:
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        return "  ".join(parts).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(list(header)), rule, *(line(row) for row in cells)])


def _is_number(cell: str) -> bool:
    try:
        float(cell.rstrip("%").replace(",", "") or "nan")
    except ValueError:
        return cell in {"-", ""}
    return True
