"""The transformer blocks against torch's own, and what positions, patches and taps mean."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoseg.errors import SettingError
from autoseg.nets.vit import PositionTable, TransformerBlock, VisionTransformer, attention_heads

WIDTH, HEADS = 24, 3


def randomized(module):
    """Fresh values for all parameters: norms of 1 and biases of 0 would hide mistakes."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module.double()


def oracle(block):
    """torch's pre-norm encoder layer with the weights of a block."""
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).double()
    with torch.no_grad():
        attention = block.attention
        layer.self_attn.in_proj_weight.copy_(attention.queries_keys_values.weight)
        bias = attention.queries_keys_values.bias
        layer.self_attn.in_proj_bias.copy_(torch.zeros(3 * WIDTH) if bias is None else bias)
    pairs = [
        (layer.norm1, block.attention_norm),
        (layer.norm2, block.mlp_norm),
        (layer.self_attn.out_proj, attention.projection),
        (layer.linear1, block.mlp[0]),
        (layer.linear2, block.mlp[-1]),
    ]
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    return layer


@pytest.mark.parametrize("bias", [True, False])
def test_a_block_is_torchs_encoder_layer(bias):
    block = randomized(TransformerBlock(WIDTH, HEADS, bias=bias)).train()
    layer = oracle(block).train()
    ours = torch.randn(2, 11, WIDTH, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    weights = torch.randn(2, 11, WIDTH, dtype=torch.float64)
    found, expected = block(ours), layer(theirs)
    torch.testing.assert_close(found, expected)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(block.mlp[0].weight.grad, layer.linear1.weight.grad)
    torch.testing.assert_close(block.attention.queries_keys_values.weight.grad, layer.self_attn.in_proj_weight.grad)


def test_dropout_drops_in_training_only():
    block = randomized(TransformerBlock(WIDTH, HEADS, dropout=0.5))
    x = torch.randn(1, 5, WIDTH, dtype=torch.float64)
    assert not torch.equal(block.train()(x), block(x))
    torch.testing.assert_close(block.eval()(x), oracle(block).eval()(x))


@pytest.mark.parametrize(
    ("width", "heads"), [(768, 12), (1024, 16), (384, 6), (192, 3), (48, 1), (480, 8), (336, 6), (240, 4)]
)
def test_heads_have_at_most_64_channels(width, heads):
    assert attention_heads(width) == heads
    assert width % heads == 0
    assert width // heads <= 64


def test_a_position_table_is_added_as_it_is_on_its_own_grid():
    positions = PositionTable(5, (3, 4, 2))
    x = torch.randn(2, 5, 3, 4, 2)
    assert torch.equal(positions(x), x + positions.table)


@pytest.mark.parametrize(("grid", "other"), [((8, 6), (16, 3)), ((4, 8, 6), (8, 4, 9))])
def test_a_linear_position_table_stays_linear_on_another_grid(grid, other):
    """Places are centres of cells in both grids; beyond the outermost centres the table is constant."""
    positions = PositionTable(len(grid), grid).double()
    with torch.no_grad():
        for axis, centres in enumerate(torch.meshgrid(*(torch.arange(n) + 0.5 for n in grid), indexing="ij")):
            positions.table[0, axis] = centres / grid[axis]
    found = positions(torch.zeros(1, len(grid), *other, dtype=torch.float64))[0]
    expected = torch.meshgrid(
        *(
            ((torch.arange(n, dtype=torch.float64) + 0.5) / n).clamp(0.5 / size, 1 - 0.5 / size)
            for n, size in zip(other, grid, strict=True)
        ),
        indexing="ij",
    )
    torch.testing.assert_close(found, torch.stack(expected))


def transformer(**arguments):
    settings = {"pitch": (2, 3), "grid": (4, 3), "depth": 3, "heads": HEADS, **arguments}
    return randomized(VisionTransformer(2, WIDTH, **settings)).eval()


def test_tokens_are_patches_times_a_matrix():
    """torch's unfold cuts the patches; the embedding has to see each of them and nothing else."""
    network = transformer()
    x = torch.randn(2, 2, 8, 9, dtype=torch.float64)
    patches = F.unfold(x, (2, 3), stride=(2, 3)).transpose(1, 2)
    expected = F.linear(patches, network.embedding.weight.flatten(1), network.embedding.bias)
    torch.testing.assert_close(network.embedding(x).flatten(2).transpose(1, 2), expected)


def test_only_the_positions_tell_tokens_apart():
    network = transformer(pitch=(1, 1))
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64)
    with_positions = network(x)[1]
    assert not torch.allclose(network(x.flip(2))[1], with_positions.flip(2))
    nn.init.zeros_(network.positions.table)
    order = torch.randperm(12)
    shuffled = x.flatten(2)[:, :, order].unflatten(2, (4, 3))
    torch.testing.assert_close(network(shuffled)[1].flatten(2), network(x)[1].flatten(2)[:, :, order])


def test_a_tap_is_the_output_of_a_shallower_transformer():
    """Bit for bit, and before the final normalisation."""
    deep = transformer(depth=4, taps=(1, 3, 3, 4))
    x = torch.randn(2, 2, 8, 9, dtype=torch.float64)
    tapped, final = deep(x)
    assert len(tapped) == 4
    for depth, tap in zip((1, 3, 3, 4), tapped, strict=True):
        shallow = transformer(depth=depth, taps=(depth,))
        shallow.load_state_dict(deep.state_dict(), strict=False)
        assert torch.equal(shallow(x)[0][0], tap)
    torch.testing.assert_close(final, deep.norm(tapped[-1].movedim(1, -1)).movedim(-1, 1))


def test_maps_keep_the_order_of_places():
    """With blocks that add nothing a tap is the embedding plus the positions, place by place."""
    network = transformer(taps=(3,))
    for block in network.blocks:
        for last in (block.attention.projection, block.mlp[-1]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    x = torch.randn(1, 2, 8, 9, dtype=torch.float64)
    torch.testing.assert_close(network(x)[0][0], network.embedding(x) + network.positions.table)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"depth": 0}, "at least one block"),
        ({"heads": 5}, "5 heads"),
        ({"taps": (0,)}, "taps"),
        ({"taps": (4,)}, "taps"),
        ({"taps": (2, 1)}, "taps"),
    ],
)
def test_impossible_transformers_are_refused(arguments, words):
    with pytest.raises(SettingError, match=words):
        transformer(**arguments)
