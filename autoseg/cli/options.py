"""Fields of the settings records as the command line and keyword arguments see them.

A default and a help text are written once, in ``schema.settings``; flags, their parsing and their help are made
from there.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import PurePath
from typing import Any, TypeVar, Union

from autoseg.errors import SettingError

S = TypeVar("S")


class _ImpossibleError(ValueError):
    """A number of the right kind that makes no sense here; its message is for the user."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One field: ``scalar`` is the type of its value, or of the entries of a tuple (``is_tuple``)."""

    name: str
    flags: tuple[str, ...]
    scalar: type
    is_tuple: bool
    optional: bool
    many: bool
    default: Any
    help: str
    metavar: str | None
    choices: tuple[str, ...] | None
    parse: Callable[[str], Any] | None
    minimum: float | None
    above: float | None
    below: float | None

    def from_text(self, text: str) -> Any:
        """One word of the command line as a value.

        Raises:
            ValueError: in words that a person understands.
        """
        if self.parse is not None:
            return self.parse(text)
        try:
            return self._possible(self.scalar(text))
        except _ImpossibleError:
            raise
        except ValueError:
            raise ValueError(f"{text!r} is not a {_WORDS[self.scalar]}") from None

    def from_value(self, value: Any) -> Any:
        """A keyword argument as the field's value: ``3`` and ``"3"`` both name a dataset, ``0`` is a tuple of one.

        Raises:
            ValueError: the value is of another kind.
        """
        if value is None and self.optional:
            return None
        if isinstance(value, str) and self.parse is not None:
            return self.parse(value)
        if not self.is_tuple:
            return self._possible(self._scalar(value))
        entries = value if isinstance(value, tuple | list) else (value,)
        return tuple(self._possible(self._scalar(entry)) for entry in entries)

    def _possible(self, value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            raise _ImpossibleError(f"{value:g} is not a finite number")
        if self.minimum is not None and value < self.minimum:
            raise _ImpossibleError(f"{value:g} is too small; it must be at least {self.minimum:g}")
        if self.above is not None and value <= self.above:
            raise _ImpossibleError(f"{value:g} is too small; it must be more than {self.above:g}")
        if self.below is not None and value >= self.below:
            raise _ImpossibleError(f"{value:g} is too large; it must be less than {self.below:g}")
        return value

    def _scalar(self, value: Any) -> Any:
        if isinstance(value, bool) is not (self.scalar is bool):
            raise ValueError(f"{value!r} is not a {_WORDS[self.scalar]}")
        if self.scalar is str and isinstance(value, int | PurePath):
            return str(value)
        if self.scalar is float and isinstance(value, int):
            return float(value)
        if not isinstance(value, self.scalar):
            raise ValueError(f"{value!r} is not a {_WORDS[self.scalar]}")
        return value


_WORDS: Mapping[type, str] = {bool: "yes or no (True or False)", int: "whole number", float: "number", str: "text"}


def options(kind: type) -> tuple[Option, ...]:
    """The options of a settings record, in the order of its fields."""
    hints = typing.get_type_hints(kind)
    result = []
    for field in fields(kind):
        scalar, is_tuple, optional = _unwrap(hints[field.name])
        flags = field.metadata["flags"] or ("--" + field.name.strip("_").replace("_", "-"),)
        result.append(
            Option(
                name=field.name,
                flags=flags,
                scalar=scalar,
                is_tuple=is_tuple,
                optional=optional,
                many=field.metadata["many"],
                default=field.default,
                help=field.metadata["help"],
                metavar=field.metadata["metavar"],
                choices=field.metadata["choices"],
                parse=field.metadata["parse"],
                minimum=field.metadata["minimum"],
                above=field.metadata["above"],
                below=field.metadata["below"],
            )
        )
    return tuple(result)


def _unwrap(hint: Any) -> tuple[type, bool, bool]:
    """``tuple[int, ...] | None`` -> (int, is a tuple, may be None)."""
    optional = typing.get_origin(hint) in (Union, types.UnionType)
    if optional:
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    is_tuple = typing.get_origin(hint) is tuple
    return (typing.get_args(hint)[0] if is_tuple else hint), is_tuple, optional


def build_settings(kind: type[S], values: Mapping[str, Any]) -> S:
    """A settings record from keyword arguments; all problems at once.

    Raises:
        SettingError: an unknown name, or a value of the wrong kind.
    """
    known = {option.name: option for option in options(kind)}
    problems, converted = [], {}
    for name, value in values.items():
        if name not in known:
            problems.append(f"there is no setting {name!r}{did_you_mean(name, known)}")
            continue
        try:
            converted[name] = known[name].from_value(value)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise SettingError("; ".join(problems), hint=f"the settings are: {', '.join(known)}")
    return kind(**converted)


def did_you_mean(word: str, known: typing.Iterable[str]) -> str:
    """``; did you mean 'epochs'?`` or nothing."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
