"""A labelled collection of files, wherever they lie, and how it becomes a dataset folder.

Whoever reads a foreign layout makes a ``Collection`` of it; ``write_collection`` does the rest for all of them. Every
file appears under its final name when it is complete, and dataset.json comes last: a run that was stopped leaves
nothing that could be taken for a dataset, and the next one goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from autoseg import records
from autoseg.errors import AutosegError, DatasetError, PartialError, SettingError, joined
from autoseg.io.companions import companions
from autoseg.io.images import (
    LABEL_ENDINGS,
    READABLE_ENDINGS,
    read_image,
    read_label,
    split_ending,
    write_image,
    write_label,
)
from autoseg.io.verify import Fault, fault_table
from autoseg.io.volume import Volume
from autoseg.log import get_logger, progress
from autoseg.parallel import map_cases

_LOG = get_logger(__name__)

_TRAINING, _TEST = "Tr", "Ts"
_DEFAULT_ENDING = ".nii.gz"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One case: its image files (one per channel, or one with all channels) and its label, if it has one.

    ``read`` is for what no single file holds, such as a DICOM series: it returns image and label, and takes the
    place of the files. ``integers`` are new integers for all of the label, background excepted, where they change.
    """

    id: str
    images: tuple[Path, ...] = ()
    label: Path | None = None
    test: bool = False
    read: Callable[[], tuple[Volume, Volume | None]] | None = None
    integers: Mapping[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Collection:
    """What a source holds. ``labels`` is that of dataset.json, background included; ``facts`` go there unchanged."""

    name: str
    channels: tuple[str, ...]
    labels: Mapping[str, Any]
    entries: tuple[Entry, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was brought in; ``kept`` cases were complete before."""

    folder: Path
    written: int
    kept: int


def write_collection(collection: Collection, folder: Path, *, link: bool = False, workers: int | None = 0) -> Imported:
    """Write a collection as a dataset folder that ``io.discover.read_dataset`` reads.

    A file that fits as it is, is copied, or linked to; one of another format than most, or with several channels
    inside, is read and written anew. All but links get the time of change of their source, by which a later run sees
    that they are of it. Of a case that fails nothing stays.

    Args:
        link: symbolic links in place of copies.
        workers: processes; 0 does everything in this one.

    Raises:
        SettingError: the folder holds another dataset, or files of other cases.
        PartialError: some cases could not be brought; all are listed, and there is no dataset.json.
        DatasetError: no case could be.
    """
    ending = _common_ending(collection.entries)
    text = _description(collection, ending)
    _refuse_foreign(folder, text)
    fresh = not (folder / "dataset.json").exists()
    if fresh:
        _refuse_other_cases(collection, folder, ending)
    job = partial(_bring, folder=folder, ending=ending, channels=len(collection.channels), link=link)
    faults: list[Fault] = []
    written = 0
    for split in (_TRAINING, _TEST) if any(entry.test for entry in collection.entries) else (_TRAINING,):
        records.make_folder(folder / f"images{split}")
        records.make_folder(folder / f"labels{split}")
        records.remove_partial(folder / f"images{split}")
        records.remove_partial(folder / f"labels{split}")
    outcomes = map_cases(job, collection.entries, workers=workers)
    for outcome in progress(outcomes, total=len(collection.entries), label="import"):
        try:
            written += outcome.unwrap()
        except (AutosegError, OSError, ValueError) as error:
            if isinstance(error, AutosegError) and not isinstance(error, DatasetError):
                # A full disk, a dead worker: not a matter of this case.
                raise
            faults.append(_fault(outcome.item, error))
            if fresh:
                _remove(outcome.item, _targets(outcome.item, folder, ending, len(collection.channels)))
    if faults:
        _raise(sorted(faults, key=lambda fault: fault.case), len(collection.entries), folder)
    if not any((folder / f"labels{_TEST}").glob("*")) and (folder / f"labels{_TEST}").is_dir():
        (folder / f"labels{_TEST}").rmdir()
    records.write_text(folder / "dataset.json", text)
    return Imported(folder=folder, written=written, kept=len(collection.entries) - written)


def _common_ending(entries: Sequence[Entry]) -> str:
    """The images' one ending, or a lossless one that can hold all of them."""
    endings = {split_ending(image.name)[1].lower() for entry in entries for image in entry.images}
    if len(endings) == 1 and not any(entry.read for entry in entries):
        return endings.pop()
    pictures = {".png", ".bmp", ".jpg", ".jpeg"}
    return ".png" if endings and endings <= pictures else _DEFAULT_ENDING


def _description(collection: Collection, ending: str) -> str:
    training = sum(not entry.test for entry in collection.entries)
    content = {
        **collection.facts,
        "channel_names": {str(index): name for index, name in enumerate(collection.channels)},
        "labels": dict(collection.labels),
        "numTraining": training,
        "file_ending": ending,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _refuse_foreign(folder: Path, text: str) -> None:
    path = folder / "dataset.json"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise SettingError(
            f"{folder} holds another dataset, or another state of this one",
            hint="give another --name, or remove that folder",
        )


def _refuse_other_cases(collection: Collection, folder: Path, ending: str) -> None:
    """What lies there already would become cases too.

    Raises:
        SettingError: images or labels that are none of this collection's; all are listed.
    """
    expected: set[Path] = set()
    for entry in collection.entries:
        images, label = _targets(entry, folder, ending, len(collection.channels))
        expected |= {*images, label}
    there = {path for kind in ("images", "labels") for path in folder.glob(f"{kind}T[rs]/[!.]*")}
    others = [str(path) for path in sorted(there - expected) if path.name.lower().endswith(READABLE_ENDINGS)]
    if others:
        raise SettingError(
            f"{folder} holds files that are not of these cases:\n{joined(others)}",
            hint="remove them if they are of an import that was stopped, or give another --name",
        )


def _targets(entry: Entry, folder: Path, ending: str, channels: int) -> tuple[list[Path], Path]:
    """Where the images and the label of a case are to lie."""
    split = _TEST if entry.test else _TRAINING
    images = [folder / f"images{split}" / f"{entry.id}_{number:04d}{ending}" for number in range(channels)]
    if entry.label is not None and not companions(entry.label):
        own = entry.label.name.lower()
        ending = next((known for known in LABEL_ENDINGS if own.endswith(known)), ending)
    return images, folder / f"labels{split}" / f"{entry.id}{ending}"


def _remove(entry: Entry, targets: tuple[list[Path], Path]) -> None:
    """Remove what was written of a case, but never a source that lies where it is to be."""
    sources = [path for path in (*entry.images, entry.label) if path is not None and path.exists()]
    for path in (*targets[0], targets[1]):
        if path.is_symlink() or (path.exists() and not any(path.samefile(source) for source in sources)):
            path.unlink()


def _bring(entry: Entry, *, folder: Path, ending: str, channels: int, link: bool) -> bool:
    """Write one case; False if it was complete. The label comes last."""
    images, label = _targets(entry, folder, ending, channels)
    if entry.read is not None:
        return _bring_read(entry, images, label)
    changed = False
    if len(entry.images) == channels:
        for source, target in zip(entry.images, images, strict=True):
            changed |= _place(source, target, link=link)
    elif len(entry.images) == 1:
        changed |= _split(entry, images)
    else:
        raise DatasetError(
            f"{len(entry.images)} image files for {channels} channels",
            hint="give one file per channel, or one with all",
        )
    if entry.label is not None:
        if entry.integers is None:
            changed |= _place(entry.label, label, link=link, label=True)
        else:
            changed |= _renumber(entry.label, label, entry.integers)
    return changed


def _bring_read(entry: Entry, images: Sequence[Path], label: Path) -> bool:
    if all(path.exists() for path in (*images, *([label] if not entry.test else []))):
        return False
    if entry.read is None:
        raise ValueError(f"{entry.id} has nothing to read")
    image, mask = entry.read()
    _write_channels(image, images)
    if mask is not None:
        write_label(label, mask.data[0], mask.geometry)
    return True


def _split(entry: Entry, images: Sequence[Path]) -> bool:
    if all(_is_of(entry.images[0], path) for path in images):
        return False
    _write_channels(read_image(entry.images[0]), images)
    for path in images:
        _date(path, entry.images[0])
    return True


def _write_channels(volume: Volume, images: Sequence[Path]) -> None:
    if len(volume.data) != len(images):
        raise DatasetError(
            f"the image has {len(volume.data)} channels, the dataset {len(images)}", hint="check the channel names"
        )
    for channel, path in zip(volume.data, images, strict=True):
        write_image(path, Volume(channel[None], volume.geometry))


def _place(source: Path, target: Path, *, link: bool, label: bool = False) -> bool:
    """Copy, link or convert a file; False if it is there already."""
    if not source.is_file():
        raise DatasetError(f"{source} does not exist", hint="check the path")
    if split_ending(source.name)[1].lower() != split_ending(target.name)[1] or companions(source):
        if _is_of(source, target):
            return False
        volume = read_label(source) if label else read_image(source)
        if label:
            write_label(target, volume.data[0], volume.geometry)
        else:
            write_image(target, volume)
        _date(target, source)
        return True
    if _same(source, target, link=link):
        return False
    if link:
        target.unlink(missing_ok=True)
        target.symlink_to(source.resolve())
        return True
    with records.atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
        _date(temporary, source)
    return True


def _date(target: Path, source: Path) -> None:
    """Give a file the time of change of what it was made of."""
    state = source.stat()
    os.utime(target, ns=(state.st_atime_ns, state.st_mtime_ns))


def _is_of(source: Path, target: Path) -> bool:
    """Whether a file that was written anew was made of the source as it is now."""
    return target.is_file() and not target.is_symlink() and target.stat().st_mtime_ns == source.stat().st_mtime_ns


def _renumber(source: Path, target: Path, integers: Mapping[int, int]) -> bool:
    """Write a label with other integers; False if it is there already."""
    if not source.is_file():
        raise DatasetError(f"{source} does not exist", hint="check the path")
    if _is_of(source, target):
        return False
    volume = read_label(source)
    found, places = np.unique(volume.data[0], return_inverse=True)
    unknown = [str(value) for value in found.tolist() if value and value not in integers]
    if unknown:
        raise DatasetError(
            f"{source} holds {', '.join(unknown)}, which dataset.json does not name",
            hint="name these integers, or correct the file",
        )
    values = np.array([integers[value] if value else 0 for value in found.tolist()], dtype=np.int32)
    write_label(target, values[places].reshape(volume.data[0].shape), volume.geometry)
    _date(target, source)
    return True


def _same(source: Path, target: Path, *, link: bool) -> bool:
    if target.is_file() and not target.is_symlink() and target.samefile(source):
        # A list of files that lie where they are to be.
        return True
    if target.is_symlink() or link:
        return link and target.is_symlink() and target.resolve() == source.resolve()
    if not target.exists():
        return False
    here, there = target.stat(), source.stat()
    return (here.st_size, here.st_mtime_ns) == (there.st_size, there.st_mtime_ns)


def _fault(entry: Entry, error: Exception) -> Fault:
    message = error.message if isinstance(error, AutosegError) else repr(error)
    file = str(entry.images[0]) if entry.images else "-"
    named = next((str(path) for path in (*entry.images, entry.label) if path and str(path) in message), file)
    return Fault(
        case=entry.id,
        file=named,
        fault=message.replace(f"{named} ", ""),
        remedy=getattr(error, "hint", "") or "check the file",
    )


def _raise(faults: Sequence[Fault], total: int, folder: Path) -> None:
    kind = DatasetError if len({fault.case for fault in faults}) == total else PartialError
    raise kind(
        f"{len(faults)} of {total} cases could not be imported:\n{fault_table(faults)}",
        hint=f"mend or leave out these and run it again; what is done in {folder} stays",
    )


def refuse_repeated(entries: Sequence[Entry], source: Path) -> None:
    """Every case has an id of its own, and one that can be a file name.

    Raises:
        DatasetError: with all that do not.
    """
    counts = Counter(entry.id for entry in entries)
    wrong = [f"{id_!r} names {count} cases" for id_, count in counts.items() if count > 1]
    wrong += [f"{id_!r} cannot be a file name" for id_ in counts if not id_ or {"/", "\\"} & {*id_} or id_[0] == "."]
    if wrong or not entries:
        raise DatasetError(
            f"{source}: {'; '.join(wrong) if wrong else 'there are no cases'}",
            hint="give every case a name of its own" if wrong else "check the source",
        )
