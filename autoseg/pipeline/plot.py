"""``autoseg_plot``: a picture of every case with the outlines of its labels and its segmentation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from autoseg import records
from autoseg.errors import AutosegError, DatasetError, PartialError, ResourceError, SettingError, joined
from autoseg.io.images import LABEL_ENDINGS, READABLE_ENDINGS, read_image, read_label, read_shape, split_ending
from autoseg.log import get_logger, progress
from autoseg.parallel import map_cases
from autoseg.pipeline.evaluate import read_labels
from autoseg.report.overlay import overlay_png
from autoseg.schema.dataset import Label, Labels
from autoseg.schema.tools import PlotSettings

_LOG = get_logger(__name__)

# Below this, starting worker processes takes longer than drawing.
_FEW = 8
# The image as it is read, in float32 for its range, two label maps, and masks of both.
_BYTES_PER_VOXEL = 16


@dataclass(frozen=True, kw_only=True)
class PlotCase:
    """Files of one case; ``reference`` or ``prediction`` may be missing, not both. ``channel`` counts in the image."""

    id: str
    image: Path
    channel: int
    reference: Path | None
    prediction: Path | None


def plot(settings: PlotSettings) -> tuple[Path, ...]:
    """Draw every case that has an image and a label or segmentation; the pictures' paths.

    Raises:
        SettingError: no folder, no case has both, or no case has the channel.
        PartialError: some cases could not be drawn, each with the reason.
    """
    if settings.references is None and settings.predictions is None:
        raise SettingError("there is nothing to outline", hint="give --references, --predictions or both")
    outputs = Path(settings.outputs).expanduser().absolute()
    cases, alone = _cases(settings)
    _refuse_inputs(cases, outputs)
    labels = _labels(settings, cases)
    if alone:
        _LOG.warning("%d have no image and are left out: %s", len(alone), _some(alone))
    records.make_folder(outputs)
    few = settings.workers is None and len(cases) < _FEW
    draw = partial(_draw, labels=labels, outputs=outputs)
    outcomes = map_cases(draw, cases, workers=0 if few else settings.workers, bytes_per_item=_bytes(cases[0]))
    written: list[Path] = []
    problems: list[str] = []
    for outcome in progress(outcomes, total=len(cases), label="plot"):
        if isinstance(outcome.error, ResourceError):
            raise outcome.error
        if outcome.error is not None:
            shown = outcome.error.message if isinstance(outcome.error, AutosegError) else str(outcome.error)
            problems.append(f"{outcome.item.id}: {shown}")
        else:
            written.append(outcome.unwrap())
    if problems:
        raise PartialError(
            f"{len(problems)} of {len(cases)} cases could not be drawn:\n{joined(problems)}",
            hint=f"mend these files; the others are in {outputs}",
        )
    _LOG.info("%d pictures in %s", len(written), outputs)
    return tuple(sorted(written))


def _cases(settings: PlotSettings) -> tuple[list[PlotCase], list[str]]:
    """The cases with an image, then the names of those without."""
    images = _by_name(settings.images, "--images", READABLE_ENDINGS)
    references = _by_name(settings.references, "--references", LABEL_ENDINGS)
    predictions = _by_name(settings.predictions, "--predictions", LABEL_ENDINGS)
    found, alone = [], []
    for name in sorted({*references, *predictions}):
        own = images.get(f"{name}_{settings.channel:04d}")
        # A file may hold all channels inside, under either name.
        image = own or images.get(name) or images.get(f"{name}_0000")
        if image is None:
            alone.append(name)
            continue
        channel = 0 if own else settings.channel
        sides = {"reference": references.get(name), "prediction": predictions.get(name)}
        found.append(PlotCase(id=name, image=image, channel=channel, **sides))
    if not found:
        raise SettingError(
            f"no image in {settings.images} belongs to a label ({_some(alone) or 'there are none'})",
            hint=f"the label case.nii.gz belongs to the image case_{settings.channel:04d}.nii.gz or case.nii.gz",
        )
    lacking = list(map(_lacking_channel, found))
    if lacking[0] and all(lacking):
        raise SettingError(lacking[0], hint="give another --channel; the first is 0")
    if Path(settings.images).is_file():
        # One image was asked for; the labels of others are no loss.
        alone = []
    return found, alone


def _by_name(text: str | None, flag: str, endings: Sequence[str]) -> dict[str, Path]:
    if text is None:
        return {}
    path = Path(text).expanduser().absolute()
    if not path.exists():
        raise SettingError(f"{flag}: {path} does not exist", hint="give a folder of images or labels, or one file")
    files = [path] if path.is_file() else sorted(path.iterdir())
    usable = (file for file in files if not file.name.startswith(".") and file.name.lower().endswith(tuple(endings)))
    return {split_ending(file.name)[0]: file for file in usable}


def _refuse_inputs(cases: Sequence[PlotCase], outputs: Path) -> None:
    """Pictures may be inputs too: none of them is drawn over."""
    inputs = {
        path.resolve() for case in cases for path in (case.image, case.reference, case.prediction) if path is not None
    }
    taken = [str(path) for path in (outputs / f"{case.id}.png" for case in cases) if path.resolve() in inputs]
    if taken:
        raise SettingError(f"pictures would replace inputs:\n{joined(taken)}", hint="give another folder with -o")


def _labels(settings: PlotSettings, cases: Sequence[PlotCase]) -> Labels:
    """Names from a ``dataset.json``: the one given, else one beside or above the files; else plain integers."""
    if settings.labels is not None:
        return read_labels(Path(settings.labels).expanduser())[0]
    sides = [path for path in (cases[0].prediction, cases[0].reference, cases[0].image) if path is not None]
    for folder in (folder for path in sides for folder in (path.parent, path.parent.parent)):
        if (folder / "dataset.json").is_file():
            return read_labels(folder / "dataset.json")[0]
    values: set[int] = set()
    for case in cases:
        for path in (case.reference, case.prediction):
            if path is not None:
                values |= _integers(path)
    return Labels(foreground=tuple(Label(name=str(value), values=(value,)) for value in sorted(values - {0})))


def _integers(path: Path) -> set[int]:
    try:
        return set(np.unique(read_label(path).data).tolist())
    except DatasetError:
        # Reported when the case is drawn.
        return set()


def _lacking_channel(case: PlotCase) -> str:
    """Says that a case does not have its channel, empty if it has, or if the file cannot be read: drawing tells."""
    try:
        count = read_shape(case.image)[0] if case.channel else 1
    except DatasetError:
        return ""
    return "" if case.channel < count else _lacks(case, count)


def _lacks(case: PlotCase, count: int) -> str:
    has = "1 channel" if count == 1 else f"{count} channels"
    return f"{case.image} has {has}, and there is no file of channel {case.channel}"


def _draw(case: PlotCase, *, labels: Labels, outputs: Path) -> Path:
    image = read_image(case.image)
    if case.channel >= len(image.data):
        raise DatasetError(_lacks(case, len(image.data)))
    maps = [None if path is None else read_label(path) for path in (case.reference, case.prediction)]
    for path, volume in zip((case.reference, case.prediction), maps, strict=True):
        if volume is not None and volume.shape != image.shape:
            raise DatasetError(f"{path} has {volume.shape} voxels (z, y, x), {case.image} {image.shape}")
    # An absent side has no outline.
    nothing = np.zeros(image.shape, np.uint8)
    reference, prediction = (nothing if volume is None else volume.data[0] for volume in maps)
    target = outputs / f"{case.id}.png"
    overlay_png(
        target,
        image.data if case.channel == 0 else image.data[case.channel : case.channel + 1],
        reference,
        prediction,
        labels=labels,
        spacing=image.geometry.spacing,
        title=case.id,
    )
    return target


def _bytes(case: PlotCase) -> float:
    try:
        return float(math.prod(read_shape(case.image)) * _BYTES_PER_VOXEL)
    except DatasetError:
        return 0.0


def _some(names: Sequence[str], *, limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
