import pytest
import torch
from torch.nn import functional as F

from autoseg.errors import SettingError
from autoseg.nets import NETS, build_network
from autoseg.schema.plan import Architecture, Topology

UNET = Architecture(name="unet")


def topology(strides, features, kernels=None):
    kernels = kernels or [[3] * len(strides[0])] * len(strides)
    return Topology(strides=tuple(map(tuple, strides)), kernels=tuple(map(tuple, kernels)), features=tuple(features))


def build(plan, patch, *, channels=1, heads=3, architecture=UNET):
    torch.manual_seed(0)
    return build_network(architecture, plan, ndim=len(patch), in_channels=channels, num_heads=heads, patch_size=patch)


# Parameters of the peer's PlainConvUNet, measured with its own code: 31.2 M in 3D, 46.3 M in 2D.
@pytest.mark.parametrize(
    ("ndim", "stages", "cap", "heads", "patch", "expected"),
    [(3, 6, 320, 3, 128, 31_196_399), (2, 8, 512, 2, 512, 46_324_558), (2, 6, 512, 9, 224, 20_626_061)],
)
def test_parameters_equal_the_peers(ndim, stages, cap, heads, patch, expected):
    plan = topology([[1] * ndim] + [[2] * ndim] * (stages - 1), [min(32 * 2**s, cap) for s in range(stages)])
    with torch.device("meta"):
        network = build(plan, (patch,) * ndim, heads=heads)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


ANISOTROPIC = topology(
    [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 2]],
    [4, 8, 16, 16],
    [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]],
)
CASES = [
    (topology([[1, 1], [2, 2], [2, 2]], [4, 8, 16]), (24, 20), 3, 2),
    (topology([[1, 1], [2, 2]], [4, 8]), (10, 6), 1, 5),
    (topology([[1, 1], [2, 1], [2, 2], [2, 2]], [4, 8, 8, 8]), (40, 12), 2, 2),
    (ANISOTROPIC, (10, 32, 24), 2, 4),
    (topology([[1, 1, 1], [2, 2, 2], [2, 2, 2]], [4, 8, 8]), (12, 16, 20), 1, 2),
]


