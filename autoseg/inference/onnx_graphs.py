"""A trained fold as an ONNX graph, and how far its logits are from those of the network."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from autoseg.errors import ModelFolderError, SettingError
from autoseg.inference.ensemble import load_network
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Configuration, Plan

INPUT, OUTPUT = "image", "logits"
# Other kernels add in another order; more than this share of the logits' range is another network.
_TOLERANCE = 1e-3


class _FinestLogits(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network(image)[0]
        return logits


def require_onnx() -> None:
    """
    Raises:
        SettingError: a package that the export needs is missing; the hint has the command.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise SettingError(
                f"--onnx needs the package {name}, which cannot be imported: {error}",
                hint="pip install 'autoseg[onnx]'",
            ) from error


def write_graph(path: Path, model: ModelFolder, fold: str, plan: Plan, configuration: Configuration) -> float:
    """Write the graph of one fold for one window (1, channels, *patch), and compare it with the network.

    Returns:
        The largest difference of the logits of a window of noise, in onnxruntime and in torch, both on the CPU.

    Raises:
        SettingError: the network cannot be expressed in ONNX.
        ModelFolderError: the graph gives other logits than the network.
    """
    network = load_network(model.fold(fold).weights, plan, configuration, torch.device("cpu"))
    wrapped = _FinestLogits(network.to(memory_format=torch.contiguous_format)).eval()  # type: ignore[call-overload]
    shape = (1, len(plan.channels), *configuration.patch_size)
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    try:
        with _silent(), torch.no_grad():
            program = torch.onnx.export(
                wrapped, (noise,), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False
            )
            if program is None:
                raise RuntimeError("torch returned no program")
            program.save(str(path), external_data=False)
    except Exception as error:  # the exporter raises whatever its many parts raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SettingError(
            f"{configuration.architecture.label} cannot be written as an ONNX graph: {reason}",
            hint="share it with autoseg_export without --onnx",
        ) from error
    return _difference(path, wrapped, noise)


def _difference(path: Path, network: nn.Module, noise: Tensor) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run([OUTPUT], {INPUT: noise.numpy()})[0]
    with torch.inference_mode():
        expected = network(noise).numpy()
    difference = float(np.abs(found - expected).max())
    if not difference <= _TOLERANCE * max(float(np.abs(expected).max()), 1.0):
        raise ModelFolderError(
            f"{path.name} gives other logits than the network: they differ by up to {difference:.3g}",
            hint="try another version of onnxscript and onnxruntime",
        )
    return difference


@contextmanager
def _silent() -> Iterator[None]:
    """The exporter reports what it does not need; errors still come through."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
