"""Small members of every registered architecture, planned as the planner would."""

import torch

from autoseg.nets import NETS, build_network, traits_of
from autoseg.planning.topology import plan_topology
from autoseg.schema.plan import Architecture

NAMES = NETS.names()
# (spacing, patch): a plain one, odd, anisotropic, tiny, long; patches grow to what a network needs.
SETTINGS = {
    2: [
        ((1, 1), (64, 48)),
        ((1, 1), (35, 41)),
        ((3, 1), (24, 80)),
        ((1, 1), (8, 8)),
        ((1, 1.5), (40, 96)),
    ],
    3: [
        ((1, 1, 1), (32, 24, 32)),
        ((1, 1, 1), (17, 19, 23)),
        ((5, 1, 1), (6, 48, 40)),
        ((1, 1, 1), (8, 8, 8)),
        ((2.5, 1, 1.2), (12, 32, 48)),
    ],
}
WIDTH_DIVISOR = 4


def planned(name, spacing, patch, *, divisor=WIDTH_DIVISOR):
    """Topology and patch of an architecture; the patch is grown until the network has its least number of stages."""
    traits = traits_of(name)
    width = max(4, traits.base_width_cpu // divisor)
    size = list(patch)
    while True:
        topology, padded = plan_topology(spacing, size, traits, base_width=width)
        if topology.num_stages >= traits.min_stages:
            return topology, padded
        size = [length + length // 2 for length in size]


def members(ndims=(2, 3)):
    """(name, topology, patch) of everything that can be built."""
    return [
        (name, *planned(name, spacing, patch))
        for name in NAMES
        for ndim in ndims
        if ndim in traits_of(name).ndims
        for spacing, patch in SETTINGS[ndim]
    ]


def label(member):
    name, topology, patch = member
    return f"{name}-{'x'.join(map(str, patch))}-{topology.num_stages}"


def build(name, topology, patch, *, channels=2, heads=3, seed=0):
    torch.manual_seed(seed)
    return build_network(
        Architecture(name=name),
        topology,
        ndim=len(patch),
        in_channels=channels,
        num_heads=heads,
        patch_size=patch,
    )


def logits_and_own(network, outputs):
    """Training outputs split into logits and the loss term of the network's own (or None)."""
    count = len(network.output_weights)
    assert len(outputs) in {count, count + 1}
    own = outputs[count] if len(outputs) > count else None
    assert own is None or own.ndim == 0
    return outputs[:count], own


def total(network, outputs):
    """A loss that every output feeds, each value with a weight of its own."""
    logits, own = logits_and_own(network, outputs)
    torch.manual_seed(1)
    noise = [torch.randn(output.shape) for output in logits]
    value = sum(((output.float() + weight) ** 2).mean() for output, weight in zip(logits, noise, strict=True))
    return value if own is None else value + own
