"""The published size of every network, to the integer."""

import pytest
import torch

from autoseg.nets import NETS, build_paper_mode, paper_modes_of

MODES = [(name, mode) for name in NETS.names() for mode in paper_modes_of(name)]
NORMS = (
    torch.nn.modules.batchnorm._BatchNorm,
    torch.nn.modules.instancenorm._InstanceNorm,
    torch.nn.GroupNorm,
    torch.nn.LayerNorm,
)


def count(network, counted):
    parameters = sum(parameter.numel() for parameter in network.parameters())
    if counted == "stored":
        # Running mean and variance, which Keras counts; the number of batches seen is no weight.
        return parameters + sum(
            tensor.numel() for name, tensor in network.named_buffers() if name.endswith(("running_mean", "running_var"))
        )
    if counted == "without norms":
        norms = [module for module in network.modules() if isinstance(module, NORMS)]
        return parameters - sum(parameter.numel() for norm in norms for parameter in norm.parameters())
    assert counted == "parameters"
    return parameters


@pytest.mark.parametrize(("name", "mode"), MODES, ids=[f"{name}: {mode.name}" for name, mode in MODES])
def test_the_published_size_is_hit_exactly(name, mode):
    with torch.device("meta"):
        network = build_paper_mode(name, mode)
        x = torch.empty(1, mode.in_channels, *mode.patch_size)
        (logits,) = network.eval()(x)
    assert count(network, mode.counted) == mode.parameters
    assert logits.shape == (1, mode.num_heads, *mode.patch_size)


@pytest.mark.parametrize("name", NETS.names())
def test_every_network_of_ours_has_a_published_setting(name):
    assert paper_modes_of(name)
