import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoseg.errors import SettingError
from autoseg.nets import build_network
from autoseg.nets.swin_unet import Block, Expanding, Merging, default_windows
from autoseg.schema.plan import Architecture, Topology


def topology(strides, features):
    kernels = ((3,) * len(strides[0]),) * len(strides)
    return Topology(strides=tuple(strides), kernels=kernels, features=tuple(features))


def build(plan, patch, **arguments):
    torch.manual_seed(0)
    return build_network(
        Architecture(name="swin_unet", arguments=arguments),
        plan,
        ndim=len(patch),
        in_channels=1,
        num_heads=2,
        patch_size=patch,
    )


@pytest.mark.parametrize(("crop", "window"), [(224, 7), (256, 8), (384, 12), (512, 8), (64, 4)])
def test_windows_are_of_the_last_map(crop, window):
    maps = [(crop // (4 * 2**i),) * 2 for i in range(4)]
    assert default_windows(maps) == tuple((min(window, size),) * 2 for size, _ in maps)


def test_a_block_with_one_window_and_no_bias_is_torchs_transformer_layer():
    torch.manual_seed(0)
    block = Block(24, 4, (3, 5), shifted=True, drop_path=0.0)
    layer = nn.TransformerEncoderLayer(24, 4, 96, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    attention = block.mixer.attention
    with torch.no_grad():
        attention.bias_table.zero_()
        layer.self_attn.in_proj_weight.copy_(attention.qkv.weight)
        layer.self_attn.in_proj_bias.copy_(attention.qkv.bias)
        layer.self_attn.out_proj.load_state_dict(block.mixer.project.state_dict())
        layer.linear1.load_state_dict(block.mlp[1].state_dict())
        layer.linear2.load_state_dict(block.mlp[3].state_dict())
        x = torch.randn(2, 3, 5, 24)
        torch.testing.assert_close(block(x), layer(x.flatten(1, 2)).view(x.shape), rtol=1e-4, atol=1e-5)


def test_merging_projects_the_voxels_that_torch_unshuffles():
    torch.manual_seed(0)
    merge = Merging(3, 5, stride=(2, 2))
    x = torch.randn(2, 3, 6, 4)
    side_by_side = F.pixel_unshuffle(x, 2).movedim(1, -1)
    # torch puts the four voxels of a channel together; here the three channels of a voxel are.
    weight = merge.reduce.weight.view(5, 4, 3).transpose(1, 2).reshape(5, 12)
    expected = F.linear(F.layer_norm(side_by_side, (12,)), weight)
    torch.testing.assert_close(merge(x.movedim(1, -1)), expected)


def test_expanding_shuffles_as_torch_does():
    torch.manual_seed(0)
    expand = Expanding(6, 3, stride=(2, 2))
    x = torch.randn(2, 4, 5, 6)
    weight = expand.grow.weight.view(4, 3, 6).transpose(0, 1).reshape(12, 6)
    shuffled = F.pixel_shuffle(F.linear(x, weight).movedim(-1, 1), 2)
    torch.testing.assert_close(expand(x), F.layer_norm(shuffled.movedim(1, -1), (3,)))


@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 1, 3)])
def test_merging_and_expanding_keep_to_their_blocks(stride):
    torch.manual_seed(0)
    shape = tuple(3 * step for step in stride)
    x = torch.randn(1, *shape, 4, requires_grad=True)
    there_and_back = Expanding(8, 4, stride=stride)(Merging(4, 8, stride=stride)(x))
    assert there_and_back.shape == x.shape
    middle = tuple(slice(step, 2 * step) for step in stride)
    there_and_back[(0, *middle)].square().sum().backward()
    touched = x.grad[0].abs().amax(-1) > 0
    assert touched[middle].all()
    assert touched.sum() == touched[middle].numel()


def test_the_head_has_the_width_of_the_finest_stage():
    plan = topology([(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)], [5, 1, 16, 32, 64, 128])
    network = build(plan, (16, 64, 32)).eval()
    assert network.head.in_channels == 5
    assert network.embed.kernel_size == (2, 4, 4)
    assert network(torch.randn(1, 1, 16, 64, 32))[0].shape == (1, 2, 16, 64, 32)


SMALL = topology([(1, 1), (2, 2), (2, 2)], [4, 8, 16])


@pytest.mark.parametrize(
    ("plan", "arguments", "words"),
    [
        (topology([(1, 1), (2, 2)], [4, 8]), {}, "three stages"),
        (SMALL, {"windows": [4, 4, 4]}, "window"),
        (SMALL, {"depths": [2, 2, 2]}, "depths"),
        (SMALL, {"decoder_depths": [2, 2]}, "decoder_depths"),
    ],
)
def test_what_cannot_be_built_is_a_setting_error(plan, arguments, words):
    with pytest.raises(SettingError, match=words):
        build(plan, (16, 16), **arguments)
