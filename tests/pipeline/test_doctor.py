"""The doctor: rules on made-up computers, and the command on this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from autoseg.cli.main import main
from autoseg.errors import SettingError
from autoseg.pipeline.doctor import unfit_versions, verdict
from autoseg.pipeline.doctor_rules import judge
from autoseg.schema.health import ADVICE, FAULT, DiskFacts, DoctorReport, Finding, Gpu, MachineFacts, TorchFacts

TORCH = TorchFacts(
    device="cpu", precision="bfloat16", threads=4, instruction_set="AVX2", cuda_build="", gpus=(), rates=()
)
GPU = Gpu(name="A card", memory_bytes=24 * 10**9, free_bytes=23 * 10**9, capability="8.6", usable=True)
DISK = DiskFacts(folder="/work", free_bytes=10**12, write_rate=1e9, read_rate=1e9)
SOUND = MachineFacts(
    versions={"python": "3.12.1", "torch": "2.8.0"},
    broken={},
    unfit={},
    extras={},
    system="Linux",
    cpu="A processor",
    cpu_features=("avx2",),
    cores=4,
    processors=8,
    load=0.5,
    thread_variables={},
    memory_bytes=32 * 10**9,
    free_memory_bytes=16 * 10**9,
    shared_bytes=16 * 10**9,
    open_files=4096,
    compiler="g++",
    python_headers=True,
    nvidia_driver=False,
    torch=TORCH,
    disk=DISK,
)


def changes(facts: MachineFacts) -> list[Finding]:
    return [finding for finding in judge(facts) if finding.severity in {ADVICE, FAULT}]


def with_gpu(**changed: object) -> MachineFacts:
    gpu = replace(GPU, **changed)  # type: ignore[arg-type]
    return replace(SOUND, nvidia_driver=True, torch=replace(TORCH, device="cuda:0", cuda_build="12.6", gpus=(gpu,)))


def test_a_sound_computer_needs_no_change() -> None:
    assert changes(SOUND) == []
    assert changes(with_gpu()) == []


@pytest.mark.parametrize(
    ("facts", "severity", "words", "remedy"),
    [
        (replace(SOUND, broken={"scipy": "ImportError: no"}), FAULT, "scipy cannot be imported", "pip install"),
        (
            replace(SOUND, versions={"python": "3.12", "torch": "2.9.1"}, unfit={"torch": "!=2.9.*"}),
            ADVICE,
            "several times slower",
            'pip install "torch!=2.9.*"',
        ),
        (
            replace(SOUND, versions={"python": "3.12", "numpy": "1.2"}, unfit={"numpy": ">=1.26"}),
            FAULT,
            "numpy 1.2 does not fit",
            'pip install "numpy>=1.26"',
        ),
        (replace(SOUND, torch=replace(TORCH, threads=32)), ADVICE, "wait for each other", "OMP_NUM_THREADS=4"),
        (
            replace(SOUND, torch=replace(TORCH, threads=1), thread_variables={"OMP_NUM_THREADS": "1"}),
            ADVICE,
            "1 of 4 cores (OMP_NUM_THREADS=1)",
            "unset",
        ),
        (replace(SOUND, load=20.0), ADVICE, "20.0 programs want to run on 4 cores", "fewer"),
        (replace(SOUND, free_memory_bytes=10**9), ADVICE, "only 1.0 GB of RAM", "--workers"),
        (replace(SOUND, free_memory_bytes=10**8), FAULT, "only 100.0 MB of RAM", "close"),
        (replace(SOUND, disk=replace(DISK, free_bytes=10**9)), ADVICE, "only 1.0 GB free in /work", "larger disk"),
        (replace(SOUND, disk=replace(DISK, free_bytes=10**7)), FAULT, "only 10.0 MB free in /work", "free"),
        (replace(SOUND, disk=replace(DISK, problem="/work: Read-only")), FAULT, "Read-only", "--workdir"),
        (replace(SOUND, disk=replace(DISK, read_rate=1e7)), ADVICE, "reads 10.0 MB/s", "local disk"),
        (replace(SOUND, open_files=256), ADVICE, "only 256 files", "ulimit"),
        (replace(SOUND, nvidia_driver=True), ADVICE, "build for the CPU only", "pytorch.org"),
        (
            replace(SOUND, nvidia_driver=True, torch=replace(TORCH, cuda_build="12.6")),
            ADVICE,
            "no GPU can be used",
            "CUDA_VISIBLE_DEVICES",
        ),
        (with_gpu(usable=False), ADVICE, "has no code for it", "pytorch.org"),
        (with_gpu(free_bytes=10**9), ADVICE, "other programs hold most of it", "--memory"),
        (replace(with_gpu(), compiler=""), ADVICE, "torch.compile needs a C++ compiler", "g++"),
        (replace(with_gpu(), shared_bytes=64_000_000), ADVICE, "/dev/shm has 64.0 MB", "--shm-size"),
    ],
)
def test_each_trouble_is_one_finding_with_a_remedy(facts: MachineFacts, severity: str, words: str, remedy: str) -> None:
    (finding,) = changes(facts)
    assert finding.severity == severity
    assert words in finding.text
    assert remedy in finding.remedy


def test_only_what_makes_autoseg_unusable_is_an_error() -> None:
    advice = replace(SOUND, load=20.0)
    verdict(DoctorReport(facts=advice, findings=judge(advice)))
    hopeless = replace(SOUND, broken={"scipy": "ImportError: no"}, free_memory_bytes=1)
    with pytest.raises(SettingError, match="cannot work here") as caught:
        verdict(DoctorReport(facts=hopeless, findings=judge(hopeless)))
    assert "scipy" in caught.value.message
    assert "RAM" in caught.value.message


@pytest.mark.parametrize(
    ("requirement", "installed", "fits"),
    [
        ("torch!=2.9.*,>=2.4", "2.9.1+cpu", False),
        ("torch!=2.9.*,>=2.4", "2.13.0+cpu", True),
        ("torch!=2.9.*,>=2.4", "2.3.1", False),
        ("torch>=2.4", "2.10", True),
        ('torch>=9; extra == "test"', "2.10", True),
        ("torch (>=2.4,<3)", "3.0.1", False),
        ("torch", "0.1", True),
    ],
)
def test_versions_are_held_against_the_metadata(requirement: str, installed: str, fits: bool) -> None:
    assert (unfit_versions([requirement, "numpy>=99"], {"torch": installed}) == {}) is fits


def test_the_command_reports_this_computer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "not" / "yet"
    assert main(["doctor", "--seconds", "0.05", "--device", "cpu", "--workdir", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    facts = report["facts"]
    assert facts["versions"]["torch"] == version("torch")
    assert facts["broken"] == {}
    assert facts["torch"]["precision"] in {"float32", "bfloat16"}
    assert [rate["precision"] for rate in facts["torch"]["rates"]] == ["float32", "bfloat16"]
    assert facts["torch"]["rates"][0]["gflops"] > 0
    assert facts["cores"] <= os.cpu_count()
    assert min(facts["disk"]["write_rate"], facts["disk"]["read_rate"]) > 0
    assert list(tmp_path.iterdir()) == []


def test_the_text_says_what_to_change_in_100_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--seconds", "0", "--workdir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "In order" in shown
    assert ("What to change" in shown) != ("There is nothing to change." in shown)
    assert max(len(line) for line in shown.splitlines() if str(tmp_path) not in line) <= 100


def test_a_broken_package_is_shown_and_is_the_exit_status(tmp_path: Path) -> None:
    # Found before the real one, and it cannot be imported.
    (tmp_path / "cc3d.py").write_text("raise OSError('libcc3d.so: cannot open shared object file')\n")
    words = [sys.executable, "-m", "autoseg", "doctor", "--seconds", "0", "--workdir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert "connected-components-3d cannot be imported (OSError: libcc3d.so" in done.stdout
    assert "autoseg: autoseg cannot work here" in done.stderr
    assert "Traceback" not in done.stderr
