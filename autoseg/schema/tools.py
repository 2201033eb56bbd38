"""Settings of the commands beside the way from data to predictions: sharing models, looking, and checking."""

from __future__ import annotations

from dataclasses import dataclass

from autoseg.schema.settings import DEVICE_HELP, WORKERS_HELP, CommonSettings, ModelSettings, option


@dataclass(frozen=True, kw_only=True)
class DoctorSettings(CommonSettings):
    """Look at this computer and say what to change."""

    device: str = option("auto", DEVICE_HELP, metavar="DEVICE")
    seconds: float = option(10.0, "time for the benchmark of convolutions; 0 leaves it out", metavar="S", minimum=0)
    json: bool = option(False, "print one JSON document instead of text")


@dataclass(frozen=True, kw_only=True)
class ExportSettings(ModelSettings):
    """Make one file of a trained model."""

    output: str | None = option(
        None,
        "file to write, or folder with --onnx; default: named after the model, in this folder",
        flags=("-o", "--output"),
        metavar="FILE",
    )
    fold: tuple[str, ...] = option(
        (), "folds to give away; default: all that are trained", flags=("-f", "--fold"), metavar="FOLD", many=True
    )
    licence: str | None = option(
        None, "licence of the weights: a name such as CC-BY-4.0, or a text file", metavar="NAME|FILE"
    )
    intended_use: str | None = option(
        None, "what the model is for and what not, for its card: words, or a text file", metavar="TEXT|FILE"
    )
    onnx: bool = option(False, "write ONNX graphs, their processing as JSON, and a program that runs them")
    force: bool = option(False, "replace what is there")


@dataclass(frozen=True, kw_only=True)
class InstallSettings(CommonSettings):
    """Put the model of a file into the work directory."""

    file: str = option("", "file that autoseg_export made", flags=("-i", "--file"), metavar="FILE")
    name: str | None = option(None, "folder for the model, in place of the one it was trained in", metavar="NAME")
    sha256: str | None = option(None, "refuse any other file than the one with this checksum", metavar="HEX")
    force: bool = option(False, "replace a model of that name")


@dataclass(frozen=True, kw_only=True)
class MovePlanSettings(CommonSettings):
    """Give a dataset the plan of another one."""

    source: str = option(
        "",
        "whose plan: a dataset, a model of autoseg or nnU-Net, or a plan.json",
        flags=("-s", "--source"),
        metavar="SOURCE",
    )
    target: str = option("", "dataset that gets the plan", flags=("-t", "--target"), metavar="DATASET")
    source_workdir: str | None = option(
        None, "work directory of the source; default: that of the target", metavar="DIR"
    )
    configurations: tuple[str, ...] = option(
        (), "only these configurations; default: all", flags=("-c", "--configurations"), metavar="NAME", many=True
    )
    force: bool = option(False, "replace a plan that the target has already")


@dataclass(frozen=True, kw_only=True)
class PlotSettings(CommonSettings):
    """Draw a picture of each image with the outlines of its labels or segmentation."""

    images: str = option("", "folder with images (or one image)", flags=("-i", "--images"), metavar="IN")
    outputs: str = option("", "folder for the pictures", flags=("-o", "--outputs"), metavar="OUT")
    references: str | None = option(
        None, "folder with reference labels, drawn as solid lines", flags=("-r", "--references"), metavar="REF"
    )
    predictions: str | None = option(
        None, "folder with segmentations, drawn as dashed lines", flags=("-p", "--predictions"), metavar="PRED"
    )
    labels: str | None = option(
        None, "dataset.json that names the labels; default: found beside the files, else plain integers", metavar="FILE"
    )
    channel: int = option(0, "channel of the image to show", metavar="N", minimum=0)
    workers: int | None = option(
        None,
        WORKERS_HELP,
        flags=("-w", "--workers"),
        metavar="N",
        minimum=0,
    )
