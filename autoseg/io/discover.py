"""Find datasets, their cases, and the images to predict. Nothing here reads voxels."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from autoseg.errors import DatasetError, joined
from autoseg.io.dataset_json import Description, read_description
from autoseg.io.images import LABEL_ENDINGS, READABLE_ENDINGS, read_shape, split_ending
from autoseg.log import get_logger
from autoseg.schema.dataset import CaseFiles, DatasetSpec
from autoseg.schema.folders import Workspace

_LOG = get_logger(__name__)

_CHANNEL = re.compile(r"_(\d{4})$")


def resolve_workspace(workdir: str | Path | None = None) -> Workspace:
    """The work directory: the argument, else ``AUTOSEG_HOME``, else ``./autoseg_data``; it need not exist yet."""
    chosen = workdir or os.environ.get("AUTOSEG_HOME") or "autoseg_data"
    return Workspace(Path(chosen).expanduser().absolute())


def find_dataset(identifier: str, workspace: Workspace) -> Path:
    """The folder of a dataset given by number ("3"), name ("Dataset003_Liver" or "Liver") or path.

    Datasets lie in ``workspace.raw``; where none of them fits, those in ``$nnUNet_raw`` are looked at.

    Raises:
        DatasetError: none fits, with those that exist; or several do.
    """
    roots = [workspace.raw]
    if os.environ.get("nnUNet_raw"):  # noqa: SIM112 - the peer's spelling
        roots.append(Path(os.environ["nnUNet_raw"]).expanduser().absolute())  # noqa: SIM112
    for root in roots:
        fitting = [folder for folder in _datasets(root) if _fits(folder.name, identifier)]
        if len(fitting) > 1:
            names = ", ".join(folder.name for folder in fitting)
            raise DatasetError(f"{identifier!r} fits several datasets in {root}: {names}", hint="give the full name")
        if fitting:
            return fitting[0]
    folder = Path(identifier).expanduser()
    if (folder / "dataset.json").is_file():
        return folder.absolute()
    if folder.is_dir() and not identifier.isdecimal():
        raise DatasetError(f"{folder} has no dataset.json", hint="give a folder with dataset.json in it")
    there = [folder.name for root in roots for folder in _datasets(root)]
    looked = " and ".join(str(root) for root in roots)
    raise DatasetError(
        f"there is no dataset {identifier!r} in {looked}",
        hint=f"there are: {', '.join(there)}" if there else f"put DatasetNNN_Name folders into {roots[0]}",
    )


def read_dataset(folder: Path | str) -> DatasetSpec:
    """Read dataset.json and list the cases.

    Cases lie in imagesTr and labelsTr, unless dataset.json lists them. A file that a case lacks is in the spec
    with the path where it should be: ``verify.check_spec`` reports it along with everything else.

    Raises:
        DatasetError: dataset.json is missing or wrong, or there are no cases; all problems are listed.
    """
    folder = Path(folder).absolute()
    description = read_description(folder)
    if description.cases is not None:
        cases = description.cases
        first = cases[0].label or cases[0].images[0]
        ending = description.file_ending or split_ending(Path(first).name)[1]
    else:
        _require_folders(folder)
        ending = description.file_ending or _common_ending(folder / "imagesTr")
        cases = _layout_cases(folder, description, ending)
    _refuse_unknown_annotated(folder, description, cases)
    cases = tuple(replace(case, annotated=description.annotated.get(case.id)) for case in cases)
    # Of held-out cases nothing is learnt: what is said of them must not change the indices of those that are.
    partial = {case.annotated for case in cases if case.annotated is not None}
    return DatasetSpec(
        name=folder.name,
        channels=description.channels,
        labels=replace(description.labels, partial=tuple(sorted(partial))),
        file_ending=ending,
        cases=cases,
    )


def _refuse_unknown_annotated(folder: Path, description: Description, cases: Sequence[CaseFiles]) -> None:
    """A misspelt case would be learnt from as if everything in it had been annotated.

    Raises:
        DatasetError: "annotated" names cases that are neither in the dataset nor in labelsTs.
    """
    held_out = folder / "labelsTs"
    known = {case.id for case in cases}
    if held_out.is_dir():
        known |= {split_ending(path.name)[0] for path in _files(held_out)}
    unknown = [f'"{name}"' for name in description.annotated if name not in known]
    if unknown:
        raise DatasetError(
            f'"annotated" in {folder / "dataset.json"} has cases that do not exist:\n{joined(unknown)}',
            hint="correct these names, or remove them",
        )


def find_cases(path: Path | str, *, num_channels: int, file_ending: str) -> tuple[CaseFiles, ...]:
    """The cases in a folder, or the one that a file belongs to, for prediction.

    Files are ``case_0000.ending``, ``case_0001.ending``, ...; with one channel, or with all channels in one file
    (colour, 4D), plain ``case.ending`` will do. Files with ``file_ending`` are taken; a folder that has none of
    them may hold any other single format.

    A case with missing or extra channels is returned along with the others, and fails when it is read; so are the
    cases of one name, which ``repeated`` finds.

    Raises:
        DatasetError: nothing to predict, or no case has the right channels and a name of its own; all problems are
            listed.
    """
    path = Path(path).expanduser().absolute()
    if path.is_dir():
        files = _prediction_files(path, file_ending)
    elif path.is_file():
        files = _siblings(path) if num_channels > 1 else [path]
    else:
        raise DatasetError(f"{path} does not exist", hint="give a folder with images, or one image")
    cases = _grouped(files, num_channels=num_channels, labelled=frozenset())
    faults = [channel_problems([Path(image) for image in case.images], num_channels) for case in cases]
    twins = repeated(case.id for case in cases)
    if all(fault or case.id in twins for case, fault in zip(cases, faults, strict=True)):
        problems = [f"{name}: {fault}" for found in faults for name, fault in found]
        problems += [f"{id_}: there are several images of this name" for id_ in twins]
        raise DatasetError(
            f"{path} has images that cannot be taken as they are:\n{joined(problems)}",
            hint=f"the model needs {num_channels} channel(s) per case, named case_0000{file_ending} and so on",
        )
    return cases


def channel_problems(images: Sequence[Path], num_channels: int) -> list[tuple[str, str]]:
    """(file, what is wrong) for the images of one case: missing files, too many or too few channels."""
    lacking = [(str(image), "missing channel: the file does not exist") for image in images if not image.is_file()]
    if lacking or len(images) == num_channels:
        return lacking
    try:
        found = sum(read_shape(image)[0] for image in images)
    except DatasetError:
        # Whoever reads the voxels reports this; the number of channels is unknown.
        return []
    if found == num_channels:
        return []
    kind = "extra channel" if found > num_channels else "missing channel"
    return [(str(images[-1]), f"{kind}: {found} channels in {len(images)} file(s), expected {num_channels}")]


def repeated(names: Iterable[str]) -> list[str]:
    """The names that occur more than once, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _datasets(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(folder for folder in root.iterdir() if (folder / "dataset.json").is_file())


def _fits(name: str, identifier: str) -> bool:
    match = re.match(r"Dataset(\d+)(?:_(.*))?$", name)
    wanted = re.fullmatch(r"(?:Dataset)?(\d+)", identifier)
    if wanted:
        return bool(match) and int(match[1]) == int(wanted[1])  # type: ignore[index]
    return identifier in {name, match[2] if match else name}


def _require_folders(folder: Path) -> None:
    missing = [name for name in ("imagesTr", "labelsTr") if not (folder / name).is_dir()]
    if missing:
        raise DatasetError(
            f"{folder} has no folder {' and no folder '.join(missing)}",
            hint='make it, or list the cases under "dataset" in dataset.json',
        )


def _files(folder: Path) -> list[Path]:
    """Readable files by name; hidden ones are half-written or of some file browser."""
    found = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in found if path.name.lower().endswith(READABLE_ENDINGS) and not path.is_dir())


