"""plans.json and dataset.json of an nnU-Net v2 model as autoseg's ``Plan`` and ``DatasetSpec``.

What the two programs do alike is translated; whatever would make predictions differ is refused, every reason at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoseg.errors import ModelFolderError, joined
from autoseg.io.dataset_json import read_description
from autoseg.schema.dataset import DatasetSpec
from autoseg.schema.plan import Architecture, Configuration, Cost, Normalization, Plan, Resampling, Topology

_SCHEMES = {
    "CTNormalization": "ct",
    "ZScoreNormalization": "zscore",
    "RescaleTo01Normalization": "rescale_0_1",
    "RGBTo01Normalization": "rgb_0_1",
    "NoNormalization": "none",
}
_NETWORKS = {"PlainConvUNet": "unet", "ResidualEncoderUNet": "resenc_unet"}
_SPLINES = "resample_data_or_seg_to_shape"
# They interpolate linearly with torch, whatever is resampled.
_LINEAR = ("resample_torch_fornnunet", "resample_torch_simple")
_RESAMPLED = {"data": "images", "probabilities": "predictions", "seg": "segmentations of the stage before"}
_FILE_ENDING = ".nii.gz"

# Thresholds that no spacing or every spacing exceeds: nnU-Net's force_separate_z false and true.
_NEVER, _ALWAYS = 1e9, 0.0
_AUTOMATIC = 3.0

# Arguments that shape the network as autoseg builds it, and those that must have the one value it knows.
_SHAPING = {
    "n_stages",
    "features_per_stage",
    "conv_op",
    "kernel_sizes",
    "strides",
    "n_conv_per_stage",
    "n_blocks_per_stage",
    "n_conv_per_stage_decoder",
    "norm_op",
    "norm_op_kwargs",
    "nonlin",
    "nonlin_kwargs",
    "dropout_op_kwargs",
    "stem_channels",
    "deep_supervision",
}
_FIXED: dict[str, tuple[Any, ...]] = {
    "conv_bias": (True,),
    "dropout_op": (None,),
    "nonlin_first": (False, None),
    "bottleneck_channels": (None,),
    "squeeze_excitation": (False, None),
}


@dataclass(frozen=True, kw_only=True)
class Translated:
    """A model's plan, which holds its configuration and those that come before it in a cascade."""

    plan: Plan
    spec: DatasetSpec


def stage_before(data: Mapping[str, Any], configuration: str) -> str | None:
    """The configuration whose segmentations another one refines, by the content of plans.json.

    None if there is none, or if that content is not of nnU-Net v2, which ``translate_plan`` refuses.
    """
    try:
        previous = _inherited(configuration, data["configurations"]).get("previous_stage")
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return None if previous is None else str(previous)


def translate_plan(folder: Path, configuration: str, *, batch_norm: bool = False) -> Translated:
    """Read plans.json and dataset.json of a model folder.

    Args:
        batch_norm: the weights have running statistics, as those of nnUNetTrainerBN, which plans.json does not tell.

    Raises:
        ModelFolderError: a file is missing or not what nnU-Net v2 writes, or autoseg has no equal for what it says;
            every reason is listed.
        DatasetError: dataset.json is wrong.
    """
    path = folder / "plans.json"
    data = _load(path)
    problems: list[str] = []
    description = read_description(folder)
    try:
        _check_program(data, problems)
        configurations: list[Configuration] = []
        name: str | None = configuration
        while name is not None:
            one = _configuration(name, data, problems, batch_norm=batch_norm)
            configurations.insert(0, one)
            name = one.previous_stage
        transpose = tuple(int(axis) for axis in data["transpose_forward"])
        dataset = str(data["dataset_name"])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ModelFolderError(
            f"{path} is not a plans file of nnU-Net v2: {_reason(error)}", hint="copy the model again"
        ) from error
    if problems:
        raise ModelFolderError(
            f"{path} asks for what autoseg cannot do in the same way:\n{joined(list(dict.fromkeys(problems)))}",
            hint="predict with nnU-Net itself; autoseg runs the plain and residual U-Nets of its standard trainers",
        )
    plan = Plan(
        dataset=dataset,
        device="cpu",
        memory_bytes=0,
        transpose=transpose,
        channels=description.channels,
        labels=description.labels,
        configurations=tuple(configurations),
        why=("translated from the plans.json of nnU-Net v2",),
    )
    spec = DatasetSpec(
        name=dataset,
        channels=description.channels,
        labels=description.labels,
        file_ending=description.file_ending or _FILE_ENDING,
        cases=(),
    )
    return Translated(plan=plan, spec=spec)


