"""Peak RAM of predicting one large image with a tiny random network at the image's own resolution.

    python benchmarks/predict_memory.py --shape 400,512,512 --classes 25 --patch 128,128,128

Nothing is resampled, so every class has logits at every voxel of the image: the hardest case for memory. The image is
generated, the network is random; time says nothing about accuracy or about a trained network's speed.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from autoseg import records
from autoseg.inference.predictor import Predictor
from autoseg.io.volume import Geometry, Volume
from autoseg.nets import build_network
from autoseg.schema.dataset import Label, Labels
from autoseg.schema.folders import ModelFolder
from autoseg.schema.parsing import parse_bytes, parse_integers
from autoseg.schema.plan import Architecture, Configuration, Cost, Normalization, Plan, Resampling, Topology
from autoseg.schema.report import RunReport

NAME = "3d_fullres"


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        model = ModelFolder(Path(folder))
        write_model(model, classes=arguments.classes, patch=arguments.patch, width=arguments.width)
        predictor = Predictor.load(model.root, device="cpu", memory=arguments.memory, step_size=arguments.step_size)
    volume = _image(arguments.shape)
    before = _peak()
    started = time.perf_counter()
    labels = predictor.predict(volume)
    seconds = time.perf_counter() - started
    sys.stdout.write(
        f"image {arguments.shape}, {arguments.classes} classes, patch {arguments.patch}, width {arguments.width}\n"
        f"peak RSS before prediction {before / 1e9:.2f} GB, after {_peak() / 1e9:.2f} GB, {seconds:.0f} s, "
        f"{len(np.unique(labels[:: max(1, len(labels) // 8)]))} classes seen\n"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=parse_integers, default=(400, 512, 512), help="z,y,x")
    parser.add_argument("--classes", type=int, default=25, help="with the background")
    parser.add_argument("--patch", type=parse_integers, default=(128, 128, 128), help="z,y,x")
    parser.add_argument("--width", type=int, default=8, help="features of the first stage")
    parser.add_argument("--step-size", type=float, default=0.5, help="changes the time, not the memory")
    parser.add_argument("--memory", type=parse_bytes, default=None)
    return parser.parse_args()


def _peak() -> int:
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _image(shape: tuple[int, ...]) -> Volume:
    """Noise in the range of CT, int16; no voxel is 0, so that nothing is cropped away."""
    generator = np.random.default_rng(0)
    data = np.empty((1, *shape), dtype=np.int16)
    for plane in data[0]:
        plane[...] = generator.integers(1, 2000, plane.shape)
    return Volume(data, Geometry.upright((1.0, 1.0, 1.0)))


def write_model(model: ModelFolder, *, classes: int, patch: tuple[int, ...], width: int) -> None:
    """One trained fold of a two-stage U-Net with random weights; ``classes`` with the background."""
    three, one, two = (3, 3, 3), (1, 1, 1), (2, 2, 2)
    configuration = Configuration(
        name=NAME,
        ndim=3,
        spacing=(1.0, 1.0, 1.0),
        median_shape=patch,
        patch_size=patch,
        batch_size=2,
        normalization=(Normalization(scheme="ct", mean=1000.0, std=500.0, lower=0.0, upper=2000.0),),
        resampling=Resampling(),
        architecture=Architecture(name="unet", arguments={"blocks_per_stage": 1, "blocks_per_step": 1}),
        topology=Topology(strides=(one, two), kernels=(three, three), features=(width, 2 * width)),
        batch_dice=False,
        cost=Cost(parameters=0, memory_bytes=0, flops=0),
    )
    plan = Plan(
        dataset="Dataset000_Noise",
        device="cpu",
        memory_bytes=0,
        transpose=(0, 1, 2),
        channels=("CT",),
        labels=Labels(foreground=tuple(Label(name=f"class {i}", values=(i,)) for i in range(1, classes))),
        configurations=(configuration,),
    )
    torch.manual_seed(0)
    network = build_network(
        configuration.architecture,
        configuration.topology,
        ndim=3,
        in_channels=1,
        num_heads=classes,
        patch_size=patch,
    )
    weights = model.fold(0).weights
    weights.parent.mkdir(parents=True)
    save_file(network.state_dict(), weights, metadata={"configuration": NAME})
    records.save(model.plan, plan)
    records.save(model.run, RunReport(command="", settings={"configuration": NAME, "mirror_axes": [0, 1, 2]}))


if __name__ == "__main__":
    main()
