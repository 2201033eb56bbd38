"""Runs of MLflow: the dataset is the experiment, the tracking server that of ``MLFLOW_TRACKING_URI``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

from autoseg.training.loggers import LoggedRun, Sink, needed, settings_text

_TAG = "autoseg.id"
_LONGEST_NAME = 250
_DIGEST = 8


class _Sink:
    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self._run_id = client, run_id

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run_id, _allowed(name), value, step=epoch)

    def close(self) -> None:
        self._client.set_terminated(self._run_id, "FINISHED")


def open_sink(run: LoggedRun) -> Sink:
    """Open the run with this ``id``, or a new one.

    Without ``MLFLOW_TRACKING_URI``, runs go to a local database, ``mlflow.db``, beside the models of the dataset.
    """
    tracking = needed("mlflow.tracking", extra="mlflow")
    place = os.environ.get("MLFLOW_TRACKING_URI")
    if place is None:
        # .../DATASET/MODEL/fold_K/loggers
        place = f"sqlite:///{run.folder.parents[2] / 'mlflow.db'}"
    client = tracking.MlflowClient(place)
    known = client.get_experiment_by_name(run.project)
    experiment = known.experiment_id if known is not None else client.create_experiment(run.project)
    earlier = client.search_runs([experiment], f"tags.`{_TAG}` = '{run.id}'", max_results=1)
    if earlier:
        run_id = earlier[0].info.run_id
        client.set_terminated(run_id, "RUNNING")
        return _Sink(client, run_id)
    run_id = client.create_run(experiment, tags={_TAG: run.id, "model": run.model}, run_name=run.name).info.run_id
    for name, text in settings_text(run.settings):
        client.log_param(run_id, name, text[:500])
    return _Sink(client, run_id)


def _allowed(name: str) -> str:
    """The name itself where MLflow takes it; else one that it takes, which ends in a part of the name's SHA-256.

    It takes at most 250 letters, digits, and ``_ - . / space`` (``:`` on some systems only), in normalised relative
    paths. The ending keeps the curves of ``a+b`` and ``a*b`` apart.
    """
    plain = "/".join(map(_allowed_part, name.split("/")))
    if plain == name and len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGEST]
    return f"{plain[: _LONGEST_NAME - 1 - _DIGEST]}-{digest}"


def _allowed_part(part: str) -> str:
    letters = "".join(letter if letter.isalnum() or letter in "_-. " else "_" for letter in part)
    if letters in {"", "."}:
        return "_"
    return f"_{letters[2:]}" if letters.startswith("..") else letters
