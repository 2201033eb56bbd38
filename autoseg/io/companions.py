"""Files that belong to an image file without being named by the dataset: voxels beside a header, spacing of a TIFF."""

from __future__ import annotations

import re
from pathlib import Path

from autoseg.io import tif

_TIFF = (".tif", ".tiff")
_HEADERS = {".mhd": ("elementdatafile", "="), ".nhdr": ("data file", ":"), ".nrrd": ("data file", ":")}
_LONGEST_LINE = 65536


def companions(path: Path) -> tuple[Path, ...]:
    """The files beside ``path`` that hold a part of it, in the order of their names; none if it cannot be read."""
    ending = path.suffix.lower()
    if ending in _TIFF:
        return tif.sidecars(path)
    if ending not in _HEADERS:
        return ()
    try:
        names = _data_files(path, *_HEADERS[ending])
    except OSError:
        return ()
    # "slice%03d.raw 1 30 1" numbers the files; whatever fits the pattern is taken.
    patterns = [re.sub(r"%\d*d.*", "*", name) for name in names]
    found: set[Path] = set()
    for pattern in patterns:
        place = path.parent / pattern
        found |= set(place.parent.glob(place.name)) if "*" in place.name else {place}
    return tuple(sorted(file for file in found if file.is_file()))


def _data_files(path: Path, field: str, separator: str) -> list[str]:
    """What the header says after ``field``; after LIST, the lines that follow."""
    with path.open("rb") as stream:
        while line := stream.readline(_LONGEST_LINE).decode("latin-1").strip():
            name, _, value = line.partition(separator)
            if name.strip().lower().replace("datafile", "data file") != field.replace("datafile", "data file"):
                continue
            value = value.strip()
            if value.upper().startswith("LIST"):
                return [rest for raw in stream.read().decode("latin-1").splitlines() if (rest := raw.strip())]
            return [] if value.lower() == "local" else [value]
    return []
