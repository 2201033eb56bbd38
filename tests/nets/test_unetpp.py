import pytest
import torch
from torch.nn import functional as F

from autoseg.errors import SettingError
from autoseg.nets import build_network, traits_of
from autoseg.planning.topology import plan_topology
from autoseg.schema.plan import Architecture, Topology


def topology(strides, features, kernels=None):
    kernels = kernels or [[3] * len(strides[0])] * len(strides)
    return Topology(strides=tuple(map(tuple, strides)), kernels=tuple(map(tuple, kernels)), features=tuple(features))


FLAT = topology([[1, 1], [2, 2], [2, 2], [2, 1], [2, 2]], [4, 8, 6, 8, 8])
DEEP = topology(
    [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 2]], [4, 8, 8, 8], [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]]
)
# The authors' 2D code, without the dropout that would make training outputs random.
KERAS = {"norm_kind": "none", "slope": 0.0, "pooling": "max"}
CASES = [(FLAT, (32, 24), {}), (DEEP, (4, 16, 24), {}), (FLAT, (32, 16), KERAS)]
LEVELS = [(case, level) for case in CASES for level in range(1, case[0].num_stages)]


def build(plan, patch, seed=0, **arguments):
    torch.manual_seed(seed)
    return build_network(
        Architecture(name="unetpp", arguments=arguments),
        plan,
        ndim=len(patch),
        in_channels=2,
        num_heads=3,
        patch_size=patch,
    )


def image(patch):
    return torch.randn(2, 2, *patch, generator=torch.Generator().manual_seed(1))


def indices(name):
    """(i, j) of the node that a parameter belongs to, or (0, j) for head j."""
    kind, place = name.split(".")[:2]
    return tuple(map(int, place.split("_"))) if kind == "nodes" else (0, int(place))


@pytest.mark.parametrize(("case", "level"), LEVELS)
def test_a_pruned_network_is_its_head_of_the_full_one_to_the_bit(case, level):
    plan, patch, arguments = case
    full = build(plan, patch, **arguments)
    pruned = build(plan, patch, seed=1, prune=level, **arguments)
    state = full.state_dict()
    pruned.load_state_dict({key: state[key] for key in pruned.state_dict()})
    x = image(patch)
    with torch.no_grad():
        outputs = full.train()(x)
        (training,) = pruned.train()(x)
        (evaluation,) = pruned.eval()(x)
    assert torch.equal(evaluation, outputs[len(outputs) - level])
    assert torch.equal(training, evaluation)
    assert pruned.output_weights == (1.0,)


@pytest.mark.parametrize(("case", "level"), LEVELS)
def test_a_pruned_network_has_the_nodes_of_its_triangle_and_one_head(case, level):
    plan, patch, arguments = case
    pruned = build(plan, patch, prune=level, **arguments)
    triangle = {f"{i}_{j}" for i in range(level + 1) for j in range(level + 1 - i)}
    assert set(pruned.nodes) == triangle
    assert list(pruned.heads) == [str(level)]


@pytest.mark.parametrize(("case", "level"), LEVELS[: FLAT.num_stages + DEEP.num_stages - 2])
def test_the_loss_of_a_head_reaches_the_nodes_it_needs_and_no_others(case, level):
    plan, patch, arguments = case
    network = build(plan, patch, **arguments).train()
    outputs = network(image(patch))
    outputs[len(outputs) - level].square().mean().backward()
    for name, parameter in network.named_parameters():
        i, j = indices(name)
        needed = i + j <= level if name.startswith("nodes") else j == level
        assert (parameter.grad is not None) == needed, name
        # Instance normalisation takes a bias before it out again; weights have no such excuse.
        if needed and parameter.ndim > 1:
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(("plan", "patch", "arguments"), CASES)
def test_evaluation_is_the_mean_of_all_heads(plan, patch, arguments):
    network = build(plan, patch, **arguments)
    with torch.no_grad():
        outputs = network.train()(image(patch))
        (final,) = network.eval()(image(patch))
    assert len(outputs) == plan.num_stages - 1
    assert all(output.shape == (2, 3, *patch) for output in outputs)
    torch.testing.assert_close(final, torch.stack(outputs).mean(0))
    assert len(set(network.output_weights)) == 1


