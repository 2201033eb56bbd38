"""Training steps of autoseg on the CPU: ``python -m benchmarks.ours.step PLANS INPUTS LOSSES``."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from autoseg import records
from autoseg.losses import segmentation_loss
from autoseg.nets import build_network, traits_of
from autoseg.nets.device import choose_precision
from autoseg.nets.heap import largest_map, reused_heap
from autoseg.schema.dataset import Label, Labels
from autoseg.schema.plan import Architecture, Topology
from autoseg.training.optim import make_optimizer
from autoseg.training.sampling import TRAIN, Stream
from autoseg.training.state import TrainState
from autoseg.training.step import Kitchen, train_step
from benchmarks.watch import report


def main() -> None:
    plans, inputs, answer = map(Path, sys.argv[1:])
    description = json.loads(plans.read_text())["ours"]
    topology = records.structure(Topology, description["topology"])
    patch = tuple(description["patch_size"])
    device = torch.device("cpu")
    kitchen = Kitchen(
        device=device,
        precision=choose_precision(device),
        patch_size=patch,
        masked_channels=(),
        policy=None,
        stream=Stream(seed=0, fold="bench", kind=TRAIN),
    )
    labels = Labels(
        foreground=tuple(Label(name=f"organ {value}", values=(value,)) for value in range(1, description["heads"]))
    )
    network = build_network(
        Architecture(name="unet"),
        topology,
        ndim=len(patch),
        in_channels=1,
        num_heads=description["heads"],
        patch_size=patch,
    )
    given = np.load(inputs)
    _set_weights(network, given)
    network = network.to(memory_format=kitchen.memory_format).train()  # type: ignore[call-overload]
    recipe = traits_of("unet").recipe
    state = TrainState(network=network, optimizer=make_optimizer(network.parameters(), recipe))
    loss = segmentation_loss(labels, batch_dice=description["batch_dice"], weights=network.output_weights)
    losses, seconds = [], []
    largest = largest_map(topology.features[0], len(given["images"][0]), patch, kitchen.precision)
    with reused_heap(largest, state.optimizer):
        for images, target in zip(given["images"], given["targets"], strict=True):
            image = torch.from_numpy(images).contiguous(memory_format=kitchen.memory_format)
            started = time.perf_counter()
            value = train_step(
                state, image, torch.from_numpy(target), loss=loss, kitchen=kitchen, clip_norm=recipe.clip_norm
            )
            losses.append(float(value))
            seconds.append(time.perf_counter() - started)
    np.save(answer, np.array(losses))
    report(statistics.median(seconds[1:]), losses=losses, precision=str(kitchen.precision))


def _set_weights(network: torch.nn.Module, given: np.lib.npyio.NpzFile) -> None:
    places = {}
    for part in ("encoder", "decoder"):
        for stage, blocks in enumerate(getattr(network, part)):
            places |= {f"{part}.{stage}.{i}": block[0] for i, block in enumerate(blocks)}
    places |= {f"up.{step}": module for step, module in enumerate(network.up)}
    places |= {f"head.{step}": module for step, module in enumerate(network.heads)}
    with torch.no_grad():
        for name, module in places.items():
            module.weight.copy_(torch.from_numpy(given[name]))
            module.bias.zero_()


if __name__ == "__main__":
    main()
