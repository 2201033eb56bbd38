"""The demo types the commands itself, so its start lies above the pipelines."""

from __future__ import annotations

from autoseg.cli.main import run
from autoseg.schema.settings import DemoSettings


def demo(settings: DemoSettings) -> None:
    from autoseg.pipeline.demo import demo as walk

    walk(settings, run=run)
