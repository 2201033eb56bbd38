"""The arrows of the house: who may import whom, over every import, also those inside functions.

The rules are data; ``violations`` applies them to a source text, so that deliberate violations test the test.
"""

from __future__ import annotations

import ast
import enum
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "autoseg"

# A module may import modules of a lower row, and those of its own room.
LAYERS = (
    ("errors", "log", "version"),
    ("parallel", "registry", "records"),
    ("schema",),
    ("io", "ops"),
    ("fingerprint", "planning", "preprocessing", "evaluation"),
    ("nets", "losses", "augment"),
    ("interop",),
    ("training", "inference", "report"),
    ("pipeline",),
    ("cli",),
    ("api",),
    ("__init__", "__main__"),
)
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}

TORCH = {"training", "inference", "interop", "nets", "losses", "augment"}
# The resampling matrices can be applied on a device, when the caller names one.
TORCH_WHEN_CALLED = {"ops/resample.py"}
# Third-party packages with an allowed set of rooms; None stands for the bottom rows and the command line.
PLACES = {
    "torch": TORCH,
    "safetensors": TORCH,
    "batchgenerators": {"training"},
    "SimpleITK": {"io"},
    "blosc2": {"io"},
    "tifffile": {"io"},
    "PIL": {"io"},
    "multiprocessing": {"parallel"},
    "concurrent": {"parallel"},
    "threading": {"parallel"},
    "subprocess": set(),
    "pickle": set(),
    "nibabel": set(),
    "pydicom": {"io"},
    "highdicom": {"io"},
    "psutil": {"parallel"},
    "cattrs": {"records"},
}
STDLIB_AT_MODULE_LEVEL = {
    "errors",
    "log",
    "parallel",
    "registry",
    "records",
    "schema",
    "cli",
    "api",
    "__init__",
    "__main__",
}
MODULE_LEVEL_EXCEPTIONS = {("records", "cattrs")}

MAX_FUNCTION_LINES = 80
MAX_FILE_LINES = 400


def room_of(path: str) -> str:
    """``nets/unet.py`` -> ``nets``; ``errors.py`` -> ``errors``."""
    return path.split("/", 1)[0].removesuffix(".py")


class When(enum.Enum):
    """When an import runs: as its module is loaded, when a function is called, or never (for type checkers)."""

    LOAD = enum.auto()
    CALL = enum.auto()
    NEVER = enum.auto()


def imports(tree: ast.Module) -> Iterator[tuple[str, int, When]]:
    """Every imported module with its line, and when the import runs."""
    times: dict[int, When] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            times.update((id(inner), When.CALL) for inner in ast.walk(node))
    for node in ast.walk(tree):
        if _is_type_checking(node):
            times.update((id(inner), When.NEVER) for inner in ast.walk(node))
    for node in ast.walk(tree):
        time = times.get(id(node), When.LOAD)
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, time
        elif isinstance(node, ast.ImportFrom):
            yield from ((name, node.lineno, time) for name in _targets(node))
        elif isinstance(node, ast.Call) and _is_dynamic_import(node):
            yield node.args[0].value, node.lineno, time  # type: ignore[attr-defined]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # "module:attribute" is how registries and the table of commands name their targets.
            match = re.fullmatch(r"(autoseg(?:\.\w+)+):\w+", node.value)
            if match:
                yield match[1], node.lineno, When.CALL


def _targets(node: ast.ImportFrom) -> list[str]:
    if node.level:
        return ["." * node.level + (node.module or "")]
    if node.module == "autoseg":
        return [f"autoseg.{alias.name}" for alias in node.names]
    return [node.module or ""]


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _is_dynamic_import(node: ast.Call) -> bool:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    literal = bool(node.args) and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)
    return name in {"import_module", "__import__"} and literal


def violations(path: str, source: str) -> list[str]:
    """What in a file (``path`` relative to the package) breaks the rules."""
    tree = ast.parse(source)
    room = room_of(path)
    found = []
    for target, line, time in imports(tree):
        message = _judge(room, path, target, time)
        if message:
            found.append(f"{path}:{line}: {message}")
    return found + _too_long(path, source, tree)


