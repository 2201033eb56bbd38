"""``autoseg_select``: which model, or which two together, and what to do to their segmentations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from autoseg import records
from autoseg.errors import DatasetError
from autoseg.evaluation.adoption import (
    SMALLEST_GAIN,
    Chain,
    case_means,
    choose_chain,
    stages,
)
from autoseg.evaluation.intervals import mean_interval, paired_difference
from autoseg.io.discover import resolve_workspace
from autoseg.log import get_logger, table
from autoseg.pipeline.chain_scores import ChainScores
from autoseg.pipeline.context import choose_dataset
from autoseg.pipeline.crossval import Contender, Field, pairs_of, single, together, trained_models
from autoseg.pipeline.ranking import FEWEST_CASES
from autoseg.pipeline.weights import digests
from autoseg.schema.afterwards import SelectSettings
from autoseg.schema.folders import SelectionFolder
from autoseg.schema.postprocessing import PostProcessing
from autoseg.schema.report import Interval
from autoseg.schema.selection import Candidate, Selection, StepTrial

_LOG = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """A contender with its post-processing, and the Dice of each case before and after."""

    contender: Contender
    chain: Chain
    trials: tuple[StepTrial, ...]
    before: Mapping[str, float]
    after: Mapping[str, float]

    @property
    def mean(self) -> float:
        return _mean(self.after)


def select(settings: SelectSettings) -> Selection:
    """Compare every trained model and every two together on their held-out cases, and write ``selection.json``.

    For each of them post-processing is chosen first (``evaluation.adoption`` says how), then the highest mean Dice
    over cases wins. Two models take twice the time of one, so they must be better than the best single one by at least
    ``SMALLEST_GAIN``. Every model's own post-processing goes into its folder, as ``postprocessing.json``. What a
    stopped run did is not done again.

    Raises:
        ModelFolderError: nothing is trained, or models have no held-out case in common.
        DatasetError: files of the dataset are gone or changed, or no held-out case has an annotated label.
        ResourceError: memory or disk do not suffice.
        RecordError: a record of a model cannot be read.
    """
    workspace = resolve_workspace(settings.workdir)
    dataset = choose_dataset(settings.dataset, workspace)
    folder = workspace.selection(dataset)
    field = trained_models(folder)
    _LOG.info("comparing %d models on %d held-out cases", len(field.models), len(field.cases))
    # Before anything is segmented: what is trained meanwhile will be noticed.
    weights = {one.name: digests(one.model) for one in field.models}
    contenders = [
        single(one, field.cases, folder, device=settings.device, memory=settings.memory) for one in field.models
    ]
    judged = [_judge(one, field, folder, settings) for one in contenders]
    for members in pairs_of(field.models) if settings.ensembles else ():
        pair = together(members, field.cases, folder, device=settings.device, memory=settings.memory)
        judged.append(_judge(pair, field, folder, settings))
    selection = replace(_selection(dataset, field, judged), weights=weights)
    _write(selection, folder)
    _LOG.info("%s\n%s\nwritten: %s", selection_table(selection), _steps_text(selection), folder.file)
    return selection


def _judge(contender: Contender, field: Field, folder: SelectionFolder, settings: SelectSettings) -> _Judged:
    labels = field.spec.labels
    scores = ChainScores(contender=contender, labels=labels, folder=folder, workers=settings.workers)
    before = case_means(scores.score([()])[()])
    if not before:
        raise DatasetError("no label of any held-out case was annotated", hint="train folds that hold out such cases")
    chain, trials = choose_chain(stages(labels, scores.volumes()), scores.score)
    after = case_means(scores.score([chain])[chain])
    _LOG.info("%s: Dice %.4f, after post-processing %.4f", " + ".join(contender.models), _mean(before), _mean(after))
    return _Judged(contender=contender, chain=chain, trials=trials, before=before, after=after)


def _mean(values: Mapping[str, float]) -> float:
    return math.fsum(values.values()) / len(values)


def _selection(dataset: str, field: Field, judged: Sequence[_Judged]) -> Selection:
    # Earlier ones first among equals: single models come before pairs.
    ranked = sorted(judged, key=lambda one: -one.mean)
    alone = next(one for one in ranked if len(one.contender.models) == 1)
    best = ranked[0] if ranked[0].mean >= alone.mean + SMALLEST_GAIN else alone
    ranked = [best, *(one for one in ranked if one is not best)]
    candidates = tuple(
        Candidate(
            models=one.contender.models,
            dice=mean_interval(list(one.before.values())),
            dice_after=mean_interval(list(one.after.values())),
            difference=paired_difference(one.after, best.after),
            postprocessing=one.chain,
            trials=one.trials,
        )
        for one in ranked
    )
    return Selection(
        dataset=dataset,
        models=best.contender.models,
        postprocessing=best.chain,
        cases=len(best.after),
        candidates=candidates,
        left_out=field.left_out,
        verdict=_verdict(candidates, len(best.after)),
    )


def _verdict(candidates: Sequence[Candidate], cases: int) -> str:
    best = candidates[0]
    text = f"Dice {_shown(best.dice_after)} on {cases} held-out cases"
    if len(best.models) > 1:
        alone = next(one for one in candidates if len(one.models) == 1)
        sure = "clearly less" if alone.difference.high < 0 else "not clearly less, in half the time"
        text += f"; {alone.name} alone has {alone.difference.mean:+.4f}, {sure}"
    if cases < FEWEST_CASES:
        text += "; so few cases say little"
    return text


def _write(selection: Selection, folder: SelectionFolder) -> None:
    models = {one.models[0]: one for one in selection.candidates if len(one.models) == 1}
    for name, candidate in models.items():
        path = folder.model(name).postprocessing
        if candidate.postprocessing:
            records.save(path, PostProcessing(steps=candidate.postprocessing, weights=selection.weights[name]))
        else:
            path.unlink(missing_ok=True)
    # Last: it says that everything is there.
    records.save(folder.file, selection)


def selection_table(selection: Selection) -> str:
    """The candidates, best first."""
    rows = [
        [
            number,
            one.name,
            _shown(one.dice),
            _shown(one.dice_after),
            _shown(one.difference, sign="+") if number > 1 else "-",
            len(one.postprocessing),
        ]
        for number, one in enumerate(selection.candidates, start=1)
    ]
    header = ["#", "model", "Dice [95%]", "post-processed [95%]", "to the first [95%]", "steps"]
    return table(rows, header=header)


def _steps_text(selection: Selection) -> str:
    lines = [f"chosen: {selection.candidates[0].name}: {selection.verdict}"]
    for trial in selection.candidates[0].trials:
        answer = "yes" if trial.adopted else "no"
        lines.append(f"  {trial.step.words}: {_shown(trial.gain, sign='+')}, {answer}")
    return "\n".join(lines)


def _shown(interval: Interval, *, sign: str = "") -> str:
    if math.isnan(interval.low):
        return f"{interval.mean:{sign}.4f}"
    return f"{interval.mean:{sign}.4f} [{interval.low:{sign}.4f}, {interval.high:{sign}.4f}]"
