import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from autoseg.errors import SettingError
from autoseg.nets import build_network
from autoseg.nets.vae import MAX_CELLS, ResidualBlock, latent_grid, penalties
from autoseg.schema.plan import Architecture, Topology


def topology(strides, features, kernels=None):
    kernels = kernels or [[3] * len(strides[0])] * len(strides)
    return Topology(strides=tuple(map(tuple, strides)), kernels=tuple(map(tuple, kernels)), features=tuple(features))


FLAT = topology([[1, 1], [2, 2], [2, 2]], [8, 12, 16])
DEEP = topology([[1, 1, 1], [1, 2, 2], [2, 2, 2]], [8, 8, 8], [[1, 3, 3], [1, 3, 3], [3, 3, 3]])
CASES = [(FLAT, (32, 24)), (DEEP, (6, 16, 12))]


def build(plan, patch, seed=0, **arguments):
    torch.manual_seed(seed)
    return build_network(
        Architecture(name="segresnet_vae", arguments=arguments),
        plan,
        ndim=len(patch),
        in_channels=2,
        num_heads=3,
        patch_size=patch,
    )


def image(patch, batch=2):
    return torch.randn(batch, 2, *patch, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("plan", "patch"), CASES)
def test_removing_the_branch_changes_no_segmentation(plan, patch):
    full, bare = build(plan, patch), build(plan, patch, seed=1, vae=False)
    state = full.state_dict()
    assert {key for key in state if not key.startswith("branch.")} == set(bare.state_dict())
    bare.load_state_dict({key: state[key] for key in bare.state_dict()})
    with torch.no_grad():
        assert torch.equal(full.eval()(image(patch))[0], bare.eval()(image(patch))[0])
        (trained,) = bare.train()(image(patch))
        logits, _ = full.train()(image(patch))
    assert torch.equal(trained, logits)


def test_the_same_seed_starts_the_segmentation_alike_with_and_without_branch():
    full, bare = build(FLAT, (32, 24)).state_dict(), build(FLAT, (32, 24), vae=False).state_dict()
    assert all(torch.equal(full[key], bare[key]) for key in bare)


def test_convolutions_start_as_he_says():
    network = build(topology([[1, 1], [2, 2], [2, 2]], [16, 32, 64]), (32, 24))
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m.weight.numel() > 4000]
    assert any(m in network.branch.modules() for m in convolutions)
    for module in convolutions:
        fan_in = module.weight[0].numel()
        assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.1)


def test_nothing_of_the_branch_runs_in_evaluation():
    network = build(FLAT, (32, 24))
    ran = []
    for module in network.branch.modules():
        module.register_forward_hook(lambda *_: ran.append(True))
    before = torch.get_rng_state()
    assert len(network.eval()(image((32, 24)))) == 1
    assert torch.equal(torch.get_rng_state(), before)
    assert not ran
    network.train()(image((32, 24)))
    assert ran
    assert not torch.equal(torch.get_rng_state(), before)


def test_the_draw_follows_the_seed():
    network = build(FLAT, (32, 24)).train()

    def penalty(seed):
        torch.manual_seed(seed)
        return network(image((32, 24)))[1]

    assert torch.equal(penalty(3), penalty(3))
    assert not torch.equal(penalty(3), penalty(4))


def test_the_penalty_is_the_squared_error_and_twice_the_divergence_per_voxel():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, 2, 8, 6, generator=generator) for _ in range(2))
    mean, std = torch.randn(3, 5, generator=generator), 0.1 + torch.rand(3, 5, generator=generator)
    error, divergence = penalties(x, y, mean, std)
    expected = kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(divergence, 2 * expected / (8 * 6))
    torch.testing.assert_close(error, ((x - y) ** 2).mean())
    assert penalties(x, x, torch.zeros(3, 5), torch.ones(3, 5)) == (0, 0)


