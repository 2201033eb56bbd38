"""What to make of the facts about a computer: each rule is a function from facts to findings."""

from __future__ import annotations

from collections.abc import Iterator

from autoseg.log import size
from autoseg.schema.health import ADVICE, FAULT, GOOD, Finding, MachineFacts

# A known version that works badly is advice; the others that the metadata exclude may not work at all.
SLOW_VERSIONS = {
    ("torch", "2.9."): "3D convolutions in half precision are several times slower than in other versions",
}
_LEAST_PYTHON = (3, 10)
_LEAST_MEMORY = 500_000_000
_LITTLE_MEMORY = 4_000_000_000
_LEAST_DISK = 200_000_000
_LITTLE_DISK = 10_000_000_000
_SLOW_DISK = 50_000_000.0
_LITTLE_SHARED = 1_000_000_000
_FEW_FILES = 1024
_BUSY = 1.5


def judge(facts: MachineFacts) -> tuple[Finding, ...]:
    """Every finding, those that need an action first within each severity."""
    rules = (_packages, _torch_build, _precision, _threads, _memory, _disk, _limits, _compiler)
    found = [finding for rule in rules for finding in rule(facts)]
    order = (FAULT, ADVICE, GOOD)
    return tuple(sorted(found, key=lambda finding: order.index(finding.severity)))


def _packages(facts: MachineFacts) -> Iterator[Finding]:
    for name, reason in facts.broken.items():
        yield Finding(
            topic="packages",
            severity=FAULT,
            text=f"{name} cannot be imported ({reason})",
            remedy=f"pip install --force-reinstall {name}",
        )
    python = tuple(int(part) for part in facts.versions["python"].split(".")[:2])
    if python < _LEAST_PYTHON:
        yield Finding(topic="packages", severity=FAULT, text="Python is too old", remedy="use Python 3.10 or later")
    for name, requirement in facts.unfit.items():
        installed = facts.versions[name]
        slow = [
            why for (package, start), why in SLOW_VERSIONS.items() if package == name and installed.startswith(start)
        ]
        yield Finding(
            topic="packages",
            severity=ADVICE if slow else FAULT,
            text=f"{name} {installed} does not fit ({name} {requirement})" + "".join(f": {why}" for why in slow),
            remedy=f'pip install "{name}{requirement.replace(" ", "")}"',
        )
    if not facts.broken and not facts.unfit:
        yield Finding(topic="packages", severity=GOOD, text="all packages that autoseg needs are there and fit")


def _torch_build(facts: MachineFacts) -> Iterator[Finding]:
    if facts.torch is None:
        return
    for gpu in facts.torch.gpus:
        text = (
            f"{gpu.name}: {size(gpu.free_bytes)} of {size(gpu.memory_bytes)} free, compute capability {gpu.capability}"
        )
        if not gpu.usable:
            yield Finding(
                topic="device",
                severity=ADVICE,
                text=f"{text}; this torch (CUDA {facts.torch.cuda_build}) has no code for it",
                remedy="install a torch build for this GPU (pytorch.org), or train with --device cpu",
            )
        elif gpu.free_bytes < 0.5 * gpu.memory_bytes:
            yield Finding(
                topic="device",
                severity=ADVICE,
                text=f"{text}: other programs hold most of it",
                remedy="close them, or plan for less with autoseg_plan --memory",
            )
        else:
            yield Finding(topic="device", severity=GOOD, text=text)
    if facts.torch.gpus:
        return
    if facts.nvidia_driver and not facts.torch.cuda_build:
        yield Finding(
            topic="device",
            severity=ADVICE,
            text="there is an NVIDIA driver, but this torch is a build for the CPU only",
            remedy="install torch with CUDA (pytorch.org says the command), which is many times faster",
        )
    elif facts.nvidia_driver:
        yield Finding(
            topic="device",
            severity=ADVICE,
            text=f"there is an NVIDIA driver and torch has CUDA {facts.torch.cuda_build}, but no GPU can be used",
            remedy="check CUDA_VISIBLE_DEVICES, and whether the driver is new enough for this CUDA",
        )
    else:
        yield Finding(
            topic="device", severity=GOOD, text="no GPU: autoseg trains on the CPU (--time-budget fits it to your time)"
        )


def _precision(facts: MachineFacts) -> Iterator[Finding]:
    if facts.torch is None:
        return
    rates = {rate.precision: rate.gflops for rate in facts.torch.rates}
    shown = ", ".join(f"{name} {value:.0f}" for name, value in rates.items())
    measured = f" (convolutions: {shown} GFLOP/s)" if rates else ""
    yield Finding(
        topic="speed",
        severity=GOOD,
        text=f"training on {facts.torch.device} will use {facts.torch.precision}{measured}",
    )
    if facts.torch.device == "cpu" and facts.torch.instruction_set.upper() in {"DEFAULT", "NO AVX"}:
        yield Finding(
            topic="speed",
            severity=ADVICE,
            text="torch uses no vector instructions of this processor",
            remedy="unset ATEN_CPU_CAPABILITY; in a virtual machine, let it see the host's processor",
        )


