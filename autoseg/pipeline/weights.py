"""What a trained model is: its configuration, and its weights, to notice when they are others now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from autoseg import records
from autoseg.inference.cascade import model_before
from autoseg.io.bundle import file_sha256
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Plan
from autoseg.schema.report import RunReport

_BEFORE = " of the first stage"


def digests(model: ModelFolder, folds: Sequence[str] = ()) -> dict[str, str]:
    """SHA-256 sums of weights by fold (default: all that are finished), in a cascade those of the first stage too.

    Raises:
        ModelFolderError: the first stage of a cascade is not there.
    """
    files = {name: model.fold(name).weights for name in folds or model.finished_folds()}
    before = stage_before(model)
    if before is not None:
        files |= {f"{name}{_BEFORE}": before.fold(name).weights for name in before.finished_folds()}
    return {name: weights_digest(path) for name, path in files.items()}


def weights_digest(path: Path) -> str:
    """SHA-256 of a file of weights, which is read once as long as it stays as it is.

    One prediction asks for its post-processing, for its temperature and for what it writes down, of large files.
    """
    state = path.stat()
    return _digest(path, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@lru_cache(maxsize=256)
def _digest(path: Path, *state: int) -> str:
    """``state`` is another one as soon as the file is."""
    return file_sha256(path)


def changed_folds(known: Mapping[str, str], today: Mapping[str, str]) -> tuple[str, ...]:
    """The folds that both ``digests`` name, with other weights; those that only one of them names count as they are."""
    return tuple(name for name, digest in today.items() if known.get(name, digest) != digest)


def configuration_of(model: ModelFolder) -> str:
    """The name of the configuration that a model was trained with."""
    return str(records.load(RunReport, model.run).settings.get("configuration"))


def stage_before(model: ModelFolder) -> ModelFolder | None:
    """Of the second stage of a cascade, the model of the first.

    Raises:
        ModelFolderError: it is not there.
    """
    configuration = records.load(Plan, model.plan).configuration(configuration_of(model))
    return None if configuration.previous_stage is None else model_before(model, configuration)


__all__ = ["changed_folds", "configuration_of", "digests", "stage_before", "weights_digest"]
