"""The command reference in docs/ is what the settings say today."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from autoseg.cli.commands import COMMANDS
from autoseg.cli.options import options

DOCS = Path(__file__).parents[2] / "docs"


def test_the_reference_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_commands", DOCS / "make_commands.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (DOCS / "commands.md").read_text(encoding="utf-8")
    assert written == module.reference(), "run make docs"


def test_every_command_names_its_own_flags() -> None:
    written = (DOCS / "commands.md").read_text(encoding="utf-8")
    for command in COMMANDS.values():
        section = written.partition(f"\n## {command.script}\n")[2].partition("\n## ")[0]
        for option in options(command.settings):
            shown = option.flags[-1].replace("--", "--[no-]") if option.scalar is bool else f"{option.flags[-1]} "
            assert f"`{shown}" in section, (command.verb, shown)
