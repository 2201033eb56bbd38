"""Small random cascades as training leaves them: two model folders side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from autoseg import records
from autoseg.nets import build_network
from autoseg.schema.dataset import DatasetSpec
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Plan
from autoseg.schema.report import RunReport
from tests.conftest import small_plan

LOW, SECOND = "3d_lowres", "3d_cascade_fullres"


def cascade_plan() -> Plan:
    """Labels 5 and 9; 2 mm in the first stage, 1 mm in the second."""
    plan = small_plan()
    first = replace(plan.configurations[0], name=LOW, spacing=(2.0, 2.0, 2.0))
    second = replace(plan.configurations[0], name=SECOND, previous_stage=LOW)
    return replace(plan, configurations=(first, second))


def write_cascade(
    results: Path, *, first_folds: Sequence[str] = ("0", "1"), folds: Sequence[str] = ("0", "1")
) -> tuple[ModelFolder, ModelFolder]:
    """The models of both stages in ``results``, of random weights."""
    plan = cascade_plan()
    models = []
    for name, names, seed in ((LOW, first_folds, 10), (SECOND, folds, 20)):
        configuration, model = plan.configuration(name), ModelFolder(results / f"unet_{name}")
        for number, fold in enumerate(names):
            torch.manual_seed(seed + number)
            network = build_network(
                configuration.architecture,
                configuration.topology,
                ndim=3,
                in_channels=plan.input_channels(configuration),
                num_heads=plan.labels.num_heads,
                patch_size=configuration.patch_size,
            )
            model.fold(fold).root.mkdir(parents=True)
            save_file(network.state_dict(), model.fold(fold).weights, {"configuration": name})
        records.save(model.plan, plan)
        spec = DatasetSpec(
            name=plan.dataset, channels=plan.channels, labels=plan.labels, file_ending=".nii.gz", cases=()
        )
        records.save(model.dataset, spec)
        settings: dict[str, object] = {"configuration": name, "mirror_axes": [0, 2]}
        if name == SECOND:
            settings["previous_model"] = f"../unet_{LOW}"
        records.save(model.run, RunReport(command="autoseg_train -d 7", settings=settings))
        models.append(model)
    return models[0], models[1]
