import pytest
import torch

from autoseg.nets import build_network, build_paper_mode, paper_modes_of
from autoseg.nets.unetr import ResidualBlock, TokenSkip, evenly_spaced
from autoseg.schema.plan import Architecture, Topology


def topology(strides, width=4, kernels=None):
    kernels = kernels or [[3] * len(strides[0])] * len(strides)
    return Topology(
        strides=tuple(map(tuple, strides)),
        kernels=tuple(map(tuple, kernels)),
        features=tuple(width * 2**s for s in range(len(strides))),
    )


def halving(ndim, stages, width=4):
    return topology([[1] * ndim] + [[2] * ndim] * (stages - 1), width)


def build(plan, patch, *, channels=1, heads=2, **arguments):
    torch.manual_seed(0)
    return build_network(
        Architecture(name="unetr", arguments=arguments),
        plan,
        ndim=len(patch),
        in_channels=channels,
        num_heads=heads,
        patch_size=patch,
    )


def without_norms(network):
    """Instance norms couple all voxels through their statistics; without them only layers can."""
    for module in network.modules():
        if isinstance(module, torch.nn.InstanceNorm2d | torch.nn.InstanceNorm3d):
            module.forward = lambda x: x
    return network


def test_blocks_of_the_paper_are_tapped():
    assert evenly_spaced(12, 3) == (3, 6, 9)
    assert evenly_spaced(12, 0) == ()
    assert evenly_spaced(12, 4) == (2, 5, 7, 10)
    assert evenly_spaced(1, 3) == (1, 1, 1)


@pytest.mark.parametrize("grid", [(2, 3), (2, 1, 1)])
@pytest.mark.parametrize("stages", [2, 3, 4, 5, 6])
def test_any_number_of_stages(grid, stages):
    ndim, edges = len(grid), tuple(tokens * 2 ** (stages - 1) for tokens in grid)
    network = build(halving(ndim, stages, 1), edges, transformer_blocks=3).eval()
    with torch.no_grad():
        (logits,) = network(torch.randn(1, 1, *edges))
    assert logits.shape == (1, 2, *edges)
    assert len(network.token_skips) == stages - 2
    assert network.transformer.embedding.kernel_size == (2 ** (stages - 1),) * ndim


def test_tokens_have_the_pitch_of_the_strides():
    plan = topology([[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [1, 2, 2]], kernels=[[1, 3, 3]] * 2 + [[3, 3, 3]] * 3)
    network = build(plan, (4, 32, 64), transformer_blocks=4)
    assert network.transformer.embedding.kernel_size == (2, 16, 16)
    assert network.transformer.positions.table.shape[2:] == (2, 2, 4)


def test_skips_come_from_the_blocks_of_the_paper():
    """A change in a block reaches exactly the skips that are tapped at or after it."""
    network = build(halving(2, 5), (32, 32)).eval()
    x = torch.randn(1, 1, 32, 32)

    def skips():
        with torch.no_grad():
            tapped, tokens = network.transformer(x)
            return [skip(tap) for skip, tap in zip(network.token_skips, tapped, strict=True)] + [tokens]

    before = skips()
    for block, reached in [(11, 3), (9, 3), (8, 2), (6, 2), (5, 1), (3, 1), (2, 0), (0, 0)]:
        bias = network.transformer.blocks[block].mlp[-1].bias
        with torch.no_grad():
            bias[0] += 1
        same = [torch.equal(old, new) for old, new in zip(before, skips(), strict=True)]
        with torch.no_grad():
            bias.zero_()
        assert same == [stage < reached for stage in range(4)]


def test_skips_arrive_at_the_resolution_of_their_stage():
    plan = topology([[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 1, 2], [1, 2, 2]])
    tokens = torch.randn(1, 8, 2, 3, 2)
    shapes = [tuple(TokenSkip(8, plan, stage=s, affine=True)(tokens).shape) for s in (1, 2, 3)]
    assert shapes == [(1, 8, 8, 12, 16), (1, 16, 4, 6, 8), (1, 32, 2, 6, 4)]


def test_every_output_sees_the_whole_image():
    """The image skip reaches a few voxels only; the transformer carries everything everywhere."""
    network = without_norms(build(halving(2, 5), (64, 64))).eval()
    x = torch.randn(1, 1, 64, 64, requires_grad=True)
    network(x)[0][0, :, 0, 0].sum().backward()
    assert (x.grad != 0).all()


def test_without_the_transformer_the_image_skip_is_local():
    network = without_norms(build(halving(2, 4), (64, 64))).eval()
    torch.nn.init.zeros_(network.transformer.embedding.weight)
    x = torch.randn(1, 1, 64, 64, requires_grad=True)
    network(x)[0][0, :, 0, 0].sum().backward()
    # Two residual blocks of two 3x3 convolutions reach four voxels.
    touched = x.grad[0, 0] != 0
    assert touched[:5, :5].all()
    assert touched.sum() == 25


def test_a_residual_block_with_an_empty_body_is_its_shortcut():
    block = ResidualBlock(6, 6, kernel=(3, 3), affine=True)
    torch.nn.init.zeros_(block.body[-1].weight)
    x = torch.randn(2, 6, 5, 7)
    assert torch.equal(block(x), torch.nn.functional.leaky_relu(x, 0.01))


def test_the_transformer_is_as_wide_as_the_decoder_asks():
    sizes = {width: build(halving(2, 3, width), (16, 16), transformer_blocks=1).transformer for width in (1, 4, 8)}
    assert {width: part.positions.table.shape[1] for width, part in sizes.items()} == {1: 48, 4: 192, 8: 384}
    assert [part.blocks[0].attention.heads for part in sizes.values()] == [1, 3, 6]


def test_the_wide_preset_has_the_size_of_the_codes_example():
    """101.8 million: feature size 32 and hidden size 768, as in the command of the code's introduction."""
    mode = paper_modes_of("unetr")[0]
    plan = Topology(strides=mode.topology.strides, kernels=mode.topology.kernels, features=(32, 64, 128, 256, 512))
    with torch.device("meta"):
        network = build(plan, mode.patch_size, heads=14, hidden_size=768, affine=False)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1) == 101.8


def test_paper_mode_differs_from_the_default_in_the_norms_only():
    for mode in paper_modes_of("unetr"):
        with torch.device("meta"):
            paper = build_paper_mode("unetr", mode)
            default = build(mode.topology, mode.patch_size, channels=mode.in_channels, heads=mode.num_heads)
        ours, theirs = dict(default.named_parameters()), dict(paper.named_parameters())
        norms = {
            f"{name}.{part}"
            for name, module in default.named_modules()
            if isinstance(module, torch.nn.InstanceNorm3d)
            for part in ("weight", "bias")
        }
        assert ours.keys() - theirs.keys() == norms
        assert all(ours[name].shape == parameter.shape for name, parameter in theirs.items())