def _with_ending(files: Iterable[Path], ending: str) -> list[Path]:
    return [path for path in files if split_ending(path.name)[1].lower() == ending.lower()]


def _common_ending(folder: Path) -> str:
    counts = Counter(split_ending(path.name)[1] for path in _files(folder))
    if not counts:
        raise DatasetError(f"{folder} has no images", hint=f"images end in one of: {' '.join(READABLE_ENDINGS)}")
    return counts.most_common(1)[0][0]


def _layout_cases(folder: Path, description: Description, ending: str) -> tuple[CaseFiles, ...]:
    images = _with_ending(_files(folder / "imagesTr"), ending)
    if not images:
        raise DatasetError(
            f"{folder / 'imagesTr'} has no files that end in {ending}", hint='check "file_ending" in dataset.json'
        )
    labels: dict[str, Path] = {}
    for path in _files(folder / "labelsTr"):
        stem, own = split_ending(path.name)
        # Labels in the images' format win; others serve where images are JPEG.
        if own.lower() in LABEL_ENDINGS and (stem not in labels or own.lower() == ending.lower()):
            labels[stem] = path
    num_channels = len(description.channels)
    cases = _grouped(images, num_channels=num_channels, labelled=frozenset(labels))
    known = {case.id for case in cases}
    # numTraining tells whether a label without images is surplus, or its images are lost.
    surplus = description.num_training == len(known)
    for stem in () if surplus else sorted(set(labels) - known):
        lost = tuple(str(folder / "imagesTr" / _file_name(stem, number, ending)) for number in range(num_channels))
        cases = (*cases, CaseFiles(id=stem, images=lost))
    expected = folder / "labelsTr"
    return tuple(
        CaseFiles(id=case.id, images=case.images, label=str(labels.get(case.id, expected / f"{case.id}{ending}")))
        for case in sorted(cases, key=lambda case: case.id)
    )


