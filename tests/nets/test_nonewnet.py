import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from autoseg.nets import build_network, build_paper_mode, paper_modes_of
from autoseg.schema.plan import Architecture, Topology

(PAPER,) = paper_modes_of("nonewnet")
SLOPE = 0.01


def topology(strides, features, kernels=None):
    kernels = kernels or [[3] * len(strides[0])] * len(strides)
    return Topology(strides=tuple(map(tuple, strides)), kernels=tuple(map(tuple, kernels)), features=tuple(features))


def build(plan, patch):
    torch.manual_seed(0)
    return build_network(
        Architecture(name="nonewnet"), plan, ndim=len(patch), in_channels=2, num_heads=3, patch_size=patch
    )


def test_the_last_convolution_of_a_stage_has_the_width_of_the_next_finer_one():
    with torch.device("meta"):
        network = build_paper_mode("nonewnet", PAPER)
    stages = [*network.encoder, network.bottleneck, *reversed(network.decoder)]
    widths = [tuple(conv.out_channels for conv in stage.modules() if isinstance(conv, nn.Conv3d)) for stage in stages]
    encoder = [(30, 30), (60, 60), (120, 120), (240, 240), (480, 240)]
    assert widths == [*encoder, (240, 120), (120, 60), (60, 30), (30, 30)]


def test_multiplications_are_those_of_the_authors_class():
    with torch.device("meta"):
        network = build_paper_mode("nonewnet", PAPER)
        x = torch.empty(1, 4, 128, 128, 128)
    with FlopCounterMode(display=False) as counter:
        network(x)
    assert counter.get_total_flops() / 2 == pytest.approx(392.4e9, rel=2e-4)


def pair(x, stage):
    for conv in (module for module in stage.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)):
        convolve = {2: F.conv2d, 3: F.conv3d}[x.ndim - 2]
        padding = [size // 2 for size in conv.weight.shape[2:]]
        x = F.leaky_relu(F.instance_norm(convolve(x, conv.weight, conv.bias, padding=padding)), SLOPE)
    return x


@pytest.mark.parametrize(
    ("plan", "patch", "pool", "mode"),
    [
        (topology([[1, 1], [2, 2], [2, 1], [2, 2]], [4, 5, 6, 7]), (32, 20), F.max_pool2d, "bilinear"),
        (
            topology([[1, 1, 1], [1, 2, 2], [2, 2, 2]], [4, 6, 8], [[1, 3, 3], [1, 3, 3], [3, 3, 3]]),
            (4, 16, 12),
            F.max_pool3d,
            "trilinear",
        ),
    ],
)
def test_it_is_pools_pairs_of_convolutions_and_linear_upsampling(plan, patch, pool, mode):
    network = build(plan, patch).eval()
    x = torch.randn(2, 2, *patch)
    y, skips = x, []
    for stage, stride in zip(network.encoder, plan.strides[1:], strict=True):
        skips.append(pair(y, stage))
        y = pool(skips[-1], stride)
    y = pair(y, network.bottleneck)
    for s in reversed(range(plan.num_stages - 1)):
        factors = tuple(map(float, plan.strides[s + 1]))
        y = F.interpolate(y, scale_factor=factors, mode=mode, align_corners=False)
        y = pair(torch.cat((y, skips[s]), dim=1), network.decoder[s])
    expected = torch.einsum("bc...,hc->bh...", y, network.head.weight.flatten(1)) + 0
    with torch.no_grad():
        torch.testing.assert_close(network(x)[0], expected, rtol=1e-4, atol=1e-4)


def test_a_kernel_of_one_keeps_slices_apart():
    plan = topology([[1, 1, 1], [1, 2, 2], [1, 2, 2]], [4, 4, 4], [[1, 3, 3]] * 3)
    network = build(plan, (4, 16, 16)).eval()
    for module in network.modules():
        # Instance norm couples the slices through its statistics; without it only kernels could.
        if isinstance(module, nn.InstanceNorm3d):
            module.forward = lambda x: x
    x = torch.randn(1, 2, 4, 16, 16, requires_grad=True)
    network(x)[0][:, :, 1].sum().backward()
    assert (x.grad.abs().amax(dim=(0, 1, 3, 4)) > 0).tolist() == [False, True, False, False]


def test_nothing_upsamples_or_strides_by_learned_weights():
    network = build(topology([[1, 1], [2, 2], [2, 2]], [4, 6, 8]), (16, 16))
    kernels = [tuple(weight.shape[2:]) for weight in network.parameters() if weight.ndim > 1]
    # Five pairs of convolutions and the head.
    assert kernels == [(3, 3)] * 10 + [(1, 1)]
    assert {module.stride for module in network.modules() if isinstance(module, nn.Conv2d)} == {(1, 1)}
