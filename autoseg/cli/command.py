"""What the command line knows about one command."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from autoseg.schema.settings import CommonSettings


@dataclass(frozen=True, kw_only=True)
class Command:
    """``target`` is "module:function", imported only when the command runs.

    ``text``, of the same form, makes of the result and the settings what the command prints to standard output;
    ``verdict`` then raises an error where the result is a failure that had to be shown whole.
    ``groups`` arrange the fields in the help; a field that no group names is shown under "general".
    """

    verb: str
    summary: str
    description: str
    settings: type[CommonSettings]
    target: str
    examples: tuple[tuple[str, str], ...]
    required: tuple[str, ...] = ()
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    text: str | None = None
    verdict: str | None = None

    @property
    def script(self) -> str:
        return f"autoseg_{self.verb}"

    def load(self) -> Callable[[CommonSettings], Any]:
        """The function behind ``target``; importing it brings numpy, torch and the rest."""
        function: Callable[[CommonSettings], Any] = _attribute(self.target)
        return function

    def shown(self, result: Any, settings: CommonSettings) -> str:
        """What goes to standard output; most commands say what they did through the log."""
        return "" if self.text is None else str(_attribute(self.text)(result, settings))

    def judge(self, result: Any) -> None:
        """Called when the result was shown; raises what decides the exit status."""
        if self.verdict is not None:
            _attribute(self.verdict)(result)


def _attribute(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
