import pytest
import torch
from torch.nn import functional as F

from autoseg.errors import SettingError
from autoseg.nets import build_network
from autoseg.nets.attention_unet import AttentionGate
from autoseg.nets.units import regular_topology
from autoseg.schema.plan import Architecture


def build(stages=3, patch=(16, 24), **arguments):
    torch.manual_seed(0)
    return build_network(
        Architecture(name="attention_unet", arguments=arguments),
        regular_topology([4 * 2**stage for stage in range(stages)], ndim=len(patch)),
        ndim=len(patch),
        in_channels=1,
        num_heads=2,
        patch_size=patch,
    )


def gates_of(network):
    return [module for module in network.modules() if isinstance(module, AttentionGate)]


def test_a_gate_is_equations_1_and_2_of_the_paper():
    torch.manual_seed(0)
    gate = AttentionGate(3, 5, 4, stride=(1, 2, 2), grid=True, normalization="none")
    skip, signal = torch.randn(2, 3, 4, 6, 8), torch.randn(2, 5, 4, 3, 4)
    # A convolution whose kernel is its stride is a matrix on the voxels of a block.
    blocks = skip.reshape(2, 3, 4, 1, 3, 2, 4, 2)
    of_skip = torch.einsum("bczdyexf,icdef->bizyx", blocks, gate.of_skip[0].weight)
    of_signal = torch.einsum("bczyx,ic->bizyx", signal, gate.of_signal[0].weight.flatten(1))
    added = (of_skip + of_signal + gate.of_signal[0].bias[:, None, None, None]).clamp(min=0)
    score = torch.einsum("bizyx,i->bzyx", added, gate.score[0].weight.flatten()) + gate.score[0].bias
    attention = F.interpolate(score.sigmoid()[:, None], (4, 6, 8), mode="trilinear", align_corners=False)
    gated = skip * attention
    expected = torch.einsum("bczyx,dc->bdzyx", gated, gate.project[0].weight.flatten(1))
    expected = expected + gate.project[0].bias[:, None, None, None]
    torch.testing.assert_close(gate.attention(skip, signal), attention)
    torch.testing.assert_close(gate(skip, signal), expected)


@pytest.mark.parametrize("score", [-200.0, 200.0])
def test_a_gate_of_the_port_lets_all_or_nothing_through(score):
    torch.manual_seed(0)
    gate = AttentionGate(3, 5, 4, stride=(1, 1), grid=False, normalization="instance")
    with torch.no_grad():
        gate.score[1].weight.zero_()
        gate.score[1].bias.fill_(score)
    skip = torch.randn(2, 3, 6, 8)
    assert torch.equal(gate(skip, torch.randn(2, 5, 6, 8)), skip if score > 0 else torch.zeros_like(skip))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({}, 4), ({"gates": 1}, 2), ({"gates": 0}, 0), ({"layout": "port"}, 3), ({"stages": 2}, 2), ({"stages": 3}, 2)],
)
def test_which_skips_are_gated(arguments, expected):
    # Two gates on every skip but the finest; of four stages that is two skips, of two stages the only one.
    network = build(**{"stages": 4, "patch": (32, 32), **arguments})
    assert len(gates_of(network)) == expected


def test_a_closed_gate_hides_the_skip():
    """Without norms, closed gates leave the finest skip and what comes from below: the middle map's own way is shut."""
    network = build(normalization="none", supervision="none").eval()
    for gate in gates_of(network):
        torch.nn.init.constant_(gate.score[0].bias, -200.0)
    step, coarse = network.decoder[1], torch.randn(1, 16, 4, 6)
    with torch.no_grad():
        first, second = (step(coarse, torch.randn(1, 8, 8, 12), coarse) for _ in range(2))
        assert torch.equal(first, second)
        for gate in gates_of(network):
            gate.score[0].bias.zero_()
        first, second = (step(coarse, torch.randn(1, 8, 8, 12), coarse) for _ in range(2))
    assert not torch.allclose(first, second)


def test_fused_logits_are_a_mixture_of_all_scales():
    scales, fused = build(supervision="scales").train(), build(supervision="fused").eval()
    missing, unexpected = fused.load_state_dict(scales.state_dict(), strict=False)
    assert (missing, unexpected) == (["fuse.weight", "fuse.bias"], [])
    x = torch.randn(1, 1, 16, 24)
    with torch.no_grad():
        finest, coarse = scales(x)
        mixture = torch.tensor([[0.5, 0, 0, 2], [0, 0.5, 2, 0]])
        fused.fuse.weight.copy_(mixture[..., None, None])
        fused.fuse.bias.copy_(torch.tensor([1.0, -1]))
        (logits,) = fused(x)
        wide = F.interpolate(coarse, scale_factor=2, mode="bilinear")
    expected = 0.5 * finest + 2 * wide.flip(1) + torch.tensor([1.0, -1])[:, None, None]
    torch.testing.assert_close(logits, expected)
    assert len(fused.train()(x)) == len(fused.output_weights) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"layout": "ring"}, "no layout"), ({"supervision": "deep"}, "no supervision"), ({"gates": -1}, "gates")],
)
def test_a_choice_that_does_not_exist(arguments, words):
    with pytest.raises(SettingError, match=words):
        build(**arguments)
