"""How each channel is normalised, by its name."""

from __future__ import annotations

from collections.abc import Sequence

from autoseg.schema.fingerprint import Fingerprint
from autoseg.schema.plan import Normalization

SCHEMES = ("ct", "zscore", "zscore_masked", "rescale_0_1", "rgb_0_1", "none")

# Names that nnU-Net knows, and those of autoseg itself.
BY_NAME = {
    "ct": "ct",
    "nonorm": "none",
    "none": "none",
    "rescale_to_0_1": "rescale_0_1",
    "rescale_0_1": "rescale_0_1",
    "rgb_to_0_1": "rgb_0_1",
    "rgb_0_1": "rgb_0_1",
}
COLOURS = ({"r", "g", "b"}, {"red", "green", "blue"})
# Cropping that removes more than a quarter means that the outside is blank: statistics are taken inside only.
MASK_BELOW = 0.75


def choose_normalization(
    channels: Sequence[str], fingerprint: Fingerprint
) -> tuple[tuple[Normalization, ...], tuple[str, ...]]:
    """One scheme per channel, and why; statistics of the dataset's foreground go with ``ct``."""
    names = [channel.strip().casefold() for channel in channels]
    colours = set(names) in COLOURS and len(names) == 3 and _within_bytes(fingerprint)
    masked = fingerprint.median_relative_size_after_cropping < MASK_BELOW
    chosen, why = [], []
    for index, name in enumerate(names):
        scheme = "rgb_0_1" if colours else BY_NAME.get(name, "zscore")
        if scheme == "ct" and not fingerprint.intensities[index].count:
            scheme = "zscore"
            why.append(f"channel {channels[index]}: no foreground to take CT statistics from, so zscore")
        elif scheme == "zscore" and masked:
            scheme = "zscore_masked"
        chosen.append(_with_statistics(scheme, fingerprint, index))
    return tuple(chosen), (*why, *_explain(channels, chosen))


def _within_bytes(fingerprint: Fingerprint) -> bool:
    known = [channel for channel in fingerprint.intensities if channel.count]
    return all(channel.minimum >= 0 and channel.maximum <= 255 for channel in known)


def _with_statistics(scheme: str, fingerprint: Fingerprint, index: int) -> Normalization:
    if scheme != "ct":
        return Normalization(scheme=scheme)
    known = fingerprint.intensities[index]
    return Normalization(
        scheme=scheme, mean=known.mean, std=known.std, lower=known.percentile_00_5, upper=known.percentile_99_5
    )


_REASONS = {
    "ct": "CT numbers mean the same in every case: clipped to the foreground's 0.5 to 99.5 percentiles and scaled "
    "with its mean and deviation",
    "zscore": "intensities have no fixed scale: each image is brought to mean 0 and deviation 1",
    "zscore_masked": "intensities have no fixed scale and most of each image is blank: mean 0 and deviation 1 inside "
    "the non-zero region, zero outside",
    "rescale_0_1": "the channel's name asks for 0 to 1",
    "rgb_0_1": "colours from 0 to 255 are divided by 255",
    "none": "the channel's name asks for no normalisation",
}


def _explain(channels: Sequence[str], chosen: Sequence[Normalization]) -> list[str]:
    """One sentence per scheme, with the channels that it is for."""
    lines = []
    for scheme in dict.fromkeys(item.scheme for item in chosen):
        names = [name for name, item in zip(channels, chosen, strict=True) if item.scheme == scheme]
        lines.append(f"{scheme} for {', '.join(names)}: {_REASONS[scheme]}")
    return lines
