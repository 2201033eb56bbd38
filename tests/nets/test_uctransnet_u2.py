import pytest
import torch
from torch.nn import functional as F

from autoseg.nets import build_network
from autoseg.nets.uctransnet_u2 import DualDown, SmallUNet
from autoseg.schema.plan import Architecture, Topology
from tests.nets.zoo import build as zoo_build
from tests.nets.zoo import planned

FLAT = Topology(strides=((1, 1), (2, 2), (2, 1)), kernels=((3, 3),) * 3, features=(4, 6, 8))
PLAIN_2D = Topology(strides=((1, 1), (2, 2), (2, 2), (2, 2)), kernels=((3, 3),) * 4, features=(4, 4, 4, 4))
PLAIN_3D = Topology(
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)), kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)), features=(4, 4, 4)
)


def build(topology, patch, *, name="uctransnet_u2", channels=1, heads=2, **arguments):
    torch.manual_seed(0)
    return build_network(
        Architecture(name=name, arguments=arguments),
        topology,
        ndim=len(patch),
        in_channels=channels,
        num_heads=heads,
        patch_size=patch,
    )


def reach(branch, shape):
    """Voxels along every axis by which a branch sees, to either side: from the gradient of its central output."""
    for name, parameter in branch.named_parameters():
        # Positive weights and images keep every ReLU open, and no two paths can cancel.
        torch.nn.init.constant_(parameter, 0.1 if name.endswith("weight") else 0.0)
    c_in = branch[0][0].in_channels
    x = torch.ones(1, c_in, *shape, requires_grad=True)
    centre = tuple(size // 2 for size in shape)
    branch(x)[(0, 0, *centre)].backward()
    seen = (x.grad[0, 0] > 0).nonzero()
    return tuple((seen - torch.tensor(centre)).abs().amax(dim=0).tolist())


def test_the_branches_see_two_and_four_voxels_far():
    block = DualDown(3, (2, 5), kernel=(3, 1), stride=(1, 2), dilation=(2, 2), norm_kind="none")
    assert reach(block.ordinary, (21, 21)) == (2, 0)
    assert reach(block.dilated, (21, 21)) == (4, 0)


def test_the_branches_lie_side_by_side_behind_one_pooling():
    torch.manual_seed(0)
    block = DualDown(3, (2, 5), kernel=(3, 3), stride=(1, 2), dilation=(2, 2), norm_kind="none")
    x = torch.randn(2, 3, 8, 10)
    pooled = x.unfold(3, 2, 2).amax(dim=-1)
    result = block(x)
    assert result.shape == (2, 7, 8, 5)
    for branch, dilation, part in ((block.ordinary, 1, result[:, :2]), (block.dilated, 2, result[:, 2:])):
        truth = pooled
        for unit in branch:
            truth = F.conv2d(truth, unit[0].weight, unit[0].bias, padding=dilation, dilation=dilation).relu()
        torch.testing.assert_close(part, truth)


@pytest.mark.parametrize(
    ("topology", "patch", "expected"),
    [
        # 28 x 24, 14 x 12, 7 x 6
        (PLAIN_2D, (56, 48), [(2, 2), (2, 2), (2, 1)]),
        # 24 x 52, 12 x 26, 6 x 13
        (PLAIN_2D, (48, 104), [(2, 2), (2, 2), (1, 2)]),
        # 8 x 16, 4 x 8, 2 x 4
        (PLAIN_2D, (16, 32), [(2, 2), (1, 2), (1, 1)]),
        # 6 x 14 x 12, 3 x 7 x 6
        (PLAIN_3D, (6, 28, 24), [(1, 2, 2), (1, 2, 1)]),
        # 14 x 8 x 14, 7 x 4 x 7
        (PLAIN_3D, (14, 16, 28), [(2, 2, 2), (2, 1, 2)]),
    ],
)
def test_axes_with_fewer_than_seven_voxels_are_not_dilated(topology, patch, expected):
    network = build(topology, patch, norm="none")
    far = (31,) * len(patch)
    for block, dilation in zip(network.encoder[1:], expected, strict=True):
        assert reach(block.dilated, far) == tuple(2 * step for step in dilation)
        assert reach(block.ordinary, far) == (2,) * len(patch)


def test_a_small_unet_keeps_slices_apart_that_neither_kernels_nor_strides_join():
    torch.manual_seed(0)
    block = SmallUNet(3, 4, kernels=((1, 3, 3), (1, 3, 3)), stride=(1, 2, 2), norm_kind="none")
    x = torch.randn(1, 3, 4, 8, 8, requires_grad=True)
    block(x)[:, :, 1].square().sum().backward()
    touched = x.grad.abs().sum(dim=(0, 1, 3, 4)) > 0
    assert touched.tolist() == [False, True, False, False]


def test_a_small_unet_sees_farther_than_the_convolutions_that_it_replaces():
    torch.manual_seed(0)
    block = SmallUNet(1, 4, kernels=((3, 3), (3, 3)), stride=(2, 2), norm_kind="none")
    for name, parameter in block.named_parameters():
        torch.nn.init.constant_(parameter, 0.1 if name.endswith("weight") else 0.0)
    x = torch.rand(1, 1, 40, 40, requires_grad=True)
    block(x)[0, 0, 20, 20].backward()
    seen = (x.grad[0, 0] > 0).nonzero()[:, 0]
    # Two convolutions on either side (4), and between them two on cells of 2: at most 4 + 2 * 2 + 1 from the centre.
    assert 4 < int((seen - 20).abs().max()) <= 9


def test_without_cca_is_with_gates_that_are_open():
    with_cca, without = (build(FLAT, (12, 10), cca=cca).eval() for cca in (True, False))
    assert not len(without.cca)
    for gate in with_cca.cca:
        for parameter in gate.parameters():
            torch.nn.init.zeros_(parameter)
        torch.nn.init.constant_(gate.from_skip.bias, 200)
    shared = {name: value for name, value in with_cca.state_dict().items() if not name.startswith("cca.")}
    without.load_state_dict(shared)
    x = torch.randn(2, 1, 12, 10)
    assert torch.equal(with_cca(x)[0], without(x)[0])


def test_with_the_plain_decoder_only_the_encoder_differs_from_uctransnet():
    ours, theirs = build(FLAT, (12, 10), u2_decoder=False), build(FLAT, (12, 10), name="uctransnet")
    shapes = [
        {name: value.shape for name, value in network.state_dict().items() if not name.startswith("encoder.")}
        for network in (ours, theirs)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("u2_decoder", [True, False])
def test_full_width_doubles_every_skip_but_the_first(u2_decoder):
    topology = Topology(strides=FLAT.strides, kernels=FLAT.kernels, features=(4, 7, 9))
    x = torch.randn(2, 1, 12, 10)
    for half_width, widths in ((True, [4, 7, 9]), (False, [4, 14, 18])):
        network = build(topology, (12, 10), half_width=half_width, u2_decoder=u2_decoder)
        current, found = x, []
        for stage in network.encoder:
            current = stage(current)
            found.append(current.shape[1])
        assert found == widths
        assert network.transformer.layers[0].attention.key.in_features == sum(widths[:-1])
        assert network(x)[0].shape == (2, 2, 12, 10)


def test_a_decoder_step_has_the_kernels_of_the_two_stages_that_it_joins():
    block = build(PLAIN_3D, (6, 28, 24), norm="none").decoder[0]
    assert reach(block.before, (15, 15, 15)) == (0, 2, 2)
    assert reach(block.below[1], (15, 15, 15)) == (2, 2, 2)


def test_no_dilated_convolution_of_the_cpu_plan_has_channels_whose_gradients_are_nan():
    # Seen with torch 2.13 on a CPU: bfloat16, channels last, more than 16 channels that are no multiple of 16.
    topology, patch = planned("uctransnet_u2", (1, 1), (256, 320), divisor=1)
    with torch.device("meta"):
        network = zoo_build("uctransnet_u2", topology, patch)
    dilated = [
        module.in_channels
        for module in network.modules()
        if isinstance(module, torch.nn.Conv2d) and max(module.dilation) > 1
    ]
    assert dilated
    assert all(channels <= 16 or channels % 16 == 0 for channels in dilated)
