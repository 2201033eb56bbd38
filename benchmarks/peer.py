"""The peer in an environment of its own; never a dependency of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

VERSION = "nnunetv2==2.8.1"
# nnU-Net 2 has no surface distances: its users take one of these.
DISTANCES = ("medpy==0.5.2", "surface-distance==0.1")


def environment(folder: Path) -> Path:
    """The Python of an environment with the peer and our version of torch; made on first use."""
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        torch_version = torch.__version__.split("+")[0]
        subprocess.run(
            [str(python), "-m", "pip", "install", "-q", f"torch=={torch_version}", VERSION, *DISTANCES], check=True
        )
        done.touch()
    return python
