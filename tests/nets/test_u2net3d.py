import copy

import pytest
import torch
from torch.nn import functional as F

from autoseg.errors import SettingError
from autoseg.nets import build_network
from autoseg.nets.u2net3d import U2Net3D, UniversalU2Net, adapt
from autoseg.schema.plan import Architecture, Topology

SLOPE = 0.01


def topology(strides, features, kernels=None):
    kernels = kernels or [[3] * len(strides[0])] * len(strides)
    return Topology(strides=tuple(map(tuple, strides)), kernels=tuple(map(tuple, kernels)), features=tuple(features))


def build(plan, patch, *, channels=1, heads=2, seed=0):
    torch.manual_seed(seed)
    return build_network(
        Architecture(name="u2net3d"),
        plan,
        ndim=len(patch),
        in_channels=channels,
        num_heads=heads,
        patch_size=patch,
    )


ISOTROPIC = topology([[1, 1, 1], [2, 2, 2], [2, 2, 2]], [4, 8, 16])
ANISOTROPIC = topology([[1, 1, 1], [1, 2, 2], [2, 2, 1]], [4, 8, 16], [[1, 3, 3], [1, 3, 3], [3, 3, 3]])
FLAT = topology([[1, 1], [2, 2], [2, 2]], [4, 8, 16])
CUBE, SLAB = (8, 8, 8), (6, 16, 8)


def two_domains():
    """A CT-like domain of one channel and an anisotropic one with two channels and three heads."""
    return UniversalU2Net([build(ISOTROPIC, CUBE), build(ANISOTROPIC, SLAB, channels=2, heads=3, seed=1)])


def images(domain, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, domain + 1, *(CUBE, SLAB)[domain], generator=generator)


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def snapshot(parameters):
    return [parameter.detach().clone() for parameter in parameters]


# The tasks of the Medical Segmentation Decathlon that the paper trains jointly (tumours belong to their organs), with
# channels and classes; of the released code the measured size for one task is 5,998,430 and for five 6,577,460.
TASKS = {"heart": (1, 2), "liver": (1, 2), "hippocampus": (1, 3), "prostate": (2, 3), "pancreas": (1, 2)}
PAPER = U2Net3D.paper_modes[0]


def paper_networks(number):
    with torch.device("meta"):
        return [
            build(PAPER.topology, PAPER.patch_size, channels=channels, heads=heads)
            for channels, heads in list(TASKS.values())[:number]
        ]


@pytest.mark.parametrize(
    ("number", "expected"), [(1, 5_998_430), (2, 6_143_020), (3, 6_287_729), (4, 6_432_870), (5, 6_577_460)]
)
def test_size_of_the_universal_network_is_that_of_the_paper(number, expected):
    assert count(UniversalU2Net(paper_networks(number)).parameters()) == expected


def test_adapters_are_a_small_share_and_strided_convolutions_most_of_the_rest():
    network = UniversalU2Net(paper_networks(5))
    shared, adapter = count(network.shared_parameters()), count(network.adapter_parameters(0))
    assert (shared, adapter) == (5_853_840, 144_590)
    total = count(network.parameters())
    assert shared + sum(count(network.adapter_parameters(domain)) for domain in range(5)) == total
    # Five separate networks of full convolutions have 134,508,692 parameters, measured with the released code.
    assert total / 134_508_692 == pytest.approx(0.049, abs=5e-4)
    strided = sum(weight.numel() for weight in network.shared_parameters() if weight.shape[2:] == (3, 3, 3))
    assert (total - strided) / 134_508_692 == pytest.approx(0.014, abs=5e-4)


def test_multiplications_are_those_of_the_released_code():
    from torch.utils.flop_counter import FlopCounterMode

    (network,) = paper_networks(1)
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 1, *PAPER.patch_size, device="meta"))
    assert counter.get_total_flops() / 2 == pytest.approx(23.8e9, rel=0.002)


@pytest.mark.parametrize(("bias", "slope"), [(100.0, 1.0), (-100.0, SLOPE)])
def test_a_unit_is_a_full_convolution_of_rank_one_per_pair_of_channels(bias, slope):
    network = build(ANISOTROPIC, SLAB, channels=2)
    unit, pointwise = network.adapter.decoder[0].units[0], network.shared.decoder[0][0]
    unit.inner_norm = unit.outer_norm = torch.nn.Identity()
    with torch.no_grad():
        # So large a bias that the activation between the two is linear; it comes out as a constant.
        unit.depthwise.bias.fill_(bias)
    x = torch.randn(1, 8, 5, 7, 6)
    kernel = slope * pointwise.weight * unit.depthwise.weight.squeeze(1)[None]
    constant = pointwise.bias + slope * bias * pointwise.weight.sum(dim=(1, 2, 3, 4))
    expected = F.conv3d(x, kernel, constant, padding=(0, 1, 1))
    torch.testing.assert_close(unit(x, pointwise), expected, rtol=1e-4, atol=1e-3)


