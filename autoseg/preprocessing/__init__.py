"""From an image to what a network sees, and from logits back to the image's grid: forward and inverse together."""

from autoseg.preprocessing.case import ANNOTATED, PreprocessedCase, class_locations, preprocess_case
from autoseg.preprocessing.restore import Restorer, restore_labels
from autoseg.preprocessing.trace import Trace

__all__ = [
    "ANNOTATED",
    "PreprocessedCase",
    "Restorer",
    "Trace",
    "class_locations",
    "preprocess_case",
    "restore_labels",
]
