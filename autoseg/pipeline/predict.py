"""Segment a folder of images: choose a model, read ahead, predict, write behind, and report what failed."""

from __future__ import annotations

import hashlib
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from autoseg import records
from autoseg.errors import (
    AutosegError,
    DatasetError,
    DivergenceError,
    ModelFolderError,
    PartialError,
    RecordError,
    ResourceError,
    SettingError,
    joined,
)
from autoseg.inference.predictor import Predictor, Segmentation
from autoseg.interop.nnunet_model import as_model_folder
from autoseg.io.discover import repeated, resolve_workspace
from autoseg.io.images import read_label, split_ending, write_label
from autoseg.io.inputs import cases_to_predict, output_ending, read_case
from autoseg.io.volume import Geometry
from autoseg.log import duration, get_logger, progress
from autoseg.parallel import map_cases, prefetch
from autoseg.pipeline.context import choose_dataset, versions
from autoseg.schema.dataset import CaseFiles, DatasetSpec
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Plan
from autoseg.schema.report import EvaluationReport, PredictionRun, RunReport
from autoseg.schema.settings import PredictSettings

_LOG = get_logger(__name__)

RUN_FILE = "predict.json"
PROBABILITIES = "probabilities"


@dataclass(frozen=True, kw_only=True)
class PredictReport:
    """What a prediction did; ``skipped`` were complete before."""

    model: Path
    folds: tuple[str, ...]
    written: tuple[Path, ...]
    skipped: tuple[Path, ...]
    seconds: float


@dataclass(frozen=True)
class _Loaded:
    """An image that is read; ``segment`` does the rest."""

    geometry: Geometry
    segment: Callable[[], Segmentation]


@dataclass(frozen=True)
class _Result:
    case: CaseFiles
    geometry: Geometry | None = None
    segmentation: Segmentation | None = None
    error: Exception | None = None


def predict(settings: PredictSettings) -> PredictReport:
    """Segment every image of ``settings.inputs`` into ``settings.outputs``, with the geometry of the input.

    Segmentations appear under their final name only when they are complete. ``plan.json``, ``dataset.json`` and
    ``predict.json`` beside them say what made them.

    Raises:
        DatasetError, SettingError, ModelFolderError: nothing can be predicted.
        PartialError: some images failed; the message lists them, all others are complete.
        ResourceError: the disk is full.
    """
    started = time.monotonic()
    if not settings.inputs or not settings.outputs:
        raise SettingError("inputs and outputs are both needed", hint="give -i IN -o OUT")
    model = choose_model(settings)
    spec = records.load(DatasetSpec, model.dataset)
    found = cases_to_predict(Path(settings.inputs), num_channels=len(spec.channels), file_ending=spec.file_ending)
    twins = _twins(found)
    cases = [case for case in found if case.id not in twins]
    outputs = Path(settings.outputs).expanduser().absolute()
    targets = _targets(cases, outputs)
    _refuse_foreign(outputs, targets)
    # Before the weights are read, which takes long.
    records.make_folder(outputs)
    predictor = Predictor.load(
        model.root,
        folds=settings.fold,
        device=settings.device,
        tta=settings.tta,
        step_size=settings.step_size,
        memory=settings.memory,
        prune=settings.prune,
    )
    todo = _begin(cases, targets, model, predictor, settings, outputs)
    failed = {**twins, **_run(todo, targets, predictor, settings)}
    if failed:
        _raise(failed, len(cases) + len(twins), outputs)
    done = {case.id for case in todo}
    report = PredictReport(
        model=model.root,
        folds=predictor.folds,
        written=tuple(targets[case.id] for case in todo),
        skipped=tuple(targets[case.id] for case in cases if case.id not in done),
        seconds=time.monotonic() - started,
    )
    _LOG.info("%d segmentations in %s, %s", len(report.written), outputs, duration(report.seconds))
    return report


def _twins(cases: Sequence[CaseFiles]) -> dict[str, Exception]:
    """The names that several images have, each as the error that fails it."""
    images = {
        id_: [path for case in cases if case.id == id_ for path in case.images]
        for id_ in repeated(case.id for case in cases)
    }
    hint = "keep one of them, or rename it"
    return {
        id_: DatasetError(f"several images have this name: {' and '.join(paths)}", hint=hint)
        for id_, paths in images.items()
    }


