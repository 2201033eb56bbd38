"""Everything that goes through SimpleITK: MetaImage, NRRD, GIPL, and the geometry of NIfTI files."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name everybody uses

from autoseg.errors import DatasetError
from autoseg.io.volume import Geometry, Volume
from autoseg.records import atomic_path, make_folder, writing

# Their header names a second file that holds the voxels.
_TWO_FILES = (".mhd", ".nhdr")
_COMPLEX = (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64)


def read(path: Path) -> Volume:
    """Read a 2D, 3D or 4D image; vector components and the fourth axis become channels (component fastest).

    Raises:
        DatasetError: unreadable, complex, more than four dimensions, or a spacing that is not above zero.
    """
    _information(path)
    with _refusing(path):
        image = sitk.ReadImage(str(path))
    return _volume(path, image)


def read_geometry(path: Path) -> Geometry:
    """The geometry from the header alone; same errors as ``read``."""
    return _geometry(path, _information(path))


def read_shape(path: Path) -> tuple[int, int, int, int]:
    """(channel, z, y, x) from the header alone; same errors as ``read``."""
    reader = _information(path)
    x, y, *rest = reader.GetSize()
    z, t = [*rest, 1, 1][:2]
    return t * reader.GetNumberOfComponents(), z, y, x


def to_image(data: np.ndarray, geometry: Geometry) -> sitk.Image:
    """A SimpleITK image of (channel, z, y, x) data: scalar for one channel, else a vector."""
    planes = data[:, 0] if geometry.ndim == 2 else data
    if len(planes) == 1:
        image = sitk.GetImageFromArray(planes[0])
    else:
        image = sitk.GetImageFromArray(np.ascontiguousarray(np.moveaxis(planes, 0, -1)), isVector=True)
    image.SetSpacing(geometry.spacing[::-1][: geometry.ndim])
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    return image


def from_image(image: sitk.Image) -> Volume:
    """A SimpleITK image in memory as a ``Volume``; the rules and errors are those of ``read``."""
    return _volume(Path("image in memory"), image)


def write(path: Path, image: sitk.Image) -> None:
    """Write compressed and atomically; a header with separate voxels appears after the voxels."""
    if path.name.lower().endswith(_TWO_FILES):
        _write_two_files(path, image)
        return
    with atomic_path(path) as temporary, _refusing(path, verb="written"):
        sitk.WriteImage(image, str(temporary), useCompression=True)


def _write_two_files(path: Path, image: sitk.Image) -> None:
    make_folder(path.parent)
    with writing(path):
        folder = Path(tempfile.mkdtemp(prefix=".partial.", dir=path.parent))
    try:
        with _refusing(path, verb="written"):
            sitk.WriteImage(image, str(folder / path.name), useCompression=True)
        for part in sorted(folder.iterdir(), key=lambda part: part.name == path.name):
            part.replace(path.parent / part.name)
    finally:
        shutil.rmtree(folder)


def _volume(path: Path, image: sitk.Image) -> Volume:
    _check_kind(path, image)
    data = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() == 1:
        data = data[..., np.newaxis]
    data = data.reshape((1,) * (5 - data.ndim) + data.shape)
    data = np.moveaxis(data, -1, 1).reshape(-1, *data.shape[1:4])
    return Volume(np.ascontiguousarray(data), _geometry(path, image))


def _check_kind(path: Path, image: sitk.Image | sitk.ImageFileReader) -> None:
    if image.GetPixelID() in _COMPLEX:
        raise DatasetError(f"{path} has complex voxels", hint="save magnitude or phase as a real image")
    if not 2 <= image.GetDimension() <= 4:
        raise DatasetError(
            f"{path} has {image.GetDimension()} dimensions; 2 to 4 can be read", hint="save one 3D file per channel"
        )


def _information(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with _refusing(path):
        reader.ReadImageInformation()
    _check_kind(path, reader)
    return reader


def _geometry(path: Path, image: sitk.Image | sitk.ImageFileReader) -> Geometry:
    full = image.GetDimension()
    ndim = min(full, 3)
    spacing = image.GetSpacing()[:ndim]
    origin = image.GetOrigin()[:ndim]
    direction = np.asarray(image.GetDirection()).reshape(full, full)[:ndim, :ndim].ravel()
    if not np.isfinite([*spacing, *origin, *direction]).all() or min(spacing) <= 0:
        raise DatasetError(
            f"{path} has a header without a usable geometry: spacing {spacing}, origin {origin}",
            hint="correct spacing, origin and direction in the file",
        )
    if ndim == 2:
        spacing = (*spacing, max(spacing))
    x, y, z = (float(step) for step in spacing)
    return Geometry((z, y, x), tuple(map(float, origin)), tuple(map(float, direction)), ndim)


@contextmanager
def _refusing(path: Path, *, verb: str = "read") -> Iterator[None]:
    """Turn what SimpleITK throws into one sentence, and keep its warnings off the terminal."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        hint = "restore the file from its source, or convert it" if verb == "read" else "choose another file ending"
        raise DatasetError(f"{path} cannot be {verb}: {_reason(error)}", hint=hint) from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _reason(error: Exception) -> str:
    """The part of ITK's many lines that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    stated = [line for line in lines if "ITK ERROR:" in line and not line.endswith(":")]
    reason = [*lines, *stated][-1] if lines else repr(error)
    reason = re.sub(r"^.*?(ITK|sitk::)\s*ERROR:\s*", "", reason)
    reason = re.sub(r"\w+\(0x[0-9a-f]+\):\s*|\[nrrd\]\s*(\w+:\s*)?", "", reason)
    if "Unable to determine ImageIO reader" in reason:
        return "it is damaged, or not of the format that its name says"
    return reason.rstrip(".")
