"""Event files for TensorBoard, in ``loggers/tensorboard`` of the fold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoseg.training.loggers import LoggedRun, Sink, needed, settings_text


class _Sink:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=epoch)
        # A page that is open shows the epoch at once, and a killed training loses nothing.
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def open_sink(run: LoggedRun) -> Sink:
    """Write another event file into the fold's folder; TensorBoard reads all of them as one run."""
    needed("tensorboard", extra="tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    folder = run.folder / "tensorboard"
    if run.last_epoch == 0:
        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
    # What a killed training wrote after its last mark is dropped by readers from this step on.
    writer = SummaryWriter(str(folder), purge_step=run.last_epoch + 1 if run.last_epoch else None)
    if run.last_epoch == 0:
        rows = "\n".join(f"| {name} | {text} |" for name, text in settings_text(run.settings))
        writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}", global_step=0)
    return _Sink(writer)
