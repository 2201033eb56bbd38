"""Folders that a command writes to: nothing is replaced that another one wrote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from autoseg import records
from autoseg.errors import SettingError


def input_folder(text: str, flag: str) -> Path:
    """A folder that is there.

    Raises:
        SettingError: it is not.
    """
    folder = Path(text).expanduser().absolute()
    if not text or not folder.is_dir():
        raise SettingError(f"{flag}: {text!r} is not a folder", hint="give a folder with label files")
    return folder


def output_folder(text: str, mark: str, names: Iterable[str], *, inputs: Sequence[Path]) -> Path:
    """Where results go; the file ``mark`` says that the same command wrote there before.

    Args:
        names: of the files that will be written.
        inputs: folders whose files must stay.

    Raises:
        SettingError: it is one of the inputs, or holds other files with these names.
    """
    if not text:
        raise SettingError("inputs and outputs are both needed", hint="give -i IN -o OUT")
    folder = Path(text).expanduser().absolute()
    if folder.resolve() in {path.resolve() for path in inputs}:
        raise SettingError(f"{folder} would be overwritten", hint="give another folder with -o")
    there = [] if (folder / mark).exists() else [name for name in names if (folder / name).exists()]
    if there:
        more = f" and {len(there) - 3} more" if len(there) > 3 else ""
        raise SettingError(
            f"{folder} holds files that would be replaced: {', '.join(there[:3])}{more}",
            hint="give an empty folder with -o",
        )
    return folder


def remove_earlier(folder: Path, names: Iterable[str]) -> None:
    """Remove what an earlier run wrote and this one makes anew, before the record says that this one made it.

    Raises:
        SettingError: they cannot be removed.
    """
    with records.writing(folder):
        for name in names:
            (folder / name).unlink(missing_ok=True)
