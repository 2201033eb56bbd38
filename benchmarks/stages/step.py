"""Forward, loss, backward and update on the CPU: the same network, weights and batches for both.

Only the steps are timed; images lie in memory, and the peer gets the targets of its deep supervision ready made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoseg import records
from autoseg.nets.cost import training_cost
from autoseg.nets.units import regular_topology
from autoseg.schema.plan import Architecture, Topology
from benchmarks import data
from benchmarks.bench import Differs, Row, Setting, Side
from benchmarks.watch import Usage

_HEADS = 3
# bfloat16 keeps 8 bits of a number; a loss near zero is compared by its distance from the worst possible, about 1.
_TOLERANCE = 0.02


@dataclass(frozen=True, kw_only=True)
class Task:
    """A configuration as both would plan it. ``steps`` are timed after one that warms up."""

    name: str
    features: tuple[int, ...]
    patch_size: tuple[int, ...]
    batch_size: int
    batch_dice: bool
    steps: int

    @property
    def topology(self) -> Topology:
        return regular_topology(self.features, ndim=len(self.patch_size))


_TASKS = (
    Task(
        name="3D plan of Hippocampus",
        features=(32, 64, 128, 256),
        patch_size=(40, 56, 40),
        batch_size=9,
        batch_dice=False,
        steps=4,
    ),
    Task(
        name="3D plan of a CT",
        features=(32, 64, 128, 256, 320, 320),
        patch_size=(64, 128, 128),
        batch_size=2,
        batch_dice=False,
        steps=2,
    ),
    Task(
        name="2D plan",
        features=(32, 64, 128, 256, 512, 512, 512),
        patch_size=(256, 256),
        batch_size=12,
        batch_dice=True,
        steps=3,
    ),
)
_QUICK = (
    Task(
        name="3D, quick",
        features=(32, 64, 128, 256),
        patch_size=(40, 56, 40),
        batch_size=2,
        batch_dice=False,
        steps=3,
    ),
    Task(
        name="3D, 6 stages, quick",
        features=(32, 64, 128, 256, 320, 320),
        patch_size=(64, 64, 64),
        batch_size=2,
        batch_dice=False,
        steps=3,
    ),
    Task(
        name="2D, quick",
        features=(32, 64, 128, 256, 512, 512, 512),
        patch_size=(256, 256),
        batch_size=2,
        batch_dice=True,
        steps=3,
    ),
)


def rows(setting: Setting) -> list[Row]:
    """One row per configuration."""
    return [_row(task, setting) for task in (_QUICK if setting.quick else _TASKS)]


def _row(task: Task, setting: Setting) -> Row:
    folder = setting.work / "step" / task.name.replace(" ", "_").replace(",", "")
    plans, inputs = folder / "plans.json", folder / "inputs.npz"
    if not plans.exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(inputs, **_inputs(task))
        plans.write_text(json.dumps(_plans(task), indent=1))
    answers = [folder / "ours.npy", folder / "theirs.npy"]
    results = folder / "nnUNet_results"
    results.mkdir(exist_ok=True)

    def compare(_ours: Usage, _theirs: Usage) -> str:
        mine, peers = map(np.load, answers)
        apart = np.abs(mine - peers)
        if not (apart <= _TOLERANCE * np.maximum(1.0, np.abs(peers))).all():
            raise Differs(f"losses of the steps: {mine.round(4).tolist()} and {peers.round(4).tolist()}")
        return f"losses of {len(mine)} steps from the same weights at most {apart.max():.4f} apart"

    cost = training_cost(
        Architecture(name="unet"),
        task.topology,
        ndim=len(task.patch_size),
        patch_size=task.patch_size,
        batch_size=task.batch_size,
        in_channels=1,
        num_heads=_HEADS,
    )
    size = "x".join(map(str, task.patch_size))
    return Row(
        stage="step",
        task=f"{task.name}: {size}, batch {task.batch_size}",
        ours=Side(command=setting.program("ours.step", plans, inputs, answers[0])),
        peer=Side(
            command=setting.program("theirs.step", plans, inputs, answers[1]),
            env={"nnUNet_results": str(results), "nnUNet_raw": str(results), "nnUNet_preprocessed": str(results)},
        ),
        least_time=3.0,
        least_memory=2.0,
        compare=compare,
        limit_seconds=cost.flops / setting.machine.flops16,
        limit=f"{cost.flops / 1e9:.0f} GFLOP of convolutions at the measured bfloat16 rate",
        repeats=1,
    )


def _inputs(task: Task) -> dict[str, np.ndarray]:
    """Batches (steps + 1, b, 1, *patch) of organs in noise with their labels, and He-normal weights by name."""
    generator = np.random.default_rng(0)
    count = (task.steps + 1) * task.batch_size
    patch = task.patch_size if len(task.patch_size) == 3 else (1, *task.patch_size)
    labels = np.stack([data.organs(patch, classes=_HEADS - 1, generator=generator) for _ in range(count)])
    shape = (task.steps + 1, task.batch_size, 1, *task.patch_size)
    labels = labels.reshape(shape).astype(np.int16)
    images = labels.astype(np.float32) - 0.5 + 0.5 * generator.standard_normal(shape, dtype=np.float32)
    weights = {name: _he_normal(shape, generator) for name, shape in _weight_shapes(task)}
    return {"images": images, "targets": labels, **weights}


def _weight_shapes(task: Task) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Convolutions of a U-Net with two blocks per stage, steps of the decoder counted from the finest."""
    widths, topology = task.features, task.topology
    for stage, (before, width) in enumerate(zip((1, *widths), widths, strict=False)):
        for block, c_in in enumerate((before, width)):
            yield f"encoder.{stage}.{block}", (width, c_in, *topology.kernels[stage])
    for step, width in enumerate(widths[:-1]):
        yield f"up.{step}", (widths[step + 1], width, *topology.strides[step + 1])
        for block, c_in in enumerate((2 * width, width)):
            yield f"decoder.{step}.{block}", (width, c_in, *topology.kernels[step])
        yield f"head.{step}", (_HEADS, width, *(1 for _ in task.patch_size))


def _he_normal(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    return generator.standard_normal(shape, dtype=np.float32) * np.float32(math.sqrt(2 / math.prod(shape[1:])))


def _plans(task: Task) -> dict[str, Any]:
    """The plan in nnU-Net's words (facts of its planner for a network of this size), and in ours."""
    ndim, stages, topology = len(task.patch_size), len(task.features), task.topology
    configuration = {
        "data_identifier": "bench",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": task.batch_size,
        "patch_size": list(task.patch_size),
        "batch_dice": task.batch_dice,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": list(task.features),
                "conv_op": f"torch.nn.modules.conv.Conv{ndim}d",
                "kernel_sizes": topology.kernels,
                "strides": topology.strides,
                "n_conv_per_stage": [2] * stages,
                "n_conv_per_stage_decoder": [2] * (stages - 1),
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{ndim}d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    plans = {
        "dataset_name": "Dataset999_Bench",
        "plans_name": "nnUNetPlans",
        "configurations": {"bench": configuration},
    }
    names = {"background": 0, **{f"organ {value}": value for value in range(1, _HEADS)}}
    dataset = {"channel_names": {"0": "CT"}, "labels": names, "numTraining": 1, "file_ending": ".nii.gz"}
    ours = {
        "topology": json.loads(records.to_json(topology)),
        "patch_size": task.patch_size,
        "batch_dice": task.batch_dice,
        "heads": _HEADS,
    }
    return {"plans": plans, "dataset": dataset, "ours": ours}
