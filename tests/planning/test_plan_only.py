"""One configuration planned alone is the one of the whole plan."""

from dataclasses import replace

import pytest

from autoseg.errors import SettingError
from autoseg.planning import CONFIGURATIONS, make_plan, plan_only
from autoseg.schema.architecture import Traits
from autoseg.schema.settings import PrepareSettings
from tests.planning.examples import MEMORY, peer_cost, spec, uniform

SMALL = uniform((1, 1, 1), (36, 50, 35), 260)
LARGE = uniform((1, 0.7676, 0.7676), (432, 512, 512), 131)
PICTURES = uniform((1, 1, 1), (1, 400, 300), 40)


def everything(measured, *, ndims=(2, 3), cost=peer_cost, **settings):
    return (
        (spec(), measured),
        {
            "settings": PrepareSettings(**{"arch": "unet", **settings}),
            "device": "cuda",
            "memory_bytes": MEMORY,
            "cost": cost,
            "traits_of": lambda name: Traits(ndims=ndims),
        },
    )


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("settings", [{}, {"spacing": (2.0, 1.0, 1.0)}, {"batch_size": 3}])
def test_it_is_that_of_the_whole_plan(name, settings):
    positional, named = everything(LARGE, **settings)
    whole = make_plan(*positional, **named).configuration(name)
    alone = plan_only(name, *positional, **named)
    if name == "3d_fullres":
        whole = replace(whole, batch_dice=alone.batch_dice, why=alone.why)
    assert alone == whole


@pytest.mark.parametrize("measured", [SMALL, LARGE, PICTURES])
@pytest.mark.parametrize("ndims", [(2, 3), (2,), (3,)])
def test_without_a_name_it_is_what_is_trained_when_nobody_chooses(measured, ndims):
    positional, named = everything(measured, ndims=ndims)
    if measured is PICTURES and ndims == (3,):
        with pytest.raises(SettingError, match="more than one slice"):
            plan_only(None, *positional, **named)
        return
    assert plan_only(None, *positional, **named).name == make_plan(*positional, **named).default_configuration


@pytest.mark.parametrize(
    ("measured", "ndims", "name", "words"),
    [
        (PICTURES, (2, 3), "3d_fullres", "the images have one slice"),
        (SMALL, (2,), "3d_fullres", "unet has no meaning in 3D"),
        (SMALL, (3,), "2d", "unet has no meaning in 2D"),
        (SMALL, (2, 3), "3d_lowres", "covers 100% of the median image"),
        (SMALL, (2, 3), "4d", "there is no configuration '4d'"),
    ],
)
def test_what_the_plan_would_not_have_is_refused(measured, ndims, name, words):
    positional, named = everything(measured, ndims=ndims)
    with pytest.raises(SettingError, match=words):
        plan_only(name, *positional, **named)


def test_configurations_that_it_does_not_build_on_are_not_costed():
    asked = []

    def cost(*arguments, ndim, **rest):
        asked.append(ndim)
        return peer_cost(*arguments, ndim=ndim, **rest)

    positional, named = everything(LARGE, cost=cost)
    make_plan(*positional, **named)
    whole, asked[:] = len(asked), []
    plan_only("3d_fullres", *positional, **named)
    assert set(asked) == {3}
    assert len(asked) < whole / 3