def test_one_strided_convolution_serves_every_stride():
    # Zeros come after the data where the stride is 2, so that a window starts at every second voxel; with stride 1
    # it is centred. Hence a strided output is every second one of the dense output, from the second on.
    down = build(ISOTROPIC, CUBE).shared.down[0]
    x = torch.randn(2, 4, 6, 8, 10)
    dense = down(x, (1, 1, 1))
    assert dense.shape == (2, 8, 6, 8, 10)
    torch.testing.assert_close(down(x, (2, 2, 2)), dense[:, :, 1::2, 1::2, 1::2])
    torch.testing.assert_close(down(x, (1, 2, 1)), dense[:, :, :, 1::2])


def test_a_stage_whose_last_norm_is_zero_passes_its_input():
    network = build(ISOTROPIC, CUBE)
    stage = network.adapter.encoder[0]
    torch.nn.init.zeros_(stage.units[-1].outer_norm.weight)
    x = torch.randn(1, 4, 8, 8, 8)
    torch.testing.assert_close(stage(x.clone(), None, network.shared.encoder[0]), F.leaky_relu(x, SLOPE))


def test_coarse_logits_are_added_to_the_fine_ones():
    network = build(topology([[1, 1]] + [[2, 2]] * 4, [4] * 5), (64, 32), heads=3)
    fine, middle, coarse = network.adapter.heads
    offsets = torch.tensor([[3.0, 0.5, 0.25], [2.0, -1.0, 1.0], [-4.0, 1.0, 0.0]])
    with torch.no_grad():
        fine.weight.zero_()
        fine.bias.copy_(offsets[0])
        for head, offset in ((middle, offsets[1]), (coarse, offsets[2])):
            head[1].weight.zero_()
            head[1].bias.copy_(offset)
    (logits,) = network(torch.randn(2, 1, 64, 32))
    expected = offsets[0] + F.leaky_relu(offsets[1:], SLOPE).sum(0)
    assert network.output_weights == (1.0,)
    torch.testing.assert_close(logits, expected[None, :, None, None].expand(2, 3, 64, 32))


@pytest.mark.parametrize(("stages", "supervised"), [(2, 0), (3, 1), (4, 2), (6, 2)])
def test_supervision_reaches_as_far_as_there_are_steps(stages, supervised):
    network = build(topology([[1, 1]] + [[2, 2]] * (stages - 1), [4] * stages), (64, 64))
    assert len(network.adapter.heads) == 1 + supervised


def test_domains_share_weights_and_each_alone_gives_the_same_output(tmp_path):
    network = two_domains()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for domain in (0, 1):
        optimizer.zero_grad()
        network(images(domain), domain)[0].square().mean().backward()
        optimizer.step()
    network.eval()
    assert network.domains[0].shared is network.domains[1].shared
    for domain, plan, patch, channels, heads in ((0, ISOTROPIC, CUBE, 1, 2), (1, ANISOTROPIC, SLAB, 2, 3)):
        torch.save(network.domains[domain].state_dict(), tmp_path / "model.pt")
        alone = build(plan, patch, channels=channels, heads=heads, seed=5).eval()
        alone.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
        x = images(domain)
        (expected,) = network(x, domain)
        assert expected.shape == (1, heads, *patch)
        assert torch.equal(alone(x)[0], expected)


def test_a_step_on_one_domain_leaves_the_other_adapter_alone():
    network = two_domains().train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2, weight_decay=5e-4)
    adapters = [snapshot(network.adapter_parameters(domain)) for domain in (0, 1)]
    shared = snapshot(network.shared_parameters())
    network(images(0), 0)[0].square().mean().backward()
    assert all(parameter.grad is None for parameter in network.adapter_parameters(1))
    assert all(parameter.grad is not None for parameter in network.adapter_parameters(0))
    optimizer.step()
    assert same(network.adapter_parameters(1), adapters[1])
    assert not same(network.adapter_parameters(0), adapters[0])
    assert not same(network.shared_parameters(), shared)


