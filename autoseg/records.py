"""Frozen dataclasses to JSON and back: strict, versioned, atomic.

Reading checks every field and reports all problems of a file at once, each with its path inside the file. Writing
goes to a temporary file in the same folder and is renamed, so that a reader sees the old file or the new one.
"""

from __future__ import annotations

import errno
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import cattrs
from cattrs.gen import make_dict_unstructure_fn, override

from autoseg.errors import AutosegError, RecordError, ResourceError, SettingError, joined

R = TypeVar("R")

_FULL = {errno.ENOSPC, errno.EDQUOT}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EROFS}
# torch.save raises a RuntimeError in these words when the disk is full.
_FULL_WORDS = ("no space left", "unexpected pos", "file write failed")


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    for kind in (int, float, str, bool):
        converter.register_structure_hook(kind, _strict(kind))

    def without_defaults(kind: type) -> Callable[[Any], dict[str, Any]]:
        # What few records have is written only there, so that the hashes of all others stay as they were.
        omitted: dict[str, Any] = {name: override(omit_if_default=True) for name in _omitted(kind)}
        return make_dict_unstructure_fn(kind, converter, **omitted)

    converter.register_unstructure_hook_factory(lambda kind: bool(_omitted(kind)), without_defaults)
    return converter


def _omitted(kind: Any) -> list[str]:
    """Fields that are left out of JSON while they have their default (``metadata={"omit_default": True}``)."""
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return []
    return [item.name for item in fields(kind) if item.metadata.get("omit_default")]


def _strict(kind: type) -> Any:
    # cattrs converts by calling the type: int("3") and int(2.7) would pass unnoticed.
    def structure(value: Any, _: Any) -> Any:
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if kind is float and value is None:
            return math.nan
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(f"expected {kind.__name__}, found {value!r}")
        return value

    return structure


_CONVERTER = _converter()


def to_json(record: Any) -> str:
    """A record as indented JSON; NaN becomes null, because JSON has no NaN."""
    return json.dumps(_finite(_CONVERTER.unstructure(record)), indent=2, allow_nan=False) + "\n"


def from_json(kind: type[R], text: str, *, source: str = "record") -> R:
    """Build a record from JSON text.

    Raises:
        RecordError: not JSON, another version, or wrong fields; every problem is listed with its path.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise RecordError(f"{source} is not valid JSON: {error}", hint="restore it or make it again") from error
    return structure(kind, data, source=source)


def structure(kind: type[R], data: Any, *, source: str = "record") -> R:
    """Build a record from plain dictionaries and lists; the errors are those of ``from_json``."""
    expected = getattr(kind, "VERSION", None)
    if is_dataclass(kind) and not isinstance(data, Mapping):
        raise RecordError(f"{source} holds no JSON object", hint="restore it or make it again")
    if expected is not None and isinstance(data, Mapping) and data.get("version") != expected:
        raise RecordError(
            f"{source} has version {data.get('version')!r}, this autoseg reads version {expected}",
            hint="make it again with this autoseg, or install the autoseg that wrote it",
        )
    try:
        return _CONVERTER.structure(data, kind)
    except cattrs.BaseValidationError as error:
        problems = cattrs.transform_error(error, path="$")
        raise RecordError(f"{source} does not fit:\n{joined(problems)}", hint="correct these fields") from error


def save(path: Path, record: Any) -> None:
    """Write a record atomically."""
    write_text(path, to_json(record))


def load(kind: type[R], path: Path) -> R:
    """Read a record; a missing file is a ``RecordError`` that names it."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecordError(f"{path} does not exist", hint="run the stage that writes it first") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    return from_json(kind, text, source=str(path))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; none where it is missing."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.strip()]


def write_text(path: Path, text: str) -> None:
    """Write text atomically (temporary file in the same folder, flush, rename)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Hand out a temporary path beside ``path`` with the same ending; rename it on success, remove it on failure.

    Raises:
        ResourceError: the disk is full, or the file larger than a file may be there.
        SettingError: the folder cannot be made or written to.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # The ending stays, because image writers choose the format by it; the leading dot hides a half-written file.
        endings = "".join(path.suffixes[-2:]) if path.name.endswith(".gz") else path.suffix
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=f".partial{endings}", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            # mkstemp makes private files; results are for everybody the folder is for.
            temporary.chmod(0o666 & ~_umask())
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            # After the rename there is nothing left of this name.
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in a sentence why ``path`` cannot be written; other errors pass.

    Raises:
        ResourceError: the disk is full, or the file larger than a file may be there.
        SettingError: there is no permission, or a file lies where a folder should be.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = _not_written(path, error)
        if reason is None:
            raise
        raise reason from error


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless it exists; errors as ``writing``."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def _not_written(path: Path, error: OSError | RuntimeError) -> AutosegError | None:
    code = error.errno if isinstance(error, OSError) else None
    words = str(error).lower() if isinstance(error, RuntimeError) else ""
    if code in _FULL or any(part in words for part in _FULL_WORDS):
        return ResourceError(f"no space left to write {path}", hint="free disk space and run it again")
    if code == errno.EFBIG:
        return ResourceError(
            f"{path} would be larger than files may be here",
            hint="raise the limit of this shell (ulimit -f), or choose a folder on another disk",
        )
    if isinstance(error, OSError) and code in _NOT_WRITABLE:
        return SettingError(f"{path} cannot be written: {error.strerror}", hint="choose a folder that you may write to")
    return None


def remove_partial(folder: Path) -> None:
    """Remove what killed writers left behind in a folder; only for a folder that nobody else is writing to."""
    for path in folder.glob(".*.partial*"):
        path.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


__all__ = [
    "atomic_path",
    "from_json",
    "load",
    "make_folder",
    "remove_partial",
    "save",
    "structure",
    "to_json",
    "write_text",
    "writing",
]
