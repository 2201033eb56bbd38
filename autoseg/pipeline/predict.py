"""Segment a folder of images: choose a model, read ahead, predict, write behind, and report what failed."""

from __future__ import annotations

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
    PartialError,
    RecordError,
    ResourceError,
    SettingError,
    joined,
)
from autoseg.inference.cascade import model_before
from autoseg.inference.joint import JointPredictor
from autoseg.inference.predictor import Predictor, Segmentation
from autoseg.io.discover import repeated
from autoseg.io.images import read_label, split_ending, write_label
from autoseg.io.inputs import cases_to_predict, output_ending, read_case, write_case_seg
from autoseg.io.volume import Geometry
from autoseg.log import duration, get_logger, progress
from autoseg.ops.postprocess import postprocess
from autoseg.parallel import map_cases, prefetch
from autoseg.pipeline.choose import Choice, choose
from autoseg.pipeline.context import versions
from autoseg.pipeline.dicom_seg import refuse_other_formats, seg_path
from autoseg.pipeline.uncertainty import (
    AnyDoubtful,
    doubt_files,
    doubtful,
    remove_doubt,
    sum_up_doubts,
    with_missing_doubt,
    write_doubt,
)
from autoseg.pipeline.weights import weights_digest
from autoseg.schema.dataset import CaseFiles, DatasetSpec, Labels
from autoseg.schema.postprocessing import PostStep
from autoseg.schema.report import PredictionRun
from autoseg.schema.settings import PredictSettings

_LOG = get_logger(__name__)

RUN_FILE = "predict.json"
PROBABILITIES = "probabilities"

AnyPredictor = Predictor | JointPredictor | AnyDoubtful


@dataclass(frozen=True, kw_only=True)
class PredictReport:
    """What a prediction did; ``skipped`` were complete before. ``model`` and ``folds`` are those of the first model."""

    model: Path
    models: tuple[Path, ...]
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
    choice = choose(settings)
    spec = records.load(DatasetSpec, choice.first.dataset)
    found = cases_to_predict(Path(settings.inputs), num_channels=len(spec.channels), file_ending=spec.file_ending)
    unusable = {**found.broken, **_twins(found.cases)}
    cases = [case for case in found.cases if case.id not in unusable]
    if settings.dicom_seg:
        refuse_other_formats(cases)
    outputs = Path(settings.outputs).expanduser().absolute()
    targets = _targets(cases, outputs)
    _refuse_foreign(outputs, targets)
    # Before the weights are read, which takes long.
    records.make_folder(outputs)
    predictor = _predictor(choice, settings)
    todo = _begin(cases, targets, choice, predictor, settings, outputs)
    failed = {**unusable, **_run(todo, targets, predictor, choice.steps, settings, spec.labels)}
    if isinstance(predictor, AnyDoubtful):
        sum_up_doubts(outputs, targets, predictor)
    if failed:
        _raise(failed, len(cases) + len(unusable), outputs)
    done = {case.id for case in todo}
    report = PredictReport(
        model=choice.first.root,
        models=tuple(model.root for model in choice.models),
        folds=_members(predictor)[0].folds,
        written=tuple(targets[case.id] for case in todo),
        skipped=tuple(targets[case.id] for case in cases if case.id not in done),
        seconds=time.monotonic() - started,
    )
    _LOG.info("%d segmentations in %s, %s", len(report.written), outputs, duration(report.seconds))
    return report


def _predictor(choice: Choice, settings: PredictSettings) -> AnyPredictor:
    members = [
        Predictor.load(
            model.root,
            folds=settings.fold,
            device=settings.device,
            tta=settings.tta,
            step_size=settings.step_size,
            memory=settings.memory,
            prune=settings.prune,
        )
        for model in choice.models
    ]
    if settings.uncertainty:
        return doubtful(members, choice.models)
    return members[0] if len(members) == 1 else JointPredictor.together(members)


def _members(predictor: AnyPredictor) -> tuple[Predictor, ...]:
    inner = predictor.predictor if isinstance(predictor, AnyDoubtful) else predictor
    return inner.members if isinstance(inner, JointPredictor) else (inner,)


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
    written = [*targets.values(), *map(_probabilities_path, targets.values()), *map(seg_path, targets.values())]
    written += dict.fromkeys(path for target in targets.values() for path in doubt_files(target))
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
    choice: Choice,
    predictor: AnyPredictor,
    settings: PredictSettings,
    outputs: Path,
) -> tuple[CaseFiles, ...]:
    """The cases to predict; writes the facts beside the segmentations and removes what is out of date."""
    model = choice.first
    run = _describe(choice, _members(predictor))
    records.remove_partial(outputs)
    todo = tuple(cases)
    if settings.continue_:
        if _same_making(outputs / RUN_FILE, run):
            wanted = settings.save_probabilities
            todo = tuple(
                case
                for case in cases
                if not _complete(targets[case.id], probabilities=wanted)
                or (settings.dicom_seg and not seg_path(targets[case.id]).exists())
            )
            if isinstance(predictor, AnyDoubtful):
                todo = with_missing_doubt(cases, todo, targets, predictor)
            _LOG.info("continue: %d of %d images are complete", len(cases) - len(todo), len(cases))
        else:
            _LOG.info("continue: what is in %s was not made by this model and these settings", outputs)
    for case in todo:
        # Else a segmentation of an earlier run could be taken for one of this run, should this one be killed.
        targets[case.id].unlink(missing_ok=True)
        _probabilities_path(targets[case.id]).unlink(missing_ok=True)
        seg_path(targets[case.id]).unlink(missing_ok=True)
        remove_doubt(targets[case.id])
    # First of the facts: it marks the folder as one of ours, which the next run may write to.
    records.save(outputs / RUN_FILE, run)
    records.write_text(outputs / model.plan.name, model.plan.read_text(encoding="utf-8"))
    records.write_text(outputs / model.dataset.name, model.dataset.read_text(encoding="utf-8"))
    return todo


