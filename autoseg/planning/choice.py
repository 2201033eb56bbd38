"""Which architecture a plan is for: the one that the user named, or the one that evidence speaks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autoseg.errors import SettingError
from autoseg.log import size
from autoseg.schema.architecture import Preset, Traits
from autoseg.schema.plan import Architecture

AUTO = "auto"
DEFAULT = "unet"
# From this budget on a GPU holds nnU-Net's medium residual encoder, which was planned for 9 GB.
RESIDUAL_BYTES = 9_000_000_000
RESIDUAL = "resenc_unet"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An architecture with what it says about itself, and why it was chosen."""

    architecture: Architecture
    traits: Traits
    preset: Preset
    why: str


def choose_architecture(wanted: str, *, traits_of: Callable[[str], Traits], device: str, memory_bytes: int) -> Choice:
    """The architecture for ``--arch``: a name, ``NAME:PRESET``, or ``auto``.

    Raises:
        SettingError: no such architecture or preset.
    """
    if wanted == AUTO:
        name, why = _by_evidence(device, memory_bytes)
        return Choice(architecture=Architecture(name=name), traits=traits_of(name), preset=Preset(), why=why)
    name, _, label = wanted.partition(":")
    traits = traits_of(name)
    if not label:
        return Choice(
            architecture=Architecture(name=name), traits=traits, preset=Preset(), why=f"{name}: asked for with --arch"
        )
    preset = traits.presets.get(label)
    if preset is None:
        there = ", ".join(f"{name}:{known}" for known in traits.presets) or f"only {name} itself"
        raise SettingError(f"{name} has no preset {label!r}", hint=f"choose one of: {there}")
    architecture = Architecture(name=name, arguments=dict(preset.arguments), preset=label)
    return Choice(architecture=architecture, traits=traits, preset=preset, why=f"{wanted}: asked for with --arch")


def _by_evidence(device: str, memory_bytes: int) -> tuple[str, str]:
    """Convolutional U-Nets: under equal training nothing beats them reliably (Isensee et al. 2024, table 1)."""
    if device.startswith("cpu"):
        return DEFAULT, (
            f"{DEFAULT}: on a CPU the plain U-Net sees most samples in the same time; under equal training "
            "transformers do not beat it (Isensee et al. 2024)"
        )
    if memory_bytes < RESIDUAL_BYTES:
        return DEFAULT, (
            f"{DEFAULT}: the best network for less than {size(RESIDUAL_BYTES)}; under equal training transformers do "
            "not beat it (Isensee et al. 2024)"
        )
    return RESIDUAL, (
        f"{RESIDUAL}: with {size(RESIDUAL_BYTES)} or more a residual encoder was a little better than the plain "
        "U-Net on each of six public datasets (Isensee et al. 2024); --arch unet trains in about 3/4 of the time"
    )
