import math

import pytest
import torch

from autoseg.errors import SettingError
from autoseg.nets.windows import (
    ChannelNorm,
    DropPath,
    WindowGrid,
    WindowMixer,
    first_stage,
    fit_window,
    given_windows,
    head_size,
    join,
    per_stage,
    relative_index,
    split,
)
from autoseg.schema.plan import Topology

CPU = torch.device("cpu")


def voxels(shape):
    return torch.cartesian_prod(*map(torch.arange, shape)).reshape(-1, len(shape))


def mixer(width, window, *, shifted=False, heads=3):
    torch.manual_seed(0)
    module = WindowMixer(width, heads=heads, window=window, shifted=shifted)
    # The table starts small; here it has to matter.
    torch.nn.init.normal_(module.attention.bias_table)
    return module


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("shape", "window"), [((7, 9), (3, 4)), ((5, 5), (7, 2)), ((5, 7, 3), (2, 3, 4))])
def test_what_is_cut_into_windows_comes_back(shape, window, shifted):
    x = torch.randn(2, *shape, 5)
    grid = WindowGrid.fit(shape, window, shifted=shifted)
    windows = split(grid.lay_out(x), grid.window)
    assert windows.shape[1:] == (math.prod(grid.window), 5)
    assert torch.equal(grid.take_back(join(windows, grid.window, grid.padded)), x)


def test_a_window_holds_neighbours_in_reading_order():
    x = torch.arange(24).view(1, 4, 6, 1)
    first, second = split(x, (2, 3))[:2, :, 0].tolist()
    assert first == [0, 1, 2, 6, 7, 8]
    assert second == [3, 4, 5, 9, 10, 11]


@pytest.mark.parametrize("window", [(4,), (3, 5), (2, 3, 4)])
def test_every_offset_has_a_row_of_its_own(window):
    index = relative_index(window, window, CPU)
    rows = math.prod(2 * edge - 1 for edge in window)
    assert torch.equal(index.unique(), torch.arange(rows))
    where = voxels(window)
    offsets = (where[:, None] - where[None]).reshape(-1, len(window))
    assert len(torch.cat((offsets, index.view(-1, 1)), dim=1).unique(dim=0)) == rows


def test_a_smaller_window_uses_the_rows_of_the_same_offsets():
    large, small = (4, 5, 3), (2, 5, 1)
    rows = relative_index(large, large, CPU)
    where = voxels(large)
    chosen = [i for i, place in enumerate(where.tolist()) if all(a < b for a, b in zip(place, small, strict=True))]
    assert torch.equal(relative_index(small, large, CPU), rows[chosen][:, chosen])


def slow_windows(module, x, shift):
    """Every voxel attends to those in its cell of a lattice that starts at ``shift``; one voxel at a time."""
    attention = module.attention
    b, *shape, width = x.shape
    size = width // attention.heads
    query, key, value = attention.qkv(x.reshape(b, -1, width)).view(b, -1, 3, attention.heads, size).unbind(2)
    where = voxels(shape)
    window, start = torch.tensor(attention.window), torch.tensor(shift)
    cells = (where - start).div(window, rounding_mode="floor")
    table = attention.bias_table.view(*(2 * edge - 1 for edge in attention.window), attention.heads)
    rows = []
    for i in range(len(where)):
        near = [j for j in range(len(where)) if torch.equal(cells[i], cells[j])]
        logits = torch.einsum("bhd,bnhd->bnh", query[:, i], key[:, near]) / size**0.5
        logits = logits + torch.stack([table[tuple(where[i] - where[j] + window - 1)] for j in near])
        rows.append(torch.einsum("bnh,bnhd->bhd", logits.softmax(1), value[:, near]).reshape(b, width))
    return module.project(torch.stack(rows, dim=1)).view(x.shape)


@pytest.mark.parametrize(
    ("shape", "window", "shift"),
    [
        ((8, 6), (4, 3), (0, 0)),
        ((8, 6), (4, 3), (2, 1)),
        ((7, 10), (4, 3), (0, 0)),
        ((7, 10), (4, 3), (2, 1)),
        ((4, 9), (4, 4), (0, 2)),
        ((3, 5, 4), (2, 2, 4), (1, 1, 0)),
    ],
)
def test_masked_attention_is_attention_region_by_region(shape, window, shift):
    module = mixer(12, window, shifted=any(shift))
    x = torch.randn(2, *shape, 12)
    with torch.no_grad():
        torch.testing.assert_close(module(x), slow_windows(module, x, shift), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "window"), [((4, 5), (4, 5)), ((4, 3), (7, 6)), ((2, 3, 4), (2, 4, 4))])
