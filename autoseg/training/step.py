"""One training step and one validation batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from autoseg.augment import Policy, apply_intensity, cut
from autoseg.nets.label_channels import Groups
from autoseg.training.data import Sample
from autoseg.training.previous import previous_as_channels
from autoseg.training.sampling import Stream
from autoseg.training.state import TrainState

Network = nn.Module
Loss = Callable[[tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Kitchen:
    """How a step is computed: device, autocast type (None for float32), patch, augmentation.

    ``previous`` is of the second stage of a cascade: how the segmentation of the first becomes channels.
    """

    device: torch.device
    precision: torch.dtype | None
    patch_size: tuple[int, ...]
    masked_channels: tuple[int, ...]
    policy: Policy | None
    stream: Stream
    first_sample: int = 0
    previous: Groups = ()

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last_3d if len(self.patch_size) == 3 else torch.channels_last


def make_batch(
    samples: Sequence[Sample], kitchen: Kitchen, *, step: int, out: tuple[torch.Tensor, torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (b, c, *patch) float32 and target (b, 1, *patch) int16 on the device, augmented if there is a policy.

    ``out`` is an earlier batch that nobody needs any more: written over, it costs no fresh pages.
    """
    generators = _intensity_generators(kitchen, step, len(samples))
    # A GPU changes all samples together; on a CPU one sample is what fits the cache.
    together = len(samples) if kitchen.device.type == "cuda" else 1
    for first in range(0, len(samples), together):
        part = range(first, min(first + together, len(samples)))
        # In a function of its own: a sample may be read when it is asked for, and this one is gone by then.
        out = _with_samples(out, samples, part, kitchen, generators)
    assert out is not None
    return out


def _with_samples(
    batch: tuple[torch.Tensor, torch.Tensor] | None,
    samples: Sequence[Sample],
    part: range,
    kitchen: Kitchen,
    generators: Sequence[np.random.Generator],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch, which is made if there is none, after part of the samples was written into it."""
    images, targets, flips = _augmented(
        [samples[index] for index in part], kitchen, [generators[index] for index in part]
    )
    image, target = batch if batch is not None else _empty_batch(len(samples), images, targets, kitchen)
    for index, one, label, axes in zip(part, images, targets, flips, strict=True):
        _mirror_into(image[index], one, axes)
        _mirror_into(target[index], label, axes)
    return image, target


def _mirror_into(target: torch.Tensor, source: torch.Tensor, axes: Sequence[int]) -> None:
    """Write one patch (c, *patch), mirrored along spatial ``axes``, where its channels may be last."""
    if target.device.type == "cpu" and len(target) > 1:
        # One channel after the other takes half the time of torch's copy between the two orders.
        turned = tuple(slice(None, None, -1 if axis in axes else 1) for axis in range(source.dim() - 1))
        for mine, other in zip(target.numpy(), source.numpy(), strict=True):
            mine[...] = other[turned]
    else:
        target.copy_(source.flip([axis + 1 for axis in axes]) if axes else source)


def _empty_batch(
    count: int, images: torch.Tensor, targets: torch.Tensor, kitchen: Kitchen
) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for as many samples as these are, (b, c, *patch) each."""
    image = torch.empty((count, *images.shape[1:]), device=kitchen.device, memory_format=kitchen.memory_format)
    return image, torch.empty((count, *targets.shape[1:]), dtype=torch.int16, device=kitchen.device)


def _augmented(
    samples: Sequence[Sample], kitchen: Kitchen, generators: Sequence[np.random.Generator]
) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, ...]]]:
    """Image and target of some samples, and along which spatial axes each is still to be mirrored.

    The target is int16, or as the label of a single sample on a CPU: what a byte holds is moved in half the time.
    """
    images, targets, flips = [], [], []
    for sample in samples:
        axes: tuple[int, ...] = ()
        image = torch.from_numpy(sample.image).to(kitchen.device, non_blocking=True)
        label = torch.from_numpy(sample.label).to(kitchen.device, non_blocking=True)
        if sample.spatial is not None:
            # -1 marks voxels outside the mask, where no label is, and outside the image.
            image, label, axes = cut(
                image,
                label,
                sample.spatial,
                kitchen.patch_size,
                centre=sample.centre,
                outside=-1,
                padded=sample.padded,
            )
        images.append(image)
        targets.append(label if len(samples) == 1 else label.to(torch.int16))
        flips.append(axes)
    image, target = _stacked(images), _stacked(targets)
    if kitchen.policy is not None:
        image = apply_intensity(image, kitchen.policy, generators)
    if not target.is_signed():
        # Nothing is outside.
        return image, target, flips
    if kitchen.masked_channels:
        # Normalisation over a mask leaves exact zeros outside it; augmentation must not lift them.
        # 1 inside and 0 outside: truth values would take torch five times as long, on a CPU.
        inside = target[:, 0].clamp(-1, 0).add_(1).to(image.dtype)
        for channel in kitchen.masked_channels:
            image[:, channel].mul_(inside)
    return image, target.clamp_(min=0), flips


