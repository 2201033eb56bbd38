import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoseg.errors import SettingError
from autoseg.nets import build_network, build_paper_mode, paper_modes_of
from autoseg.nets.fcn import FeatureHop, bilinear
from autoseg.schema.plan import Architecture, Topology

PAPER = {mode.name: mode for mode in paper_modes_of("fcn")}


def topology(strides, features, kernels=None):
    kernels = kernels or [[3] * len(strides[0])] * len(strides)
    return Topology(strides=tuple(map(tuple, strides)), kernels=tuple(map(tuple, kernels)), features=tuple(features))


def build(plan, patch, *, channels=1, heads=3, **arguments):
    torch.manual_seed(0)
    architecture = Architecture(name="fcn", arguments=arguments)
    return build_network(architecture, plan, ndim=len(patch), in_channels=channels, num_heads=heads, patch_size=patch)


FLAT = topology([[1, 1]] + [[2, 2]] * 4, [4, 6, 8, 8, 8])
SLAB = topology([[1, 1, 1], [1, 2, 2], [2, 2, 2]], [4, 6, 8], [[1, 3, 3], [1, 3, 3], [3, 3, 3]])


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


@pytest.mark.parametrize(("name", "frozen"), [("FCN-32s", 1_806_336), ("FCN-16s", 458_640), ("FCN-8s", 127_008)])
def test_what_the_released_nets_freeze(name, frozen):
    with torch.device("meta"):
        network = build_paper_mode("fcn", PAPER[name])
    assert count(weight for weight in network.parameters() if not weight.requires_grad) == frozen


def test_parts_of_the_learned_decoder_on_vgg16():
    with torch.device("meta"):
        network = build_paper_mode("fcn", PAPER["VGG16 and five transposed convolutions"])
    assert count(network.encoder.parameters()) == 14_714_688
    assert count(network.hops.parameters()) == 3_928_992
    assert count(network.heads.parameters()) == 21 * 33
    assert all(weight.requires_grad for weight in network.parameters())


