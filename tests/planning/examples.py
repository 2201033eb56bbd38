"""Datasets and a small plan for the planner's tests, and nnU-Net's own estimate of a plain U-Net as a cost."""

import math

from autoseg.planning.budget import usable_memory
from autoseg.schema.dataset import DatasetSpec, Label, Labels
from autoseg.schema.fingerprint import CaseFingerprint, Fingerprint, Intensities
from autoseg.schema.plan import Architecture, Configuration, Cost, Normalization, Plan, Resampling, Topology

MEMORY = 8_000_000_000
# Feature-map values times batch that nnU-Net's reference plans allow in 8 GB, by number of axes.
REFERENCE = {2: 85_000_000 * 12, 3: 560_000_000 * 2}


def closed_form(topology, *, ndim, patch, heads):
    """Values in the feature maps of nnU-Net's PlainConvUNet for one sample, with one segmentation head."""
    size, total = list(patch), 0
    last = topology.num_stages - 1
    for stage, (stride, width) in enumerate(zip(topology.strides, topology.features, strict=True)):
        size = [length // step for length, step in zip(size, stride, strict=True)]
        convolutions = 2 if stage == last else 5
        total += convolutions * width * math.prod(size)
    return total + heads * math.prod(patch)


def peer_cost(architecture, topology, *, ndim, patch_size, batch_size, in_channels, num_heads):
    estimate = closed_form(topology, ndim=ndim, patch=patch_size, heads=num_heads) * batch_size
    memory = estimate / REFERENCE[ndim] * usable_memory("cuda", MEMORY)
    return Cost(parameters=sum(topology.features), memory_bytes=int(memory), flops=estimate)


def intensities(mean=50.0, low=-100.0, high=300.0, count=1000):
    return Intensities(
        count=count,
        mean=mean,
        std=20.0,
        minimum=low - 5,
        maximum=high + 5,
        median=mean,
        percentile_00_5=low,
        percentile_99_5=high,
    )


def fingerprint(spacings, shapes, *, channels=1, crop=1.0, pooled=None):
    """Cases of the given spacings and cropped shapes; ``crop`` is the share of the image that cropping leaves."""
    cases = tuple(
        CaseFingerprint(
            id=f"case_{index:03d}",
            shape=(shape[0], shape[1], round(shape[2] / crop)),
            cropped_shape=tuple(shape),
            spacing=tuple(map(float, spacing)),
            classes=(),
            intensities=(intensities(),) * channels,
        )
        for index, (spacing, shape) in enumerate(zip(spacings, shapes, strict=True))
    )
    pooled = pooled or (intensities(),) * channels
    return Fingerprint(dataset="Dataset001_Test", content_hash="", cases=cases, intensities=pooled)


def uniform(spacing, shape, count, **rest):
    return fingerprint([spacing] * count, [shape] * count, **rest)


def spec(*, channels=("MRI",), labels=("a", "b")):
    return DatasetSpec(
        name="Dataset001_Test",
        channels=tuple(channels),
        labels=Labels(foreground=tuple(Label(name=name, values=(i,)) for i, name in enumerate(labels, start=1))),
        file_ending=".nii.gz",
        cases=(),
    )


def configuration(
    width: int = 16, *, ndim: int = 3, stages: int = 5, arch: Architecture | None = None
) -> Configuration:
    strides = ((1,) * ndim, *((2,) * ndim,) * (stages - 1))
    return Configuration(
        name="3d_fullres",
        ndim=ndim,
        spacing=(1.0,) * ndim,
        median_shape=(64,) * ndim,
        patch_size=(64,) * ndim,
        batch_size=2,
        normalization=(Normalization(scheme="zscore"),),
        resampling=Resampling(),
        architecture=arch or Architecture(name="unet"),
        topology=Topology(
            strides=strides,
            kernels=((3,) * ndim,) * stages,
            features=tuple(min(width * 2**stage, 320) for stage in range(stages)),
        ),
        batch_dice=False,
        cost=Cost(parameters=1, memory_bytes=1, flops=1),
    )


# One channel; background and two labels.
PLAN = Plan(
    dataset="Dataset001_Balls",
    device="cpu",
    memory_bytes=10**9,
    transpose=(0, 1, 2),
    channels=("MRI",),
    labels=Labels(foreground=(Label(name="small", values=(1,)), Label(name="large", values=(2,)))),
    configurations=(configuration(),),
)
