"""Which autoseg this is."""

from __future__ import annotations


def version() -> str:
    """The installed version; ``setup.py`` is its only home, the package's metadata remember it."""
    # importlib.metadata takes longer to load than the rest of the command line.
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("autoseg")
    except PackageNotFoundError:
        return "0+not-installed"
