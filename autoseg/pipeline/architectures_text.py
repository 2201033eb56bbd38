"""The list of architectures as a person reads it in a terminal, or as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import zip_longest

from autoseg import records
from autoseg.log import size, table
from autoseg.schema.listing import ArchitectureListing, ListedArchitecture
from autoseg.schema.settings import ArchitecturesSettings

WIDTH = 100
_MARK = "*"
_FIGURES = ("patch", "batch", "params", "FLOPs", "memory")
_PAPER_WIDTH = 29
_SETTINGS_WIDTH = 31
_SENTENCE_WIDTH = 40


def listing_text(listing: ArchitectureListing, settings: ArchitecturesSettings) -> str:
    """What the command prints: tables, or one JSON document."""
    if settings.json:
        return records.to_json(listing)
    parts = [_title(listing)]
    if listing.architectures:
        parts += ["", _architectures(listing)]
    if listing.presets:
        parts += ["", "Presets, for --arch NAME:PRESET", "", _presets(listing)]
    parts += ["", _wrapped(f"{_MARK} --arch auto means {listing.why}")]
    if listing.dataset is None:
        parts.append("For figures: autoseg_fingerprint -d DATASET, then autoseg_architectures -d DATASET")
    return "\n".join(parts) + "\n"


def _title(listing: ArchitectureListing) -> str:
    if listing.dataset is None:
        return "No dataset is planned yet: these are the parameters of the published settings."
    names = {row.planned.configuration for row in (*listing.architectures, *listing.presets) if row.planned}
    configurations = f", {' or '.join(sorted(names))}" if names else ""
    return (
        f"{listing.dataset}{configurations}, as planned for {size(listing.memory_bytes)} on {listing.device}\n"
        "(params: those that are trained; FLOPs and memory: of one training step)"
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _architectures(listing: ArchitectureListing) -> str:
    header = ("name", "paper", "2D/3D")
    left = [[[_marked(row, listing)], [_paper(row)], [_axes(row)]] for row in listing.architectures]
    if listing.dataset is None:
        right = [row.reason or (_published(row, 2), _published(row, 3)) for row in listing.architectures]
        return _side_by_side(header, left, ("published 2D", "published 3D"), right)
    return _side_by_side(header, left, _FIGURES, [_figures(row) for row in listing.architectures])


def _presets(listing: ArchitectureListing) -> str:
    header = ("name", "settings")
    if listing.dataset is None:
        return table([[_marked(row, listing), _settings(row)] for row in listing.presets], header=header)
    left = [[[_marked(row, listing)], textwrap.wrap(_settings(row), _SETTINGS_WIDTH)] for row in listing.presets]
    return _side_by_side(header, left, _FIGURES, [_figures(row) for row in listing.presets])


def _side_by_side(
    header: Sequence[str],
    left: Sequence[Sequence[Sequence[str]]],
    right_header: Sequence[str],
    right: Sequence[Sequence[str] | str],
) -> str:
    """One table of two halves: cells on the left may have several lines, a row on the right may be one sentence."""
    figures = [row for row in right if not isinstance(row, str)]
    head, rule, *rows = table(figures, header=right_header).split("\n")
    remaining = iter(rows)
    cells: list[Sequence[str]] = []
    ends = [head, rule]
    for columns, row in zip(left, right, strict=True):
        lines = textwrap.wrap(row, max(len(rule), _SENTENCE_WIDTH)) if isinstance(row, str) else [next(remaining)]
        for *texts, end in zip_longest(*columns, lines, fillvalue=""):
            cells.append(texts)
            ends.append(end)
    starts = table(cells, header=header).split("\n")
    width = len(starts[1])
    return "\n".join(f"{start:<{width}}  {end}".rstrip() for start, end in zip(starts, ends, strict=True))


def _figures(row: ListedArchitecture) -> tuple[str, ...] | str:
    planned = row.planned
    if planned is None:
        return row.reason
    return (
        "x".join(map(str, planned.patch_size)),
        str(planned.batch_size),
        f"{_short(planned.parameters):>7}",
        f"{_short(planned.flops):>7}",
        f"{size(planned.memory_bytes):>8}",
    )


def _short(count: int) -> str:
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return str(count)


def _marked(row: ListedArchitecture, listing: ArchitectureListing) -> str:
    return f"{row.name} {_MARK}" if row.name == listing.choice else row.name


def _paper(row: ListedArchitecture) -> str:
    """The first of the papers."""
    return textwrap.shorten(row.paper.split(";")[0], _PAPER_WIDTH, placeholder=" ...") or "-"


def _axes(row: ListedArchitecture) -> str:
    return " ".join(f"{ndim}D" for ndim in row.ndims) or "-"


def _published(row: ListedArchitecture, ndim: int) -> str:
    """Parameters of the first published setting with so many axes."""
    found = [setting.parameters for setting in row.published if len(setting.patch_size) == ndim]
    return f"{found[0]:,}" if found else "-"


def _settings(row: ListedArchitecture) -> str:
    texts = {"base_width": "width {}", "memory_bytes": "at most {}"}
    shown = {name: size(value) if name == "memory_bytes" else value for name, value in row.settings.items()}
    return ", ".join(texts.get(name, f"{name}={{}}").format(value) for name, value in shown.items()) or "-"
