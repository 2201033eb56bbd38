"""Single points of the curves: ``python -m benchmarks.ours.curves export 25 64,256,256`` and the like."""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from autoseg.inference.predictor import Predictor
from autoseg.io.volume import Geometry, Volume
from autoseg.losses import segmentation_loss
from autoseg.nets import build_network, traits_of
from autoseg.nets.device import choose_precision
from autoseg.nets.units import regular_topology
from autoseg.preprocessing.restore import Restorer
from autoseg.preprocessing.trace import Trace
from autoseg.schema.dataset import Label, Labels
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Architecture, Resampling
from autoseg.training.optim import make_optimizer
from autoseg.training.sampling import TRAIN, Stream
from autoseg.training.state import TrainState
from autoseg.training.step import Kitchen, train_step
from benchmarks.predict_memory import write_model
from benchmarks.watch import report

# As prediction hands finished planes of logits on.
_PIECE_BYTES = 64_000_000
# Blocks of equal logits, so that most voxels lie inside a structure, as in a real image.
_BLOCK = 8


def main() -> None:
    task, *arguments = sys.argv[1:]
    _TASKS[task](*arguments)


def export(classes: str, shape: str) -> None:
    """Logits of 3/4 of the length along each axis to a label map of ``shape``; ``classes`` with the background."""
    heads, full = int(classes), _integers(shape)
    depth, height, width = small = tuple(3 * length // 4 for length in full)
    trace = Trace(
        shape=full,
        spacing=(1.0, 1.0, 1.0),
        transpose=(0, 1, 2),
        box=tuple((0, length) for length in full),
        cropped_shape=full,
        resampled_shape=small,
        target_spacing=(4 / 3, 4 / 3, 4 / 3),
        separate_axis=None,
    )
    generator = np.random.default_rng(0)
    held = _memory("VmRSS:")
    # Linux, proc(5): the high-water mark starts anew.
    Path("/proc/self/clear_refs").write_text("5")
    started = time.process_time()
    restorer = Restorer(trace, labels=_labels(heads), resampling=Resampling())
    planes = max(1, _PIECE_BYTES // (4 * heads * height * width))
    piece = np.empty((heads, min(planes, depth), height, width), dtype=np.float32)
    for start in range(0, depth, planes):
        part = piece[:, : min(planes, depth - start)]
        for plane in range(part.shape[1]):
            coarse = generator.standard_normal((heads, height // _BLOCK, width // _BLOCK), dtype=np.float32)
            part[:, plane] = np.repeat(np.repeat(coarse, _BLOCK, axis=1), _BLOCK, axis=2)
        restorer.add(part)
    result = restorer.finish()
    seconds = time.process_time() - started
    report(
        seconds, grown_bytes=_memory("VmHWM:") - held, label_bytes=result.nbytes, logit_bytes=4 * heads * result.size
    )


def step(side: str, steps: str) -> None:
    """Processor seconds of a training step (batch 1) on a cubic patch, after one that warms up."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    patch = (int(side),) * 3
    kitchen = Kitchen(
        device=device,
        precision=choose_precision(device),
        patch_size=patch,
        masked_channels=(),
        policy=None,
        stream=Stream(seed=0, fold="curve", kind=TRAIN),
    )
    network = build_network(
        Architecture(name="unet"),
        regular_topology((16, 32, 64), ndim=3),
        ndim=3,
        in_channels=1,
        num_heads=3,
        patch_size=patch,
    )
    network = network.to(memory_format=kitchen.memory_format).train()  # type: ignore[call-overload]
    recipe = traits_of("unet").recipe
    state = TrainState(network=network, optimizer=make_optimizer(network.parameters(), recipe))
    loss = segmentation_loss(_labels(3), batch_dice=False, weights=network.output_weights)
    image = torch.randn(1, 1, *patch).contiguous(memory_format=kitchen.memory_format)
    target = torch.randint(0, 3, (1, 1, *patch), dtype=torch.int16)
    seconds = []
    for _ in range(int(steps) + 1):
        started = time.process_time()
        train_step(state, image, target, loss=loss, kitchen=kitchen, clip_norm=recipe.clip_norm)
        seconds.append(time.process_time() - started)
    report(statistics.median(seconds[1:]))


def ensemble(folds: str, shape: str) -> None:
    """Predict an image with a random network of two stages, once per fold."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = ModelFolder(Path(folder))
        write_model(model, classes=5, patch=(64, 64, 64), width=16)
        for fold in range(1, int(folds)):
            shutil.copytree(model.fold(0).root, model.fold(fold).root)
        predictor = Predictor.load(model.root, device="cpu")
    full = _integers(shape)
    data = np.random.default_rng(0).integers(1, 2000, (1, *full), dtype=np.int16)
    started = time.process_time()
    predictor.predict(Volume(data, Geometry.upright((1.0, 1.0, 1.0))))
    report(time.process_time() - started)


def _labels(heads: int) -> Labels:
    return Labels(foreground=tuple(Label(name=f"organ {value}", values=(value,)) for value in range(1, heads)))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _memory(field: str) -> int:
    lines: Sequence[str] = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


_TASKS = {"export": export, "step": step, "ensemble": ensemble}


if __name__ == "__main__":
    main()
