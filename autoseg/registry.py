"""Name -> object, resolved on first use, so that listing names imports nothing."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from autoseg.errors import SettingError


class Registry:
    """A table of ``name -> "module:attribute"``; other packages add names through an entry-point group.

    >>> codecs = Registry("codec", {"json": "json:dumps"})
    >>> codecs.get("json")([1])
    '[1]'
    """

    def __init__(self, kind: str, table: Mapping[str, str], *, plugins: str | None = None) -> None:
        self.kind = kind
        self._table = dict(table)
        self._plugins = plugins

    def names(self) -> tuple[str, ...]:
        """Every known name, sorted; a plugin cannot replace a built-in name."""
        return tuple(sorted({**self._plugin_table(), **self._table}))

    def get(self, name: str) -> Any:
        """The object behind a name.

        Raises:
            SettingError: no such name, with the names that exist; or another package's object cannot be imported.
        """
        if name in self._table:
            return _load(self._table[name])
        target = self._plugin_table().get(name)
        if target is None:
            known = ", ".join(self.names())
            raise SettingError(f"there is no {self.kind} called {name!r}", hint=f"choose one of: {known}")
        try:
            return _load(target)
        except (ImportError, AttributeError) as error:
            raise SettingError(
                f"the {self.kind} {name!r} cannot be loaded from {target}: {error}",
                hint=f"mend or uninstall the package that brings it (entry points {self._plugins})",
            ) from error

    def _plugin_table(self) -> dict[str, str]:
        if self._plugins is None:
            return {}
        return {point.name: point.value for point in entry_points(group=self._plugins)}


def _load(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