@pytest.mark.parametrize(("plan", "patch"), CASES)
def test_the_penalty_is_a_tenth_of_each_term_and_a_scalar_in_float32(plan, patch):
    network = build(plan, patch).train()
    x = image(patch)
    torch.manual_seed(0)
    with torch.no_grad():
        _, penalty = network(x)
    assert (penalty.shape, penalty.dtype) == ((), torch.float32)
    deepest = []
    network.encoder[-1].register_forward_hook(lambda module, inputs, output: deepest.append(output))
    with torch.no_grad():
        network(x)
        torch.manual_seed(0)
        shapes = [tuple(patch)]
        for stride in plan.strides[1:]:
            shapes.append(tuple(size // step for size, step in zip(shapes[-1], stride, strict=True)))
        rebuilt, mean, std = network.branch(deepest[0], shapes)
    assert rebuilt.shape == x.shape
    terms = ((rebuilt - x) ** 2).mean(), 2 * kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(penalty, 0.1 * terms[0] + 0.1 * terms[1] / math.prod(patch))


def test_the_penalty_teaches_encoder_and_branch_but_not_the_segmentation_decoder():
    network = build(FLAT, (32, 24)).train()
    network(image((32, 24)))[1].backward()
    for name, parameter in network.named_parameters():
        taught = name.startswith(("encoder.", "branch."))
        assert (parameter.grad is not None) == taught, name
        if taught and parameter.ndim > 1:
            assert parameter.grad.abs().max() > 0, name


def test_half_precision_changes_the_penalty_little():
    network = build(FLAT, (32, 24)).train()
    torch.manual_seed(5)
    _, full = network(image((32, 24)))
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16):
        _, half = network(image((32, 24)))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.02, atol=0)


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_extreme_latent_values_give_finite_penalties_and_gradients(value):
    network = build(FLAT, (32, 24)).train()
    with torch.no_grad():
        network.branch.encode.bias[network.branch.encode.out_features // 2 :] = value
    with torch.autocast("cpu", torch.bfloat16):
        _, penalty = network(image((32, 24)))
    penalty.backward()
    assert torch.isfinite(penalty)
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.branch.parameters())


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((20, 24, 16), (10, 12, 8)), ((4, 4), (2, 2)), ((5, 7), (3, 4)), ((1, 4, 3), (1, 2, 2)), ((128, 128), (32, 32))],
)
def test_the_grid_of_the_paper_and_others(shape, expected):
    assert latent_grid(shape) == expected
    assert math.prod(expected) <= MAX_CELLS


@pytest.mark.parametrize(
    ("plan", "patch", "given"),
    [
        # Odd maps, another size than planned (larger, smaller, other proportions), and a grid that is capped.
        (FLAT, (20, 28), (20, 28)),
        (FLAT, (32, 24), (64, 20)),
        (FLAT, (32, 24), (8, 12)),
        (DEEP, (6, 16, 12), (2, 24, 8)),
        (topology([[1, 1], [1, 2]], [4, 4]), (96, 96), (96, 96)),
    ],
)
def test_the_branch_rebuilds_images_of_any_size(plan, patch, given):
    network = build(plan, patch).train()
    seen = []
    network.branch.image.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    logits, penalty = network(image(given))
    penalty.backward()
    assert seen == [(2, 2, *given)]
    assert logits.shape == (2, 3, *given)
    assert all(parameter.grad.abs().max() > 0 for parameter in network.branch.parameters() if parameter.ndim > 1)


def test_the_branch_learns_to_rebuild():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(4, 2, 2, 2, generator=generator)
    images = F.interpolate(coarse, (16, 16), mode="bilinear")
    network = build(topology([[1, 1], [2, 2], [2, 2]], [8, 16, 16]), (16, 16), latent=16, blocks=[1]).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        network(images)[1].backward()
        optimizer.step()
    error = network(images)[1].item() / 0.1
    # The same image for every draw would leave three quarters of the variance of four samples.
    assert error < 0.5 * images.var().item()


def test_a_residual_block_is_pre_activated_and_adds_its_input():
    torch.manual_seed(0)
    block = ResidualBlock(16, kernel=(3, 3), groups=8)
    first, second = (module.weight for module in block.modules() if isinstance(module, torch.nn.Conv2d))
    x = torch.randn(2, 16, 6, 5)
    inner = F.conv2d(F.relu(F.group_norm(x, 8)), first, padding=1)
    expected = x + F.conv2d(F.relu(F.group_norm(inner, 8)), second, padding=1)
    torch.testing.assert_close(block(x), expected)


def test_groups_divide_every_width():
    network = build(topology([[1, 1], [2, 2], [2, 2]], [6, 12, 7]), (16, 16))
    norms = {
        (module.num_channels, module.num_groups)
        for module in network.modules()
        if isinstance(module, torch.nn.GroupNorm)
    }
    assert norms == {(6, 2), (12, 4), (7, 1)}


@pytest.mark.parametrize("arguments", [{"blocks": []}, {"blocks": [1, 0]}, {"groups": 0}, {"latent": 0}])
def test_sizes_below_one_are_setting_errors(arguments):
    with pytest.raises(SettingError, match="cannot have"):
        build(FLAT, (32, 24), **arguments)
