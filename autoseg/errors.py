"""Every error that autoseg raises on purpose.

AutosegError
├── InputError        exit 2: something the user gave is wrong and the user can mend it
│   ├── DatasetError      a dataset, an image or a label
│   ├── SettingError      a flag, a setting or a plan
│   ├── RecordError       a JSON record that autoseg wrote and cannot read back
│   └── ModelFolderError  a folder that should hold a trained model
├── ResourceError     exit 3: memory or disk ran out
├── WorkerError       exit 4: a worker process died or failed
├── DivergenceError   exit 5: training produced NaN or infinite values
├── PartialError      exit 6: some items of many failed; the others are complete
└── StoppedError      exit 130: the user asked to stop; what is done is kept

The command line shows them as one sentence and a hint, without a traceback (``--debug`` shows it). Any
other exception is a bug of autoseg and keeps its traceback.
"""

from __future__ import annotations


class AutosegError(Exception):
    """Base class: ``message`` says what is wrong and where, ``hint`` what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # The default rebuilds from args and would lose the keyword-only hint between processes.
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[AutosegError], message: str, hint: str) -> AutosegError:
    return kind(message, hint=hint)


class InputError(AutosegError):
    exit_code = 2


class DatasetError(InputError):
    pass


class SettingError(InputError):
    pass


class RecordError(InputError):
    pass


class ModelFolderError(InputError):
    pass


class ResourceError(AutosegError):
    exit_code = 3


class WorkerError(AutosegError):
    exit_code = 4


class DivergenceError(AutosegError):
    exit_code = 5


class PartialError(AutosegError):
    exit_code = 6


class StoppedError(AutosegError):
    exit_code = 130


def joined(problems: list[str], *, limit: int = 50) -> str:
    """All problems as one indented list; after ``limit`` only a count, so that a terminal stays readable."""
    shown = [f"  - {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        shown.append(f"  - and {len(problems) - limit} more")
    return "\n".join(shown)
