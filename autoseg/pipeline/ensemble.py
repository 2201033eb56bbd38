"""``autoseg_ensemble``: one segmentation of several, whoever made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoseg import records
from autoseg.errors import AutosegError, DatasetError, PartialError, ResourceError, SettingError, joined
from autoseg.io.images import grid_difference, read_label, split_ending, write_label
from autoseg.io.probabilities import probabilities_shape, probability_heads
from autoseg.io.volume import Volume
from autoseg.log import get_logger, progress
from autoseg.pipeline.evaluate import GRID_TOLERANCE_MM, label_files, read_labels
from autoseg.pipeline.outputs import input_folder, output_folder, remove_earlier
from autoseg.schema.afterwards import EnsembleSettings
from autoseg.schema.dataset import Labels
from autoseg.schema.selection import EnsembleRun

_LOG = get_logger(__name__)

RUN_FILE = "ensemble.json"
_FEWEST_VOTERS = 3


@dataclass(frozen=True, kw_only=True)
class EnsembleReport:
    """``method`` is "probabilities" or "vote"."""

    method: str
    written: tuple[Path, ...]


def ensemble(settings: EnsembleSettings) -> EnsembleReport:
    """Decide every case of several folders together, and write the segmentations to ``settings.outputs``.

    Where every folder has probabilities of every case (``--save-probabilities``; nnU-Net's .npz are alike), their mean
    decides: the largest, or the last region above 0.5. Else the labels are voted on, and among labels with equally
    many votes that of the folder named first wins. Which of the two it is is the same for all cases, and said.

    Raises:
        SettingError: fewer than two folders, nothing in common, two folders without probabilities, or labels that
            cannot be found.
        PartialError: cases are not in every folder, lie on other grids, or cannot be read; the others are written.
        ResourceError: the disk is full.
    """
    folders = [input_folder(text, "--inputs") for text in settings.inputs]
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise SettingError("two different folders or more are needed", hint="give -i FOLDER1 FOLDER2 ...")
    found = [label_files(folder) for folder in folders]
    common = sorted(set.intersection(*(set(files) for files in found)))
    if not common:
        raise SettingError(
            f"no case is in all of {', '.join(map(str, folders))}",
            hint="segmentations of one case have the same name, apart from the ending",
        )
    faults = _missing(folders, found)
    labels = _labels(settings, folders) if _all_probable(found, common) else None
    if labels is None and len(folders) < _FEWEST_VOTERS:
        raise SettingError(
            "not every segmentation has its probabilities beside it, and a vote of two decides nothing",
            hint="predict with --save-probabilities, or give three folders or more",
        )
    method = "vote" if labels is None else "probabilities"
    _LOG.info("%d folders, %d cases: %s", len(folders), len(common), _WORDS[method])
    names = {case: found[0][case].name for case in common}
    outputs = output_folder(settings.outputs, RUN_FILE, ["dataset.json", *names.values()], inputs=folders)
    remove_earlier(outputs, ["dataset.json", *names.values()])
    records.save(outputs / RUN_FILE, EnsembleRun(inputs=tuple(map(str, folders)), method=method))
    _copy_labels(folders, outputs)
    written = []
    for case in progress(common, total=len(common), label="ensemble"):
        try:
            decided = _decide([files[case] for files in found], labels)
            write_label(outputs / names[case], decided.data[0], decided.geometry)
        except ResourceError:
            raise
        except (AutosegError, OSError) as error:
            faults[case] = error.message if isinstance(error, AutosegError) else str(error)
            continue
        written.append(outputs / names[case])
    if faults:
        lines = [f"{case}: {fault}" for case, fault in sorted(faults.items())]
        raise PartialError(
            f"{len(faults)} cases have no ensemble:\n{joined(lines)}",
            hint=f"mend these; the others are complete in {outputs}",
        )
    return EnsembleReport(method=method, written=tuple(written))


_WORDS = {"probabilities": "mean of probabilities", "vote": "majority vote of labels, the first folder wins a tie"}


def _missing(folders: Sequence[Path], found: Sequence[Mapping[str, Path]]) -> dict[str, str]:
    faults = {}
    for case in sorted(set().union(*found)):
        without = [str(folder) for folder, files in zip(folders, found, strict=True) if case not in files]
        if without:
            faults[case] = f"missing in {', '.join(without)}"
    return faults


def _all_probable(found: Sequence[Mapping[str, Path]], common: Sequence[str]) -> bool:
    lacking = [files[case] for files in found for case in common if not _probabilities(files[case]).exists()]
    if lacking and len(lacking) < len(found) * len(common):
        _LOG.info("probabilities are not used: %d files have none, such as %s", len(lacking), lacking[0])
    return not lacking


def _probabilities(path: Path) -> Path:
    return path.with_name(f"{split_ending(path.name)[0]}.npz")


def _labels(settings: EnsembleSettings, folders: Sequence[Path]) -> Labels:
    """What the heads of the probabilities stand for.

    Raises:
        SettingError: there is no dataset.json, or folders have different ones.
    """
    if settings.labels is not None:
        return read_labels(Path(settings.labels).expanduser())[0]
    known = {
        folder: read_labels(folder / "dataset.json")[0] for folder in folders if (folder / "dataset.json").exists()
    }
    if not known:
        raise SettingError(
            "what the probabilities stand for is not known: no folder has a dataset.json",
            hint="give that of the dataset with --labels",
        )
    (first, labels), *others = known.items()
    for folder, other in others:
        if other != labels:
            raise SettingError(f"{folder} has other labels than {first}", hint="combine models of one dataset only")
    return labels


def _copy_labels(folders: Sequence[Path], outputs: Path) -> None:
    path = next((folder / "dataset.json" for folder in folders if (folder / "dataset.json").exists()), None)
    if path is not None:
        records.write_text(outputs / path.name, path.read_text(encoding="utf-8-sig"))


def _decide(files: Sequence[Path], labels: Labels | None) -> Volume:
    """One label map of several, with the geometry of the first.

    Raises:
        DatasetError: a file cannot be read, or they do not fit each other; every difference is named.
    """
    first = read_label(files[0])
    maps = [first]
    problems = []
    for path in files[1:]:
        other = read_label(path)
        difference = grid_difference(other, first, tolerance_mm=GRID_TOLERANCE_MM)
        if difference is not None:
            problems.append(f"{path} {difference.fault.replace('the first image', files[0].name)}")
        # With probabilities only the grid counts.
        maps.append(other if labels is None else first)
    if problems:
        raise DatasetError("; ".join(problems), hint="resample one to the grid of the other")
    if labels is None:
        return Volume(_vote([one.data for one in maps]), first.geometry)
    decided = _mean_decision([_probabilities(path) for path in files], labels, first.shape)
    return Volume(decided[np.newaxis], first.geometry)


def _vote(maps: Sequence[np.ndarray]) -> np.ndarray:
    """The value that most maps have; of several such values, that of the earliest map."""
    result = maps[0].copy()
    most = np.zeros(result.shape, dtype=np.uint16)
    for one in maps:
        votes = sum((other == one).astype(np.uint16) for other in maps)
        better = votes > most
        result = np.where(better, one, result)
        most = np.maximum(most, votes)
    return result


def _mean_decision(files: Sequence[Path], labels: Labels, shape: tuple[int, ...]) -> np.ndarray:
    """The decision (z, y, x) of mean probabilities; memory does not grow with the number of classes."""
    wanted = (labels.num_heads, *shape)
    for path in files:
        found = probabilities_shape(path)
        if found != wanted:
            raise DatasetError(
                f"{path} has {found[0]} classes of {found[1:]} voxels, not {wanted[0]} of {wanted[1:]}",
                hint="check that it lies beside its segmentation, and that dataset.json is that of the model",
            )
    order = labels.regions_class_order or ()
    values = order if labels.has_regions else labels.leaves
    result = np.zeros(shape, dtype=np.int32)
    best = np.full(shape, -np.inf, dtype=np.float32)
    for value, *heads in zip(values, *map(probability_heads, files), strict=True):
        mean = sum(head.astype(np.float32) for head in heads) / len(heads)
        chosen = mean > 0.5 if labels.has_regions else mean > best
        result[chosen] = value
        np.maximum(best, mean, out=best)
    return result