def _prediction_files(folder: Path, file_ending: str) -> list[Path]:
    everything = _files(folder)
    files = _with_ending(everything, file_ending)
    if files:
        others = [path.name for path in everything if path not in files]
        if others:
            shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            _LOG.warning("%d images that do not end in %s are left out: %s", len(others), file_ending, shown)
        return files
    endings = sorted({split_ending(path.name)[1].lower() for path in everything})
    if len(endings) == 1:
        return everything
    found = f"only {' and '.join(endings)} files" if endings else "no images"
    raise DatasetError(f"{folder} has {found}", hint=f"put images that end in {file_ending} there")


def _siblings(path: Path) -> list[Path]:
    """All channels of the case that a file belongs to."""
    stem, ending = split_ending(path.name)
    match = _CHANNEL.search(stem)
    if not match:
        return [path]
    base = stem[: match.start()]
    same = _with_ending(_files(path.parent), ending)
    return [other for other in same if _CHANNEL.sub("", split_ending(other.name)[0]) == base]


def _grouped(files: Sequence[Path], *, num_channels: int, labelled: frozenset[str]) -> tuple[CaseFiles, ...]:
    """Files to cases. An id that could be read in two ways goes to the one that has a label.

    ``scan_0007`` may be channel 7 of "scan" or the case "scan_0007": with one channel it is the latter, unless
    there is a ``scan_0000``.
    """
    stems = {path: split_ending(path.name)[0] for path in files}
    bases = {path: _CHANNEL.sub("", stem) for path, stem in stems.items()}
    zeroth = {base for path, base in bases.items() if stems[path] == f"{base}_0000"}
    cases: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    for path, stem in stems.items():
        base = bases[path]
        whole = stem in labelled and base not in labelled
        alone = num_channels == 1 and base not in zeroth and base not in labelled
        if base == stem or whole or alone:
            cases[stem].append((0, path))
        else:
            cases[base].append((int(stem[-4:]), path))
    result: list[CaseFiles] = []
    for id_, numbered in sorted(cases.items()):
        # case.png beside case_0000.png: two cases of one name, to be reported as such.
        taken = repeated(str(number) for number, _ in numbered)
        groups = [[pair] for pair in numbered] if taken else [numbered]
        result += [CaseFiles(id=id_, images=_completed(id_, group, num_channels)) for group in groups]
    return tuple(result)


def _completed(id_: str, numbered: Sequence[tuple[int, Path]], num_channels: int) -> tuple[str, ...]:
    """Paths by channel number, with those that should exist but do not, so that they can be reported."""
    present = dict(numbered)
    if set(present) == {0} and num_channels > 1 and _holds_several(present[0]):
        return (str(present[0]),)
    folder, ending = numbered[0][1].parent, split_ending(numbered[0][1].name)[1]
    for number in range(num_channels):
        present.setdefault(number, folder / _file_name(id_, number, ending))
    return tuple(str(present[number]) for number in sorted(present))


def _holds_several(path: Path) -> bool:
    """Whether a file has its channels inside; so has one that cannot be read, which is reported later."""
    try:
        return read_shape(path)[0] > 1
    except DatasetError:
        return True


def _file_name(id_: str, number: int, ending: str) -> str:
    return f"{id_}_{number:04d}{ending}"