def _stacked(arrays: Sequence[torch.Tensor]) -> torch.Tensor:
    """One array is not copied: samples belong to their batch alone."""
    return torch.stack(tuple(arrays)) if len(arrays) > 1 else arrays[0].contiguous()[None]


def _intensity_generators(kitchen: Kitchen, step: int, count: int) -> list[np.random.Generator]:
    # A third stream, so that reading (which may stop early) and intensity draws do not share numbers.
    return _generators(kitchen, 2, step, count)


def _generators(kitchen: Kitchen, further: int, step: int, count: int) -> list[np.random.Generator]:
    """Generators of a further stream, one per sample."""
    stream = Stream(seed=kitchen.stream.seed, fold=kitchen.stream.fold, kind=kitchen.stream.kind + further)
    return [stream.generator(step, kitchen.first_sample + index) for index in range(count)]


def network_batch(
    samples: Sequence[Sample], kitchen: Kitchen, *, step: int, out: tuple[torch.Tensor, torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``make_batch``; in the second stage of a cascade, the first one's segmentation is in further channels."""
    if not kitchen.previous:
        return make_batch(samples, kitchen, step=step, out=out)
    image, target = make_batch(samples, kitchen, step=step)
    generators = _generators(kitchen, 4, step, len(samples)) if kitchen.policy is not None else []
    image, target = previous_as_channels(image, target, kitchen.previous, generators)
    return image.contiguous(memory_format=kitchen.memory_format), target


def stepper(
    stream: Iterator[Sequence[Sample]], *, loss: Loss, kitchen: Kitchen, clip_norm: float
) -> Callable[[TrainState], torch.Tensor]:
    """Reading, augmenting and one update as a single function of the state."""

    batch: tuple[torch.Tensor, torch.Tensor] | None = None

    def take_step(state: TrainState) -> torch.Tensor:
        nonlocal batch
        seed_step(kitchen, state.step)
        batch = network_batch(next(stream), kitchen, step=state.step, out=batch)
        return train_step(state, *batch, loss=loss, kitchen=kitchen, clip_norm=clip_norm)

    return take_step


def seed_step(kitchen: Kitchen, step: int) -> None:
    """Fix torch's own generator for a step, for networks that draw (dropout): resuming repeats it exactly."""
    torch.manual_seed(int(kitchen.stream.generator(step, 2**31).integers(2**62)))


def train_step(
    state: TrainState, image: torch.Tensor, target: torch.Tensor, *, loss: Loss, kitchen: Kitchen, clip_norm: float
) -> torch.Tensor:
    """Forward, loss, backward, clipped update. Returns the loss, detached and still on the device."""
    state.optimizer.zero_grad(set_to_none=True)
    value = loss(_forward(state.network, image, kitchen), target)
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    if state.scaler is None:
        value.backward()
        nn.utils.clip_grad_norm_(parameters, clip_norm)
        state.optimizer.step()
    else:
        state.scaler.scale(value).backward()
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(parameters, clip_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
    return value.detach()


def _forward(network: nn.Module, image: torch.Tensor, kitchen: Kitchen) -> tuple[torch.Tensor, ...]:
    with torch.autocast(kitchen.device.type, kitchen.precision, enabled=kitchen.precision is not None):
        outputs: tuple[torch.Tensor, ...] = network(image)
    return outputs


@torch.inference_mode()
def predict_batch(network: nn.Module, image: torch.Tensor, kitchen: Kitchen) -> torch.Tensor:
    """Logits (b, heads, *patch) at full resolution, in float32."""
    return _forward(network, image, kitchen)[0].float()


def window_seconds(
    network: Network, kitchen: Kitchen, *, channels: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """How long the network takes for one patch without gradients: the middle one of three tries."""
    window = torch.zeros((1, channels, *kitchen.patch_size), device=kitchen.device)
    window = window.contiguous(memory_format=kitchen.memory_format)
    was_training = network.training
    network.eval()
    seconds = []
    for _ in range(3):
        started = clock()
        # Reading one number waits for the device.
        float(predict_batch(network, window, kitchen).flatten()[0])
        seconds.append(clock() - started)
    network.train(was_training)
    return sorted(seconds)[1]
