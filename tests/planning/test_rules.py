"""Single rules."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from autoseg.planning import make_plan, mirror_axes
from autoseg.planning.batch import largest_batch
from autoseg.planning.budget import usable_memory
from autoseg.planning.mirroring import sided_labels
from autoseg.planning.normalization import choose_normalization
from autoseg.planning.patch import candidates, first_fitting
from autoseg.planning.spacing import target_spacing
from autoseg.planning.topology import plan_topology
from autoseg.schema.architecture import Traits
from autoseg.schema.dataset import Label, Labels
from autoseg.schema.settings import PrepareSettings
from tests.planning.examples import fingerprint, intensities, peer_cost, spec, uniform

CONVOLUTIONAL = Traits()
BYTES = (intensities(low=5.0, high=250.0),) * 3


def schemes(*names, crop=1.0, pooled=None):
    measured = uniform((1, 1, 1), (40, 40, 40), 3, channels=len(names), crop=crop, pooled=pooled)
    chosen, why = choose_normalization(names, measured)
    assert why
    return [item.scheme for item in chosen]


def test_normalisation_goes_by_name():
    assert schemes("CT", "T1", "noNorm", "rescale_to_0_1", "rgb_to_0_1", "zscore", "grey") == [
        "ct",
        "zscore",
        "none",
        "rescale_0_1",
        "rgb_0_1",
        "zscore",
        "zscore",
    ]


@pytest.mark.parametrize("names", [("R", "G", "B"), ("red", "Green", "BLUE"), ("B", "G", "R")])
def test_colours_are_known_by_their_names(names):
    assert schemes(*names, pooled=BYTES) == ["rgb_0_1"] * 3
    # Values above 255 are no colours of a picture.
    assert schemes(*names) == ["zscore"] * 3


def test_other_pictures_are_zscored_as_in_nnunet():
    assert schemes("grey", pooled=BYTES[:1]) == ["zscore"]
    assert schemes("R", "G", pooled=BYTES[:2]) == ["zscore"] * 2


def test_zscore_is_masked_where_cropping_takes_more_than_a_quarter():
    assert schemes("T1", "CT", crop=0.7) == ["zscore_masked", "ct"]
    assert schemes("T1", crop=0.8) == ["zscore"]


def test_ct_without_foreground_has_no_statistics_to_use():
    assert schemes("CT", pooled=(intensities(mean=math.nan, count=0),)) == ["zscore"]


def test_target_spacing_is_the_median():
    spacing, _ = target_spacing(fingerprint([(1, 2, 3), (2, 2, 3), (9, 2, 4)], [(50, 50, 50)] * 3))
    assert spacing == (2.0, 2.0, 3.0)


def test_a_coarse_axis_takes_its_tenth_percentile():
    coarse = [3.0, 5.0, 5.0, 5.0, 5.0, 5.0]
    measured = fingerprint([(z, 0.5, 0.5) for z in coarse], [(20, 300, 300)] * 6)
    spacing, why = target_spacing(measured)
    assert spacing == pytest.approx((np.percentile(coarse, 10), 0.5, 0.5))
    assert "10th percentile" in why
    # Many slices: not coarse by the second condition.
    assert target_spacing(fingerprint([(5, 0.5, 0.5)] * 3, [(120, 300, 300)] * 3))[0] == (5.0, 0.5, 0.5)


def test_a_coarse_axis_does_not_become_finer_than_the_others():
    measured = fingerprint([(z, 1, 1) for z in (0.2, 0.2, 4, 4, 4, 4)], [(20, 300, 300)] * 6)
    spacing, _ = target_spacing(measured)
    assert 1 < spacing[0] < 1.001


def test_topology_of_an_isotropic_patch():
    topology, padded = plan_topology((1, 1, 1), (36, 50, 35), CONVOLUTIONAL, base_width=32)
    assert padded == (40, 56, 40)
    assert topology.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert topology.features == (32, 64, 128, 256)


@pytest.mark.parametrize("patch", [(128, 128, 128), (5, 64, 300), (17, 33, 65), (1, 8, 8), (12, 1, 1), (11, 1, 1)])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (5, 1, 1), (1, 1, 3), (2.5, 0.7, 0.9)])
def test_any_topology_divides_its_patch_and_leaves_edges(patch, spacing):
    topology, padded = plan_topology(spacing, patch, CONVOLUTIONAL, base_width=32)
    for axis in range(3):
        assert padded[axis] % topology.divisor[axis] == 0
        assert 0 <= padded[axis] - patch[axis] < topology.divisor[axis]
        assert topology.divisor[axis] == 1 or padded[axis] // topology.divisor[axis] >= 4
    assert topology.kernels[-1] == (3, 3, 3)


@pytest.mark.parametrize("median", [(432.5, 512, 512), (20, 320, 320), (9.5, 256, 216), (5, 5, 5), (2, 40, 40)])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (3.6, 0.62, 0.62)])
def test_candidates_shrink_step_by_step(median, spacing):
    options = candidates(spacing, median, CONVOLUTIONAL, base_width=32)
    for larger, smaller in pairwise(options):
        assert smaller.voxels < larger.voxels
        assert all(s <= b for s, b in zip(smaller.patch, larger.patch, strict=True))
    assert all(option.topology.num_stages >= 2 for option in options)


def test_the_search_finds_what_looking_at_every_candidate_finds():
    options = candidates((1, 0.8, 0.8), (400, 512, 512), CONVOLUTIONAL, base_width=32)
    looked = []

    def memory(option):
        looked.append(option)
        return 10**8 + 1500 * option.voxels + 10**6 * option.topology.num_stages

    for budget in (10**8, 3 * 10**8, 10**9, 4 * 10**9, 10**12):
        looked.clear()
        expected = next((option for option in options if memory(option) <= budget), None)
        looked.clear()
        assert first_fitting(options, memory, budget) == expected
        assert len(looked) <= 10


@pytest.mark.parametrize("limit", [2, 3, 10, 500])
@pytest.mark.parametrize("budget", [0, 250, 1000, 1037, 10**6])
def test_the_largest_batch_is_found(limit, budget):
    def memory(batch):
        return 100 + 55 * batch + 3 * (batch % 2)

    expected = max([2, *(batch for batch in range(2, limit + 1) if memory(batch) <= budget)])
    assert largest_batch(memory, budget, limit) == expected


def test_the_reserve_grows_with_the_memory_but_never_takes_all():
    for device in ("cpu", "cuda"):
        usable = [usable_memory(device, memory) for memory in (10**8, 10**9, 8 * 10**9, 80 * 10**9)]
        assert usable == sorted(usable)
        assert all(0 < part < whole for part, whole in zip(usable, (10**8, 10**9, 8 * 10**9, 80 * 10**9), strict=True))


def labels(*names):
    return Labels(foreground=tuple(Label(name=name, values=(i,)) for i, name in enumerate(names, start=1)))


@pytest.mark.parametrize(
    ("names", "sided"),
    [
        (("left kidney", "right kidney", "liver"), ("left kidney", "right kidney")),
        (("LeftParotid", "RightParotid", "Brainstem"), ("LeftParotid", "RightParotid")),
        (("parotid_l", "parotid_r"), ("parotid_l", "parotid_r")),
        (("Parotid_L", "Parotid_R", "Cord"), ("Parotid_L", "Parotid_R")),
        (("LKidney", "RKidney"), ("LKidney", "RKidney")),
        (("Niere links", "Niere rechts"), ("Niere links", "Niere rechts")),
        (("leftlung", "rightlung"), ("leftlung", "rightlung")),
        (("ctx-lh-cuneus", "ctx-rh-cuneus"), ("ctx-lh-cuneus", "ctx-rh-cuneus")),
        (("lung_left", "lung_lower_lobe_right"), ("lung_left", "lung_lower_lobe_right")),
        (("left_atrium",), ("left_atrium",)),
        (("vertebra_L", "disc_R"), ()),
        (("vertebra_L1", "vertebra_L2"), ()),
        (("Anterior", "Posterior"), ()),
        (("bright lesion", "cleft", "liver"), ()),
        (("tumour", "edema"), ()),
    ],
)
def test_sides_are_read_from_names(names, sided):
    assert sided_labels(labels(*names)) == sided


def made(names, *, spacing=(3, 1, 1), shape=(40, 90, 80)):
    dataset = replace(spec(), labels=labels(*names))
    measured = uniform(spacing, shape, 20)
    return make_plan(
        dataset,
        measured,
        settings=PrepareSettings(),
        device="cuda",
        memory_bytes=8 * 10**9,
        cost=peer_cost,
        traits_of=lambda _: Traits(),
    )


def test_the_left_right_axis_is_not_mirrored():
    plan = made(("left", "right"))
    axes, reason = mirror_axes(plan, plan.configuration("3d_fullres"))
    assert axes == (0, 1)
    assert "left" in reason
    assert mirror_axes(plan, plan.configuration("2d"))[0] == (0,)
    neutral = made(("liver",))
    assert mirror_axes(neutral, neutral.configuration("3d_fullres")) == ((0, 1, 2), "")


def test_the_left_right_axis_is_followed_through_the_transposition():
    # Sagittal slices: x is coarsest and becomes axis 0, so slices hold no left and right.
    plan = made(("left", "right"), spacing=(1, 1, 3), shape=(80, 90, 40))
    assert plan.transpose == (2, 0, 1)
    assert mirror_axes(plan, plan.configuration("3d_fullres"))[0] == (1, 2)
    assert mirror_axes(plan, plan.configuration("2d"))[0] == (0, 1)
    # Coronal slices: y first, x stays last.
    plan = made(("left", "right"), spacing=(1, 3, 1), shape=(80, 40, 90))
    assert plan.transpose == (1, 0, 2)
    assert mirror_axes(plan, plan.configuration("3d_fullres"))[0] == (0, 1)
