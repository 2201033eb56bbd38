"""Help and ``import autoseg`` stay instant: by the modules that they load, not by the clock."""

from __future__ import annotations

import subprocess
import sys

import pytest

from autoseg.cli.commands import COMMANDS

LIGHT = ("autoseg.cli", "autoseg.schema", "autoseg.errors", "autoseg.log", "autoseg.api", "autoseg.version")


def loaded_by(code: str) -> set[str]:
    """Modules that ``code`` loads in a fresh interpreter beyond those that start-up itself loads."""
    program = (
        "import io, sys\nbefore = set(sys.modules)\nout, sys.stdout = sys.stdout, io.StringIO()\n"
        f"try:\n    {code}\nexcept SystemExit:\n    pass\n"
        "out.write('\\n'.join(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def heavy(modules: set[str]) -> set[str]:
    """Third-party packages, and rooms of autoseg that do work."""
    foreign = {name for name in modules if name.partition(".")[0] not in {*sys.stdlib_module_names, "autoseg"}}
    own = {name for name in modules if name.startswith("autoseg.") and not name.startswith(LIGHT)}
    return foreign | own


@pytest.mark.parametrize("verb", [*COMMANDS, "-h"])
def test_help_loads_only_the_standard_library_and_the_schema(verb: str) -> None:
    words = [verb, "-h"] if verb in COMMANDS else [verb]
    modules = loaded_by(f"from autoseg.cli.main import main; main({words!r})")
    assert "autoseg.cli.main" in modules
    assert heavy(modules) == set()


def test_a_parse_error_loads_no_more_than_help() -> None:
    modules = loaded_by("import sys; sys.stderr = sys.stdout; from autoseg.cli.main import main; main(['train', '-x'])")
    assert heavy(modules) == set()


def test_import_autoseg_loads_nothing_else() -> None:
    assert {name for name in loaded_by("import autoseg") if name.startswith("autoseg.")} == set()


def test_the_settings_are_reached_without_heavy_packages() -> None:
    assert heavy(loaded_by("import autoseg; autoseg.TrainSettings(epochs=3); autoseg.train")) == set()


def test_heavy_packages_would_be_noticed() -> None:
    assert "numpy" in heavy(loaded_by("import numpy"))
    assert "autoseg.records" in heavy(loaded_by("import autoseg.records"))