def _describe(choice: Choice, members: Sequence[Predictor]) -> PredictionRun:
    weights: dict[str, str] = {}
    for model, member in zip(choice.models, members, strict=True):
        prefix = f"{model.root.name}/" if len(members) > 1 else ""
        weights |= {f"{prefix}{name}": weights_digest(model.fold(name).weights) for name in member.folds}
        if member.first is not None:
            before = model_before(model, member.configuration)
            weights |= {
                f"{prefix}{before.root.name}/{name}": weights_digest(before.fold(name).weights)
                for name in member.first.folds
            }
    first = members[0]
    return PredictionRun(
        command=shlex.join(["autoseg_predict", *sys.argv[1:]]),
        model=" + ".join(str(model.root) for model in choice.models),
        configuration=" + ".join(member.configuration.name for member in members),
        weights=weights,
        mirror_axes=tuple(axis for member in members for axis in member.ensemble.mirror_axes),
        step_size=first.step_size,
        prune=first.configuration.architecture.arguments.get("prune"),
        postprocessing=choice.steps,
        versions=versions(),
    )


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
    todo: Sequence[CaseFiles],
    targets: Mapping[str, Path],
    predictor: AnyPredictor,
    steps: Sequence[PostStep],
    settings: PredictSettings,
    labels: Labels,
) -> dict[str, Exception]:
    """Predict and write; returns the errors of the cases that failed."""
    failed: dict[str, Exception] = {}
    seg = labels if settings.dicom_seg else None
    results = _results(todo, predictor, probabilities=settings.save_probabilities)
    # The network runs in the background thread, one image ahead of writing in this one.
    for result in progress(prefetch(results, depth=1), total=len(todo), label="predict"):
        error = result.error or _write(result, targets[result.case.id], steps, seg)
        if error is not None:
            failed[result.case.id] = error
            _LOG.warning("%s: %s", result.case.id, _sentence(error))
            _LOG.debug("%s", result.case.id, exc_info=error)
    return failed


def _results(cases: Sequence[CaseFiles], predictor: AnyPredictor, *, probabilities: bool) -> Iterator[_Result]:
    """Segmentations in order; reading keeps one image ahead."""
    load = partial(_load, predictor=predictor, probabilities=probabilities)
    for outcome in prefetch(map_cases(load, cases, workers=0), depth=1):
        try:
            loaded = outcome.unwrap()
            result = _Result(outcome.item, loaded.geometry, loaded.segment())
        except Exception as error:  # one bad image, whatever is bad about it, must not stop the others
            result = _Result(outcome.item, error=error)
        yield result


def _load(case: CaseFiles, *, predictor: AnyPredictor, probabilities: bool) -> _Loaded:
    volume = read_case(case)
    if isinstance(predictor, Predictor) and predictor.ensemble.device.type == "cuda":
        # The processor has nothing else to do; on a CPU two images at work would double the peak of memory.
        prepared = predictor.prepare(volume)
        return _Loaded(volume.geometry, partial(predictor.infer, prepared, probabilities=probabilities))
    return _Loaded(volume.geometry, partial(predictor.segment, volume, probabilities=probabilities))


def _write(result: _Result, target: Path, steps: Sequence[PostStep], seg: Labels | None) -> Exception | None:
    """Write a result, with ``seg`` as DICOM SEG too. That the segmentation is there says that all before it are; the
    SEG comes after it, which some series cannot carry.
    """
    if result.segmentation is None or result.geometry is None:
        return None
    try:
        if result.segmentation.probabilities is not None:
            with records.atomic_path(_probabilities_path(target)) as temporary:
                np.savez_compressed(temporary, probabilities=result.segmentation.probabilities)
        if result.segmentation.doubt is not None:
            write_doubt(target, result.segmentation.doubt, result.geometry)
        labels = postprocess(result.segmentation.labels, steps, voxel_size=result.geometry.voxel_size)
        write_label(target, labels, result.geometry)
        if seg is not None:
            _write_seg(target, result.case, labels, seg)
    except ResourceError:
        # A full disk fails every image that follows.
        raise
    except (AutosegError, OSError) as error:
        return error
    return None


def _write_seg(target: Path, case: CaseFiles, segmentation: np.ndarray, labels: Labels) -> None:
    try:
        write_case_seg(seg_path(target), case, segmentation, labels)
    except DatasetError as error:
        raise DatasetError(f"the segmentation is in {target}, but {error.message}", hint=error.hint) from error


def _sentence(error: Exception) -> str:
    return error.message if isinstance(error, AutosegError) else repr(error)


def _raise(failed: Mapping[str, Exception], total: int, outputs: Path) -> None:
    if total == 1:
        ((id_, error),) = failed.items()
        if isinstance(error, ResourceError | DivergenceError):
            # The exit status of these says more than that of a bad image.
            raise type(error)(f"{id_}: {error.message}", hint=error.hint) from error
        hint = error.hint if isinstance(error, AutosegError) else "check the image; --debug shows where it happened"
        raise DatasetError(f"{id_} failed: {_sentence(error)}", hint=hint) from error
    lines = [f"{id_}: {_sentence(error)}" for id_, error in failed.items()]
    raise PartialError(
        f"{len(failed)} of {total} images failed:\n{joined(lines)}",
        hint=f"the others are complete in {outputs}; mend these and run the same command with --continue",
    )
