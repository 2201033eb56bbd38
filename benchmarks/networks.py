"""One U-Net in both formats: a model folder of ours and a results folder of nnU-Net, with the same weights.

The network is trained for a minute or two on generated images: the decisions of a random one would be matters of
rounding, which no two programs share.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from autoseg import records
from autoseg.nets import build_network
from autoseg.ops.normalize import normalize
from autoseg.ops.resample import resize, resize_labels, target_shape
from autoseg.schema.dataset import DatasetSpec, Label, Labels
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Architecture, Configuration, Cost, Normalization, Plan, Resampling, Topology
from autoseg.schema.report import RunReport
from benchmarks.data import ct_volume

NAME = "3d_fullres"
_NORMALIZATION = Normalization(scheme="ct", mean=100.0, std=400.0, lower=-500.0, upper=1500.0)
_STEPS, _WINDOW, _RATE = 100, 64, 3e-3
_FINE = (0.8, 0.8, 0.8)
_RESAMPLING = "resample_data_or_seg_to_shape"
_DECODER = {"up": "transpconvs", "heads": "seg_layers"}


@dataclass(frozen=True, kw_only=True)
class Design:
    """A plain U-Net for CTs with ``classes`` labels, the background among them."""

    width: int
    stages: int
    patch: tuple[int, int, int]
    spacing: tuple[float, float, float]
    classes: int

    @property
    def features(self) -> tuple[int, ...]:
        return tuple(min(self.width * 2**stage, 320) for stage in range(self.stages))

    @property
    def labels(self) -> dict[str, int]:
        return {"background": 0, **{f"organ{value}": value for value in range(1, self.classes)}}


@dataclass(frozen=True, kw_only=True)
class Models:
    """The two folders: ``--model`` of ``autoseg_predict``, ``-m`` of ``nnUNetv2_predict_from_modelfolder``."""

    ours: Path
    peer: Path


def image_with_clear_classes(shape: tuple[int, int, int], *, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A generated CT whose organs differ by more than its noise, int16 and its label uint8, (z, y, x)."""
    image, label = ct_volume(shape, classes=classes - 1, seed=seed)
    noise = np.random.default_rng(seed)
    for plane, marked in zip(image, label, strict=True):
        organ = marked > 0
        plane[organ] = 40 + 300.0 * marked[organ] + 20 * noise.standard_normal(int(organ.sum()))
    return image, label


