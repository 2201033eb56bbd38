"""What preprocessing did to the grid of a case."""

from __future__ import annotations

from dataclasses import dataclass

from autoseg.ops.crop import Box
from autoseg.schema.fingerprint import Spacing


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What happened to the grid of a case, so that ``restore`` can undo it.

    ``shape`` and ``spacing`` are the image's own (z, y, x); ``transpose[i]`` is the axis of those that became axis i.
    Everything else follows the transposed axes: ``box`` was cut out, which left ``cropped_shape``, which was
    resampled to ``resampled_shape`` at ``target_spacing``; ``separate_axis`` is the axis that was resized apart.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    transpose: tuple[int, ...]
    box: Box
    cropped_shape: tuple[int, ...]
    resampled_shape: tuple[int, ...]
    target_spacing: tuple[float, ...]
    separate_axis: int | None

    @property
    def transposed_spacing(self) -> tuple[float, ...]:
        return tuple(self.spacing[axis] for axis in self.transpose)


def between_grids(coarse: tuple[int, ...], coarse_spacing: Spacing, fine: tuple[int, ...], spacing: Spacing) -> Trace:
    """The way from the grid of one configuration to that of another of the same image, as if that were the image's.

    Args:
        coarse: shape (z, y, x), axes transposed, of what is to be resampled; ``fine`` is the shape that it gets.
    """
    return Trace(
        shape=tuple(fine),
        spacing=tuple(spacing),
        transpose=(0, 1, 2),
        box=tuple((0, length) for length in fine),
        cropped_shape=tuple(fine),
        resampled_shape=tuple(coarse),
        target_spacing=tuple(coarse_spacing),
        separate_axis=None,
    )
