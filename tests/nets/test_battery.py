"""What every registered network must do, whatever its paper says."""

import pytest
import torch

from autoseg.errors import SettingError
from autoseg.nets import traits_of
from autoseg.nets.cost import training_cost
from autoseg.schema.plan import Architecture
from tests.nets.real_step import Step, allocated
from tests.nets.zoo import NAMES, SETTINGS, build, label, logits_and_own, members, planned, total

EVERYTHING = members()
# One 2D and one anisotropic 3D member of each, for what does not depend on the shape.
FEW = [
    (name, *planned(name, *SETTINGS[ndim][place]))
    for name in NAMES
    for ndim, place in ((2, 0), (3, 2))
    if ndim in traits_of(name).ndims
]


@pytest.mark.parametrize("member", EVERYTHING, ids=label)
def test_shapes(member):
    patch = member[2]
    network = build(*member)
    x = torch.randn(2, 2, *patch)
    logits, _ = logits_and_own(network, network.train()(x))
    assert logits[0].shape == (2, 3, *patch)
    assert sum(network.output_weights) == pytest.approx(1)
    for output in logits:
        assert output.shape[:2] == (2, 3)
        assert all(length % size == 0 for length, size in zip(patch, output.shape[2:], strict=True))
    with torch.no_grad():
        (final,) = network.eval()(x)
        assert final.shape == (2, 3, *patch)
        assert torch.isfinite(final).all()


@pytest.mark.parametrize("member", FEW, ids=label)
def test_another_size_than_that_of_the_plan(member):
    _, topology, patch = member
    larger = tuple(length + step for length, step in zip(patch, topology.divisor, strict=True))
    with torch.no_grad():
        (final,) = build(*member).eval()(torch.randn(1, 2, *larger))
    assert final.shape == (1, 3, *larger)


@pytest.mark.parametrize("member", EVERYTHING, ids=label)
def test_gradients_reach_every_parameter(member):
    network = build(*member).train()
    total(network, network(torch.randn(2, 2, *member[2]))).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        # A bias in front of a normalisation is taken out again; matrices have no such excuse.
        if parameter.ndim > 1:
            assert parameter.grad.abs().max() > 0, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("member", FEW, ids=label)
def test_samples_of_a_batch_do_not_influence_each_other(member):
    network = build(*member).train()
    x = torch.randn(2, 2, *member[2], requires_grad=True)
    logits, _ = logits_and_own(network, network(x))
    sum(output[0].square().mean() for output in logits).backward()
    assert x.grad[0].abs().max() > 0
    assert x.grad[1].abs().max() == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ndim", [2, 3])
def test_autocast_gives_numbers(name, ndim):
    if ndim not in traits_of(name).ndims:
        return
    # As training does it: widths of the CPU plan, channels last; some kernels read what memory held before.
    topology, patch = planned(name, *SETTINGS[ndim][0], divisor=1)
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[ndim]
    network = build(name, topology, patch).train().to(memory_format=layout)
    images = torch.randn(2, 2, *patch).contiguous(memory_format=layout)
    spoil_free_memory()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(images)
    spoil_free_memory()
    total(network, outputs).backward()
    assert all(torch.isfinite(output).all() for output in outputs)
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


def spoil_free_memory():
    """Leave NaN in freed blocks of many sizes, where the next allocations will find them."""
    for exponent in range(8, 22):
        torch.full((2**exponent,), float("nan"))


@pytest.mark.parametrize("member", FEW, ids=label)
def test_weights_survive_saving(member, tmp_path):
    network = build(*member).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    again = build(*member, seed=1)
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    x = torch.randn(1, 2, *member[2])
    with torch.no_grad():
        assert torch.equal(again.eval()(x)[0], network(x)[0])


@pytest.mark.parametrize("member", FEW, ids=label)
def test_the_trained_network_can_be_exported(member):
    network = build(*member).eval()
    x = torch.randn(1, 2, *member[2])
    with torch.no_grad():
        program = torch.export.export(network, (x,))
        torch.testing.assert_close(program.module()(x)[0], network(x)[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_estimated_memory_is_within_ten_percent_of_what_the_allocator_hands_out(name, ndim, place):
    if ndim not in traits_of(name).ndims:
        with pytest.raises(SettingError, match="spatial axes"):
            build(name, planned("unet", *SETTINGS[ndim][0])[0], SETTINGS[ndim][0][1])
        return
    spacing, patch = SETTINGS[ndim][place]
    topology, patch = planned(name, spacing, [3 * length // 2 for length in patch], divisor=1)
    cost = training_cost(
        Architecture(name=name),
        topology,
        ndim=ndim,
        patch_size=patch,
        batch_size=2,
        in_channels=1,
        num_heads=3,
        with_workspace=False,
    )
    measured = allocated(Step(topology, patch, 2, architecture=Architecture(name=name)))
    assert cost.memory_bytes == pytest.approx(measured, rel=0.1)