def models(folder: Path, design: Design) -> Models:
    """Both formats below ``folder``, made once."""
    found = Models(
        ours=folder / "ours", peer=folder / "peer" / "Dataset900_Bench" / f"nnUNetTrainer__nnUNetPlans__{NAME}"
    )
    if not (found.ours / "run.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        network = _trained(design)
        _write_peer(found.peer, design, network.state_dict())
        _write_ours(ModelFolder(found.ours), design, network.state_dict())
    return found


def configuration(design: Design) -> Configuration:
    """The plan of our network: nnU-Net's blocks, cubic images, linear logits."""
    one, two, three = (1, 1, 1), (2, 2, 2), (3, 3, 3)
    return Configuration(
        name=NAME,
        ndim=3,
        spacing=design.spacing,
        median_shape=design.patch,
        patch_size=design.patch,
        batch_size=2,
        normalization=(_NORMALIZATION,),
        resampling=Resampling(),
        architecture=Architecture(name="unet"),
        topology=Topology(
            strides=(one, *(two,) * (design.stages - 1)), kernels=(three,) * design.stages, features=design.features
        ),
        batch_dice=False,
        cost=Cost(parameters=0, memory_bytes=0, flops=0),
    )


def network(design: Design) -> nn.Module:
    """Fresh weights, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plan = configuration(design)
        made = build_network(
            plan.architecture,
            plan.topology,
            ndim=3,
            in_channels=1,
            num_heads=design.classes,
            patch_size=design.patch,
        )
    return made.eval().requires_grad_(False)


def plans(design: Design) -> dict[str, Any]:
    """``plans.json`` of nnU-Net with its default way of resampling."""
    kernels = [[3, 3, 3]] * design.stages
    strides = [[1, 1, 1], *[[2, 2, 2]] * (design.stages - 1)]
    resampling = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    return {
        "dataset_name": "Dataset900_Bench",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": list(design.spacing),
        "original_median_shape_after_transp": list(design.patch),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            NAME: {
                "data_identifier": f"nnUNetPlans_{NAME}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": list(design.patch),
                "median_image_size_in_voxels": list(design.patch),
                "spacing": list(design.spacing),
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": _RESAMPLING,
                "resampling_fn_seg": _RESAMPLING,
                "resampling_fn_probabilities": _RESAMPLING,
                "resampling_fn_data_kwargs": {**resampling, "order": 3},
                "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
                "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
                "architecture": {
                    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                    "arch_kwargs": {
                        "n_stages": design.stages,
                        "features_per_stage": list(design.features),
                        "conv_op": "torch.nn.modules.conv.Conv3d",
                        "kernel_sizes": kernels,
                        "strides": strides,
                        "n_conv_per_stage": [2] * design.stages,
                        "n_conv_per_stage_decoder": [2] * (design.stages - 1),
                        "conv_bias": True,
                        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                        "dropout_op": None,
                        "dropout_op_kwargs": None,
                        "nonlin": "torch.nn.LeakyReLU",
                        "nonlin_kwargs": {"inplace": True},
                    },
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
                "batch_dice": False,
            }
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {
                "mean": _NORMALIZATION.mean,
                "std": _NORMALIZATION.std,
                "percentile_00_5": _NORMALIZATION.lower,
                "percentile_99_5": _NORMALIZATION.upper,
                "min": _NORMALIZATION.lower,
                "max": _NORMALIZATION.upper,
                "median": _NORMALIZATION.mean,
            }
        },
    }


def dataset(design: Design) -> dict[str, Any]:
    """``dataset.json`` of nnU-Net."""
    return {"channel_names": {"0": "CT"}, "labels": design.labels, "numTraining": 1, "file_ending": ".nii.gz"}


def _trained(design: Design) -> nn.Module:
    """The network after a little training on generated images, so that its decisions are clear."""
    made = network(design).requires_grad_(True).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(made.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=_RATE, total_steps=_STEPS)
    for window, label in islice(_windows(design), _STEPS):
        with torch.autocast("cpu", torch.bfloat16):
            logits = made(window)[0]
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits.float(), label).backward()
        optimizer.step()
        schedule.step()
    return made.requires_grad_(False)


def _windows(design: Design) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised windows (1, 1, z, y, x) of generated CTs on the grid of the network, and their labels (1, z, y, x)."""
    shape = (96, 128, 128)
    place = np.random.default_rng(0)
    fine = target_shape(shape, design.spacing, _FINE)
    for seed in count(101):
        image, label = image_with_clear_classes(fine, classes=design.classes, seed=seed)
        coarse = torch.from_numpy(resize(normalize(image[None], (_NORMALIZATION,)), shape, order=3))
        marked = torch.from_numpy(resize_labels(label, shape, order=1)).long()
        for _ in range(_STEPS // 4):
            corner = place.integers(0, [length - _WINDOW + 1 for length in shape])
            inside = tuple(slice(start, start + _WINDOW) for start in corner)
            window = coarse[(slice(None), *inside)][None].contiguous(memory_format=torch.channels_last_3d)
            yield window, marked[inside][None]


def _write_ours(model: ModelFolder, design: Design, weights: Mapping[str, Tensor]) -> None:
    fold = model.fold(0)
    fold.weights.parent.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in weights.items()}, fold.weights, {"configuration": NAME})
    labels = Labels(
        foreground=tuple(Label(name=name, values=(value,)) for name, value in design.labels.items() if value)
    )
    plan = Plan(
        dataset="Dataset900_Bench",
        device="cpu",
        memory_bytes=0,
        transpose=(0, 1, 2),
        channels=("CT",),
        labels=labels,
        configurations=(configuration(design),),
    )
    records.save(model.plan, plan)
    records.save(
        model.dataset,
        DatasetSpec(name="Dataset900_Bench", channels=("CT",), labels=labels, file_ending=".nii.gz", cases=()),
    )
    records.save(model.run, RunReport(command="", settings={"configuration": NAME, "mirror_axes": [0, 1, 2]}))


def _write_peer(folder: Path, design: Design, weights: Mapping[str, Tensor]) -> None:
    write_peer_plans(folder, design)
    (folder / "fold_0").mkdir()
    checkpoint = {
        "network_weights": peer_weights(weights, stages=design.stages),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": NAME},
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")


def write_peer_plans(folder: Path, design: Design) -> Path:
    """``plans.json`` and ``dataset.json`` of nnU-Net."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans(design)))
    (folder / "dataset.json").write_text(json.dumps(dataset(design)))
    return folder


def peer_weights(weights: Mapping[str, Tensor], *, stages: int) -> dict[str, Tensor]:
    """Our names of a plain U-Net's weights as nnU-Net's, which names some tensors several times."""
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        part, stage, *rest = name.split(".")
        below = stages - 2 - int(stage)
        if part in ("encoder", "decoder"):
            place = f"encoder.stages.{stage}.0" if part == "encoder" else f"decoder.stages.{below}"
            block, layer, kind = rest
            unit = f"{place}.convs.{block}"
            renamed[f"{unit}.{('conv', 'norm')[int(layer)]}.{kind}"] = value
            renamed[f"{unit}.all_modules.{layer}.{kind}"] = value
        else:
            renamed[f"decoder.{_DECODER[part]}.{below}.{rest[0]}"] = value
    again = {f"decoder.{name}": value for name, value in renamed.items() if name.startswith("encoder.")}
    return {**renamed, **again}
