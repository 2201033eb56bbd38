"""What ``autoseg_doctor`` found out about a computer, and what it makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

GOOD = "good"
ADVICE = "advice"
FAULT = "fault"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """``usable``: the installed torch holds code for this device."""

    name: str
    memory_bytes: int
    free_bytes: int
    capability: str
    usable: bool


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Speed of forward and backward of a convolution, in 10^9 operations per second."""

    device: str
    precision: str
    gflops: float


@dataclass(frozen=True, kw_only=True)
class TorchFacts:
    """``precision`` is what training would choose on ``device``; ``cuda_build`` is "" in a build for the CPU only."""

    device: str
    precision: str
    threads: int
    instruction_set: str
    cuda_build: str
    gpus: tuple[Gpu, ...]
    rates: tuple[Rate, ...]


@dataclass(frozen=True, kw_only=True)
class DiskFacts:
    """Bytes, and bytes per second with the cache left out as far as the system allows (0 if not measured)."""

    folder: str
    free_bytes: int
    write_rate: float
    read_rate: float
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class MachineFacts:
    """What was measured. ``broken`` are required packages that cannot be imported, each with the reason.

    ``unfit`` are installed versions that autoseg's metadata excludes, each with the requirement. ``cores`` may be
    used by this process, ``processors`` exist. ``open_files`` is the soft limit; ``shared_bytes`` is free in /dev/shm,
    -1 where there is none.
    """

    versions: dict[str, str]
    broken: dict[str, str]
    unfit: dict[str, str]
    extras: dict[str, str]
    system: str
    cpu: str
    cpu_features: tuple[str, ...]
    cores: int
    processors: int
    load: float
    thread_variables: dict[str, str]
    memory_bytes: int
    free_memory_bytes: int
    shared_bytes: int
    open_files: int
    compiler: str
    python_headers: bool
    nvidia_driver: bool
    torch: TorchFacts | None
    disk: DiskFacts | None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One sentence about a topic; ``severity`` is ``good``, ``advice`` or ``fault`` (autoseg cannot work)."""

    topic: str
    severity: str
    text: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class DoctorReport:
    VERSION: ClassVar[int] = 1

    version: int = 1
    facts: MachineFacts
    findings: tuple[Finding, ...]

    def of(self, severity: str) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == severity)
