"""Settings of the command that brings in what other programs left."""

from __future__ import annotations

from dataclasses import dataclass

from autoseg.schema.settings import CommonSettings, option


@dataclass(frozen=True, kw_only=True)
class ImportSettings(CommonSettings):
    """Bring a dataset or a model of another program into the work directory."""

    source: str = option(
        "",
        "folder of nnU-Net, of the Decathlon or of DICOM files; manifest (.csv, .json); nnU-Net model (folder, .zip)",
        flags=("-i", "--source"),
        metavar="SOURCE",
    )
    name: str | None = option(
        None, "name of the dataset, such as Dataset003_Liver; default: that of the source", metavar="NAME"
    )
    merge: tuple[str, ...] = option(
        (), "further datasets that become one with the source: labels are united by name", metavar="SOURCE", many=True
    )
    link: bool = option(False, "link to image files instead of copying them")
    channels: tuple[str, ...] = option(
        (), "names of the channels of a manifest or of DICOM; CT has a meaning", metavar="NAME", many=True
    )
    labels: str | None = option(
        None, "JSON file with the labels of a manifest or of DICOM, as in dataset.json", metavar="FILE"
    )
    configuration: str | None = option(
        None, "which one, of several nnU-Net models", flags=("-c", "--configuration"), metavar="NAME"
    )
    workers: int | None = option(
        0, "worker processes; 0 does everything in one process", flags=("-w", "--workers"), metavar="N", minimum=0
    )
