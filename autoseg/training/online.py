"""Validation on patches after each epoch: the curve that a person watches, not the score that counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from autoseg.losses import dice_counts
from autoseg.parallel import prefetch
from autoseg.schema.dataset import Labels
from autoseg.training.data import PatchSource, batches
from autoseg.training.distributed import World, total
from autoseg.training.fit import OnlineScores
from autoseg.training.state import TrainState
from autoseg.training.step import Kitchen, Loss, network_batch, predict_batch


def make_validation(
    source: PatchSource, *, labels: Labels, loss: Loss, kitchen: Kitchen, world: World, count: Callable[[int], int]
) -> Callable[[TrainState], OnlineScores]:
    """A function that scores a state on the same patches each time, so that epochs can be compared.

    ``count`` maps the steps of the epoch to the number of validation batches.
    """
    plain = replace(kitchen, policy=None, stream=source.stream)

    def validate(state: TrainState) -> OnlineScores:
        was_training = state.network.training
        state.network.eval()
        counts: torch.Tensor | None = None
        losses: list[torch.Tensor] = []
        with batches(source) as stream:
            # A GPU would wait for each patch; on a CPU a second thread would only take from the network's cores.
            ahead = prefetch(map(list, stream)) if kitchen.device.type == "cuda" else stream
            patches = None
            for step in range(count(state.epoch_steps)):
                patches = image, target = network_batch(next(ahead), plain, step=step, out=patches)
                logits = predict_batch(state.network, image, plain)
                losses.append(loss((logits,), target))
                batch = torch.stack(dice_counts(logits, target, labels))
                counts = batch if counts is None else counts + batch
        state.network.train(was_training)
        mean_loss = total(torch.stack(losses).mean(), world) / world.size
        return OnlineScores(loss=float(mean_loss), dice=_dice(labels.names, counts, world))

    return validate


def _dice(names: Sequence[str], counts: torch.Tensor | None, world: World) -> dict[str, float | None]:
    if counts is None:
        return dict.fromkeys(names)
    true_positive, false_positive, false_negative = total(counts.double(), world).cpu().unbind(0)
    both = 2 * true_positive + false_positive + false_negative
    dice = 2 * true_positive / both.clamp(min=1)
    return {
        name: float(value) if seen > 0 else None
        for name, value, seen in zip(names, dice.tolist(), both.tolist(), strict=True)
    }
