"""A real training step, and (as a program of its own) the resident memory that it takes.

A process that has done other work before holds memory that a step can use again, so the figure needs a fresh one:
``python -m tests.nets.real_step NDIM STAGES EDGE BATCH`` prints bytes.
"""

import sys
import threading
import time

import psutil
import torch

from autoseg.losses import segmentation_loss
from autoseg.nets import build_network, traits_of
from autoseg.schema.dataset import Label, Labels
from autoseg.schema.plan import Architecture, Topology
from autoseg.training.optim import make_optimizer

UNET = Architecture(name="unet")


def topology(ndim, stages, width=8, cap=64):
    return Topology(
        strides=((1,) * ndim, *(((2,) * ndim,) * (stages - 1))),
        kernels=((3,) * ndim,) * stages,
        features=tuple(min(width * 2**stage, cap) for stage in range(stages)),
    )


def labels(heads):
    return Labels(foreground=tuple(Label(name=f"label {i}", values=(i,)) for i in range(1, heads)))


class Step:
    """Forward, autoseg's own loss, backward, the architecture's optimizer; on the CPU in float32."""

    def __init__(self, plan, patch, batch, *, channels=1, heads=3, architecture=UNET):
        torch.manual_seed(0)
        self.network = build_network(
            architecture, plan, ndim=len(patch), in_channels=channels, num_heads=heads, patch_size=patch
        ).train()
        self.recipe = traits_of(architecture.name).recipe
        self.optimizer = make_optimizer(self.network.parameters(), self.recipe)
        self.loss = segmentation_loss(labels(heads), batch_dice=True, weights=self.network.output_weights)
        self.images = torch.randn(batch, channels, *patch)
        self.target = torch.randint(0, heads, (batch, 1, *patch))

    @property
    def before(self):
        """Bytes that exist before a step: weights, the optimizer's copies, buffers, images and target."""
        weights = sum(parameter.nbytes for parameter in self.network.parameters())
        buffers = sum(buffer.nbytes for buffer in self.network.buffers())
        copies = 1 if self.recipe.optimizer == "sgd" else 2
        return (1 + copies) * weights + buffers + self.images.nbytes + self.target.nbytes

    def __call__(self):
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.network(self.images), self.target).backward()
        self.optimizer.step()


def allocated(step):
    """Peak bytes that the CPU allocator has handed out during a step, and what existed before."""
    step()
    step.optimizer.zero_grad(set_to_none=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    live = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return step.before + peak


def resident(make_step):
    """Peak resident memory of two steps, above what the process had before the network existed."""
    process, peak, running = psutil.Process(), [0], [True]
    before = process.memory_info().rss

    def watch():
        while running[0]:
            peak[0] = max(peak[0], process.memory_info().rss)
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    step = make_step()
    step()
    step()
    running[0] = False
    thread.join()
    return peak[0] - before


def main():
    ndim, stages, edge, batch = map(int, sys.argv[1:])
    warm = Step(topology(ndim, 2, 8), (16,) * ndim, 2)
    warm()
    warm()
    plan = topology(ndim, stages, 32, {2: 512, 3: 320}[ndim])
    sys.stdout.write(str(resident(lambda: Step(plan, (edge,) * ndim, batch))))


if __name__ == "__main__":
    main()
