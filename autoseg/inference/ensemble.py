"""The trained folds of a model, all in memory, as one function from windows to logits.

The mean is taken over *logits*. It is linear, so averaging folds, stitching windows and upsampling to the image grid
(all linear) commute: one stream of logits serves the whole ensemble, and the result is what averaging at full
resolution would give, as in nnU-Net. A mean of softmax probabilities bounds the say of an overconfident fold, but it
does not commute with a decision made after upsampling, and regions would need a rule of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from autoseg.errors import ModelFolderError, ResourceError
from autoseg.inference.freeze import freeze, take_off_head
from autoseg.inference.mirror import mirrored_mean
from autoseg.nets import build_network
from autoseg.nets.label_channels import Groups, add_label_channels
from autoseg.schema.plan import Configuration, Plan

Watch = Callable[[int, Tensor], None]


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Networks of one configuration in ``eval()`` on ``device``.

    ``precision`` is the autocast type or None; ``mirror_axes`` are spatial axes of the patch, empty for no mirroring.
    ``heads`` are linear heads that were taken off the networks, one each, or empty where networks return logits.
    ``previous`` is of the second stage of a cascade: the last channel of its windows is the segmentation of the first,
    which becomes one channel per group of internal indices.
    """

    networks: tuple[nn.Module, ...]
    ndim: int
    device: torch.device
    precision: torch.dtype | None = None
    mirror_axes: tuple[int, ...] = ()
    heads: tuple[nn.Conv2d | nn.Conv3d, ...] = ()
    previous: Groups = ()

    @property
    def features(self) -> int | None:
        """Channels of ``evaluate`` where ``head`` has to follow, None where it returns logits."""
        return sum(head.in_channels for head in self.heads) or None

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision is not None)

    def head(self, features: Tensor) -> Tensor:
        """Mean logits (n, heads) of features (n, features), float32."""
        weight = torch.cat([head.weight.flatten(1) for head in self.heads], dim=1).float() / len(self.heads)
        biases = [head.bias.float() for head in self.heads if head.bias is not None]
        return nn.functional.linear(features, weight, torch.stack(biases).mean(dim=0) if biases else None)

    def evaluate(self, windows: Tensor, *, per_batch: int, watch: Watch | None = None) -> Tensor:
        """Mean logits (b, heads, z, y, x) on ``device`` of windows (b, c, z, y, x); 2D windows have z = 1.

        With ``heads``, the features of all networks in a row (b, features, z, y, x). ``watch`` is shown what each
        network (by index) gave for each mirror image, mirrored back: logits or its features, (b, channels, *spatial).

        Raises:
            ResourceError: the device ran out of memory.
        """
        try:
            return self._evaluate(windows, per_batch=per_batch, watch=watch)
        except RuntimeError as error:
            # The CPU's allocator has no error class of its own.
            if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                raise
            raise ResourceError(
                f"{self.device} ran out of memory with {len(windows)} window(s) of {tuple(windows.shape[2:])}",
                hint="give less with --memory, close other programs, or use --device cpu",
            ) from error

    def _evaluate(self, windows: Tensor, *, per_batch: int, watch: Watch | None) -> Tensor:
        flat = windows.squeeze(2) if self.ndim == 2 else windows
        layout = torch.channels_last if self.ndim == 2 else torch.channels_last_3d
        x = flat.to(self.device)
        if self.previous:
            x = add_label_channels(x[:, :-1], x[:, -1:], self.previous)
        x = x.contiguous(memory_format=layout)
        with self.autocast():
            if self.heads:
                parts = [self._member(index, x, per_batch, watch) for index in range(len(self.networks))]
                result = torch.cat(parts, dim=1)
            else:
                result = self._member(0, x, per_batch, watch)
                for index in range(1, len(self.networks)):
                    part = self._member(index, x, per_batch, watch).float()
                    result = torch.lerp(result.float(), part, 1 / (index + 1))
        return result.unsqueeze(2) if self.ndim == 2 else result

    def _member(self, index: int, x: Tensor, per_batch: int, watch: Watch | None) -> Tensor:
        network = self.networks[index]
        watching = None if watch is None else partial(watch, index)
        return mirrored_mean(lambda batch: network(batch)[0], x, self.mirror_axes, per_batch=per_batch, watch=watching)


def prepared(ensemble: Ensemble, configuration: Configuration, *, channels: int, heads: int) -> Ensemble:
    """The ensemble in the form that predicts fastest: networks frozen for the CPU, and without their heads where
    features are fewer than heads.
    """
    taken: list[nn.Conv2d | nn.Conv3d] = []
    if heads > configuration.topology.features[0] * len(ensemble.networks):
        example = torch.zeros((1, channels, *configuration.patch_size), device=ensemble.device)
        with torch.inference_mode(), ensemble.autocast():
            found = [take_off_head(network, example) for network in ensemble.networks]
        taken = [head for head in found if head is not None]
    if ensemble.device.type == "cpu":
        for network in ensemble.networks:
            freeze(network, ensemble.precision)
    return replace(ensemble, heads=tuple(taken))


def load_network(
    path: Path, plan: Plan, configuration: Configuration, device: torch.device, *, partial: bool = False
) -> nn.Module:
    """A fold's network with its final weights, in ``eval()`` on ``device``.

    Args:
        partial: the configuration is of a part of the trained network; weights that it does not have are left out.

    Raises:
        ModelFolderError: the weights cannot be read or do not fit the plan.
    """
    # Fresh weights are drawn before they are replaced; the caller's random numbers stay as they are.
    with torch.random.fork_rng(devices=[]):
        network = build_network(
            configuration.architecture,
            configuration.topology,
            ndim=configuration.ndim,
            in_channels=plan.input_channels(configuration),
            num_heads=plan.labels.num_heads,
            patch_size=configuration.patch_size,
        )
    try:
        wanted = network.state_dict().keys()
        with safe_open(str(path), framework="pt") as file:
            # A pruned network has a part of the trained one's weights; the rest is not even read.
            names = [name for name in file.keys() if not partial or name in wanted]  # noqa: SIM118 - not a mapping
            weights = {name: file.get_tensor(name) for name in names}
        network.load_state_dict(weights)
    except (OSError, SafetensorError) as error:
        raise ModelFolderError(f"{path} cannot be read: {error}", hint="copy the model again") from error
    except RuntimeError as error:
        reason = str(error).splitlines()
        raise ModelFolderError(
            f"{path} does not fit plan.json: {' '.join(line.strip() for line in reason[:3])}",
            hint="use the plan.json that the model was trained with",
        ) from error
    layout = torch.channels_last if configuration.ndim == 2 else torch.channels_last_3d
    placed = network.to(device, memory_format=layout)  # type: ignore[call-overload]
    return placed.eval().requires_grad_(False)


def weights_configuration(path: Path) -> str:
    """The configuration that weights were trained for, from their metadata.

    Raises:
        ModelFolderError: unreadable, or without this entry.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ModelFolderError(f"{path} cannot be read: {error}", hint="copy the model again") from error
    if "configuration" not in metadata:
        raise ModelFolderError(f"{path} does not say its configuration", hint="these are not weights of autoseg")
    return metadata["configuration"]
