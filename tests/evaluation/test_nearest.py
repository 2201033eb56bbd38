from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from autoseg.evaluation import nearest as module
from autoseg.evaluation.nearest import Voxels, distances_to_nearest, neighbourhood

SPACING = (5.0, 0.3, 0.9)


def framed(mask: np.ndarray) -> tuple[Voxels, module.Neighbourhood]:
    near = neighbourhood(SPACING, mask.shape)
    return Voxels.of(np.pad(mask, [(margin, margin) for margin in near.margins])), near


@pytest.mark.parametrize("pairs_at_once", [1, 1000, 1 << 14])
@pytest.mark.parametrize("search", [module._by_pairs, module._by_tree, module._by_transform])
def test_every_search_gives_the_distances_of_a_transform(
    search: Callable[..., np.ndarray], pairs_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAIRS_AT_ONCE", pairs_at_once)
    rng = np.random.default_rng(1)
    source, target = rng.random((2, 12, 13, 14)) < 0.05
    expected = distance_transform_edt(~target, sampling=SPACING)[source]
    np.testing.assert_allclose(search(np.flatnonzero(source), Voxels.of(target), SPACING), expected, rtol=1e-12)


@pytest.mark.parametrize(("pairs", "voxels_per_query"), [(1 << 21, 16), (0, 0), (0, 1 << 20)])
@pytest.mark.parametrize("lookups", [64, 1 << 17])
def test_far_voxels_are_found_by_each_way(
    pairs: int, voxels_per_query: int, lookups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAIRS", pairs)
    monkeypatch.setattr(module, "_VOXELS_PER_QUERY", voxels_per_query)
    monkeypatch.setattr(module, "_LOOKUPS", lookups)
    rng = np.random.default_rng(2)
    source, target = np.zeros((2, 10, 40, 30), bool)
    source[rng.random(source.shape) < 0.02] = True
    target[:2, :9, :8] = rng.random((2, 9, 8)) < 0.3
    (first, near), (second, _) = framed(source), framed(target)
    expected = distance_transform_edt(~target, sampling=SPACING)[source]
    assert expected.max() > 4 * 10 * min(SPACING) > 4 * expected.min()
    np.testing.assert_allclose(distances_to_nearest(first, second, near), expected, rtol=1e-12)


def test_without_a_target_all_distances_are_infinite() -> None:
    mask = np.zeros((3, 4, 5), bool)
    mask[1, 2, 2:4] = True
    (some, near), (none, _) = framed(mask), framed(np.zeros_like(mask))
    assert distances_to_nearest(some, none, near).tolist() == [np.inf, np.inf]
    assert distances_to_nearest(none, some, near).size == 0