@pytest.mark.parametrize(("plan", "patch", "channels", "heads"), CASES)
def test_training_gives_one_output_per_decoder_step_and_evaluation_one(plan, patch, channels, heads):
    network = build(plan, patch, channels=channels, heads=heads)
    x = torch.randn(2, channels, *patch)
    outputs = network.train()(x)
    size = list(patch)
    assert len(outputs) == plan.num_stages - 1
    for output, stride in zip(outputs, plan.strides, strict=False):
        size = [length // step for length, step in zip(size, stride, strict=True)]
        assert output.shape == (2, heads, *size)
    (final,) = network.eval()(x)
    torch.testing.assert_close(final, outputs[0])


@pytest.mark.parametrize(("plan", "patch", "channels", "heads"), CASES)
def test_every_parameter_learns_and_samples_are_independent(plan, patch, channels, heads):
    network = build(plan, patch, channels=channels, heads=heads).train()
    x = torch.randn(2, channels, *patch, requires_grad=True)
    outputs = network(x)
    sum(output[0].square().mean() for output in outputs).backward()
    # A bias in front of an instance norm is taken out again: its gradient is zero but for rounding.
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        if not name.endswith("0.bias"):
            assert parameter.grad.abs().max() > 0, name
    assert x.grad[0].abs().max() > 0
    assert x.grad[1].abs().max() == 0


def units(network, prefix, count, *, normalized):
    """A stack of convolution, batch norm (in evaluation), ReLU, written out with torch's functions."""
    weights = network.state_dict()

    def apply(x):
        for i in range(count):
            names = [f"{prefix}.{i}.0.weight", f"{prefix}.{i}.0.bias"]
            x = F.conv2d(x, *(weights[name] for name in names), padding=1)
            if normalized:
                kinds = ("running_mean", "running_var", "weight", "bias")
                x = F.batch_norm(x, *(weights[f"{prefix}.{i}.1.{kind}"] for kind in kinds))
            x = x.relu()
        return x

    return apply


@pytest.mark.parametrize("of_2016", [False, True])
def test_its_ancestors_are_the_drawn_networks(of_2016):
    arguments = {"activation": "relu", "max_pool": True, "deep_supervision": False, "normalization": "none"}
    if of_2016:
        arguments |= {"normalization": "batch", "widen_last": True, "up_keeps_width": True}
    plan = topology([[1, 1], [2, 2], [2, 2]], [4, 8, 16])
    network = build(plan, (16, 24), architecture=Architecture(name="unet", arguments=arguments))
    with torch.no_grad():
        network.train()(torch.randn(3, 1, 16, 24))  # gives the norms statistics of their own
    network.eval()
    assert [stage[0][0].out_channels for stage in network.encoder] == ([2, 4, 8] if of_2016 else [4, 8, 16])
    x = image = torch.randn(2, 1, 16, 24)
    skips = []
    for stage in range(3):
        x = F.max_pool2d(x, 2) if stage else x
        x = units(network, f"encoder.{stage}", 2, normalized=of_2016)(x)
        skips.append(x)
    for step in (1, 0):
        up = network.up[step]
        assert (up.bias is None, up.out_channels) == ((True, up.in_channels) if of_2016 else (False, 4 * 2**step))
        x = torch.cat((F.conv_transpose2d(x, up.weight, up.bias, stride=2), skips[step]), dim=1)
        x = units(network, f"decoder.{step}", 2, normalized=of_2016)(x)
    expected = F.conv2d(x, network.heads[0].weight, network.heads[0].bias)
    (logits,) = network(image)
    torch.testing.assert_close(logits, expected)
    assert len(network.train()(image)) == len(network.output_weights) == len(network.heads) == 1


def test_names_of_weights_are_those_of_networks_already_trained():
    """Files of trained networks are read by these names, so they are written out."""
    units = [f"{place}.{i}" for place in ("encoder.0", "encoder.1", "decoder.0") for i in (0, 1)]
    pairs = [f"{unit}.{part}" for unit in units for part in (0, 1)]
    owners = [*pairs[:8], "up.0", *pairs[8:], "heads.0"]
    network = build(topology([[1, 1], [2, 2]], [4, 8]), (8, 8))
    assert list(network.state_dict()) == [f"{owner}.{kind}" for owner in owners for kind in ("weight", "bias")]


def plain(c_in, c_out, kernel, stride):
    padding = tuple(size // 2 for size in kernel)
    return torch.nn.Sequential(
        torch.nn.Conv3d(c_in, c_out, kernel, stride, padding=padding),
        torch.nn.InstanceNorm3d(c_out, eps=1e-5, affine=True),
        torch.nn.LeakyReLU(0.01),
    )


def test_the_default_is_built_of_convolution_instance_norm_and_leaky_relu():
    plan = topology([[1, 1, 1], [1, 2, 2]], [4, 8], [[1, 3, 3], [3, 3, 3]])
    network = build(plan, (2, 8, 8))
    first = torch.nn.Sequential(plain(1, 4, (1, 3, 3), 1), plain(4, 4, (1, 3, 3), 1))
    first.load_state_dict(network.encoder[0].state_dict(), strict=True)
    x = torch.randn(2, 1, 2, 8, 8)
    assert torch.equal(network.encoder[0](x), first(x))
    second = torch.nn.Sequential(plain(4, 8, (3, 3, 3), (1, 2, 2)), plain(8, 8, (3, 3, 3), 1))
    second.load_state_dict(network.encoder[1].state_dict(), strict=True)
    assert torch.equal(network.encoder[1](first(x)), second(first(x)))


def test_a_kernel_of_one_keeps_slices_apart():
    plan = topology([[1, 1, 1], [1, 2, 2], [1, 2, 2]], [4, 4, 4], [[1, 3, 3]] * 3)
    network = build(plan, (4, 16, 16)).train()
    for module in network.modules():
        # Instance norm couples the slices through its statistics; without it only kernels could.
        if isinstance(module, torch.nn.InstanceNorm3d):
            module.forward = lambda x: x
    x = torch.randn(1, 1, 4, 16, 16, requires_grad=True)
    network.eval()(x)[0][:, :, 1].sum().backward()
    touched = x.grad.abs().amax(dim=(0, 1, 3, 4)) > 0
    assert touched.tolist() == [False, True, False, False]


def test_weights_survive_saving(tmp_path):
    plan, patch, channels, heads = CASES[0]
    network = build(plan, patch, channels=channels, heads=heads).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    torch.manual_seed(1)
    again = build_network(UNET, plan, ndim=2, in_channels=channels, num_heads=heads, patch_size=patch)
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    x = torch.randn(1, channels, *patch)
    torch.testing.assert_close(again.eval()(x)[0], network(x)[0])


def test_two_images_can_be_learned_by_heart():
    plan = topology([[1, 1], [2, 2], [2, 2]], [8, 16, 32])
    network = build(plan, (32, 32), heads=2).train()
    generator = torch.Generator().manual_seed(0)
    target = (
        torch.nn.functional.avg_pool2d(torch.rand(2, 1, 32, 32, generator=generator), 7, stride=1, padding=3) > 0.42
    ).long()
    x = target + torch.randn(2, 1, 32, 32, generator=generator)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x)[0], target[:, 0]).backward()
        optimizer.step()
    found = network.eval()(x)[0].argmax(1, keepdim=True)
    assert 2 * (found * target).sum() / (found.sum() + target.sum()) > 0.95


@pytest.mark.parametrize(
    ("plan", "patch", "architecture", "words"),
    [
        (CASES[0][0], (22, 20), UNET, "multiple"),
        (topology([[1, 1]], [4]), (8, 8), UNET, "two stages"),
        (CASES[0][0], (4, 4), UNET, "single voxel"),
        (CASES[0][0], (24, 20), Architecture(name="unet", arguments={"depth": 3}), "depth"),
        (CASES[0][0], (24, 20), Architecture(name="vnet9"), "no architecture"),
        (CASES[4][0], (24, 20), UNET, "axes"),
        (CASES[0][0], (24, 20), Architecture(name="unet", arguments={"normalization": "layer"}), "no normalisation"),
        (CASES[0][0], (24, 20), Architecture(name="unet", arguments={"activation": "tanh"}), "no activation"),
    ],
)
def test_what_cannot_be_built_is_a_setting_error(plan, patch, architecture, words):
    with pytest.raises(SettingError, match=words):
        build(plan, patch, architecture=architecture)


def test_names_are_listed_without_building_anything():
    assert "unet" in NETS.names()
