import numpy
import pytest
import torch
from torch.nn import functional as F

from autoseg.errors import SettingError
from autoseg.nets import build_network, traits_of
from autoseg.nets.channel_transformer import (
    ChannelAttention,
    ChannelCrossAttention,
    ChannelTransformer,
    ConvNormReLU,
    PatchEmbedding,
    token_pitches,
)
from autoseg.planning.topology import plan_topology
from autoseg.schema.plan import Architecture, Topology

ANISOTROPIC = Topology(
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 2, 4)),
    kernels=((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)),
    features=(4, 6, 8, 8),
)
FLAT = Topology(strides=((1, 1), (2, 2), (2, 1)), kernels=((3, 3),) * 3, features=(4, 6, 8))


def build(topology, patch, *, name="uctransnet", channels=1, heads=2, **arguments):
    torch.manual_seed(0)
    return build_network(
        Architecture(name=name, arguments=arguments),
        topology,
        ndim=len(patch),
        in_channels=channels,
        num_heads=heads,
        patch_size=patch,
    )


def tokens(widths, count, *, batch=2):
    torch.manual_seed(1)
    scales = [torch.randn(batch, count, width) for width in widths]
    return scales, torch.randn(batch, count, sum(widths))


def attention_by_hand(attention, scales, everything, heads):
    """The paper's equations, a sample, a head and a scale at a time."""
    array = [scale.double().numpy() for scale in scales]
    everything = everything.double().numpy()
    total = everything.shape[2]

    def weight(linear, head, width):
        return linear.weight.detach().double().numpy()[head * width : (head + 1) * width].T

    results = []
    for place, scale in enumerate(array):
        width = scale.shape[2]
        result = numpy.zeros_like(scale)
        for sample in range(len(scale)):
            for head in range(heads):
                query = scale[sample] @ weight(attention.query[place], head, width)
                key = everything[sample] @ weight(attention.key, head, total)
                value = everything[sample] @ weight(attention.value, head, total)
                scores = query.T @ key / numpy.sqrt(total)
                scores = (scores - scores.mean()) / numpy.sqrt(scores.var() + 1e-5)
                exponential = numpy.exp(scores - scores.max(axis=1, keepdims=True))
                weights = exponential / exponential.sum(axis=1, keepdims=True)
                result[sample] += (weights @ value.T).T / heads
        results.append(result @ attention.out[place].weight.detach().double().numpy().T)
    return results


@pytest.mark.parametrize(("widths", "heads", "count"), [((3, 5, 4), 4, 7), ((6, 2), 1, 2), ((2, 4, 8, 8, 8), 2, 30)])
def test_channel_attention_follows_its_equations(widths, heads, count):
    torch.manual_seed(0)
    attention = ChannelAttention(widths, heads=heads, dropout=0.0)
    scales, everything = tokens(widths, count)
    expected = attention_by_hand(attention, scales, everything, heads)
    for result, truth in zip(attention(scales, everything), expected, strict=True):
        numpy.testing.assert_allclose(result.detach().numpy(), truth, rtol=1e-4, atol=1e-5)


def test_attention_is_over_channels_so_the_order_of_tokens_does_not_matter():
    attention = ChannelAttention((4, 6), heads=2, dropout=0.0)
    scales, everything = tokens((4, 6), 9)
    order = torch.randperm(9)
    shuffled = attention([scale[:, order] for scale in scales], everything[:, order])
    for result, other in zip(attention(scales, everything), shuffled, strict=True):
        torch.testing.assert_close(result[:, order], other)


def test_two_equal_heads_are_one_head():
    widths = (4, 6)
    one, two = (ChannelAttention(widths, heads=heads, dropout=0.0) for heads in (1, 2))
    for single, double in zip([one.key, one.value, *one.query], [two.key, two.value, *two.query], strict=True):
        double.weight.data = torch.cat((single.weight.data,) * 2)
    two.out.load_state_dict(one.out.state_dict())
    given = tokens(widths, 5)
    for result, other in zip(one(*given), two(*given), strict=True):
        torch.testing.assert_close(result, other)


