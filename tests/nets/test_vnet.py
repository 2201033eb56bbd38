import pytest
import torch
from torch import nn

from autoseg.errors import SettingError
from autoseg.nets import build_network, build_paper_mode, paper_modes_of
from autoseg.nets.vnet import PReLU, ResidualChain
from autoseg.schema.plan import Architecture, Topology


def topology(strides, features, kernels=None):
    kernels = kernels or [[3] * len(strides[0])] * len(strides)
    return Topology(strides=tuple(map(tuple, strides)), kernels=tuple(map(tuple, kernels)), features=tuple(features))


def build(plan, patch, *, channels=1, heads=3, **arguments):
    torch.manual_seed(0)
    architecture = Architecture(name="vnet", arguments=arguments)
    return build_network(architecture, plan, ndim=len(patch), in_channels=channels, num_heads=heads, patch_size=patch)


CUBE = topology([[1, 1, 1], [2, 2, 2], [2, 2, 2]], [4, 6, 8])
SLAB = topology([[1, 1, 1], [1, 2, 2], [2, 2, 2]], [4, 6, 8], [[1, 3, 3], [1, 3, 3], [3, 3, 3]])


def convs_per_chain(chains):
    return [sum(isinstance(module, nn.Conv3d) for module in chain.chain) for chain in chains]


def test_convolutions_per_stage_of_code_and_figure():
    found = {}
    for mode in paper_modes_of("vnet"):
        with torch.device("meta"):
            network = build_paper_mode("vnet", mode)
        found[mode.name] = convs_per_chain(network.encoder), convs_per_chain(network.decoder)
    # The decoder's are finest first, like everything here.
    assert found == {
        "released prototxt": ([1, 1, 2, 3, 3], [1, 1, 2, 3]),
        "figure 2": ([1, 2, 3, 3, 3], [1, 2, 3, 3]),
    }


@pytest.mark.parametrize("normalization", ["none", "instance"])
@pytest.mark.parametrize(("c_in", "order"), [(1, [0, 0, 0, 0, 0]), (2, [0, 1, 0, 1, 0]), (5, range(5)), (7, range(5))])
def test_a_chain_that_adds_nothing_passes_its_input_repeated_to_the_width(c_in, order, normalization):
    chain = ResidualChain(c_in, 5, (3, 3), depth=2, normalization=normalization)
    *_, conv, norm = chain.chain
    for parameter in norm.parameters() if normalization == "instance" else conv.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, c_in, 6, 4)
    torch.testing.assert_close(chain(x), torch.where(x > 0, x, 0.25 * x)[:, list(order)])


@pytest.mark.parametrize(("plan", "patch"), [(CUBE, (8, 8, 12)), (SLAB, (4, 8, 12))])
def test_with_slopes_of_one_and_no_norm_it_is_linear(plan, patch):
    network = build(plan, patch, channels=2, normalization="none", wide_head=True).double().eval()
    for module in network.modules():
        if isinstance(module, nn.PReLU):
            nn.init.ones_(module.weight)
    x, y = torch.randn(2, 1, 2, *patch, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network(3 * x - 2 * y)[0], 3 * network(x)[0] - 2 * network(y)[0])
        assert network(x)[0].std() > 0


def test_a_wider_kernel_only_where_the_plan_has_more_than_one():
    widened = build(SLAB, (4, 16, 16), kernel=5)
    planned = build(topology(SLAB.strides, SLAB.features, [[1, 5, 5], [1, 5, 5], [5, 5, 5]]), (4, 16, 16))
    shapes = [{name: tensor.shape for name, tensor in network.state_dict().items()} for network in (widened, planned)]
    assert shapes[0] == shapes[1]
    assert widened.encoder[0].chain[0].weight.shape == (4, 1, 1, 5, 5)


def test_a_kernel_of_one_keeps_slices_apart():
    plan = topology([[1, 1, 1], [1, 2, 2], [1, 2, 2]], [4, 4, 4], [[1, 3, 3]] * 3)
    # Without normalisation, which couples slices through its statistics.
    network = build(plan, (4, 16, 16), normalization="none", kernel=5).eval()
    x = torch.randn(1, 1, 4, 16, 16, requires_grad=True)
    network(x)[0][:, :, 1].sum().backward()
    assert (x.grad.abs().amax(dim=(0, 1, 3, 4)) > 0).tolist() == [False, True, False, False]


def test_slopes_follow_the_type_of_their_input():
    ours, reference = PReLU(3), nn.PReLU(3)
    with torch.no_grad():
        ours.weight.copy_(torch.tensor([0.5, -1.0, 0.0]))
    reference.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(ours(x), reference(x))
    half = x.bfloat16()
    assert torch.equal(ours(half), reference.bfloat16()(half))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"convs_per_stage": [1, 2]}, "3 stages"),
        ({"convs_per_stage": [1, 0, 2]}, "convs_per_stage"),
        ({"kernel": 4}, "kernel is 4"),
        ({"normalization": "layer"}, "normalisation"),
    ],
)
def test_wrong_arguments_are_a_setting_error(arguments, words):
    with pytest.raises(SettingError, match=words) as caught:
        build(CUBE, (8, 8, 8), **arguments)
    assert caught.value.hint