def _judge(room: str, path: str, target: str, time: When) -> str:
    top, _, rest = target.partition(".")
    if target.startswith("."):
        return "relative import"
    if top == "autoseg":
        other = rest.split(".", 1)[0] or "__init__"
        if other not in RANK:
            # A public name of the package's own door: that door is the highest layer.
            other = "__init__"
        if other != room and RANK[other] >= RANK[room]:
            return f"{room} must not import {other}"
        return ""
    if time is When.NEVER:
        return ""
    lazy_torch = top == "torch" and path in TORCH_WHEN_CALLED and time is When.CALL
    if top in PLACES and room not in PLACES[top] and not lazy_torch:
        return f"{top} is for {', '.join(sorted(PLACES[top])) or 'nobody'}, not for {room}"
    allowed = top in sys.stdlib_module_names or (room, top) in MODULE_LEVEL_EXCEPTIONS
    if room in STDLIB_AT_MODULE_LEVEL and time is When.LOAD and not allowed:
        return f"{room} must not load {top} with the module"
    return ""


def _too_long(path: str, source: str, tree: ast.Module) -> list[str]:
    found = []
    lines = source.count("\n")
    if lines > MAX_FILE_LINES:
        found.append(f"{path}: {lines} lines, more than {MAX_FILE_LINES}")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                found.append(f"{path}:{node.lineno}: {node.name} has {length} lines, more than {MAX_FUNCTION_LINES}")
    return found


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_every_file_keeps_the_rules() -> None:
    found = [
        problem
        for path in sources()
        for problem in violations(path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


def test_every_room_has_a_layer() -> None:
    rooms = {room_of(path.relative_to(PACKAGE).as_posix()) for path in sources()}
    assert rooms <= set(RANK), f"rooms without a layer: {sorted(rooms - set(RANK))}"


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("schema/plan.py", "from autoseg.io import images"),
        ("errors.py", "from autoseg.schema.plan import Plan"),
        ("log.py", "import autoseg.errors"),
        ("records.py", "from autoseg.parallel import cores"),
        ("planning/rules.py", "from autoseg.nets.unet import UNet"),
        ("planning/rules.py", "from autoseg.preprocessing import case"),
        ("training/fit.py", "from autoseg.inference.predictor import Predictor"),
        ("training/fit.py", "def f():\n    from autoseg.inference.predictor import Predictor"),
        ("training/fit.py", "def f():\n    import autoseg.pipeline.train"),
        ("ops/crop.py", "from autoseg import io"),
        ("pipeline/train.py", "from autoseg.cli.main import main"),
        ("pipeline/train.py", "import autoseg"),
        ("pipeline/train.py", "from autoseg import train"),
        ("pipeline/train.py", "import importlib\nimportlib.import_module('autoseg.cli.main')"),
        ("nets/__init__.py", "TABLE = {'x': 'autoseg.training.fit:fit'}"),
        ("nets/unet.py", "from .blocks import Block"),
        ("nets/unet.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import autoseg.training.fit"),
        ("planning/planner.py", "import torch"),
        ("evaluation/metrics.py", "def f():\n    import torch.nn.functional as F"),
        ("ops/resample.py", "import torch"),
        ("ops/crop.py", "def f():\n    import torch"),
        ("evaluation/metrics.py", "import SimpleITK as sitk"),
        ("inference/predictor.py", "def f():\n    import SimpleITK"),
        ("training/data.py", "import blosc2"),
        ("training/data.py", "from multiprocessing import Queue"),
        ("pipeline/train.py", "from concurrent.futures import ProcessPoolExecutor"),
        ("inference/predictor.py", "def f():\n    from threading import Thread"),
        ("pipeline/demo.py", "import subprocess"),
        ("training/checkpoint.py", "import pickle"),
        ("cli/main.py", "import numpy as np"),
        ("schema/plan.py", "import cattrs"),
        ("parallel.py", "import psutil"),
        ("nets/unet.py", "def f():\n" + "    x = 1\n" * 80),
        ("nets/unet.py", "x = 1\n" * 401),
    ],
)
def test_a_deliberate_violation_is_caught(path: str, source: str) -> None:
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "pipeline/train.py",
            "from autoseg.training.fit import fit\nfrom autoseg.inference.predictor import Predictor",
        ),
        ("training/fit.py", "from autoseg.training.step import step\nimport torch"),
        ("ops/resample.py", "def f():\n    import torch"),
        ("parallel.py", "def f():\n    import psutil"),
        ("io/images.py", "import SimpleITK as sitk\nfrom autoseg import log"),
        ("cli/main.py", "def f():\n    import autoseg.pipeline.train"),
        ("inference/predictor.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import SimpleITK"),
        ("nets/unet.py", "def f():\n" + "    x = 1\n" * 79),
    ],
)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    assert violations(path, source) == []
