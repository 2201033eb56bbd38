"""argparse made from the table of commands: one help layout, errors as one sentence."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from autoseg.cli.commands import COMMANDS, Command
from autoseg.cli.options import Option, did_you_mean, options
from autoseg.errors import SettingError
from autoseg.schema.settings import CommonSettings

_WIDEST = 100
_GENERAL = "general"


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """``-d, --dataset DATASET`` and ``--[no-]verify``, in at most 100 columns."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=text_width())

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            shown = [flag for flag in action.option_strings if not flag.startswith("--no-")]
            return ", ".join(flag.replace("--", "--[no-]") for flag in shown)
        value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
        if action.nargs == "+":
            value += " ..."
        return ", ".join(action.option_strings) + value


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if "expected one argument" in message or "expected at least one argument" in message:
            message += "; a value is missing, or begins with '-': write --flag=VALUE"
        raise SettingError(message.removeprefix("argument "), hint=f"{self.prog} -h lists all flags with examples")


def text_width() -> int:
    """Columns for help: those of the terminal, at most 100."""
    return min(_WIDEST, shutil.get_terminal_size().columns)


def make_parser(command: Command, *, prog: str) -> argparse.ArgumentParser:
    """The parser of one command; a flag that is not typed is not set, so the record's default is the only one."""
    parser = _Parser(
        prog=prog,
        usage=_usage(command, prog),
        description=_description(command),
        formatter_class=_Formatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    for title, group in grouped(command):
        section = parser.add_argument_group(title)
        for option in group:
            _add(section, option)
        if title == _GENERAL:
            section.add_argument("-h", "--help", action="help", help="show this text")
    return parser


def parse(command: Command, words: Sequence[str], *, prog: str) -> CommonSettings:
    """Words of the command line to a settings record.

    Raises:
        SettingError: an unknown flag, a missing one, or a value that does not fit.
    """
    parser = make_parser(command, prog=prog)
    namespace, unknown = parser.parse_known_args(list(words))
    if unknown:
        known = [flag for option in options(command.settings) for flag in option.flags]
        parser.error(f"{unknown[0]!r} is not understood{did_you_mean(unknown[0].split('=')[0], known)}")
    values: dict[str, Any] = vars(namespace)
    required = (option for option in options(command.settings) if option.name in command.required)
    missing = ["/".join(option.flags) for option in required if not values.get(option.name)]
    if missing:
        parser.error(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} required")
    build: Callable[..., CommonSettings] = command.settings
    return build(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def grouped(command: Command) -> tuple[tuple[str, tuple[Option, ...]], ...]:
    """Titles and options as the help shows them; what no group names comes last."""
    by_name = {option.name: option for option in options(command.settings)}
    result = [(title, tuple(by_name.pop(name) for name in names)) for title, names in command.groups.items()]
    return (*result, (_GENERAL, tuple(by_name.values())))


def help_text(option: Option) -> str:
    """The field's help with its default, unless the words already tell."""
    if "default:" in option.help or option.default in (None, (), "") or option.default is False:
        return option.help
    return f"{option.help} (default: {'yes' if option.default is True else _plain(option.default)})"


def overview() -> str:
    """What ``autoseg -h`` shows: every command with a line about it."""
    width = max(len(verb) for verb in COMMANDS)
    lines = [f"  {command.verb:<{width}}  {command.summary}" for command in COMMANDS.values()]
    return (
        "usage: autoseg COMMAND [options]\n\n"
        "Train and use networks that segment medical images.\n\n"
        "commands:\n" + "\n".join(lines) + "\n\n"
        "Each is also a program of its own: autoseg_train is autoseg train.\n"
        "autoseg COMMAND -h shows its flags and examples; autoseg --version shows the version.\n"
    )


def _usage(command: Command, prog: str) -> str:
    shown = (option for option in options(command.settings) if option.name in command.required)
    return " ".join([prog, *(f"{option.flags[0]} {option.metavar}" for option in shown), "[options]"])


def _description(command: Command) -> str:
    text = textwrap.fill(command.description, text_width())
    longest = max(len(line) for line, _ in command.examples)
    lines = [f"  {line:<{longest}}  {meaning}" for line, meaning in command.examples]
    return text + "\n\nexamples:\n" + "\n".join(lines)


def _add(section: Any, option: Option) -> None:
    # argparse expands % in help texts.
    words = help_text(option).replace("%", "%%")
    if option.scalar is bool:
        section.add_argument(*option.flags, dest=option.name, action=argparse.BooleanOptionalAction, help=words)
        return

    def convert(text: str) -> Any:
        try:
            return option.from_text(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    several: dict[str, Any] = {"nargs": "+", "action": "extend"} if option.many else {}
    section.add_argument(
        *option.flags,
        dest=option.name,
        metavar=option.metavar,
        choices=option.choices,
        type=convert,
        help=words,
        **several,
    )


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
