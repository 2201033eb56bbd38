"""Training steps of nnU-Net's own trainer on the CPU: ``python -m benchmarks.theirs.step PLANS INPUTS LOSSES``."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.nn import functional as F

from benchmarks.watch import report


def main() -> None:
    plans, inputs, answer = map(Path, sys.argv[1:])
    description = json.loads(plans.read_text())
    trainer = _trainer(description["plans"], description["dataset"])
    given = np.load(inputs)
    _set_weights(trainer.network, given)
    scales = trainer._get_deep_supervision_scales()
    losses, seconds = [], []
    for images, target in zip(given["images"], given["targets"], strict=True):
        data, labels = torch.from_numpy(images), torch.from_numpy(target)
        batch = {"data": data, "target": [_smaller(labels, scale) for scale in scales]}
        started = time.perf_counter()
        losses.append(float(trainer.train_step(batch)["loss"]))
        seconds.append(time.perf_counter() - started)
    np.save(answer, np.array(losses))
    report(statistics.median(seconds[1:]), losses=losses)


def _trainer(plans: dict, dataset: dict) -> nnUNetTrainer:
    """As ``initialize`` makes it, without looking for preprocessed data."""
    trainer = nnUNetTrainer({**plans, "continue_training": False}, "bench", 0, dataset, torch.device("cpu"))
    trainer.network = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, trainer.label_manager.num_segmentation_heads, True
    ).train()
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    trainer.loss = trainer._build_loss()
    return trainer


def _set_weights(network: torch.nn.Module, given: np.lib.npyio.NpzFile) -> None:
    """Their decoder counts its steps from the coarsest resolution, the file from the finest."""
    steps = len(network.decoder.stages)
    places = {}
    for stage, blocks in enumerate(network.encoder.stages):
        places |= {f"encoder.{stage}.{i}": block for i, block in enumerate(blocks[0].convs)}
    for place in range(steps):
        step = steps - 1 - place
        places |= {f"decoder.{step}.{i}": block for i, block in enumerate(network.decoder.stages[place].convs)}
    with torch.no_grad():
        for name, block in places.items():
            block.conv.weight.copy_(torch.from_numpy(given[name]))
            block.conv.bias.zero_()
        for place in range(steps):
            for kind, module in (("up", network.decoder.transpconvs), ("head", network.decoder.seg_layers)):
                module[place].weight.copy_(torch.from_numpy(given[f"{kind}.{steps - 1 - place}"]))
                module[place].bias.zero_()


def _smaller(labels: torch.Tensor, scale: list[float]) -> torch.Tensor:
    """What their data loader makes of a label for deep supervision."""
    shape = [round(length * part) for length, part in zip(labels.shape[2:], scale, strict=True)]
    return F.interpolate(labels.float(), shape, mode="nearest-exact").to(labels.dtype)


if __name__ == "__main__":
    main()
