"""The plots and the page that a person looks at."""

from autoseg.report.overlay import overlay_png
from autoseg.report.page import write_report
from autoseg.report.progress import progress_png

__all__ = ["overlay_png", "progress_png", "write_report"]