@pytest.mark.parametrize("spatial", [(5, 7), (3, 4, 2)])
def test_channel_cross_attention_follows_its_equation(spatial):
    torch.manual_seed(0)
    cca = ChannelCrossAttention(3, 5)
    skip, gate = torch.randn(2, 3, *spatial), torch.randn(2, 5, *spatial)
    result = cca(skip, gate).detach().numpy()
    weights = {name: value.detach().numpy() for name, value in cca.named_parameters()}
    for sample in range(2):
        skip_mean = skip[sample].numpy().reshape(3, -1).mean(axis=1)
        gate_mean = gate[sample].numpy().reshape(5, -1).mean(axis=1)
        wanted = weights["from_skip.weight"] @ skip_mean + weights["from_skip.bias"]
        wanted = wanted + weights["from_gate.weight"] @ gate_mean + weights["from_gate.bias"]
        for channel in range(3):
            scaled = skip[sample, channel].numpy() / (1 + numpy.exp(-wanted[channel] / 2))
            numpy.testing.assert_allclose(result[sample, channel], numpy.maximum(scaled, 0), rtol=1e-5, atol=1e-6)


def test_every_scale_has_the_tokens_of_the_coarsest_map():
    assert token_pitches(ANISOTROPIC) == ((2, 8, 16), (2, 4, 8), (1, 2, 4))
    network = build(ANISOTROPIC, (4, 16, 48))
    for embedding in network.transformer.embeddings:
        assert embedding.position.shape[2:] == (2, 2, 3)


def test_the_planner_gives_the_papers_patch_the_papers_skeleton():
    topology, patch = plan_topology((1, 1), (224, 224), traits_of("uctransnet"), base_width=64)
    assert patch == (224, 224)
    assert topology.features == (64, 128, 256, 512, 512)
    assert topology.divisor == (16, 16)


def test_positions_are_interpolated_for_other_sizes():
    embedding = PatchEmbedding(2, pitch=(2, 1), grid=(4, 3), dropout=0.0)
    torch.nn.init.zeros_(embedding.project.weight)
    torch.nn.init.zeros_(embedding.project.bias)
    ramp = torch.arange(4.0).reshape(1, 1, 4, 1).expand(1, 2, 4, 3)
    embedding.position.data = ramp.clone()
    torch.testing.assert_close(embedding(torch.zeros(1, 2, 8, 3)), ramp)
    # With twice as many tokens, centre j lies at (j + 1/2) / 2 - 1/2 of the old ones; beyond the ends nothing changes.
    finer = ((torch.arange(8.0) + 0.5) / 2 - 0.5).clamp(0, 3).reshape(1, 1, 8, 1).expand(1, 2, 8, 5)
    torch.testing.assert_close(embedding(torch.zeros(1, 2, 16, 5)), finer)


