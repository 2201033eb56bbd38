"""Normalisation schemes by their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from autoseg.errors import DatasetError, SettingError
from autoseg.ops.normalize import normalize
from autoseg.schema.plan import Normalization


def one(values: np.ndarray, scheme: str, mask: np.ndarray | None = None, **numbers: float) -> np.ndarray:
    return normalize(values[None], [Normalization(scheme=scheme, **numbers)], mask)[0]


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 3000, (4, 5, 6)).astype(np.int16)


def test_ct_clips_then_uses_the_numbers_of_the_dataset(values: np.ndarray) -> None:
    result = one(values, "ct", mean=40.0, std=80.0, lower=-200.0, upper=300.0)
    np.testing.assert_allclose(result, (np.clip(values, -200.0, 300.0) - 40) / 80, rtol=1e-6)
    assert result.dtype == np.float32


def test_zscore_centres_and_scales_each_channel(values: np.ndarray) -> None:
    image = np.stack([values, values * 2 + 7])
    result = normalize(image, [Normalization(scheme="zscore")] * 2)
    np.testing.assert_allclose(result[0], (values - values.mean()) / values.std(), atol=1e-5)
    np.testing.assert_allclose(result[0], result[1], atol=1e-5)


def test_zscore_is_exact_far_from_zero() -> None:
    values = 20000 + np.random.default_rng(1).integers(0, 4, (64, 64, 64)).astype(np.uint16)
    expected = (values - values.mean()) / values.std()
    np.testing.assert_allclose(one(values, "zscore"), expected, atol=2e-3)


def test_masked_zscore_leaves_the_outside_alone(values: np.ndarray) -> None:
    mask = np.random.default_rng(2).random(values.shape) < 0.4
    image = np.where(mask, values, 0)
    result = one(image, "zscore_masked", mask)
    inside = values[mask]
    np.testing.assert_allclose(result[mask], (inside - inside.mean()) / inside.std(), atol=1e-5)
    assert not result[~mask].any()


def test_masked_zscore_of_an_empty_mask_changes_nothing(values: np.ndarray) -> None:
    np.testing.assert_array_equal(one(values, "zscore_masked", np.zeros(values.shape, dtype=bool)), values)


def test_rescaling_and_rgb(values: np.ndarray) -> None:
    spread = float(values.max()) - float(values.min())
    np.testing.assert_allclose(one(values, "rescale_0_1"), (values - float(values.min())) / spread, rtol=1e-5)
    bytes_ = (values % 256).astype(np.uint8)
    np.testing.assert_allclose(one(bytes_, "rgb_0_1"), bytes_ / 255, rtol=1e-6)
    np.testing.assert_array_equal(one(values, "none"), values)


@pytest.mark.parametrize("scheme", ["zscore", "rescale_0_1"])
def test_a_constant_channel_becomes_zero(scheme: str) -> None:
    assert not one(np.full((3, 3, 3), 7.0), scheme).any()


def test_the_input_stays_as_it_was() -> None:
    image = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    before = image.copy()
    normalize(image, [Normalization(scheme="zscore")])
    np.testing.assert_array_equal(image, before)


def test_rgb_outside_a_byte_names_the_range(values: np.ndarray) -> None:
    with pytest.raises(DatasetError, match="outside 0 to 255"):
        one(values, "rgb_0_1")


def test_unknown_schemes_and_missing_channels_are_settings_errors(values: np.ndarray) -> None:
    with pytest.raises(SettingError, match="'median'"):
        one(values, "median")
    with pytest.raises(SettingError, match="2 channels, the image has 1"):
        normalize(values[None], [Normalization(scheme="none")] * 2)


def test_masked_zscore_needs_a_mask(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="mask"):
        one(values, "zscore_masked")
