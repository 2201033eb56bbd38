"""Weights and checkpoints on disk: tensors and plain values, written atomically, loaded without running code."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from autoseg.errors import RecordError
from autoseg.nets.weights import write_tensors
from autoseg.records import atomic_path
from autoseg.training.state import EpochRecord, TrainState

VERSION = 1


def save_checkpoint(path: Path, state: TrainState, *, signature: str, precision: str = "float32") -> None:
    """Everything that resuming needs.

    Args:
        signature: names what must be equal for resuming to make sense.
        precision: the autocast type; going on in another would not repeat an uninterrupted run.
    """
    content = {
        "version": VERSION,
        "signature": signature,
        "precision": precision,
        "network": bare(state.network).state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict() if state.scaler is not None else None,
        "step": state.step,
        "elapsed": state.elapsed,
        "history": [asdict(record) for record in state.history],
        "epoch_steps": state.epoch_steps,
        "epoch_seconds": state.epoch_seconds,
        "epoch_loss": state.epoch_loss,
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: Path, state: TrainState, *, signature: str, device: torch.device) -> str:
    """Restore ``state`` in place and return the precision that it was trained in.

    Raises:
        RecordError: the file cannot be read, or belongs to another plan or other settings.
    """
    content = _read(path, device)
    if content.get("signature") != signature:
        raise RecordError(
            f"{path} was written by training with another plan, split, seed, batch size, learning rate or start "
            "(--init, --freeze), or after another first stage",
            hint="repeat the settings of that training to go on, or remove the fold's folder to start anew",
        )
    bare(state.network).load_state_dict(content["network"])
    state.optimizer.load_state_dict(content["optimizer"])
    if state.scaler is not None and content["scaler"] is not None:
        state.scaler.load_state_dict(content["scaler"])
    state.step = content["step"]
    state.elapsed = content["elapsed"]
    state.history = [EpochRecord(**record) for record in content["history"]]
    state.epoch_steps = content["epoch_steps"]
    state.epoch_seconds = content["epoch_seconds"]
    state.epoch_loss = content["epoch_loss"]
    precision: str = content["precision"]
    return precision


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise RecordError(f"{path} cannot be read: {error}", hint="remove the file to start this fold anew") from error
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":
            raise
        raise RecordError(
            f"{path} holds something else than tensors and numbers: {error}",
            hint="remove the file; it was not written by autoseg",
        ) from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise RecordError(f"{path} is not a checkpoint of this autoseg", hint="remove it to start this fold anew")
    return content


def save_weights(path: Path, network: nn.Module, *, metadata: dict[str, str]) -> None:
    """The network's tensors as safetensors; equal ones with equal ``metadata`` give equal bytes.

    Raises:
        ResourceError, SettingError: as ``atomic_path``.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in bare(network).state_dict().items()}
    with atomic_path(path) as temporary:
        write_tensors(temporary, tensors, metadata=metadata)


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file.

    Raises:
        RecordError: missing, truncated or not safetensors.
    """
    try:
        return load_file(path)
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        raise RecordError(f"{path} cannot be read: {error}", hint="train this fold again, or copy it anew") from error


def weights_hash(path: Path) -> str:
    """SHA-256 of the numbers in a safetensors file, whatever its metadata."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def bare(network: nn.Module) -> nn.Module:
    """The network under torch.compile and DistributedDataParallel wrappers, whose names would leak into files."""
    for attribute in ("_orig_mod", "module"):
        inner = getattr(network, attribute, None)
        if isinstance(inner, nn.Module):
            return bare(inner)
    return network
