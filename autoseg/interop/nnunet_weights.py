"""Checkpoints of nnU-Net v2: read without running anything that is in them, and renamed to autoseg's networks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoseg.errors import ModelFolderError

# What a NumPy number names as the function that makes it again.
_SCALAR = np.float64(0).__reduce__()[0]
# Its logs hold NumPy numbers, which are a type and bytes: the only globals that its standard trainers need besides
# what torch itself lets pass. NumPy 1 wrote the same function under another name.
_NUMBERS: list[Any] = [
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "float16", "int64", "int32", "bool")),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
]

_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")
# The same tensors a second time: the decoder refers to the encoder, and blocks list their parts.
_AGAIN = re.compile(r"^decoder\.encoder\.|\.all_modules\.")
_PART = {"conv": 0, "norm": 1}
_UNIT = r"(conv|norm)\.(\w+)"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What prediction needs of a checkpoint; ``weights`` have nnU-Net's names, each tensor once."""

    weights: Mapping[str, Tensor]
    configuration: str
    trainer: str
    mirror_axes: tuple[int, ...]

    @property
    def batch_norm(self) -> bool:
        """Whether normalisations have running statistics."""
        return any(name.endswith(".running_mean") for name in self.weights)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read tensors, numbers and text of a checkpoint; tensors stay in the file until they are used.

    Raises:
        ModelFolderError: unreadable, not of nnU-Net v2, or with objects other than these.
    """
    content = _load(path)
    wanted = ("network_weights", "init_args", "trainer_name")
    if not isinstance(content, dict) or not all(key in content for key in wanted):
        raise ModelFolderError(
            f"{path} is not a checkpoint of nnU-Net v2", hint="give a folder that nnUNetv2_train wrote"
        )
    weights, arguments = content["network_weights"], content["init_args"]
    axes = content.get("inference_allowed_mirroring_axes") or ()
    if not isinstance(weights, dict) or not isinstance(arguments, dict) or "configuration" not in arguments:
        raise ModelFolderError(f"{path} does not say what was trained", hint="copy the model again")
    bare = {_WRAPPERS.sub("", str(name)): value for name, value in weights.items()}
    return Checkpoint(
        weights={name: value for name, value in bare.items() if not _AGAIN.search(name)},
        configuration=str(arguments["configuration"]),
        trainer=str(content["trainer_name"]),
        mirror_axes=tuple(int(axis) for axis in axes),
    )


def _load(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise ModelFolderError(f"{path} cannot be read: {reason}", hint="copy the model again") from error
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":
            raise
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise ModelFolderError(
            f"{path} holds something else than tensors, numbers and text{what}, which could run code when it is read",
            hint="only files with plain contents are read; save it again with the standard trainer of nnU-Net v2",
        ) from error


def rename_weights(weights: Mapping[str, Tensor], architecture: str, stages: int) -> dict[str, Tensor]:
    """Tensors under the names of ``nets/unet.py`` or ``nets/resenc_unet.py``.

    nnU-Net counts decoder steps from the coarsest, autoseg from the finest. Values and shapes stay as they are.

    Raises:
        ModelFolderError: a tensor that these networks do not have.
    """
    last = stages - 2
    rules: list[tuple[str, Callable[[re.Match[str]], str]]] = [
        (
            rf"decoder\.stages\.(\d+)\.convs\.(\d+)\.{_UNIT}",
            lambda m: f"decoder.{last - int(m[1])}.{m[2]}.{_unit(m, 3)}",
        ),
        (r"decoder\.transpconvs\.(\d+)\.(\w+)", lambda m: f"up.{last - int(m[1])}.{m[2]}"),
        (r"decoder\.seg_layers\.(\d+)\.(\w+)", lambda m: f"heads.{last - int(m[1])}.{m[2]}"),
    ]
    if architecture == "unet":
        rules.append(
            (rf"encoder\.stages\.(\d+)\.0\.convs\.(\d+)\.{_UNIT}", lambda m: f"encoder.{m[1]}.{m[2]}.{_unit(m, 3)}")
        )
    else:
        block = r"encoder\.stages\.(\d+)\.blocks\.(\d+)"
        rules += [
            (rf"encoder\.stem\.convs\.0\.{_UNIT}", lambda m: f"stem.{_unit(m, 1)}"),
            (
                rf"{block}\.conv([12])\.{_UNIT}",
                lambda m: f"encoder.{m[1]}.{m[2]}.residual.{int(m[3]) - 1}.{_unit(m, 4)}",
            ),
            (rf"{block}\.skip\.(\d+)\.{_UNIT}", lambda m: f"encoder.{m[1]}.{m[2]}.skip.{m[3]}.{_unit(m, 4)}"),
        ]
    compiled = [(re.compile(pattern), new) for pattern, new in rules]
    renamed, unknown = {}, []
    for name, value in weights.items():
        found = next(((match, new) for pattern, new in compiled if (match := pattern.fullmatch(name))), None)
        if found is None:
            unknown.append(name)
        else:
            renamed[found[1](found[0])] = value
    if unknown:
        raise ModelFolderError(
            f"the checkpoint has {len(unknown)} tensors that a {architecture} does not have: {', '.join(unknown[:3])}",
            hint="a trainer that builds another network made it; predict with nnU-Net itself",
        )
    return renamed


def _unit(match: re.Match[str], group: int) -> str:
    return f"{_PART[match[group]]}.{match[group + 1]}"


__all__ = ["Checkpoint", "read_checkpoint", "rename_weights"]
