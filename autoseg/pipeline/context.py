"""Which dataset a command is about, and what machine it runs on."""

from __future__ import annotations

import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from autoseg import records
from autoseg.errors import DatasetError
from autoseg.io.discover import find_dataset
from autoseg.log import get_logger, size
from autoseg.nets.device import choose_device, gpu_bytes, gpu_name
from autoseg.parallel import available_memory, cores
from autoseg.schema.dataset import CurrentDataset
from autoseg.schema.folders import Workspace

_LOG = get_logger(__name__)

# The rest of the RAM is for the system, for reading the next patches and for what the allocator does not return.
CPU_MEMORY_SHARE = 0.7
GPU_MEMORY_SHARE = 0.95


def choose_dataset(identifier: str | None, workspace: Workspace) -> str:
    """The full name of the dataset: the one asked for, or the one planned last (and say so).

    Raises:
        DatasetError: not found, or none was planned yet.
    """
    if identifier is not None:
        prepared = _prepared_name(identifier, workspace)
        return prepared or find_dataset(identifier, workspace).name
    if not workspace.current.exists():
        raise DatasetError(
            f"no dataset has been planned in {workspace.root}",
            hint="run autoseg_plan_and_preprocess -d DATASET first, or name the dataset with -d",
        )
    name = records.load(CurrentDataset, workspace.current).dataset
    _LOG.info("dataset: %s (the one planned last)", name)
    return name


def _prepared_name(identifier: str, workspace: Workspace) -> str | None:
    """The name if it was prepared or a model of it is there, so that commands work where the raw data are gone."""
    rooms = [room for room in (workspace.preprocessed, workspace.results) if room.is_dir()]
    names = {path.name for room in rooms for path in room.iterdir() if path.is_dir()}
    if identifier in names:
        return identifier
    if identifier.isdigit():
        found = [name for name in names if name.startswith(f"Dataset{int(identifier):03d}_")]
        if len(found) == 1:
            return found[0]
    return None


def remember_dataset(name: str, workspace: Workspace) -> None:
    records.save(workspace.current, CurrentDataset(dataset=name))


def memory_budget(device_name: str, requested: int | None) -> int:
    """Bytes that training may use: the request, or the GPU's memory, or most of the free RAM.

    Raises:
        SettingError: there is no such GPU.
    """
    if requested is not None:
        return requested
    device = choose_device(device_name)
    if device.type == "cuda":
        return int(gpu_bytes(device) * GPU_MEMORY_SHARE)
    return int(available_memory() * CPU_MEMORY_SHARE)


def typed_command(name: str) -> str:
    """The command as typed, or who called from Python."""
    program = Path(sys.argv[0]).name
    if program.startswith("autoseg") or program == "__main__.py":
        return shlex.join(["autoseg" if program == "__main__.py" else program, *sys.argv[1:]])
    return f"{name} (from Python)"


def versions() -> dict[str, str]:
    """Versions of Python, autoseg and the libraries that decide results."""
    found = {"python": platform.python_version()}
    for name in ("autoseg", "torch", "numpy", "scipy", "SimpleITK", "scikit-image", "batchgenerators", "acvl-utils"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> str:
    """One line about the computer, without its name."""
    text = f"{platform.system()} {platform.machine()}, {cores()} cores, {size(available_memory())} RAM free"
    gpu = gpu_name()
    return f"{text}, {gpu}" if gpu else text
