"""Entry points: ``autoseg <verb>`` and one function per console script.

Heavy packages are imported when a command runs, not when its help is asked for (``tests/test_startup.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches

from autoseg import log
from autoseg.cli.commands import COMMANDS, Command
from autoseg.cli.parser import overview, parse
from autoseg.errors import AutosegError, ResourceError, SettingError
from autoseg.version import version

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """``autoseg <verb> ...``: run it and return the exit status."""
    words = _words(argv)
    return guarded(lambda: run(words), name="autoseg", debug="--debug" in words)


def run(words: Sequence[str]) -> None:
    """What ``autoseg`` does with these words; errors are raised, not shown.

    Raises:
        AutosegError: those of the command, and ``SettingError`` for words that are not understood.
    """
    if not words or words[0] in {"-h", "--help", "help"}:
        sys.stdout.write(overview())
    elif words[0] == "--version":
        sys.stdout.write(f"autoseg {version()}\n")
    else:
        verb = words[0].replace("-", "_").removeprefix("autoseg_")
        if verb not in COMMANDS:
            close = get_close_matches(verb, COMMANDS, n=1)
            ask = f"; did you mean {close[0]!r}?" if close else ""
            raise SettingError(f"there is no command {words[0]!r}{ask}", hint=f"choose one of: {', '.join(COMMANDS)}")
        _execute(COMMANDS[verb], words[1:], prog=f"autoseg {verb}")


def plan_and_preprocess(argv: Sequence[str] | None = None) -> int:
    return _script("plan_and_preprocess", argv)


def fingerprint(argv: Sequence[str] | None = None) -> int:
    return _script("fingerprint", argv)


def plan(argv: Sequence[str] | None = None) -> int:
    return _script("plan", argv)


def preprocess(argv: Sequence[str] | None = None) -> int:
    return _script("preprocess", argv)


def train(argv: Sequence[str] | None = None) -> int:
    return _script("train", argv)


def race(argv: Sequence[str] | None = None) -> int:
    return _script("race", argv)


def predict(argv: Sequence[str] | None = None) -> int:
    return _script("predict", argv)


def evaluate(argv: Sequence[str] | None = None) -> int:
    return _script("evaluate", argv)


def architectures(argv: Sequence[str] | None = None) -> int:
    return _script("architectures", argv)


def demo(argv: Sequence[str] | None = None) -> int:
    return _script("demo", argv)


def calibrate(argv: Sequence[str] | None = None) -> int:
    return _script("calibrate", argv)


def select(argv: Sequence[str] | None = None) -> int:
    return _script("select", argv)


def ensemble(argv: Sequence[str] | None = None) -> int:
    return _script("ensemble", argv)


def postprocess(argv: Sequence[str] | None = None) -> int:
    return _script("postprocess", argv)


def import_(argv: Sequence[str] | None = None) -> int:
    return _script("import", argv)


def export(argv: Sequence[str] | None = None) -> int:
    return _script("export", argv)


def install(argv: Sequence[str] | None = None) -> int:
    return _script("install", argv)


def move_plan(argv: Sequence[str] | None = None) -> int:
    return _script("move_plan", argv)


def plot(argv: Sequence[str] | None = None) -> int:
    return _script("plot", argv)


def doctor(argv: Sequence[str] | None = None) -> int:
    return _script("doctor", argv)


def _script(verb: str, argv: Sequence[str] | None) -> int:
    command, words = COMMANDS[verb], _words(argv)
    if words == ["--version"]:
        return main(words)
    return guarded(lambda: _execute(command, words, prog=command.script), name=command.script, debug="--debug" in words)


def _execute(command: Command, words: Sequence[str], *, prog: str) -> None:
    settings = parse(command, words, prog=prog)
    log.configure(quiet=settings.quiet, debug=settings.debug)
    result = command.load()(settings)
    sys.stdout.write(command.shown(result, settings))
    command.judge(result)


def guarded(action: Callable[[], None], *, name: str, debug: bool) -> int:
    """Run; show an error of the user as a sentence and a hint. Any other exception is ours: it keeps its traceback.

    A file that cannot be used is the user's too: a sentence that names it helps more than a traceback.
    """
    try:
        action()
    except AutosegError as error:
        return _show(error, name=name, debug=debug)
    except MemoryError:
        short = ResourceError("the memory of this machine ran out", hint="use a smaller --memory or fewer --workers")
        return _show(short, name=name, debug=debug)
    except OSError as error:
        if error.filename is None:
            raise
        plain = SettingError(f"{error.filename}: {error.strerror}", hint="check that it is there and may be used")
        return _show(plain, name=name, debug=debug)
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{name}: stopped by Ctrl-C\n")
        return _INTERRUPTED
    return 0


def _show(error: AutosegError, *, name: str, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    sys.stderr.write(f"{name}: {error}\n")
    return error.exit_code


def _words(argv: Sequence[str] | None) -> list[str]:
    return list(sys.argv[1:] if argv is None else argv)
