import pytest
import torch
from torch.nn import functional as F

from autoseg.errors import SettingError
from autoseg.nets import build_network
from autoseg.nets.resenc_unet import ResidualBlock
from autoseg.nets.units import regular_topology
from autoseg.schema.plan import Architecture


def build(widths, patch, **arguments):
    torch.manual_seed(0)
    return build_network(
        Architecture(name="resenc_unet", arguments=arguments),
        regular_topology(widths, ndim=len(patch)),
        ndim=len(patch),
        in_channels=1,
        num_heads=2,
        patch_size=patch,
    )


def randomized(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return module


@pytest.mark.parametrize(("c_in", "c_out", "stride"), [(3, 3, (1, 1, 1)), (3, 5, (1, 2, 2)), (4, 4, (2, 2, 2))])
def test_a_block_is_the_formula_of_its_docstring(c_in, c_out, stride):
    torch.manual_seed(0)
    block = randomized(ResidualBlock(c_in, c_out, kernel=(1, 3, 3), stride=stride))
    weights = block.state_dict()

    def pair(unit):
        return weights[f"{unit}.weight"], weights[f"{unit}.bias"]

    def normalize(x, unit):
        mean, std = x.mean((2, 3, 4), keepdim=True), (x.var((2, 3, 4), keepdim=True, correction=0) + 1e-5).sqrt()
        scale, shift = (tensor[:, None, None, None] for tensor in pair(unit))
        return (x - mean) / std * scale + shift

    x = torch.randn(2, c_in, 4, 8, 6)
    inner = F.conv3d(x, *pair("residual.0.0"), stride=stride, padding=(0, 1, 1))
    inner = F.leaky_relu(normalize(inner, "residual.0.1"), 0.01)
    inner = normalize(F.conv3d(inner, *pair("residual.1.0"), padding=(0, 1, 1)), "residual.1.1")
    skip = F.avg_pool3d(x, stride)
    if c_in != c_out:
        (projection,) = (name for name, tensor in weights.items() if tensor.shape[-3:] == (1, 1, 1))
        assert projection.replace("weight", "bias") not in weights
        skip = normalize(F.conv3d(skip, weights[projection]), projection.replace("0.weight", "1"))
    torch.testing.assert_close(block(x), F.leaky_relu(inner + skip, 0.01), atol=1e-4, rtol=1e-4)


def test_a_fresh_encoder_is_nearly_a_chain_of_identities():
    stage = build([6, 6], (16, 16), blocks_per_stage=[5]).encoder[0]
    x = torch.rand(1, 6, 16, 16)
    torch.testing.assert_close(stage(x), x, atol=0.05, rtol=0)
    assert (randomized(stage)(x) - x).abs().max() > 0.5


@pytest.mark.parametrize(
    ("given", "expected"), [(None, [1, 3, 4, 6, 6, 6]), ([2, 1], [2, 1, 1, 1, 1, 1]), ([1] * 9, [1] * 6)]
)
def test_blocks_per_stage(given, expected):
    arguments = {} if given is None else {"blocks_per_stage": given}
    assert [len(stage) for stage in build([4] * 6, (64, 64), **arguments).encoder] == expected


@pytest.mark.parametrize("blocks", [[], [1, 0, 2], 3])
def test_a_stage_needs_a_block(blocks):
    with pytest.raises(SettingError, match="blocks_per_stage"):
        build([4, 4, 4], (16, 16), blocks_per_stage=blocks)


def test_the_2d_network_has_the_size_that_the_peer_states():
    widths = [min(32 * 2**stage, 512) for stage in range(8)]
    with torch.device("meta"):
        network = build(widths, (512, 512))
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(140.0e6, abs=0.05e6)