def _threads(facts: MachineFacts) -> Iterator[Finding]:
    if facts.torch is not None and facts.torch.device == "cpu":
        threads = facts.torch.threads
        fixed = ", ".join(f"{name}={value}" for name, value in facts.thread_variables.items())
        because = f" ({fixed})" if fixed else ""
        if threads > facts.cores:
            yield Finding(
                topic="threads",
                severity=ADVICE,
                text=f"torch starts {threads} threads for {facts.cores} cores{because}: they wait for each other",
                remedy=f"export OMP_NUM_THREADS={facts.cores}",
            )
        elif threads < max(1, facts.cores // 2):
            yield Finding(
                topic="threads",
                severity=ADVICE,
                text=f"torch uses {threads} of {facts.cores} cores{because}: training is slower than it could be",
                remedy="unset OMP_NUM_THREADS, unless several programs share this machine",
            )
        else:
            yield Finding(topic="threads", severity=GOOD, text=f"torch uses {threads} of {facts.cores} cores")
    if facts.load > _BUSY * facts.cores:
        yield Finding(
            topic="threads",
            severity=ADVICE,
            text=f"{facts.load:.1f} programs want to run on {facts.cores} cores; the speeds above are too low for that",
            remedy="let other programs finish, or run fewer at once",
        )


def _memory(facts: MachineFacts) -> Iterator[Finding]:
    text = f"{size(facts.free_memory_bytes)} of RAM can be used"
    if facts.free_memory_bytes < _LEAST_MEMORY:
        yield Finding(topic="memory", severity=FAULT, text=f"only {text}", remedy="close other programs")
    elif facts.free_memory_bytes < _LITTLE_MEMORY:
        yield Finding(
            topic="memory",
            severity=ADVICE,
            text=f"only {text}: large images will not fit",
            remedy="close other programs, and use --workers 0 or 1",
        )
    else:
        yield Finding(topic="memory", severity=GOOD, text=text)
    if 0 <= facts.shared_bytes < _LITTLE_SHARED and facts.torch is not None and facts.torch.gpus:
        yield Finding(
            topic="memory",
            severity=ADVICE,
            text=f"/dev/shm has {size(facts.shared_bytes)}: processes that load patches may die with a bus error",
            remedy="start the container with --shm-size 8g (or --ipc host)",
        )


def _disk(facts: MachineFacts) -> Iterator[Finding]:
    disk = facts.disk
    if disk is None:
        return
    if disk.problem:
        yield Finding(
            topic="disk",
            severity=FAULT,
            text=f"the work directory cannot be written: {disk.problem}",
            remedy="choose another one with --workdir or AUTOSEG_HOME",
        )
        return
    free = f"{size(disk.free_bytes)} free in {disk.folder}"
    if disk.free_bytes < _LEAST_DISK:
        yield Finding(topic="disk", severity=FAULT, text=f"only {free}", remedy="free disk space, or move --workdir")
    elif disk.free_bytes < _LITTLE_DISK:
        yield Finding(
            topic="disk",
            severity=ADVICE,
            text=f"only {free}: preprocessed images take about as much space as the raw ones, unpacked",
            remedy="free disk space, or put --workdir on a larger disk",
        )
    speed = f"the work directory writes {size(disk.write_rate)}/s and reads {size(disk.read_rate)}/s"
    if min(disk.write_rate, disk.read_rate) < _SLOW_DISK:
        yield Finding(
            topic="disk",
            severity=ADVICE,
            text=f"{speed}: reading patches may hold up a GPU",
            remedy="put --workdir on a local disk, not on a network share",
        )
    else:
        yield Finding(topic="disk", severity=GOOD, text=f"{free}; {speed}")


def _limits(facts: MachineFacts) -> Iterator[Finding]:
    if 0 < facts.open_files < _FEW_FILES:
        yield Finding(
            topic="limits",
            severity=ADVICE,
            text=f"this shell may open only {facts.open_files} files at once",
            remedy="ulimit -n 4096",
        )


def _compiler(facts: MachineFacts) -> Iterator[Finding]:
    # Only a GPU trains with torch.compile.
    if facts.torch is None or not facts.torch.gpus:
        return
    missing = [
        name for name, there in (("a C++ compiler", facts.compiler), ("Python.h", facts.python_headers)) if not there
    ]
    if missing:
        yield Finding(
            topic="compiler",
            severity=ADVICE,
            text=f"torch.compile needs {' and '.join(missing)}: training goes without it and is slower",
            remedy="install g++ and the headers of Python (on Debian and Ubuntu: apt install g++ python3-dev)",
        )
    else:
        yield Finding(topic="compiler", severity=GOOD, text=f"{facts.compiler} can build what torch.compile makes")
