import pytest
import torch
from torch.nn import functional as F

from autoseg.nets import build_network
from autoseg.nets.units import regular_topology
from autoseg.schema.plan import Architecture, Topology


def build(topology, patch, **arguments):
    torch.manual_seed(0)
    return build_network(
        Architecture(name="unet3p", arguments=arguments),
        topology,
        ndim=len(patch),
        in_channels=1,
        num_heads=2,
        patch_size=patch,
    )


def by_hand(network, x):
    """UNet 3+ of three stages as drawn in figure 2 of the paper, without norms, in torch's own functions."""
    weights = network.state_dict()

    def unit(x, name):
        return F.conv2d(x, weights[f"{name}.0.weight"], weights[f"{name}.0.bias"], padding=1).relu()

    def up(x, factor):
        return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)

    def head(x, stage):
        return F.conv2d(x, weights[f"heads.{stage}.weight"], weights[f"heads.{stage}.bias"], padding=1)

    e1 = unit(unit(x, "encoder.0.0"), "encoder.0.1")
    e2 = unit(unit(F.max_pool2d(e1, 2), "encoder.1.0"), "encoder.1.1")
    e3 = unit(unit(F.max_pool2d(e2, 2), "encoder.2.0"), "encoder.2.1")
    inputs = (F.max_pool2d(e1, 2), e2, up(e3, 2))
    d2 = unit(torch.cat([unit(part, f"decoder.1.reduce.{i}") for i, part in enumerate(inputs)], 1), "decoder.1.fuse")
    inputs = (e1, up(d2, 2), up(e3, 4))
    d1 = unit(torch.cat([unit(part, f"decoder.0.reduce.{i}") for i, part in enumerate(inputs)], 1), "decoder.0.fuse")
    return head(d1, 0), head(d2, 1), head(e3, 2)


def test_it_is_the_network_of_figure_2():
    topology = regular_topology([4, 8, 16], ndim=2)
    network = build(topology, (16, 24), normalization="none", activation="relu")
    x = torch.randn(2, 1, 16, 24)
    expected = by_hand(network, x)
    for output, right in zip(network.train()(x), expected, strict=True):
        torch.testing.assert_close(output, right)
    (final,) = network.eval()(x)
    torch.testing.assert_close(final, expected[0])


def test_the_bottom_stage_has_an_output_and_no_weight():
    network = build(regular_topology([4, 8, 16], ndim=2), (16, 24)).train()
    assert [tuple(output.shape[2:]) for output in network(torch.randn(1, 1, 16, 24))] == [(16, 24), (8, 12), (4, 6)]
    assert network.output_weights == pytest.approx((2 / 3, 1 / 3, 0))


ANISOTROPIC = Topology(
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    kernels=((1, 1, 1),) * 3,
    features=(4, 8, 8),
)


def test_both_orders_of_convolving_and_interpolating_agree_where_they_commute():
    """A 1x1 convolution without norm and activation mixes channels, which interpolation leaves alone."""
    orders = [
        build(ANISOTROPIC, (4, 8, 12), normalization="none", activation="none", resize_first=order).train()
        for order in (True, False)
    ]
    orders[1].load_state_dict(orders[0].state_dict(), strict=True)
    x = torch.randn(1, 1, 4, 8, 12)
    for first, second in zip(*(network(x) for network in orders), strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("patch", [(16, 16), (8, 8, 8)])
def test_the_published_order_is_the_default_in_2d_only(patch):
    topology, x = regular_topology([2, 4, 4], ndim=len(patch)), torch.randn(1, 1, *patch)
    default, first, last = (
        build(topology, patch, **arguments).eval()(x)[0]
        for arguments in ({}, {"resize_first": True}, {"resize_first": False})
    )
    assert torch.equal(default, first if len(patch) == 2 else last)
    assert not torch.allclose(first, last)


def test_a_finer_map_is_pooled_over_all_strides_between():
    network = build(ANISOTROPIC, (4, 8, 12))
    x = torch.randn(1, 4, 4, 8, 12)
    deep = Topology(strides=(*ANISOTROPIC.strides, (1, 2, 1)), kernels=((1, 1, 1),) * 4, features=(4, 8, 8, 8))
    deeper = build(deep, (4, 8, 12))
    assert torch.equal(network.decoder[1].pools[0](x), F.max_pool3d(x, (1, 2, 2)))
    assert torch.equal(deeper.decoder[2].pools[0](x), F.max_pool3d(x, (2, 4, 4)))
    assert torch.equal(deeper.decoder[2].pools[1](x), F.max_pool3d(x, (2, 2, 2)))
