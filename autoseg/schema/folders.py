"""Where everything lies. Paths and nothing else; no other code joins strings to find a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FIRST_STAGE = "first_stage"
PREVIOUS_MODEL = "previous_model"
"""The setting in run.json with the path of the first stage's model, relative to that of the second."""

_RACE, _SELECTION, _SELECTION_FILE = "race", "selection", "selection.json"
NO_MODELS = frozenset({_RACE, _SELECTION, _SELECTION_FILE})
"""What else lies among the models of a dataset."""


@dataclass(frozen=True)
class Workspace:
    """The work directory: ``raw/`` (read only), ``preprocessed/`` and ``results/``."""

    root: Path

    @property
    def raw(self) -> Path:
        return self.root / "raw"

    @property
    def preprocessed(self) -> Path:
        return self.root / "preprocessed"

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def current(self) -> Path:
        """Remembers the dataset that was planned last."""
        return self.root / "current.json"

    @property
    def translated(self) -> Path:
        """Models of nnU-Net as they were translated, so that none is translated twice."""
        return self.root / "cache" / "nnunet"

    def prepared(self, dataset: str) -> PreparedFolder:
        return PreparedFolder(self.preprocessed / dataset)

    def model(self, dataset: str, configuration: str, architecture: str) -> ModelFolder:
        """``architecture`` is NAME or NAME:PRESET."""
        return ModelFolder(self.results / dataset / _model_name(configuration, architecture))

    def race(self, dataset: str) -> RaceFolder:
        return RaceFolder(self.results / dataset / _RACE)

    def selection(self, dataset: str) -> SelectionFolder:
        return SelectionFolder(self.results / dataset)


def _file_name(architecture: str) -> str:
    # A colon is no character for a folder.
    return architecture.replace(":", "-")


def _model_name(configuration: str, architecture: str) -> str:
    return f"{_file_name(architecture)}_{configuration}"


@dataclass(frozen=True)
class PreparedFolder:
    """What preparation leaves for one dataset."""

    root: Path

    @property
    def dataset(self) -> Path:
        return self.root / "dataset.json"

    @property
    def fingerprint(self) -> Path:
        return self.root / "fingerprint.json"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def plan_origin(self) -> Path:
        """What the plan was made from, to notice when it is out of date or edited by hand."""
        return self.root / "plan_origin.json"

    def alternative(self, architecture: str) -> Path:
        """The plan for another architecture than that of ``plan``, from the same settings."""
        return self.root / "plans" / f"{_file_name(architecture)}.json"

    def alternative_origin(self, architecture: str) -> Path:
        return self.alternative(architecture).with_suffix(".origin.json")

    @property
    def paces(self) -> Path:
        """Seconds per training step that were measured on this machine."""
        return self.root / "paces.json"

    @property
    def splits(self) -> Path:
        return self.root / "splits.json"

    def store(self, configuration: str) -> Path:
        return self.root / configuration

    def own_store(self, configuration: str, architecture: str) -> Path:
        """The store of an architecture (NAME or NAME:PRESET) whose images are preprocessed in a way of their own."""
        return self.store(f"{configuration}_{_file_name(architecture)}")


@dataclass(frozen=True)
class ModelFolder:
    """A trained model: self-contained and movable."""

    root: Path

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def dataset(self) -> Path:
        return self.root / "dataset.json"

    @property
    def fingerprint(self) -> Path:
        return self.root / "fingerprint.json"

    @property
    def splits(self) -> Path:
        return self.root / "splits.json"

    @property
    def run(self) -> Path:
        return self.root / "run.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def postprocessing(self) -> Path:
        """What cross-validation found to help the segmentations of this model; only where something did."""
        return self.root / "postprocessing.json"

    @property
    def stop_file(self) -> Path:
        """A person creates this empty file to end training cleanly after the running step."""
        return self.root / "STOP"

    @property
    def previous_stage(self) -> Path:
        """Of the second stage of a cascade: what the first one says of the training cases, on the second one's grid."""
        return self.root / "previous_stage"

    @property
    def first_stage(self) -> ModelFolder:
        """Of a cascade that came as one model, the first stage; models that are trained here lie side by side."""
        return ModelFolder(self.root / FIRST_STAGE)

    def fold(self, name: int | str) -> FoldFolder:
        return FoldFolder(self.root / f"fold_{name}")

    def finished_folds(self) -> tuple[str, ...]:
        """Names of the folds that have final weights ("0", "1", ..., or "all"), in order."""
        names = [path.parent.name.removeprefix("fold_") for path in self.root.glob("fold_*/weights.safetensors")]
        return tuple(sorted(names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0)))


@dataclass(frozen=True)
class RaceFolder:
    """A race between architectures, with a model for each of them."""

    root: Path

    @property
    def report(self) -> Path:
        return self.root / "race.json"

    @property
    def table(self) -> Path:
        return self.root / "race.csv"

    @property
    def stop_file(self) -> Path:
        """A person creates this empty file to end the race cleanly after the running step."""
        return self.root / "STOP"

    def model(self, number: int, configuration: str, architecture: str) -> ModelFolder:
        """The model that an architecture (NAME or NAME:PRESET) trained in round ``number``, counted from 1."""
        return ModelFolder(self.root / f"round_{number}" / _model_name(configuration, architecture))


@dataclass(frozen=True)
class SelectionFolder:
    """The choice between the models of a dataset; ``root`` is its folder in the results."""

    root: Path

    @property
    def file(self) -> Path:
        return self.root / _SELECTION_FILE

    def model(self, name: str) -> ModelFolder:
        return ModelFolder(self.root / name)

    def segmentations(self, models: tuple[str, ...]) -> Path:
        """Held-out cases as several models together segment them."""
        return self._work(models) / "validation"

    def scores(self, models: tuple[str, ...], case: str) -> Path:
        return self._work(models) / "scores" / f"{case}.json"

    def _work(self, models: tuple[str, ...]) -> Path:
        return self.root / _SELECTION / "+".join(models)


@dataclass(frozen=True)
class FoldFolder:
    root: Path

    @property
    def weights(self) -> Path:
        """Final weights; they exist only when training is complete."""
        return self.root / "weights.safetensors"

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint.pt"

    @property
    def run(self) -> Path:
        return self.root / "fold.json"

    @property
    def log(self) -> Path:
        return self.root / "log.jsonl"

    @property
    def progress(self) -> Path:
        return self.root / "progress.png"

    @property
    def validation(self) -> Path:
        return self.root / "validation"

    @property
    def summary(self) -> Path:
        return self.validation / "summary.json"
