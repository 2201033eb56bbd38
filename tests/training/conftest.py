"""A tiny preprocessed store (bright balls in noise) and a fold task that trains on it in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from autoseg.io.store import CaseStore
from autoseg.schema.architecture import Recipe
from autoseg.schema.dataset import Label, Labels
from autoseg.schema.folders import FoldFolder
from autoseg.schema.plan import Architecture, Configuration, Cost, Normalization, Plan, Resampling, Topology
from autoseg.schema.settings import TrainSettings
from autoseg.schema.splits import Fold
from autoseg.training.fold import FoldTask
from autoseg.training.recipe import chosen_recipe

IDS = ("a", "b", "c", "d")
SHAPE = (18, 20, 22)


def ball_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (1, z, y, x) and label (1, z, y, x) of two bright balls of different brightness."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
    label = np.zeros(SHAPE, dtype=np.int16)
    for value, middle in ((1, (6, 6, 6)), (2, (11, 13, 14))):
        centre = np.array(middle) + rng.uniform(-1, 1, 3)
        label[((grid - centre) ** 2).sum(-1) < 16] = value
    image = np.array([0.0, 1.5, 3.0])[label] + 0.3 * rng.standard_normal(SHAPE)
    return image[None].astype(np.float32), label[None]


@pytest.fixture(scope="session")
def ball_store(tmp_path_factory: pytest.TempPathFactory) -> CaseStore:
    store = CaseStore(tmp_path_factory.mktemp("store"))
    store.begin("balls")
    for seed, name in enumerate(IDS):
        image, label = ball_case(seed)
        locations = {head: np.argwhere(label[0] == head + 1) for head in (0, 1)}
        store.write_case(name, image, label, {}, locations, (16, 16, 16))
    return store


def ball_plan(*, ndim: int = 3) -> Plan:
    three = (3,) * ndim
    configuration = Configuration(
        name="3d_fullres" if ndim == 3 else "2d",
        ndim=ndim,
        spacing=(1.0,) * ndim,
        median_shape=SHAPE[-ndim:],
        patch_size=(16,) * ndim,
        batch_size=2 if ndim == 3 else 12,
        normalization=(Normalization(scheme="zscore"),),
        resampling=Resampling(),
        architecture=Architecture(name="unet"),
        topology=Topology(strides=((1,) * ndim, (2,) * ndim, (2,) * ndim), kernels=(three,) * 3, features=(8, 16, 32)),
        batch_dice=ndim == 2,
        cost=Cost(parameters=0, memory_bytes=0, flops=0),
    )
    labels = Labels(foreground=(Label(name="small", values=(1,)), Label(name="large", values=(2,))))
    return Plan(
        dataset="Dataset001_Balls",
        device="cpu",
        memory_bytes=10**9,
        transpose=(0, 1, 2),
        channels=("MRI",),
        labels=labels,
        configurations=(configuration,),
    )


@pytest.fixture
def make_task(ball_store: CaseStore, tmp_path: Path) -> Callable[..., FoldTask]:
    def make(name: str = "0", *, ndim: int = 3, folder: str = "run", **settings: object) -> FoldTask:
        plan = ball_plan(ndim=ndim)
        chosen = {"epochs": 2, "iterations": 4, "val_iterations": 2, "device": "cpu", **settings}
        wanted = TrainSettings(**chosen)  # type: ignore[arg-type]
        return FoldTask(
            plan=plan,
            configuration=plan.configurations[0],
            settings=wanted,
            recipe=chosen_recipe(Recipe(), wanted),
            name=name,
            cases=Fold(train=IDS[:3], val=IDS[3:]),
            mirror_axes=tuple(range(ndim)),
            store=ball_store.root,
            folder=FoldFolder(tmp_path / folder / f"fold_{name}"),
            stop_file=tmp_path / folder / "STOP",
        )

    return make
