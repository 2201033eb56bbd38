import pytest
import torch
from torch.nn import functional as F

from autoseg.errors import SettingError
from autoseg.nets import build_network, build_paper_mode, paper_modes_of
from autoseg.nets.transunet import Bottleneck, StandardizedConv
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
        Architecture(name="transunet", arguments=arguments),
        plan,
        ndim=len(patch),
        in_channels=channels,
        num_heads=heads,
        patch_size=patch,
    )


def test_standardized_weights_have_mean_zero_and_variance_one():
    convolution = StandardizedConv(3, 5, kernel=(3, 3), stride=(2, 2)).double()
    torch.nn.init.normal_(convolution.weight, mean=4, std=20)
    weight = convolution.weight.detach()
    rows = weight.flatten(1)
    standard = (rows - rows.mean(1, keepdim=True)) / rows.std(1, correction=0, keepdim=True)
    x = torch.randn(2, 3, 10, 7, dtype=torch.float64)
    expected = F.conv2d(x, standard.view_as(weight), stride=2, padding=1)
    torch.testing.assert_close(convolution(x), expected)


def test_scale_and_offset_of_a_standardized_weight_mean_nothing():
    convolution = StandardizedConv(3, 5, kernel=(1, 3, 3)).double()
    torch.nn.init.normal_(convolution.weight, std=20)
    x = torch.randn(2, 3, 4, 6, 5, dtype=torch.float64)
    before = convolution(x)
    with torch.no_grad():
        convolution.weight.mul_(torch.rand(5, 1, 1, 1, 1) + 0.5).add_(torch.randn(5, 1, 1, 1, 1))
    torch.testing.assert_close(convolution(x), before, rtol=1e-5, atol=1e-6)


def test_a_bottleneck_with_an_empty_body_is_its_shortcut():
    block = Bottleneck(16, 16, kernel=(3, 3), stride=(1, 1))
    torch.nn.init.zeros_(block.body[-1].weight)
    x = torch.randn(2, 16, 6, 4)
    assert torch.equal(block(x), x.relu())


def test_the_encoder_is_resnet50_without_its_last_stage():
    """Its size from the layers' sizes; widths 64, 256, 512, 1024 at 1/2, 1/4, 1/8, 1/16."""

    def bottleneck(c_in, inner, *, first):
        c_out = 4 * inner
        body = c_in * inner + 9 * inner**2 + inner * c_out + 2 * (inner + inner + c_out)
        return body + (c_in * c_out + 2 * c_out if first else 0)

    def stage(c_in, inner, count):
        return bottleneck(c_in, inner, first=True) + (count - 1) * bottleneck(4 * inner, inner, first=False)

    (mode,) = paper_modes_of("transunet")
    with torch.device("meta"):
        network = build_paper_mode("transunet", mode)
        x, shapes = torch.empty(1, 3, 224, 224), []
        for part in network.encoder:
            x = part(x)
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [(64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14)]
    found = sum(parameter.numel() for parameter in network.encoder.parameters())
    assert found == 49 * 3 * 64 + 128 + stage(64, 64, 3) + stage(256, 128, 4) + stage(512, 256, 9)


@pytest.mark.parametrize("grid", [(2, 3), (2, 1, 1)])
@pytest.mark.parametrize("stages", [2, 3, 4, 5, 6])
def test_any_number_of_stages(grid, stages):
    ndim, edges = len(grid), tuple(tokens * 2 ** (stages - 1) for tokens in grid)
    network = build(halving(ndim, stages, 2), edges, transformer_blocks=1).eval()
    with torch.no_grad():
        (logits,) = network(torch.randn(1, 1, *edges))
    assert logits.shape == (1, 2, *edges)
    assert len(network.encoder) == len(network.decoder) == stages - 1
    assert network.transformer.positions.table.shape[2:] == grid


def test_slices_that_are_far_apart_stay_apart_in_the_first_stages():
    plan = topology([[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2]], kernels=[[1, 3, 3]] * 3 + [[3, 3, 3]])
    network = build(plan, (4, 32, 32), transformer_blocks=1).eval()
    for module in network.modules():
        # Group norm couples the slices through its statistics.
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x
    x = torch.randn(1, 1, 4, 32, 32, requires_grad=True)
    network.encoder[1](network.encoder[0](x))[:, :, 1].sum().backward()
    assert (x.grad.abs().amax(dim=(0, 1, 3, 4)) > 0).tolist() == [False, True, False, False]


def test_a_stride_along_a_kernel_of_one_sees_every_voxel():
    plan = topology([[1, 1], [2, 2], [2, 2]], width=8, kernels=[[1, 3]] * 3)
    network = build(plan, (16, 16), transformer_blocks=1)
    assert network.encoder[0][0].weight.shape[2:] == (3, 7)
    x = torch.randn(1, 1, 16, 16, requires_grad=True)
    network.encoder[0][0](x).square().sum().backward()
    assert (x.grad != 0).all()


def test_skips_carry_detail_past_the_transformer():
    """With nothing from below, a voxel depends on its surroundings alone: on skips, through local layers."""
    network = build(halving(2, 4), (96, 96), transformer_blocks=1, encoder_blocks=[1, 1]).eval()
    torch.nn.init.zeros_(network.widening[0].weight)
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm | torch.nn.InstanceNorm2d):
            module.forward = lambda x: x
    x = torch.randn(1, 1, 96, 96, requires_grad=True)
    network(x)[0][0, :, 0, 0].sum().backward()
    touched = x.grad[0, 0] != 0
    assert touched[0, 0]
    assert not touched[-1].any()
    assert not touched[:, -1].any()


def test_every_output_sees_the_whole_image():
    network = build(halving(2, 4), (64, 64), transformer_blocks=1).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm | torch.nn.InstanceNorm2d):
            module.forward = lambda x: x
    x = torch.randn(1, 1, 64, 64, requires_grad=True)
    network(x)[0][0, :, 0, 0].sum().backward()
    # Max pooling passes over some voxels, but no corner of the image is out of reach.
    reached = F.max_pool2d((x.grad != 0).float(), 8)
    assert (reached == 1).all()


def test_batch_normalisation_is_for_paper_mode_only():
    def norms(network):
        return {type(module).__name__ for module in network.decoder.modules() if "Norm2d" in type(module).__name__}

    (mode,) = paper_modes_of("transunet")
    with torch.device("meta"):
        assert norms(build_paper_mode("transunet", mode)) == {"BatchNorm2d"}
        default = build(mode.topology, mode.patch_size, channels=3, heads=9)
    assert norms(default) == {"InstanceNorm2d"}
    # The same modules with other arguments: instance norms have parameters too, so not even the size differs.
    assert sum(parameter.numel() for parameter in default.parameters()) == mode.parameters


@pytest.mark.parametrize(
    ("stages", "arguments", "words"),
    [
        (6, {"encoder_blocks": [3, 4, 9]}, "encoder_blocks"),
        (4, {"encoder_blocks": [3, 0]}, "encoder_blocks"),
        (3, {"root_kernel": 6}, "root_kernel"),
        (3, {"norm_kind": "layer"}, "normalisation"),
        (3, {"hidden_size": 100, "transformer_blocks": 0}, "block"),
    ],
)
def test_impossible_settings_are_refused(stages, arguments, words):
    with pytest.raises(SettingError, match=words):
        build(halving(2, stages), (64, 64), **arguments)
