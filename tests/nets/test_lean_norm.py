"""Norm and activation in place against torch's own modules and against numerical derivatives."""

import copy

import pytest
import torch
from torch import nn

from autoseg.nets.lean_norm import normalize_and_activate
from autoseg.nets.units import ConvUnit, Style

LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}
SHAPES = {2: (3, 4, 6, 5), 3: (2, 4, 3, 4, 5)}
ACTIVATIONS = [nn.LeakyReLU(0.01, inplace=True), nn.Identity()]


def drawn_norm(ndim, offset=0.0):
    """Affine parameters of both signs; with a large offset the input cannot be had back from the result."""
    norm = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[ndim](4, affine=True).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.7, -1.3, 0.4, 2.0]))
        norm.bias.copy_(torch.randn(4, generator=generator, dtype=torch.float64) / 2)
        norm.bias[0] += offset
    return norm


def drawn(ndim, seed=1):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(SHAPES[ndim], generator=generator, dtype=torch.float64)
    return (2 + 3 * values).contiguous(memory_format=LAYOUTS[ndim])


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("offset", [0.0, 50.0])
@pytest.mark.parametrize("act", ACTIVATIONS, ids=["leaky", "linear"])
def test_values_and_gradients_are_those_of_the_plain_modules(ndim, offset, act):
    plain, lean = drawn_norm(ndim, offset), drawn_norm(ndim, offset)
    upstream = drawn(ndim, seed=2)
    given = [drawn(ndim).requires_grad_() for _ in range(2)]
    # The input is overwritten, so that it must not be a leaf.
    expected, found = act(plain(given[0] * 1)), normalize_and_activate(given[1] * 1, lean, act)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    expected.backward(upstream)
    found.backward(upstream)
    for right, ours in zip((given[0], *plain.parameters()), (given[1], *lean.parameters()), strict=True):
        torch.testing.assert_close(ours.grad, right.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("offset", [0.0, 50.0])
@pytest.mark.parametrize("act", ACTIVATIONS, ids=["leaky", "linear"])
def test_gradients_are_the_numerical_derivatives(ndim, offset, act):
    norm = drawn_norm(ndim, offset)

    def function(x, weight, bias):
        module = copy.copy(norm)
        module._parameters = {"weight": weight, "bias": bias}
        return normalize_and_activate(x * 1, module, act)

    x = drawn(ndim).requires_grad_()
    assert torch.autograd.gradcheck(function, (x, *(p.detach().clone().requires_grad_() for p in norm.parameters())))


@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_bfloat16_is_as_close_to_the_truth_as_torch_is(offset):
    truth, x, upstream = drawn_norm(3, offset), drawn(3), drawn(3, seed=2)
    act = nn.LeakyReLU(0.01)

    def gradient(x, norm, run):
        x = x.clone().requires_grad_()
        run(x * 1, norm).backward(upstream.to(x.dtype))
        return torch.cat([part.double().flatten() for part in (x.grad, norm.weight.grad, norm.bias.grad)])

    half = x.bfloat16()
    exact = gradient(half.double(), truth, lambda x, norm: act(norm(x)))
    scale = exact.abs().max()
    torchs = gradient(half, drawn_norm(3, offset).float(), lambda x, norm: act(norm(x)))
    ours = gradient(half, drawn_norm(3, offset).float(), lambda x, norm: normalize_and_activate(x, norm, act))
    assert (ours - exact).abs().max() < 2 * (torchs - exact).abs().max() + 0.005 * scale


def test_one_map_is_kept_for_backward():
    unit = ConvUnit(4, 4, kernel=(3, 3, 3), style=Style())
    x = drawn(3).float()
    kept = {}

    def note(tensor):
        if tensor.shape == x.shape:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = unit.to(memory_format=torch.channels_last_3d)(x)
    assert set(kept) == {x.untyped_storage().data_ptr(), y.untyped_storage().data_ptr()}


@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_the_gradient_takes_the_place_of_the_kept_map_unless_the_graph_is_kept(offset):
    inside, gradients = [], []
    x = drawn(3).requires_grad_()
    for backwards in (3, 1):
        given = x * 1
        place = given.data_ptr()

        def note(gradient, place=place):
            inside.append(gradient.data_ptr() == place)
            gradients.append(gradient.clone())

        given.register_hook(note)
        y = normalize_and_activate(given, drawn_norm(3, offset), nn.LeakyReLU(0.01))
        for left in reversed(range(backwards)):
            y.backward(drawn(3, seed=2), retain_graph=left > 0)
    assert inside == [False, False, True, True]
    assert all(torch.equal(one, gradients[0]) for one in gradients)


@pytest.mark.parametrize("ndim", [2, 3])
def test_no_gradients_no_difference(ndim):
    norm, act = drawn_norm(ndim), nn.LeakyReLU(0.01)
    with torch.inference_mode():
        expected = act(norm(drawn(ndim)))
        torch.testing.assert_close(normalize_and_activate(drawn(ndim), norm, act), expected)


@pytest.mark.parametrize(
    ("x", "norm", "act"),
    [
        (drawn(3).contiguous(), drawn_norm(3), nn.LeakyReLU(0.01)),
        (drawn(3), nn.BatchNorm3d(4).double(), nn.LeakyReLU(0.01)),
        (drawn(3), drawn_norm(3), nn.ReLU()),
        (drawn(3), nn.Identity(), nn.Identity()),
    ],
    ids=["channels first", "batch norm", "relu", "nothing"],
)
def test_everything_else_is_left_to_torch(x, norm, act):
    expected = act(norm(x))
    assert torch.equal(normalize_and_activate(x.clone(memory_format=torch.preserve_format), norm, act), expected)
