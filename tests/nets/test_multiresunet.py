import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from autoseg.errors import SettingError
from autoseg.nets import build_network, build_paper_mode, paper_modes_of
from autoseg.nets.multiresunet import MultiResBlock, ResPath, branch_widths, conv_norm
from autoseg.schema.plan import Architecture, Topology

PAPER = {mode.name: mode for mode in paper_modes_of("multiresunet")}


def topology(strides, features, kernels=None):
    kernels = kernels or [[3] * len(strides[0])] * len(strides)
    return Topology(strides=tuple(map(tuple, strides)), kernels=tuple(map(tuple, kernels)), features=tuple(features))


def build(plan, patch, *, heads=3, **arguments):
    torch.manual_seed(0)
    architecture = Architecture(name="multiresunet", arguments=arguments)
    return build_network(architecture, plan, ndim=len(patch), in_channels=2, num_heads=heads, patch_size=patch)


FLAT = topology([[1, 1], [2, 2], [2, 2]], [6, 8, 8])


def randomize(module):
    """Norms start as identities; only with other values does a test see whether they are used."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.5)
    return module


@pytest.mark.parametrize(("name", "trainable", "macs"), [("2D", 7_238_228, 11.76e9), ("3D", 18_633_167, 97.7e9)])
def test_trainable_weights_and_multiplications(name, trainable, macs):
    mode = PAPER[name]
    with torch.device("meta"):
        network = build_paper_mode("multiresunet", mode).eval()
        x = torch.empty(1, mode.in_channels, *mode.patch_size)
    assert sum(parameter.numel() for parameter in network.parameters()) == trainable
    with FlopCounterMode(display=False) as counter:
        network(x)
    assert counter.get_total_flops() / 2 == pytest.approx(macs, rel=1e-3)


def test_widths_are_rounded_down():
    assert [sum(branch_widths(width)) for width in (32, 64, 128, 256, 512)] == [51, 105, 212, 426, 853]
    assert branch_widths(32) == (8, 17, 26)
    assert min(branch_widths(1)) == 1


@pytest.mark.parametrize("kernel", [(3, 3), (1, 3, 3)])
def test_branches_see_three_five_and_seven_voxels(kernel):
    ndim = len(kernel)
    block = MultiResBlock(1, (1, 1, 1), kernel, "instance")
    for link in block.chain:
        nn.init.ones_(link[0][0].weight)
        link[0][1].forward = lambda x: x
    x = torch.zeros(1, 1, *(9,) * ndim)
    x[(0, 0, *(4,) * ndim)] = 1
    for expected in (3, 5, 7):
        x = block.chain[(expected - 3) // 2](x)
        reached = (x[0, 0] > 0).nonzero()
        extent = (reached.amax(0) - reached.amin(0) + 1).tolist()
        assert extent == [expected if size == 3 else 1 for size in kernel]


def shifted(x, layer):
    """Convolution, normalisation, shift: the part in front of an activation."""
    conv, norm = layer
    padding = [size // 2 for size in conv.weight.shape[2:]]
    return F.instance_norm(F.conv2d(x, conv.weight, padding=padding)) + norm.bias[:, None, None]


def scaled(x, norm):
    return F.instance_norm(x) * norm.weight[:, None, None] + norm.bias[:, None, None]


def test_a_block_is_a_chain_with_all_its_links_plus_a_shortcut():
    block = randomize(MultiResBlock(2, (3, 4, 5), (3, 3), "instance"))
    x = torch.randn(2, 2, 8, 6)
    p = F.relu(shifted(x, block.chain[0][0]))
    q = F.relu(shifted(p, block.chain[1][0]))
    r = F.relu(shifted(q, block.chain[2][0]))
    chained = scaled(torch.cat((p, q, r), dim=1), block.norm_chain)
    expected = scaled(F.relu(shifted(x, block.shortcut) + chained), block.norm_sum)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def test_a_path_is_residual_units_of_one_width():
    path = randomize(ResPath(5, 3, (3, 3), "instance", length=2))
    x = torch.randn(2, 5, 8, 6)
    y = x
    for unit in path:
        y = scaled(F.relu(shifted(y, unit.shortcut) + F.relu(shifted(y, unit.conv[0]))), unit.norm)
    torch.testing.assert_close(path(x), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("stages", "expected"), [(2, [1]), (5, [4, 3, 2, 1]), (7, [4, 4, 4, 3, 2, 1])])
def test_paths_are_longest_where_encoder_and_decoder_are_farthest_apart(stages, expected):
    plan = topology([[1, 1]] + [[2, 2]] * (stages - 1), [4] * stages)
    assert [len(path) for path in build(plan, (128, 128)).paths] == expected


@pytest.mark.parametrize("kind", ["instance", "batch"])
@pytest.mark.parametrize("training", [True, False])
def test_a_norm_without_scale_shifts(kind, training):
    torch.manual_seed(0)
    layer = conv_norm(2, 3, (3, 3), kind).train(training)
    plain = {"instance": nn.InstanceNorm2d(3), "batch": nn.BatchNorm2d(3, affine=False)}[kind].train(training)
    with torch.no_grad():
        layer[1].bias.copy_(torch.tensor([1.0, -2.0, 0.5]))
        if kind == "batch":
            for norm in (layer[1], plain):
                norm.running_mean.fill_(0.3)
                norm.running_var.fill_(4.0)
    x = torch.randn(2, 2, 6, 8)
    found = layer(x)
    torch.testing.assert_close(found, plain(layer[0](x)) + torch.tensor([1.0, -2.0, 0.5])[:, None, None])
    assert [name for name, _ in layer.named_parameters()] == ["0.weight", "1.bias"]
    found.square().sum().backward()
    torch.testing.assert_close(layer[1].bias.grad, 2 * found.detach().sum(dim=(0, 2, 3)))


def test_final_norms_would_hide_from_the_mean_logit_what_an_image_shows():
    torch.manual_seed(0)
    images = torch.randn(2, 2, 16, 16)
    images[1, :, 4:] = 0
    with torch.no_grad():
        means = {final: build(FLAT, (16, 16), final_norms=final)(images)[0].mean(dim=(2, 3)) for final in (True, False)}
    torch.testing.assert_close(means[True][0], means[True][1], rtol=0, atol=1e-5)
    assert ((means[False][0] - means[False][1]).abs() > 1e-3).all()


def test_a_network_without_normalisation_is_a_setting_error():
    with pytest.raises(SettingError, match="'none'") as caught:
        build(FLAT, (16, 16), normalization="none")
    assert caught.value.hint
