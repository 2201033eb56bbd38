"""Models in nnU-Net's own format, written from its layout, and the folder of real data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder above AUTOSEG_TEST_DATA, or ``shared`` beside the repository: holds ``data`` and ``models``."""
    default = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("AUTOSEG_TEST_DATA", default)).parent
    if not (folder / "models").is_dir():
        pytest.skip("no real models: set AUTOSEG_TEST_DATA to the folder of data beside them")
    return folder


def peer_weights(
    kind: str,
    strides: Sequence[Sequence[int]],
    kernels: Sequence[Sequence[int]],
    features: Sequence[int],
    heads: int,
    *,
    channels: int = 1,
    seed: int = 7,
) -> dict[str, torch.Tensor]:
    """Random tensors under the names and shapes of PlainConvUNet or ResidualEncoderUNet, each also in its double."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    def unit(prefix: str, c_in: int, c_out: int, kernel: Sequence[int], *, bias: bool = True) -> None:
        pairs = [("conv", "0", "weight", tensor(c_out, c_in, *kernel))]
        pairs += [("conv", "0", "bias", tensor(c_out))] if bias else []
        pairs += [("norm", "1", "weight", tensor(c_out) + 1), ("norm", "1", "bias", tensor(c_out))]
        for part, number, name, value in pairs:
            weights[f"{prefix}.{part}.{name}"] = weights[f"{prefix}.all_modules.{number}.{name}"] = value

    stages = len(features)
    c_in = channels
    if kind == "ResidualEncoderUNet":
        unit("encoder.stem.convs.0", channels, features[0], kernels[0])
        c_in = features[0]
    for s in range(stages):
        if kind == "PlainConvUNet":
            unit(f"encoder.stages.{s}.0.convs.0", c_in, features[s], kernels[s])
            unit(f"encoder.stages.{s}.0.convs.1", features[s], features[s], kernels[s])
        else:
            for b in range(2):
                prefix = f"encoder.stages.{s}.blocks.{b}"
                first = c_in if b == 0 else features[s]
                unit(f"{prefix}.conv1", first, features[s], kernels[s])
                unit(f"{prefix}.conv2", features[s], features[s], kernels[s])
                if first != features[s]:
                    unit(
                        f"{prefix}.skip.{int(max(strides[s]) > 1)}",
                        first,
                        features[s],
                        [1] * len(kernels[s]),
                        bias=False,
                    )
        c_in = features[s]
    weights |= {f"decoder.{name}": value for name, value in weights.items()}
    for d in range(stages - 1):
        fine = stages - 2 - d
        weights[f"decoder.transpconvs.{d}.weight"] = tensor(features[fine + 1], features[fine], *strides[fine + 1])
        weights[f"decoder.transpconvs.{d}.bias"] = tensor(features[fine])
        for i in range(2 if kind == "PlainConvUNet" else 1):
            width = features[fine] * (1 if i else 2)
            unit(f"decoder.stages.{d}.convs.{i}", width, features[fine], kernels[fine])
        weights[f"decoder.seg_layers.{d}.weight"] = tensor(heads, features[fine], *[1] * len(kernels[0]))
        weights[f"decoder.seg_layers.{d}.bias"] = tensor(heads)
    return weights


def peer_plans(
    kind: str, strides: Sequence[Sequence[int]], kernels: Sequence[Sequence[int]], features: Sequence[int]
) -> dict[str, Any]:
    ndim, stages = len(strides[0]), len(features)
    spline = {"order_z": 0, "force_separate_z": None}
    blocks = "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage"
    name = "3d_fullres" if ndim == 3 else "2d"
    return {
        "dataset_name": "Dataset011_Made",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 40.0, "std": 20.0, "percentile_00_5": -100.0, "percentile_99_5": 300.0}
        },
        "configurations": {
            name: {
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": [16] * ndim,
                "median_image_size_in_voxels": [20.0] * ndim,
                "spacing": [1.0] * ndim,
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **spline},
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **spline},
                "architecture": {
                    "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
                    "arch_kwargs": {
                        "n_stages": stages,
                        "features_per_stage": list(features),
                        "conv_op": f"torch.nn.modules.conv.Conv{ndim}d",
                        "kernel_sizes": [list(kernel) for kernel in kernels],
                        "strides": [list(stride) for stride in strides],
                        blocks: [2] * stages,
                        "n_conv_per_stage_decoder": [2 if kind == "PlainConvUNet" else 1] * (stages - 1),
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
                "batch_dice": True,
            }
        },
    }


TOPOLOGY = (((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), (4, 6, 8))


@pytest.fixture
def write_peer() -> Callable[..., Path]:
    """``write_peer(folder, kind=, topology=, folds=, plans=, dataset=, axes=)``: a model as nnU-Net leaves it."""

    def write(
        folder: Path,
        *,
        kind: str = "PlainConvUNet",
        topology: tuple[Any, Any, Any] = TOPOLOGY,
        folds: Sequence[str] = ("0",),
        plans: Callable[[dict[str, Any]], None] = lambda data: None,
        dataset: dict[str, Any] | None = None,
        axes: tuple[int, ...] | None = (0, 2),
        weights: Callable[[dict[str, torch.Tensor]], None] = lambda data: None,
        heads: int = 3,
    ) -> Path:
        data = peer_plans(kind, *topology)
        name = next(iter(data["configurations"]))
        tensors = peer_weights(kind, *topology, heads=heads)
        plans(data)
        weights(tensors)
        described = dataset or {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "organ": 1, "tumour": 2},
            "numTraining": 5,
            "file_ending": ".nii.gz",
        }
        for fold in folds:
            _save_checkpoint(folder / f"fold_{fold}", tensors, data, name, axes)
        (folder / "plans.json").write_text(json.dumps(data))
        (folder / "dataset.json").write_text(json.dumps(described))
        return folder

    return write


def _save_checkpoint(
    place: Path,
    tensors: dict[str, torch.Tensor],
    plans: dict[str, Any],
    configuration: str,
    axes: tuple[int, ...] | None,
) -> None:
    place.mkdir(parents=True)
    checkpoint = {
        "network_weights": tensors,
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 1000,
        "init_args": {"plans": plans, "configuration": configuration, "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": axes,
    }
    torch.save(checkpoint, place / "checkpoint_final.pth")


PEER_START = "nnUNetTrainer__nnUNetPlans__"
PEER_LOW, PEER_SECOND = f"{PEER_START}3d_lowres", f"{PEER_START}3d_cascade_fullres"


def write_peer_cascade(
    results: Path,
    *,
    labels: dict[str, Any] | None = None,
    order: Sequence[int] | None = None,
    folds: Sequence[str] = ("0",),
    low_spacing: Sequence[float] = (2.0, 2.0, 2.0),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    change: Callable[[dict[str, Any]], None] = lambda data: None,
    normalization: str = "CTNormalization",
) -> Path:
    """Both stages of a cascade as nnU-Net leaves them, of random weights; returns the folder of the second.

    ``labels`` and ``order`` (regions_class_order) as in dataset.json.
    """
    data = peer_plans("PlainConvUNet", *TOPOLOGY)
    data["dataset_name"] = results.name
    full = data["configurations"].pop("3d_fullres")
    full |= {
        "spacing": list(spacing),
        "normalization_schemes": [normalization],
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
    }
    data["configurations"] = {
        "3d_fullres": full,
        "3d_lowres": {**full, "spacing": list(low_spacing), "next_stage": "3d_cascade_fullres"},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    change(data)
    described: dict[str, Any] = {
        "channel_names": {"0": "CT"},
        "labels": labels or {"background": 0, "organ": 1, "tumour": 2},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    if order is not None:
        described["regions_class_order"] = list(order)
    integers = {value for entry in described["labels"].values() for value in np.atleast_1d(entry)} - {0}
    heads = len(described["labels"]) - (order is not None)
    for name, channels, seed in ((PEER_LOW, 1, 3), (PEER_SECOND, 1 + len(integers), 4)):
        for number, fold in enumerate(folds):
            tensors = peer_weights("PlainConvUNet", *TOPOLOGY, heads=heads, channels=channels, seed=seed + 10 * number)
            configuration = name.removeprefix(PEER_START)
            _save_checkpoint(results / name / f"fold_{fold}", tensors, data, configuration, (0, 2))
        (results / name / "plans.json").write_text(json.dumps(data))
        (results / name / "dataset.json").write_text(json.dumps(described))
    return results / PEER_SECOND