@pytest.mark.parametrize("stride", [(2, 2), (8, 8), (1, 3), (1, 2, 4), (3, 1, 2)])
def test_upsampling_starts_bilinear(stride):
    torch.manual_seed(0)
    ndim = len(stride)
    x = torch.randn(1, 2, *(6,) * ndim)
    upsample = {2: F.conv_transpose2d, 3: F.conv_transpose3d}[ndim]
    padding = tuple((step - step % 2) // 2 for step in stride)
    found = upsample(x, bilinear(2, stride), stride=stride, padding=padding)
    mode = {2: "bilinear", 3: "trilinear"}[ndim]
    expected = F.interpolate(x, scale_factor=tuple(map(float, stride)), mode=mode, align_corners=False)
    assert found.shape == expected.shape
    # A transposed convolution has zeros outside the image, interpolation goes on with the last value.
    inner = (..., *(slice(step, -step) for step in stride))
    torch.testing.assert_close(found[inner], expected[inner])


@pytest.mark.parametrize(("plan", "patch"), [(FLAT, (96, 64)), (SLAB, (8, 24, 32))])
@pytest.mark.parametrize("levels", [None, 1, 2])
def test_a_fresh_network_is_its_coarsest_score_upsampled(plan, patch, levels):
    network = build(plan, patch, levels=levels)
    coarsest = []
    network.start.register_forward_hook(lambda module, inputs, output: coarsest.append(output))
    with torch.no_grad():
        (found,) = network.eval()(torch.randn(2, 1, *patch))
    expected = coarsest[0]
    sizes = [expected.shape[2:], patch]
    for stride in reversed(plan.strides[2:] if levels is None else plan.strides[-1:] if levels == 2 else ()):
        sizes.insert(-1, [length * step for length, step in zip(sizes[-2], stride, strict=True)])
    for size in sizes[1:]:
        mode = {2: "bilinear", 3: "trilinear"}[len(patch)]
        expected = F.interpolate(expected, tuple(size), mode=mode, align_corners=False)
    margin = (
        ...,
        *(
            slice(step, -step) if step < length // 2 else slice(0, 0)
            for step, length in zip(plan.divisor, patch, strict=True)
        ),
    )
    assert found[margin].numel() > 0
    torch.testing.assert_close(found[margin], expected[margin])


def test_the_eight_pixel_net_adds_scores_of_two_pools():
    arguments = {"levels": 3, "taps": "pools", "normalization": "none", "deep_supervision": False}
    plan = topology([[1, 1]] + [[2, 2]] * 5, [3, 4, 5, 6, 7, 8], [[3, 3]] * 5 + [[7, 7]])
    network = build(plan, (64, 96), channels=3, heads=2, **arguments).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.2)
    x = torch.randn(1, 3, 64, 96)
    pools, y = [], x
    for s, stage in enumerate(network.encoder):
        if s:
            y = F.max_pool2d(y, 2)
            pools.append(y)
        convs = [module for module in stage if isinstance(module, nn.Conv2d)]
        assert len(convs) == (2, 2, 3, 3, 3, 2)[s]
        for conv in convs:
            y = F.relu(F.conv2d(y, conv.weight, conv.bias, padding=conv.kernel_size[0] // 2))
    score = [
        F.conv2d(z, module.weight, module.bias)
        for z, module in ((y, network.start), (pools[3], network.hops[2].lateral), (pools[2], network.hops[1].lateral))
    ]
    fine, middle, coarse = (hop.up.weight for hop in network.hops)
    assert (fine.shape, middle.shape, coarse.shape) == ((2, 2, 16, 16), (2, 2, 4, 4), (2, 2, 4, 4))
    expected = F.conv_transpose2d(score[0], coarse, stride=2, padding=1) + score[1]
    expected = F.conv_transpose2d(expected, middle, stride=2, padding=1) + score[2]
    expected = F.conv_transpose2d(expected, fine, stride=8, padding=4)
    with torch.no_grad():
        torch.testing.assert_close(network(x)[0], expected)


def test_a_feature_hop_is_transposed_convolution_relu_batch_norm():
    torch.manual_seed(0)
    hop = FeatureHop(6, 4, (2, 2), None, "batch", norm_last=True)
    reference = nn.Sequential(
        nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1), nn.ReLU(), nn.BatchNorm2d(4)
    )
    reference[0].load_state_dict(hop.up.state_dict())
    x = torch.randn(3, 6, 5, 7)
    torch.testing.assert_close(hop(x, x), reference(x))
    assert hop(x, x).shape == (3, 4, 10, 14)


def test_the_mean_logit_of_features_depends_on_what_an_image_shows():
    torch.manual_seed(0)
    images = torch.randn(2, 1, 32, 48)
    images[1, :, 8:] = 0
    with torch.no_grad():
        means = {
            last: build(FLAT, (32, 48), decoder="features", norm_last=last).eval()(images)[0].mean(dim=(2, 3))
            for last in (True, False)
        }
    torch.testing.assert_close(means[True][0], means[True][1], rtol=0, atol=1e-5)
    assert ((means[False][0] - means[False][1]).abs() > 1e-3).all()


# Sizes of the training outputs for a patch of 32 by 48.
@pytest.mark.parametrize(
    ("arguments", "sizes"),
    [
        ({}, [(32, 48), (16, 24), (8, 12), (4, 6)]),
        ({"levels": 3}, [(32, 48), (8, 12), (4, 6)]),
        ({"levels": 1}, [(32, 48)]),
        ({"levels": 9}, [(32, 48), (16, 24), (8, 12), (4, 6)]),
        ({"taps": "pools"}, [(32, 48), (16, 24), (8, 12), (4, 6)]),
        ({"decoder": "features"}, [(32, 48), (16, 24), (8, 12), (4, 6)]),
        ({"decoder": "features", "levels": 2}, [(32, 48), (16, 24), (8, 12), (4, 6)]),
        ({"deep_supervision": False}, [(32, 48)]),
    ],
)
def test_every_hop_gives_an_output_and_all_of_it_learns(arguments, sizes):
    network = build(FLAT, (32, 48), **arguments).train()
    x = torch.randn(2, 1, 32, 48)
    outputs = network(x)
    assert [tuple(output.shape) for output in outputs] == [(2, 3, *size) for size in sizes]
    assert len(network.output_weights) == len(sizes)
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    assert all(weight.grad.abs().max() > 0 for weight in network.parameters())
    (final,) = network.eval()(x)
    torch.testing.assert_close(final, outputs[0])


def test_dropout_is_for_training_only():
    network = build(FLAT, (32, 48), dropout=0.5)
    x = torch.randn(1, 1, 32, 48)
    with torch.no_grad():
        assert not torch.equal(network.train()(x)[0], network(x)[0])
        assert torch.equal(network.eval()(x)[0], network(x)[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"levels": 0}, "levels is 0"),
        ({"decoder": "score"}, "no decoder 'score'"),
        ({"taps": "convs"}, "no taps"),
        ({"convs_per_stage": [1, 1]}, "convs_per_stage"),
        ({"decoder": "features", "decoder_widths": [8, 8, 8, 0]}, "decoder_widths"),
        ({"normalization": "layer"}, "normalisation"),
    ],
)
def test_wrong_arguments_are_a_setting_error(arguments, words):
    with pytest.raises(SettingError, match=words) as caught:
        build(FLAT, (32, 48), **arguments)
    assert caught.value.hint