def _load(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelFolderError(f"{path} cannot be read: {error}", hint="copy the model again") from error
    if not isinstance(data, dict):
        raise ModelFolderError(f"{path} must hold a JSON object", hint="copy the model again")
    return data


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _check_program(data: Mapping[str, Any], problems: list[str]) -> None:
    reader = str(data.get("image_reader_writer", ""))
    if reader.endswith("WithReorient"):
        problems.append(f"the images are turned to a standard orientation by {reader}")
    manager = data.get("label_manager", "LabelManager")
    if manager != "LabelManager":
        problems.append(f"labels are handled by {manager}")


def _configuration(name: str, data: Mapping[str, Any], problems: list[str], *, batch_norm: bool) -> Configuration:
    values = _inherited(name, data["configurations"])
    patch = tuple(int(length) for length in values["patch_size"])
    preprocessor = values.get("preprocessor_name", "DefaultPreprocessor")
    if preprocessor != "DefaultPreprocessor":
        problems.append(f"images are prepared by {preprocessor}")
    architecture, topology = _network(values, len(patch), problems, batch_norm=batch_norm)
    return Configuration(
        name=name,
        ndim=len(patch),
        spacing=tuple(float(step) for step in values["spacing"]),
        median_shape=tuple(max(1, round(length)) for length in values["median_image_size_in_voxels"]),
        patch_size=patch,
        batch_size=int(values["batch_size"]),
        normalization=_normalization(values, data, problems),
        resampling=_resampling(values, problems),
        architecture=architecture,
        topology=topology,
        batch_dice=bool(values["batch_dice"]),
        cost=Cost(parameters=0, memory_bytes=0, flops=0),
        previous_stage=values.get("previous_stage"),
        previous_as_nnunet=values.get("previous_stage") is not None,
        why=("translated from the plans.json of nnU-Net v2",),
    )


def _inherited(name: str, configurations: Mapping[str, Any], below: tuple[str, ...] = ()) -> dict[str, Any]:
    if name not in configurations or name in below:
        raise ValueError(f"there is no configuration {name!r}, there are {', '.join(configurations)}")
    own = dict(configurations[name])
    parent = own.pop("inherits_from", None)
    return own if parent is None else {**_inherited(parent, configurations, (*below, name)), **own}


def _normalization(
    values: Mapping[str, Any], data: Mapping[str, Any], problems: list[str]
) -> tuple[Normalization, ...]:
    schemes = values["normalization_schemes"]
    masked = values.get("use_mask_for_norm") or [False] * len(schemes)
    result = []
    for channel, (peer, mask) in enumerate(zip(schemes, masked, strict=True)):
        scheme = _SCHEMES.get(peer)
        if scheme is None:
            problems.append(f"channel {channel} is normalised by {peer}")
        elif scheme == "ct":
            numbers = data["foreground_intensity_properties_per_channel"][str(channel)]
            result.append(
                Normalization(
                    scheme=scheme,
                    mean=float(numbers["mean"]),
                    std=float(numbers["std"]),
                    lower=float(numbers["percentile_00_5"]),
                    upper=float(numbers["percentile_99_5"]),
                )
            )
        else:
            result.append(Normalization(scheme="zscore_masked" if scheme == "zscore" and mask else scheme))
    return tuple(result)


def _resampling(values: Mapping[str, Any], problems: list[str]) -> Resampling:
    """Orders and the rule of separate slices; that of labels has a part in prediction only after another stage."""
    orders, rules = {"seg": 1}, []
    labels = [("seg", 1)] if values.get("previous_stage") is not None else []
    for what, usual in (("data", 3), ("probabilities", 1), *labels):
        function = values[f"resampling_fn_{what}"]
        arguments = values.get(f"resampling_fn_{what}_kwargs") or {}
        if function not in (_SPLINES, *_LINEAR) or (what == "seg" and function != _SPLINES):
            problems.append(f"{_RESAMPLED[what]} are resampled by {function}")
        orders[what] = int(arguments.get("order", usual)) if function == _SPLINES else 1
        forced = arguments.get("force_separate_z")
        threshold = _AUTOMATIC if forced is None else _ALWAYS if forced else _NEVER
        rules.append((int(arguments.get("order_z", 0)), threshold))
    if len(set(rules)) > 1:
        problems.append("images and predictions have different rules for resampling slices separately")
    for what in ("probabilities", "seg"):
        if orders[what] not in (0, 1):
            problems.append(f"{_RESAMPLED[what]} are resampled with order {orders[what]}")
    order_z, threshold = rules[0]
    return Resampling(
        order_image=orders["data"],
        order_label=orders["seg"],
        order_logits=orders["probabilities"],
        order_z=order_z,
        anisotropy_threshold=threshold,
    )


def _network(
    values: Mapping[str, Any], ndim: int, problems: list[str], *, batch_norm: bool
) -> tuple[Architecture, Topology]:
    peer, given = _described(values, ndim)
    name = _NETWORKS.get(peer)
    if name is None:
        problems.append(f"the network is {peer}")
    stages = int(given["n_stages"])
    _check_style(given, peer, ndim, problems)
    topology = Topology(
        strides=_per_axis(given["strides"], stages, ndim),
        kernels=_per_axis(given["kernel_sizes"], stages, ndim),
        features=_per_stage(given["features_per_stage"], stages),
    )
    if any(step != 1 for step in topology.strides[0]):
        problems.append("the first stage strides")
    if given.get("stem_channels") not in (None, topology.features[0]):
        problems.append(f"the stem has {given['stem_channels']} channels")
    decoder = set(_per_stage(given["n_conv_per_stage_decoder"], stages - 1))
    arguments: dict[str, Any] = {"blocks_per_step": max(decoder)}
    if name == "resenc_unet":
        arguments["blocks_per_stage"] = list(_per_stage(given["n_blocks_per_stage"], stages))
        uneven = len(decoder) > 1
        if batch_norm:
            problems.append("a residual U-Net with batch normalisation")
    else:
        encoder = set(_per_stage(given["n_conv_per_stage"], stages)) if name else {1}
        arguments["blocks_per_stage"] = max(encoder)
        uneven = len(encoder) > 1 or len(decoder) > 1
        if batch_norm or _last(given.get("norm_op")) == f"BatchNorm{ndim}d":
            arguments["normalization"] = "batch"
    if uneven:
        problems.append("stages of the U-Net have different numbers of convolutions")
    return Architecture(name=name or peer, arguments=arguments), topology


def _described(values: Mapping[str, Any], ndim: int) -> tuple[str, Mapping[str, Any]]:
    """Class name and arguments, also from plans of before nnU-Net 2.4, which name the pieces one by one."""
    if "architecture" in values:
        architecture = values["architecture"]
        return _last(architecture["network_class_name"]), architecture["arch_kwargs"]
    blocks = values["n_conv_per_stage_encoder"]
    widths = [values["UNet_base_num_features"] * 2**stage for stage in range(len(blocks))]
    peer = str(values["UNet_class_name"])
    return peer, {
        "n_stages": len(blocks),
        "features_per_stage": [min(width, values["unet_max_num_features"]) for width in widths],
        "kernel_sizes": values["conv_kernel_sizes"],
        "strides": values["pool_op_kernel_sizes"],
        "n_blocks_per_stage" if peer == "ResidualEncoderUNet" else "n_conv_per_stage": blocks,
        "n_conv_per_stage_decoder": values["n_conv_per_stage_decoder"],
        "conv_bias": True,
        "norm_op": f"InstanceNorm{ndim}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "LeakyReLU",
    }


def _check_style(given: Mapping[str, Any], peer: str, ndim: int, problems: list[str]) -> None:
    for key, value in given.items():
        if key in _FIXED and value not in _FIXED[key]:
            problems.append(f"{key} of {peer} is {value}")
        elif key not in _FIXED and key not in _SHAPING:
            problems.append(f"{peer} has an argument {key} that is not known")
    if given.get("conv_bias") is not True:
        problems.append(f"the convolutions of {peer} have no bias")
    norm = _last(given.get("norm_op"))
    details = {"eps": 1e-5, "affine": norm == f"BatchNorm{ndim}d", **(given.get("norm_op_kwargs") or {})}
    if norm not in {f"InstanceNorm{ndim}d", f"BatchNorm{ndim}d"} or details != {"eps": 1e-5, "affine": True}:
        problems.append(f"the normalisation is {norm} with {details}")
    slope = (given.get("nonlin_kwargs") or {}).get("negative_slope", 0.01)
    if _last(given.get("nonlin")) != "LeakyReLU" or slope != 0.01:
        problems.append(f"the activation is {_last(given.get('nonlin'))} with slope {slope}")


def _per_stage(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    result = (value,) * count if isinstance(value, int) else tuple(int(entry) for entry in value)
    if len(result) != count:
        raise ValueError(f"{list(result)} should have {count} entries")
    return result


def _per_axis(value: int | Sequence[Any], stages: int, ndim: int) -> tuple[tuple[int, ...], ...]:
    entries = [value] * stages if isinstance(value, int) else list(value)
    if len(entries) != stages:
        raise ValueError(f"{entries} should have {stages} entries")
    return tuple(_per_stage(entry, ndim) for entry in entries)


def _last(path: Any) -> str:
    return str(path).rsplit(".", 1)[-1]


__all__ = ["Translated", "stage_before", "translate_plan"]