@pytest.mark.parametrize("shifted", [False, True])
def test_a_window_as_large_as_the_map_is_global_attention_with_bias(shape, window, shifted):
    module = mixer(12, window, shifted=shifted)
    peer = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    where = voxels(shape)
    offsets = where[:, None] - where[None] + torch.tensor(window) - 1
    table = module.attention.bias_table.view(*(2 * edge - 1 for edge in window), 3)
    with torch.no_grad():
        peer.in_proj_weight.copy_(module.attention.qkv.weight)
        peer.in_proj_bias.copy_(module.attention.qkv.bias)
        peer.out_proj.load_state_dict(module.project.state_dict())
        x = torch.randn(1, *shape, 12)
        tokens = x.reshape(1, -1, 12)
        bias = table[offsets.unbind(-1)].permute(2, 0, 1)
        expected, _ = peer(tokens, tokens, tokens, attn_mask=bias)
        torch.testing.assert_close(module(x), expected.view(x.shape), rtol=1e-4, atol=1e-5)


def test_a_convolution_beside_attention_sees_the_shifted_map():
    module = mixer(6, (4, 4), shifted=True)
    conv = torch.nn.Conv2d(6, 6, 3, padding=1, groups=6)
    x = torch.randn(1, 12, 12, 6)
    with torch.no_grad():
        alone = module(x)
        module.beside = conv
        added = module(x) - alone
        plain = torch.nn.functional.linear(conv(x.movedim(-1, 1)).movedim(1, -1), module.project.weight)
    # The shift of 2 puts the seam between rows 1 and 2, whose neighbours are then others.
    same = torch.isclose(added, plain, atol=1e-5).all(-1)[0]
    away = torch.ones(12, dtype=torch.bool)
    away[[0, 1, 2, 11]] = False
    assert same[away][:, away].all()
    assert not same[~away].any(1).all()


def test_channel_norm_is_that_of_each_voxel():
    x = torch.randn(2, 5, 3, 4)
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(ChannelNorm(5)(x), expected)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x = torch.ones(4000, 2, 3)
    ratio = drop.train()(x)
    assert torch.equal(ratio.amin((1, 2)) == 0, ratio.amax((1, 2)) == 0)
    torch.testing.assert_close(ratio.amax((1, 2)).unique(), torch.tensor([0, 4 / 3]))
    # Five standard errors of a share of 4000.
    assert (ratio[:, 0, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.035)
    assert torch.equal(drop.eval()(x), x)


@pytest.mark.parametrize(
    ("size", "limit", "window"), [(7, 20, 7), (20, 20, 20), (32, 20, 16), (28, 20, 14), (23, 20, 20), (16, 12, 8)]
)
def test_windows_divide_the_map_where_they_can(size, limit, window):
    assert fit_window((size, 3), limit) == (window, 3)


@pytest.mark.parametrize(
    ("widths", "size"), [((96, 192), 32), ((48, 96), 16), ((24, 48), 24), ((4, 8), 4), ((48, 60), 12), ((7, 14), 7)]
)
def test_heads_are_of_32_channels_or_of_few(widths, size):
    assert head_size(widths) == size


@pytest.mark.parametrize(("stages", "first"), [(3, 1), (4, 1), (5, 1), (6, 2), (7, 3)])
def test_the_last_four_stages_have_windows_and_the_stem_strides(stages, first):
    topology = Topology(strides=((1, 1), *((2, 2),) * (stages - 1)), kernels=((3, 3),) * stages, features=(4,) * stages)
    assert first_stage(topology) == first


def test_what_makes_no_sense_is_a_setting_error():
    shapes = [(16, 16), (8, 8)]
    assert given_windows([4, [2, 9]], shapes) == ((4, 4), (2, 8))
    assert per_stage([1, 3], 2, name="depths") == (1, 3)
    for windows in ([4], [4, [2, 2, 2]], [0, 4]):
        with pytest.raises(SettingError, match="window"):
            given_windows(windows, shapes)
    for depths in (0, [1, 2, 3], [1, 0]):
        with pytest.raises(SettingError, match="depths"):
            per_stage(depths, 2, name="depths")
