"""Settings of the commands that work on trained models and finished segmentations."""

from __future__ import annotations

from dataclasses import dataclass

from autoseg.schema.parsing import parse_bytes
from autoseg.schema.settings import DEVICE_HELP, WORKERS_HELP, CommonSettings, option


@dataclass(frozen=True, kw_only=True)
class SelectSettings(CommonSettings):
    """Choose the model, or two together, and the post-processing on cross-validation."""

    dataset: str | None = option(
        None, "dataset; default: the one planned last", flags=("-d", "--dataset"), metavar="DATASET"
    )
    ensembles: bool = option(True, "also try every two models together, which predicts all cases once per pair")
    device: str = option("auto", DEVICE_HELP, metavar="DEVICE")
    memory: int | None = option(
        None, "memory that prediction may use; default: 70% of what is free", metavar="SIZE", parse=parse_bytes
    )
    workers: int | None = option(None, WORKERS_HELP, flags=("-w", "--workers"), metavar="N", minimum=0)


@dataclass(frozen=True, kw_only=True)
class EnsembleSettings(CommonSettings):
    """Make one segmentation of several, per case."""

    inputs: tuple[str, ...] = option(
        (), "two or more folders with segmentations", flags=("-i", "--inputs"), metavar="IN", many=True
    )
    outputs: str = option("", "folder for segmentations", flags=("-o", "--outputs"), metavar="OUT")
    labels: str | None = option(
        None, "dataset.json of probabilities; default: found beside the segmentations", metavar="FILE"
    )


@dataclass(frozen=True, kw_only=True)
class PostprocessSettings(CommonSettings):
    """Apply post-processing to a folder of segmentations."""

    inputs: str = option("", "folder with segmentations", flags=("-i", "--inputs"), metavar="IN")
    outputs: str = option("", "folder for the results", flags=("-o", "--outputs"), metavar="OUT")
    selection: str | None = option(None, "selection.json or postprocessing.json that says what to do", metavar="FILE")
    keep_largest: tuple[str, ...] = option(
        (), "labels of which only the largest component stays; foreground for all together", metavar="LABEL", many=True
    )
    min_size: tuple[str, ...] = option(
        (), "remove components of a label below a volume in mm3 (in pictures: area)", metavar="LABEL=MM3", many=True
    )
    fill_holes: tuple[str, ...] = option((), "labels whose holes are filled", metavar="LABEL", many=True)
    labels: str | None = option(
        None, "dataset.json that names the labels; default: found beside the files, else plain integers", metavar="FILE"
    )
    workers: int | None = option(None, WORKERS_HELP, flags=("-w", "--workers"), metavar="N", minimum=0)
