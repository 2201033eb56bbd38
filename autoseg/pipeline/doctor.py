"""``autoseg_doctor``: what this computer offers, how fast it is, and what to change.

Third-party packages are imported one by one and with care: a broken installation is what this command is for.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import sysconfig
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from autoseg.errors import AutosegError, SettingError, joined
from autoseg.parallel import cores
from autoseg.pipeline.doctor_rules import judge
from autoseg.schema.health import FAULT, DiskFacts, DoctorReport, MachineFacts, TorchFacts
from autoseg.schema.tools import DoctorSettings
from autoseg.version import version as autoseg_version

# Installed names to imported names, where they differ or matter.
_REQUIRED = {
    "torch": "torch",
    "numpy": "numpy",
    "scipy": "scipy",
    "SimpleITK": "SimpleITK",
    "scikit-image": "skimage",
    "batchgenerators": "batchgenerators",
    "acvl-utils": "acvl_utils",
    "connected-components-3d": "cc3d",
    "blosc2": "blosc2",
    "safetensors": "safetensors",
    "cattrs": "cattrs",
    "matplotlib": "matplotlib",
    "pillow": "PIL",
    "tifffile": "tifffile",
    "psutil": "psutil",
}
_EXTRAS = ("onnx", "onnxscript", "onnxruntime", "tensorboard", "mlflow", "mlflow-skinny", "wandb")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLOSC_NTHREADS")
_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "neon", "asimd", "bf16", "sve")


def doctor(settings: DoctorSettings) -> DoctorReport:
    """Look at packages, devices, threads, disk and memory; ``verdict`` says whether autoseg can work with them.

    Raises:
        SettingError: there is no such device.
    """
    facts = _facts(settings)
    return DoctorReport(facts=facts, findings=judge(facts))


def verdict(report: DoctorReport) -> None:
    """Nothing, where autoseg can work.

    Raises:
        SettingError: it cannot; every reason is listed.
    """
    faults = report.of(FAULT)
    if faults:
        remedies = list(dict.fromkeys(fault.remedy for fault in faults if fault.remedy))
        raise SettingError(
            f"autoseg cannot work here:\n{joined([fault.text for fault in faults])}", hint="; ".join(remedies)
        )


def unfit_versions(requirements: list[str], versions: Mapping[str, str]) -> dict[str, str]:
    """Installed versions that a package's requirements exclude: name -> requirement.

    ``requirements`` are those of installed metadata, such as ``torch!=2.9.*,>=2.4``; the marks ``>=``, ``<`` and
    ``!=`` are understood, which are all that autoseg's metadata use.
    """
    found = {}
    for requirement in requirements:
        match = re.match(r"([\w.-]+)\s*([^;]*)(?:;\s*(.*))?", requirement)
        if match is None or "extra" in (match[3] or "") or match[1] not in versions:
            continue
        conditions = [part.strip(" ()") for part in match[2].split(",") if part.strip(" ()")]
        broken = [condition for condition in conditions if not _holds(versions[match[1]], condition)]
        if broken:
            found[match[1]] = ", ".join(broken)
    return found


def _holds(installed: str, condition: str) -> bool:
    for mark in (">=", "!=", "<"):
        if condition.startswith(mark):
            wanted = condition.removeprefix(mark).strip()
            if mark == "!=":
                prefix = wanted.removesuffix("*")
                return not (installed.startswith(prefix) if wanted.endswith("*") else installed == wanted)
            first, second = _numbers(installed), _numbers(wanted)
            return first >= second if mark == ">=" else first < second
    return True


def _numbers(text: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _facts(settings: DoctorSettings) -> MachineFacts:
    versions = {"python": platform.python_version(), "autoseg": autoseg_version(), **_versions(_REQUIRED)}
    broken = _broken()
    try:
        requirements = requires("autoseg") or []
    except PackageNotFoundError:
        requirements = []
    total, free = _memory()
    return MachineFacts(
        versions=versions,
        broken=broken,
        unfit=unfit_versions(requirements, versions),
        extras=_versions(_EXTRAS),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=_cpu_name(),
        cpu_features=_cpu_features(),
        cores=cores(),
        processors=os.cpu_count() or 1,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        thread_variables={name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
        memory_bytes=total,
        free_memory_bytes=free,
        shared_bytes=shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else -1,
        open_files=_open_files(),
        compiler=next((name for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if _found(name)), ""),
        python_headers=Path(sysconfig.get_path("include"), "Python.h").is_file(),
        nvidia_driver=Path("/proc/driver/nvidia/version").exists() or _found("nvidia-smi"),
        torch=None if "torch" in broken else _torch(settings),
        disk=None if broken else _disk(settings.workdir),
    )


def _versions(names: Mapping[str, str] | tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _broken() -> dict[str, str]:
    found = {}
    for name, module in _REQUIRED.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # a damaged package may raise anything while it loads
            found[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return found


def _torch(settings: DoctorSettings) -> TorchFacts:
    from autoseg.nets.probe import torch_facts

    return torch_facts(settings.device, seconds=settings.seconds)


def _disk(workdir: str | None) -> DiskFacts:
    from autoseg.io.discover import resolve_workspace
    from autoseg.io.disk import disk_facts

    return disk_facts(resolve_workspace(workdir).root)


def _memory() -> tuple[int, int]:
    """All RAM and what is free of it, as far as the system tells."""
    from autoseg.parallel import available_memory

    names = getattr(os, "sysconf_names", {})
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_PHYS_PAGES" in names else 0
    try:
        return total, available_memory()
    except (ImportError, AutosegError):
        return total, total


def _open_files() -> int:
    """The soft limit of this process, 0 if there is none."""
    try:
        import resource
    except ImportError:
        return 0
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 0 if soft == resource.RLIM_INFINITY else soft


def _cpu_lines() -> list[tuple[str, str]]:
    """Entries of the first processor, where the system lists them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return []
    return [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in text.splitlines())]


def _cpu_name() -> str:
    names = [value for key, value in _cpu_lines() if key in {"model name", "Model"} and value]
    return names[0] if names else platform.processor() or platform.machine()


def _cpu_features() -> tuple[str, ...]:
    flags = {word for key, value in _cpu_lines() if key in {"flags", "Features"} for word in value.split()}
    return tuple(name for name in _FEATURES if name in flags)


def _found(program: str) -> bool:
    return bool(program) and shutil.which(program) is not None