def test_without_deep_supervision_only_the_last_head_remains():
    full = build(FLAT, (32, 24))
    single = build(FLAT, (32, 24), seed=1, deep_supervision=False)
    state = full.state_dict()
    single.load_state_dict({key: state[key] for key in single.state_dict()})
    with torch.no_grad():
        (final,) = single.eval()(image((32, 24)))
        assert torch.equal(final, full.train()(image((32, 24)))[0])
    assert state.keys() - single.state_dict().keys() == {
        f"heads.{j}.{kind}" for j in (1, 2, 3) for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("arguments", [KERAS, {}])
def test_nodes_follow_the_equation_of_the_paper(arguments):
    """X(i, j) by recursion with torch's functions, in place of the diagonals of the network."""
    plan, patch = topology([[1, 1], [2, 2], [2, 2], [2, 1]], [4, 6, 8, 8]), (16, 24)
    network = build(plan, patch, **arguments).train()
    state, pools = network.state_dict(), arguments.get("pooling") == "max"

    def blocks(x, key, stride):
        convolutions = sorted(
            name for name in state if name.startswith(f"nodes.{key}.blocks") and state[name].ndim == 4
        )
        assert len(convolutions) == 2
        for place, name in enumerate(convolutions):
            x = F.conv2d(x, state[name], state[name.replace("weight", "bias")], stride if place == 0 else 1, padding=1)
            x = F.relu(x) if arguments else F.leaky_relu(F.instance_norm(x), 0.01)
        return x

    def node(i, j):
        if j == 0 and i == 0:
            return blocks(image(patch), "0_0", 1)
        if j == 0:
            above = node(i - 1, 0)
            pooled = F.max_pool2d(above, plan.strides[i]) if pools else above
            return blocks(pooled, f"{i}_0", 1 if pools else plan.strides[i])
        up, bias = state[f"nodes.{i}_{j}.up.weight"], state[f"nodes.{i}_{j}.up.bias"]
        raised = F.conv_transpose2d(node(i + 1, j - 1), up, bias, plan.strides[i + 1])
        return blocks(torch.cat([raised, *(node(i, k) for k in range(j))], 1), f"{i}_{j}", 1)

    with torch.no_grad():
        for j, output in zip((3, 2, 1), network(image(patch)), strict=True):
            expected = F.conv2d(node(0, j), state[f"heads.{j}.weight"], state[f"heads.{j}.bias"])
            torch.testing.assert_close(output, expected)


def test_convolutions_start_as_he_says():
    network = build(topology([[1, 1], [2, 2]], [16, 32]), (32, 24))
    for name, weight in network.named_parameters():
        if "blocks" in name and weight.numel() > 4000:
            assert weight.std().item() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.1)


def test_the_planner_gives_five_stages_at_most():
    plan, _ = plan_topology((1, 1), (512, 512), traits_of("unetpp"), base_width=8)
    assert plan.num_stages == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prune": 0}, "pruned to head 0"),
        ({"prune": 5}, "pruned to head 5"),
        ({"prune": -1}, "pruned"),
        ({"pooling": "mean"}, "pooling"),
        ({"norm_kind": "layer"}, "normalisation"),
    ],
)
def test_what_is_not_offered_is_a_setting_error(arguments, words):
    with pytest.raises(SettingError, match=words):
        build(FLAT, (32, 24), **arguments)


def test_pruning_keeps_the_divisor_of_the_full_network():
    with pytest.raises(SettingError, match="multiple"):
        build(FLAT, (24, 24), prune=1)
