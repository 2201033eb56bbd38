import pytest
import torch

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
    ],
)
def test_what_cannot_be_built_is_a_setting_error(plan, patch, architecture, words):
    with pytest.raises(SettingError, match=words):
        build(plan, patch, architecture=architecture)


def test_names_are_listed_without_building_anything():
    assert "unet" in NETS.names()