def test_shared_weights_get_the_sum_of_both_domains_gradients():
    network = two_domains().train()
    parts = []
    for domains in ((0,), (1,), (0, 1)):
        network.zero_grad()
        sum(network(images(domain), domain)[0].square().mean() for domain in domains).backward()
        parts.append([parameter.grad.clone() for parameter in network.shared_parameters()])
    for first, second, both in zip(*parts, strict=True):
        torch.testing.assert_close(both, first + second)
        if both.ndim > 1:
            assert first.abs().max() > 0
            assert second.abs().max() > 0


def on_meta():
    with torch.device("meta"):
        return two_domains()


@pytest.mark.parametrize(
    "change",
    [
        copy.deepcopy,
        lambda network: network.double(),
        lambda network: on_meta().to_empty(device="cpu"),
        lambda network: network.load_state_dict(two_domains().state_dict()) and network,
    ],
    ids=["copied", "converted", "materialised", "loaded"],
)
def test_weights_stay_shared(change):
    network = two_domains()
    size = count(network.parameters())
    changed = change(network)
    assert count(changed.parameters()) == size
    own = [{id(parameter) for parameter in domain.parameters()} for domain in changed.domains]
    assert own[0] & own[1] == {id(parameter) for parameter in changed.shared_parameters()}


def squares(number):
    """Noisy 2D images of one bright square each, and where it is."""
    generator = torch.Generator().manual_seed(number)
    target = torch.zeros(number, 32, 32, dtype=torch.long)
    for image in target:
        row, column = torch.randint(2, 18, (2,), generator=generator).tolist()
        image[row : row + 12, column : column + 12] = 1
    return target[:, None] + 0.5 * torch.randn(number, 1, 32, 32, generator=generator), target


def test_a_new_domain_learns_on_frozen_shared_weights():
    plan = topology([[1, 1], [2, 2], [2, 2]], [8, 16, 32])
    known = UniversalU2Net([build(plan, (32, 32)), build(plan, (32, 32), channels=3, seed=1)])
    before = snapshot(known.parameters())
    new = adapt(known.domains[1], topology=plan, in_channels=1, num_heads=2, patch_size=(32, 32))
    trained = [parameter for parameter in new.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in new.adapter.parameters()}
    assert all(parameter.requires_grad for parameter in known.parameters())
    optimizer = torch.optim.Adam(new.parameters(), lr=1e-2, weight_decay=5e-4)
    x, target = squares(4)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(new.train()(x)[0], target).backward()
        optimizer.step()
    found = new.eval()(x)[0].argmax(1)
    assert 2 * (found * target).sum() / (found.sum() + target.sum()) > 0.95
    assert same(known.parameters(), before)
    assert same(new.shared.parameters(), known.shared_parameters())


def test_a_new_domain_of_the_papers_size_trains_a_fortieth_of_the_network():
    (network,) = paper_networks(1)
    with torch.device("meta"):
        new = adapt(network, topology=PAPER.topology, in_channels=1, num_heads=2, patch_size=PAPER.patch_size)
    trained = count(parameter for parameter in new.parameters() if parameter.requires_grad)
    assert (trained, count(new.parameters())) == (144_590, 5_998_430)


WIDER = topology([[1, 1, 1], [2, 2, 2], [2, 2, 2]], [4, 8, 8])
DEEPER = topology([[1, 1, 1], [2, 2, 2], [1, 2, 2], [1, 2, 1]], [4, 8, 16, 16])


@pytest.mark.parametrize(
    ("plan", "patch", "words"),
    [(WIDER, CUBE, "widths"), (DEEPER, (8, 8, 16), "4 stages"), (FLAT, (8, 8), "2 spatial axes")],
)
def test_domains_that_cannot_share_are_a_setting_error(plan, patch, words):
    known = build(ISOTROPIC, CUBE)
    with pytest.raises(SettingError, match=words) as caught:
        UniversalU2Net([known, build(plan, patch)])
    assert caught.value.hint
    with pytest.raises(SettingError, match=words):
        adapt(known, topology=plan, in_channels=1, num_heads=2, patch_size=patch)


def test_a_universal_network_needs_networks_of_their_own():
    known = build(ISOTROPIC, CUBE)
    with pytest.raises(SettingError, match="at least one"):
        UniversalU2Net([])
    with pytest.raises(SettingError, match="domain 2 is given twice"):
        UniversalU2Net([build(ISOTROPIC, CUBE), known, known])