def choose_model(settings: PredictSettings) -> ModelFolder:
    """The model asked for, else the trained one of the dataset that did best in validation (and say which).

    Raises:
        ModelFolderError: there is no trained model, or none of the configuration.
    """
    if settings.model is not None:
        cache = resolve_workspace(settings.workdir).root / "cache" / "nnunet"
        folder = as_model_folder(settings.model, cache, configuration=settings.configuration)
        return _named_model(folder, settings.configuration)
    workspace = resolve_workspace(settings.workdir)
    dataset = choose_dataset(settings.dataset, workspace)
    root = workspace.results / dataset
    trained = [folder for folder in map(ModelFolder, sorted(root.glob("*"))) if folder.finished_folds()]
    fitting = [folder for folder in trained if settings.configuration in {None, _configuration_of(folder)}]
    if settings.arch is not None:
        fitting = [folder for folder in fitting if settings.arch == _architecture_of(folder)]
    if not fitting:
        asked = {"configuration": settings.configuration, "architecture": settings.arch}
        wanted = " and ".join(f"{what} {name}" for what, name in asked.items() if name)
        wanted = f" of {wanted}" if wanted else ""
        names = ", ".join(f"{_configuration_of(folder)} with {_architecture_of(folder)}" for folder in trained)
        raise ModelFolderError(
            f"there is no trained model{wanted} in {root}",
            hint=f"trained are: {names}" if names else "run autoseg_train first, or name a model folder with --model",
        )
    scores = {folder: _validation_dice(folder) for folder in fitting}
    best = max(fitting, key=lambda folder: _rank(folder, scores[folder]))
    score = "not validated" if math.isnan(scores[best]) else f"validation Dice {scores[best]:.4f}"
    _LOG.info("model: %s (%s, the best of %d)", best.root, score, len(fitting))
    return best


def _named_model(root: Path, configuration: str | None) -> ModelFolder:
    folder = ModelFolder(root)
    if not folder.finished_folds():
        raise ModelFolderError(
            f"{root} is not a folder of a trained model", hint="give the folder that holds plan.json and fold_0"
        )
    if configuration is not None and configuration != _configuration_of(folder):
        raise SettingError(
            f"{root} is a model of configuration {_configuration_of(folder)}, not {configuration}",
            hint="leave out --configuration, or give another --model",
        )
    return folder


def _configuration_of(folder: ModelFolder) -> str:
    return str(records.load(RunReport, folder.run).settings.get("configuration"))


def _architecture_of(folder: ModelFolder) -> str:
    return records.load(Plan, folder.plan).configuration(_configuration_of(folder)).architecture.label


def _validation_dice(folder: ModelFolder) -> float:
    """Mean over the validated folds, NaN if there are none."""
    paths = [folder.fold(name).summary for name in folder.finished_folds()]
    scores = [records.load(EvaluationReport, path).foreground_dice for path in paths if path.exists()]
    known = [score for score in scores if not math.isnan(score)]
    return sum(known) / len(known) if known else math.nan


def _rank(folder: ModelFolder, score: float) -> tuple[float, bool, int]:
    """Validated before not validated, then the planned default, then the larger ensemble."""
    default = records.load(Plan, folder.plan).default_configuration == _configuration_of(folder)
    return (-1.0 if math.isnan(score) else score, default, len(folder.finished_folds()))


def _targets(cases: Sequence[CaseFiles], outputs: Path) -> dict[str, Path]:
    """Where each segmentation goes: the input's format, PNG in place of JPEG.

    Raises:
        SettingError: a segmentation would overwrite an image.
    """
    targets = {case.id: outputs / f"{case.id}{output_ending(case)}" for case in cases}
    images = {Path(image).resolve() for case in cases for image in case.images}
    overwritten = [str(path) for path in targets.values() if path.resolve() in images]
    if overwritten:
        raise SettingError(
            f"segmentations would overwrite images:\n{joined(overwritten)}", hint="give another folder with -o"
        )
    return targets


def _refuse_foreign(outputs: Path, targets: Mapping[str, Path]) -> None:
    """Nothing is replaced in a folder that no prediction wrote.

    Raises:
        SettingError: it holds files with names that would be written.
    """
    if (outputs / RUN_FILE).exists():
        return
    written = [*targets.values(), *map(_probabilities_path, targets.values())]
    facts = [outputs / name for name in ("dataset.json", "plan.json")]
    there = [path.name for path in (*facts, *written) if path.exists()]
    if there:
        more = f" and {len(there) - 3} more" if len(there) > 3 else ""
        raise SettingError(
            f"{outputs} holds files that no prediction wrote and that would be replaced: {', '.join(there[:3])}{more}",
            hint="give an empty folder with -o",
        )


def _begin(
    cases: Sequence[CaseFiles],
    targets: Mapping[str, Path],
    model: ModelFolder,
    predictor: Predictor,
    settings: PredictSettings,
    outputs: Path,
) -> tuple[CaseFiles, ...]:
    """The cases to predict; writes the facts beside the segmentations and removes what is out of date."""
    run = _describe(model, predictor)
    records.remove_partial(outputs)
    todo = tuple(cases)
    if settings.continue_:
        if _same_making(outputs / RUN_FILE, run):
            wanted = settings.save_probabilities
            todo = tuple(case for case in cases if not _complete(targets[case.id], probabilities=wanted))
            _LOG.info("continue: %d of %d images are complete", len(cases) - len(todo), len(cases))
        else:
            _LOG.info("continue: what is in %s was not made by this model and these settings", outputs)
    for case in todo:
        # Else a segmentation of an earlier run could be taken for one of this run, should this one be killed.
        targets[case.id].unlink(missing_ok=True)
        _probabilities_path(targets[case.id]).unlink(missing_ok=True)
    # First of the facts: it marks the folder as one of ours, which the next run may write to.
    records.save(outputs / RUN_FILE, run)
    records.write_text(outputs / model.plan.name, model.plan.read_text(encoding="utf-8"))
    records.write_text(outputs / model.dataset.name, model.dataset.read_text(encoding="utf-8"))
    return todo


