import math

import pytest
import torch

from autoseg.errors import SettingError
from autoseg.nets import build_network
from autoseg.nets.unet2022 import Block, default_windows
from autoseg.schema.plan import Architecture, Topology


def topology(strides, features, kernels=None):
    kernels = kernels or [(3,) * len(strides[0])] * len(strides)
    return Topology(strides=tuple(strides), kernels=tuple(kernels), features=tuple(features))


def build(plan, patch, *, channels=1, heads=2, **arguments):
    torch.manual_seed(0)
    return build_network(
        Architecture(name="unet2022", arguments=arguments),
        plan,
        ndim=len(patch),
        in_channels=channels,
        num_heads=heads,
        patch_size=patch,
    )


@pytest.mark.parametrize(
    ("crop", "stem", "published"),
    [(224, 4, (7, 7, 14, 7)), (320, 4, (10, 10, 20, 10)), (512, 8, (8, 8, 16, 8))],
)
def test_windows_from_the_patch_are_the_published_ones(crop, stem, published):
    maps = [(crop // (stem * 2**i),) * 2 for i in range(4)]
    assert [window[0] for window in default_windows(maps)] == list(published)


def test_windows_follow_each_axis():
    maps = [(16, 64, 64), (8, 32, 32), (4, 16, 16), (2, 8, 8)]
    assert default_windows(maps) == ((4, 8, 8), (4, 8, 8), (4, 8, 8), (2, 8, 8))


@pytest.mark.parametrize(
    ("width", "heads", "kernel", "window"),
    [(64, 2, (5, 5), (6, 6)), (48, 3, (1, 3, 7), (2, 4, 5)), (20, 1, (3,) * 3, (4,) * 3)],
)
def test_parameters_of_a_block_follow_the_closed_form(width, heads, kernel, window):
    block = Block(width, heads, kernel, window, shifted=False, drop_path=0.0)
    expected = 12 * width**2 + (2 * math.prod(kernel) + 16) * width + math.prod(2 * w - 1 for w in window) * heads
    assert sum(parameter.numel() for parameter in block.parameters()) == expected


@pytest.mark.parametrize("stem", [1, 2, 3, 4])
def test_parameters_of_stem_and_heads_follow_the_closed_form(stem):
    """``stem`` units double the width up to C; a head halves it once for each unit beyond two."""
    C, classes, channels = 32, 3, 2
    widths = [C // 2 ** (stem - 1 - unit) for unit in range(stem)]
    plan = topology([(1, 1), *((2, 2),) * (stem + 3)], [1, *widths, 2 * C, 4 * C, 8 * C])
    with torch.device("meta"):
        network = build(plan, (2 ** (stem + 5),) * 2, channels=channels, heads=classes)
    expected, a = 2 * C, channels
    for unit, b in enumerate(widths):
        expected += 9 * a * b + b + 2 * b + 9 * b * b + b + (2 * b if unit < stem - 1 else 0)
        a = b
    assert sum(parameter.numel() for parameter in network.stem.parameters()) == expected
    assert len(network.heads) == 3
    for stage, head in enumerate(network.heads):
        expected, c = 0, C * 2**stage
        for _ in range(stem - 2):
            d = c // 2
            expected += 4 * c * d + d + 2 * d + 9 * d * d + d + 2 * d
            c = d
        expected += (4 if stem == 1 else 16) * c * classes + classes
        assert sum(parameter.numel() for parameter in head.parameters()) == expected


def test_outputs_have_the_full_half_and_quarter_resolution_and_all_count():
    plan = topology([(1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)], [4, 4, 8, 16, 32, 64])
    network = build(plan, (8, 64, 64)).train()
    shapes = [tuple(output.shape[2:]) for output in network(torch.randn(1, 1, 8, 64, 64))]
    assert shapes == [(8, 64, 64), (8, 32, 32), (4, 16, 16)]
    assert network.output_weights == pytest.approx((4 / 7, 2 / 7, 1 / 7))


def test_a_fresh_block_is_nearly_its_second_half_and_without_projection_nothing():
    torch.manual_seed(0)
    block = Block(32, 1, (7, 7), (4, 4), shifted=True, drop_path=0.0)
    x = torch.randn(1, 8, 8, 32)
    torch.testing.assert_close(block(x), x + block.mixer(block.norm(x)), rtol=0, atol=1e-4)
    torch.nn.init.zeros_(block.scale)
    torch.nn.init.zeros_(block.mixer.project.weight)
    torch.nn.init.zeros_(block.mixer.project.bias)
    assert torch.equal(block(x), x)


def test_without_values_the_second_half_is_a_convolution():
    torch.manual_seed(0)
    block = Block(16, 1, (3, 3), (4, 4), shifted=False, drop_path=0.0)
    mixer = block.mixer
    torch.nn.init.zeros_(mixer.attention.qkv.weight[32:])
    torch.nn.init.zeros_(mixer.attention.qkv.bias[32:])
    y = torch.randn(2, 8, 12, 16)
    convolved = mixer.beside(y.movedim(-1, 1)).movedim(1, -1)
    torch.testing.assert_close(mixer(y), mixer.project(convolved))


def test_kernels_and_windows_of_one_keep_slices_apart():
    plan = topology([(1, 1, 1), *((1, 2, 2),) * 4], [4, 8, 16, 32, 64], [(1, 3, 3)] * 5)
    windows = [[1, 4, 4]] * 4
    network = build(plan, (3, 32, 32), windows=windows).eval()
    x = torch.randn(1, 1, 3, 32, 32, requires_grad=True)
    network(x)[0][:, :, 1].sum().backward()
    assert (x.grad.abs().amax((0, 1, 3, 4)) > 0).tolist() == [False, True, False]
    assert {module.kernel_size for module in network.modules() if isinstance(module, torch.nn.Conv3d)} == {(1, 3, 3)}


def test_two_images_can_be_learned_by_heart():
    plan = topology([(1, 1), *((2, 2),) * 3], [8, 16, 32, 64])
    network = build(plan, (32, 32), depths=1, decoder_depths=1).train()
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, 1, 32, 32, generator=generator)
    target = (torch.nn.functional.avg_pool2d(noise, 7, stride=1, padding=3) > 0.42).long()
    x = target + torch.randn(2, 1, 32, 32, generator=generator)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(50):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x)[0], target[:, 0]).backward()
        optimizer.step()
    found = network.eval()(x)[0].argmax(1, keepdim=True)
    assert 2 * (found * target).sum() / (found.sum() + target.sum()) > 0.95


SMALL = topology([(1, 1), (2, 2), (2, 2)], [4, 8, 16])


@pytest.mark.parametrize(
    ("plan", "arguments", "words"),
    [
        (topology([(1, 1), (2, 2)], [4, 8]), {}, "three stages"),
        (SMALL, {"windows": [4]}, "window"),
        (SMALL, {"kernel": 4}, "kernel"),
        (SMALL, {"kernel": [3, 3, 3]}, "kernel"),
        (SMALL, {"depths": [3, 3, 3, 3]}, "depths"),
        (SMALL, {"decoder_depths": 0}, "decoder_depths"),
    ],
)
def test_what_cannot_be_built_is_a_setting_error(plan, arguments, words):
    with pytest.raises(SettingError, match=words):
        build(plan, (16, 16), **arguments)
