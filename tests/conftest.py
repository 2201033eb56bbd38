"""Model folders as training leaves them, with small random networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from autoseg import records
from autoseg.nets import build_network
from autoseg.schema.dataset import DatasetSpec, Label, Labels
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Architecture, Configuration, Cost, Normalization, Plan, Resampling, Topology
from autoseg.schema.report import RunReport

WriteModel = Callable[..., ModelFolder]


def small_plan(
    *,
    ndim: int = 3,
    channels: int = 1,
    patch: int = 16,
    spacing: float = 1.0,
    architecture: str = "unet",
    stages: int = 2,
) -> Plan:
    """Two labels, 5 and 9; no normalisation, isotropic ``spacing``."""
    configuration = Configuration(
        name="3d_fullres" if ndim == 3 else "2d",
        ndim=ndim,
        spacing=(spacing,) * ndim,
        median_shape=(patch,) * ndim,
        patch_size=(patch,) * ndim,
        batch_size=2,
        normalization=(Normalization(scheme="none"),) * channels,
        resampling=Resampling(),
        architecture=Architecture(name=architecture),
        topology=Topology(
            strides=((1,) * ndim, *(((2,) * ndim,) * (stages - 1))),
            kernels=((3,) * ndim,) * stages,
            features=tuple(4 + 2 * stage for stage in range(stages)),
        ),
        batch_dice=False,
        cost=Cost(parameters=0, memory_bytes=0, flops=0),
    )
    return Plan(
        dataset="Dataset007_Small",
        device="cpu",
        memory_bytes=0,
        transpose=(0, 1, 2),
        channels=tuple(f"channel {index}" for index in range(channels)),
        labels=Labels(foreground=(Label(name="near", values=(5,)), Label(name="far", values=(9,)))),
        configurations=(configuration,),
    )


def small_network(plan: Plan, seed: int) -> torch.nn.Module:
    configuration = plan.configurations[0]
    torch.manual_seed(seed)
    return build_network(
        configuration.architecture,
        configuration.topology,
        ndim=configuration.ndim,
        in_channels=len(plan.channels),
        num_heads=plan.labels.num_heads,
        patch_size=configuration.patch_size,
    )


@pytest.fixture
def write_model() -> WriteModel:
    """``write_model(root, folds=("0",), mirror_axes=(), file_ending=".nii.gz", **small_plan arguments)``."""

    def write(
        root: Path,
        *,
        folds: Sequence[str] = ("0",),
        mirror_axes: Sequence[int] = (),
        file_ending: str = ".nii.gz",
        **plan_arguments: Any,
    ) -> ModelFolder:
        plan = small_plan(**plan_arguments)
        folder = ModelFolder(root)
        name = plan.configurations[0].name
        for fold in folds:
            weights = folder.fold(fold).weights
            weights.parent.mkdir(parents=True)
            save_file(small_network(plan, seed=len(fold) + ord(fold[0])).state_dict(), weights, {"configuration": name})
        records.save(folder.plan, plan)
        spec = DatasetSpec(
            name=plan.dataset, channels=plan.channels, labels=plan.labels, file_ending=file_ending, cases=()
        )
        records.save(folder.dataset, spec)
        settings = {"configuration": name, "mirror_axes": list(mirror_axes)}
        records.save(folder.run, RunReport(command="autoseg_train", settings=settings))
        return folder

    return write