@pytest.mark.parametrize(("topology", "patch"), [(FLAT, (12, 10)), (ANISOTROPIC, (4, 16, 48))])
def test_reconstruction_puts_every_token_back_in_its_place(topology, patch):
    """Where nothing mixes tokens, a change inside one token's patch stays inside it, at every scale."""
    widths = topology.features[:-1]
    grid = tuple(size // step for size, step in zip(patch, topology.divisor, strict=True))
    torch.manual_seed(0)
    arguments = {"layers": 1, "heads": 1, "mlp_ratio": 1, "norm_kind": "none", "dropout": 0.0}
    transformer = ChannelTransformer(topology=topology, widths=widths, grid=grid, **arguments)
    for out in transformer.layers[0].attention.out:
        torch.nn.init.zeros_(out.weight)
    place = tuple(size - 1 if axis != 1 else 0 for axis, size in enumerate(grid))
    skips, changed, inside = [], [], []
    for width, pitch in zip(widths, token_pitches(topology), strict=True):
        skip = torch.randn(1, width, *(size * step for size, step in zip(grid, pitch, strict=True)))
        patch_of_token = tuple(slice(at * step, (at + 1) * step) for at, step in zip(place, pitch, strict=True))
        other = skip.clone()
        other[(0, slice(None), *patch_of_token)] += torch.randn_like(skip[(0, slice(None), *patch_of_token)])
        skips.append(skip)
        changed.append(other)
        inside.append(patch_of_token)
    for i, (before, after) in enumerate(zip(transformer(skips), transformer(changed), strict=True)):
        difference = (after - before).abs().sum(dim=(0, 1))
        assert (difference[inside[i]] > 0).all()
        difference[inside[i]] = 0
        assert (difference == 0).all()
        # And the whole patch gets the same from its token: what the transformer adds is constant within.
        added = (after - changed[i])[(0, slice(None), *inside[i])]
        torch.testing.assert_close(added, added.amax(dim=tuple(range(1, added.ndim)), keepdim=True).expand_as(added))


@pytest.mark.parametrize("norm_kind", ["instance", "batch"])
def test_convolving_before_enlarging_is_what_the_code_does_after(norm_kind):
    torch.manual_seed(0)
    block = ConvNormReLU(4, 4, kernel=(1, 1), norm_kind=norm_kind).train()
    x = torch.randn(2, 4, 3, 5)
    enlarged = F.interpolate(block(x), (12, 10), mode="nearest")
    torch.testing.assert_close(enlarged, block(F.interpolate(x, (12, 10), mode="nearest")))


@pytest.mark.parametrize(("topology", "patch"), [(FLAT, (12, 10)), (ANISOTROPIC, (4, 16, 48))])
def test_with_a_silent_transformer_and_open_gates_it_is_a_plain_unet(topology, patch):
    network = build(topology, patch, channels=2).eval()
    for block in network.transformer.reconstruct:
        torch.nn.init.zeros_(block[1].weight)
    for gate in network.cca:
        for parameter in gate.parameters():
            torch.nn.init.zeros_(parameter)
        torch.nn.init.constant_(gate.from_skip.bias, 200)
    x = image = torch.randn(2, 2, *patch)
    maps = []
    for stage in network.encoder:
        x = stage(x)
        maps.append(x)
    for step in reversed(range(topology.num_stages - 1)):
        skip = maps[step]
        for axis, stride in enumerate(topology.strides[step + 1]):
            x = x.repeat_interleave(stride, dim=axis + 2)
        x = network.decoder[step](torch.cat((skip, x), dim=1))
    assert torch.equal(network(image)[0], network.head(x))


@pytest.mark.parametrize("stages", [3, 4, 5, 6])
@pytest.mark.parametrize("ndim", [2, 3])
def test_any_number_of_stages(stages, ndim):
    topology = Topology(
        strides=((1,) * ndim, *((2,) * ndim,) * (stages - 1)),
        kernels=((3,) * ndim,) * stages,
        features=tuple(min(4 * 2**s, 16) for s in range(stages)),
    )
    patch = (2 ** (stages - 1),) * (ndim - 1) + (2**stages,)
    with torch.device("meta"):
        network = build(topology, patch, heads=5)
        (logits,) = network(torch.empty(1, 1, *patch))
    assert logits.shape == (1, 5, *patch)
    assert len(network.transformer.embeddings) == stages - 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"attention_heads": 0}, "0 heads"),
        ({"layers": 0}, "0 layers"),
        ({"dropout": 1.5}, "dropout of 1.5"),
        ({"norm": "group"}, "'group'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments, problem):
    with pytest.raises(SettingError, match=problem):
        build(FLAT, (12, 10), **arguments)


def test_a_patch_that_the_strides_do_not_divide_is_refused():
    with pytest.raises(SettingError, match="not a multiple"):
        build(FLAT, (14, 10))
