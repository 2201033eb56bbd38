"""Write docs/commands.md from the settings, so that it cannot fall behind them (tests/cli/test_reference.py)."""

from __future__ import annotations

from pathlib import Path

from autoseg.cli.commands import COMMANDS, Command
from autoseg.cli.options import Option
from autoseg.cli.parser import grouped, help_text

TARGET = Path(__file__).parent / "commands.md"

HEAD = """# Commands

Made from the settings by `make docs`; edit `autoseg/schema/settings.py` or `autoseg/cli/commands.py` instead.

Every command is a program (`autoseg_train`), a verb (`autoseg train`) and a module (`python -m autoseg train`), and
has `-h`. A switch has two forms: `--mirror` and `--no-mirror`. Sizes are written `8GB`, times `45m` or `1h30m`.

| exit status | meaning |
|---|---|
| 0 | done |
| 2 | something you gave is wrong; the message says what and what to do |
| 3 | memory or disk ran out |
| 4 | a worker process died |
| 5 | training diverged |
| 6 | some items failed and are listed; the others are complete |
| 130 | stopped by Ctrl-C, SIGTERM or a stop file; the same command goes on |

"""


def reference() -> str:
    """The whole page."""
    contents = "\n".join(f"- [{command.script}](#{command.script}): {command.summary}" for command in COMMANDS.values())
    return HEAD + contents + "\n" + "".join(_section(command) for command in COMMANDS.values())


def _section(command: Command) -> str:
    examples = "\n".join(f"{line}  # {meaning}" for line, meaning in command.examples)
    tables = "".join(_table(title, group) for title, group in grouped(command))
    return f"\n## {command.script}\n\n{command.description}\n\n```\n{examples}\n```\n{tables}"


def _table(title: str, group: tuple[Option, ...]) -> str:
    rows = "\n".join(f"| {_flags(option)} | {help_text(option)} |" for option in group)
    return f"\n| {title} | |\n|---|---|\n{rows}\n"


def _flags(option: Option) -> str:
    if option.scalar is bool:
        return ", ".join(f"`{flag.replace('--', '--[no-]')}`" for flag in option.flags)
    shown = [f"`{flag}`" for flag in option.flags[:-1]]
    value = f" {option.metavar}" + (" ..." if option.many else "")
    return ", ".join([*shown, f"`{option.flags[-1]}{value}`"])


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