def _describe(model: ModelFolder, predictor: Predictor) -> PredictionRun:
    return PredictionRun(
        command=shlex.join(["autoseg_predict", *sys.argv[1:]]),
        model=str(model.root),
        configuration=predictor.configuration.name,
        weights={name: _digest(model.fold(name).weights) for name in predictor.folds},
        mirror_axes=predictor.ensemble.mirror_axes,
        step_size=predictor.step_size,
        prune=predictor.configuration.architecture.arguments.get("prune"),
        versions=versions(),
    )


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _same_making(path: Path, run: PredictionRun) -> bool:
    try:
        earlier = records.load(PredictionRun, path)
    except RecordError:
        return False
    return earlier.making == run.making


def _complete(target: Path, *, probabilities: bool) -> bool:
    """Whether a segmentation (and its probabilities, if wanted) is there and can be read."""
    try:
        if not target.exists():
            return False
        read_label(target)
        if not probabilities:
            return True
        with np.load(_probabilities_path(target), allow_pickle=False) as archive:
            return PROBABILITIES in archive.files
    except (AutosegError, OSError, ValueError, BadZipFile):
        return False


def _probabilities_path(target: Path) -> Path:
    return target.with_name(f"{split_ending(target.name)[0]}.npz")


def _run(
    todo: Sequence[CaseFiles], targets: Mapping[str, Path], predictor: Predictor, settings: PredictSettings
) -> dict[str, Exception]:
    """Predict and write; returns the errors of the cases that failed."""
    failed: dict[str, Exception] = {}
    results = _results(todo, predictor, probabilities=settings.save_probabilities)
    # The network runs in the background thread, one image ahead of writing in this one.
    for result in progress(prefetch(results, depth=1), total=len(todo), label="predict"):
        error = result.error or _write(result, targets[result.case.id])
        if error is not None:
            failed[result.case.id] = error
            _LOG.warning("%s: %s", result.case.id, _sentence(error))
            _LOG.debug("%s", result.case.id, exc_info=error)
    return failed


def _results(cases: Sequence[CaseFiles], predictor: Predictor, *, probabilities: bool) -> Iterator[_Result]:
    """Segmentations in order; reading keeps one image ahead."""
    load = partial(_load, predictor=predictor, probabilities=probabilities)
    for outcome in prefetch(map_cases(load, cases, workers=0), depth=1):
        try:
            loaded = outcome.unwrap()
            result = _Result(outcome.item, loaded.geometry, loaded.segment())
        except Exception as error:  # one bad image, whatever is bad about it, must not stop the others
            result = _Result(outcome.item, error=error)
        yield result


def _load(case: CaseFiles, *, predictor: Predictor, probabilities: bool) -> _Loaded:
    volume = read_case(case)
    if predictor.ensemble.device.type == "cuda":
        # The processor has nothing else to do; on a CPU two images at work would double the peak of memory.
        prepared = predictor.prepare(volume)
        return _Loaded(volume.geometry, partial(predictor.infer, prepared, probabilities=probabilities))
    return _Loaded(volume.geometry, partial(predictor.segment, volume, probabilities=probabilities))


def _write(result: _Result, target: Path) -> Exception | None:
    """Write a result; the segmentation comes last, because its presence says that everything is there."""
    if result.segmentation is None or result.geometry is None:
        return None
    try:
        if result.segmentation.probabilities is not None:
            with records.atomic_path(_probabilities_path(target)) as temporary:
                np.savez_compressed(temporary, probabilities=result.segmentation.probabilities)
        write_label(target, result.segmentation.labels, result.geometry)
    except ResourceError:
        # A full disk fails every image that follows.
        raise
    except (AutosegError, OSError) as error:
        return error
    return None


def _sentence(error: Exception) -> str:
    return error.message if isinstance(error, AutosegError) else repr(error)


def _raise(failed: Mapping[str, Exception], total: int, outputs: Path) -> None:
    if total == 1:
        ((id_, error),) = failed.items()
        if isinstance(error, ResourceError | DivergenceError):
            # The exit status of these says more than that of a bad image.
            raise type(error)(f"{id_}: {error.message}", hint=error.hint) from error
        hint = error.hint if isinstance(error, AutosegError) else "check the image; --debug shows where it happened"
        raise DatasetError(f"{id_} could not be segmented: {_sentence(error)}", hint=hint) from error
    lines = [f"{id_}: {_sentence(error)}" for id_, error in failed.items()]
    raise PartialError(
        f"{len(failed)} of {total} images could not be segmented:\n{joined(lines)}",
        hint=f"the others are complete in {outputs}; mend these and run the same command with --continue",
    )
