"""Each intensity transform against scipy, a formula, or what it must keep; and who is touched at all."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from autoseg.augment import Policy, apply_intensity, draw_intensity
from autoseg.augment.intensity import apply_gamma, blur, brighten, lose_resolution, stretch_contrast

RECIPE = Policy(ndim=3, rotation=(30.0, 30.0, 30.0), dummy_2d=False, mirror_axes=())
CHANCES = {field.name: 0.0 for field in fields(Policy) if field.name.startswith("p_")}
NOTHING = replace(RECIPE, **CHANCES)
EVERYTHING = replace(RECIPE, **dict.fromkeys(CHANCES, 1.0))


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(2.0, 3.0, size=shape).astype(np.float32))


def generators(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, sample]) for sample in range(count)]


def test_nothing_drawn_changes_nothing() -> None:
    image = rows(2, 3, 8, 9, 7)
    assert torch.equal(apply_intensity(image.clone(), NOTHING, generators(2)), image)


def test_the_image_is_changed_in_place() -> None:
    image = rows(2, 1, 8, 8, 8)
    assert apply_intensity(image, EVERYTHING, generators(2)) is image
    assert not torch.equal(image, rows(2, 1, 8, 8, 8))


def test_a_sample_does_not_depend_on_its_neighbours_nor_on_torchs_own_generator() -> None:
    for policy in (RECIPE, EVERYTHING):
        image = rows(6, 2, 10, 11, 9)
        torch.manual_seed(1)
        state = torch.get_rng_state()
        together = apply_intensity(image.clone(), policy, generators(6))
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        for sample in (5, 0, 3):
            alone = apply_intensity(image[sample : sample + 1].clone(), policy, [generators(6)[sample]])
            torch.testing.assert_close(alone[0], together[sample], rtol=1e-5, atol=1e-5)


def test_samples_with_the_same_image_come_out_different() -> None:
    image = rows(1, 1, 10, 10, 10).repeat(2, 1, 1, 1, 1)
    first, second = apply_intensity(image, replace(NOTHING, p_noise=1.0), generators(2))
    assert not torch.allclose(first, second)


def test_transforms_come_in_the_stated_order() -> None:
    image = rows(1, 2, 10, 12, 8)
    drawn = draw_intensity(EVERYTHING, np.random.default_rng([0, 0]), 2)
    noise = torch.randn(image[0].shape, generator=torch.Generator().manual_seed(drawn.noise_seed))
    expected = image[0] + drawn.noise * noise
    expected = blur(expected, drawn.blur)
    expected = stretch_contrast(brighten(expected, drawn.brightness), drawn.contrast)
    expected = lose_resolution(expected, drawn.low_resolution)
    expected = -apply_gamma(-expected, drawn.inverted_gamma)
    expected = apply_gamma(expected, drawn.gamma)
    torch.testing.assert_close(apply_intensity(image, EVERYTHING, generators(1))[0], expected)


def test_noise_has_the_drawn_deviation_and_is_white() -> None:
    policy = replace(NOTHING, p_noise=1.0, noise_std=(0.07, 0.07))
    noise = apply_intensity(torch.zeros(1, 2, 40, 40, 40), policy, generators(1))[0]
    values = noise.flatten().double()
    # The standard error of a deviation is std / sqrt(2 n).
    assert float(values.std()) == pytest.approx(0.07, rel=5 / np.sqrt(2 * len(values)))
    assert abs(float(values.mean())) < 5 * 0.07 / np.sqrt(len(values))
    assert abs(float((noise[0] * noise[1]).mean())) < 5 * 0.07**2 / np.sqrt(len(values) / 2)


@pytest.mark.parametrize(("sigma", "reach"), [(0.5, 1), (0.58, 1), (0.6, 2), (0.9, 2), (0.95, 3), (1.0, 3)])
def test_blur_equals_scipy(sigma: float, reach: int) -> None:
    image = rows(2, 9, 12, 10)
    sigmas = np.array([[sigma, 0.7, 1.0], [0.5, sigma, 0.6]])
    reaches = [[reach, 2, 3], [1, reach, 2]]
    blurred = blur(image.clone(), sigmas)
    for row in range(2):
        expected = image[row].double().numpy()
        for axis in range(3):
            expected = ndimage.gaussian_filter1d(
                expected, sigmas[row, axis], axis, mode="mirror", radius=reaches[row][axis]
            )
        np.testing.assert_allclose(blurred[row].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 70, 80, 90), (1, 800, 700)])
def test_blur_of_more_than_fits_the_cache_equals_scipy(shape: tuple[int, ...]) -> None:
    image = rows(*shape)
    sigmas = [0.9, 0.7, 1.0][: len(shape) - 1]
    blurred = blur(image.clone(), np.array([sigmas]))
    expected = image[0].double().numpy()
    for axis, (sigma, radius) in enumerate(zip(sigmas, (2, 2, 3), strict=False)):
        expected = ndimage.gaussian_filter1d(expected, sigma, axis, mode="mirror", radius=radius)
    np.testing.assert_allclose(blurred[0].numpy(), expected, atol=1e-5)


def test_blur_takes_axes_shorter_than_its_kernel() -> None:
    image = rows(1, 1, 2, 9)
    blurred = blur(image.clone(), np.array([[1.0, 1.0, 1.0]]))
    assert torch.isfinite(blurred).all()
    expected = image[0].double().numpy()
    for axis in range(3):
        expected = ndimage.gaussian_filter1d(expected, 1.0, axis, mode="mirror", radius=3)
    np.testing.assert_allclose(blurred[0].numpy(), expected, atol=1e-5)
    torch.testing.assert_close(
        blur(torch.full((1, 1, 2, 3), 4.0), np.array([[1.0] * 3])), torch.full((1, 1, 2, 3), 4.0)
    )


def test_brightness_multiplies() -> None:
    image = rows(2, 5, 6)
    result = brighten(image.clone(), np.array([0.8, 1.2]))
    torch.testing.assert_close(result, torch.stack([image[0] * 0.8, image[1] * 1.2]))


def test_contrast_spreads_about_the_mean_within_the_old_range() -> None:
    image = rows(2, 30, 30)
    result = stretch_contrast(image.clone(), np.array([0.8, 1.25]))
    for row, factor in ((0, 0.8), (1, 1.25)):
        x = image[row].double()
        expected = ((x - x.mean()) * factor + x.mean()).clamp(x.min(), x.max())
        torch.testing.assert_close(result[row].double(), expected, rtol=1e-5, atol=1e-5)
    assert float(result[1].max()) == float(image[1].max())


@pytest.mark.parametrize("gamma", [0.7, 1.0, 1.5])
def test_gamma_keeps_mean_deviation_and_order(gamma: float) -> None:
    image = rows(3, 20, 16, 12)
    result = apply_gamma(image.clone(), np.full(3, gamma))
    for before, after in zip(image.double(), result.double(), strict=True):
        assert float(after.mean()) == pytest.approx(float(before.mean()), abs=1e-4)
        assert float(after.std()) == pytest.approx(float(before.std()), rel=1e-4)
        low, extent = before.min(), before.max() - before.min()
        bent = ((before - low) / extent) ** gamma
        expected = (bent - bent.mean()) / bent.std() * before.std() + before.mean()
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)


def test_gamma_of_a_constant_is_the_constant() -> None:
    result = apply_gamma(torch.full((2, 4, 4, 4), -3.0), np.array([0.7, 1.4]))
    torch.testing.assert_close(result, torch.full((2, 4, 4, 4), -3.0))


def test_inverted_gamma_bends_the_other_way() -> None:
    image = rows(1, 1, 16, 16, 16)
    inverted = apply_intensity(image.clone(), replace(NOTHING, p_inverted_gamma=1.0, gamma=(1.5, 1.5)), generators(1))
    factor = draw_intensity(
        replace(NOTHING, p_inverted_gamma=1.0, gamma=(1.5, 1.5)), generators(1)[0], 1
    ).inverted_gamma
    torch.testing.assert_close(-inverted[0], apply_gamma(-image[0], factor))


def nearest_then_linear(line: np.ndarray, size: int) -> np.ndarray:
    length = len(line)
    coarse = line[np.floor((np.arange(size) + 0.5) * length / size).astype(int)]
    return np.interp((np.arange(length) + 0.5) * size / length - 0.5, np.arange(size), coarse)


@pytest.mark.parametrize(("zoom", "size"), [(0.5, 10), (0.73, 15), (1.0, 20)])
def test_lost_resolution_is_nearest_down_and_linear_up(zoom: float, size: int) -> None:
    line = rows(20).double().numpy()
    image = torch.from_numpy(line).float().view(1, 20, 1, 1).expand(1, 20, 6, 4).clone()
    result = lose_resolution(image, np.array([zoom]))
    expected = nearest_then_linear(line, size)
    np.testing.assert_allclose(result[0].numpy(), np.broadcast_to(expected[:, None, None], (20, 6, 4)), atol=1e-5)


def test_lost_resolution_spares_fixed_axes_and_single_slices() -> None:
    ramp = torch.arange(12.0).view(1, 12, 1, 1).expand(1, 12, 8, 8).clone()
    assert torch.equal(lose_resolution(ramp.clone(), np.array([0.5]), fixed_axes=1), ramp)
    assert not torch.allclose(lose_resolution(ramp.clone(), np.array([0.5])), ramp)
    assert lose_resolution(rows(2, 1, 9), np.array([0.5, 0.6])).shape == (2, 1, 9)


def test_slices_of_a_dummy_2d_patch_keep_their_own_resolution() -> None:
    policy = replace(NOTHING, dummy_2d=True, p_low_resolution=1.0, p_low_resolution_channel=1.0)
    ramp = torch.arange(6.0).view(1, 1, 6, 1, 1).expand(1, 1, 6, 24, 24).clone()
    torch.testing.assert_close(apply_intensity(ramp.clone(), policy, generators(1)), ramp)


def test_two_dimensional_batches() -> None:
    policy = replace(EVERYTHING, ndim=2, rotation=(180.0,))
    result = apply_intensity(rows(4, 3, 16, 18), policy, generators(4))
    assert result.shape == (4, 3, 16, 18)
    assert torch.isfinite(result).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_what_the_cpu_gives() -> None:
    policy = replace(EVERYTHING, p_noise=0.0)
    image = rows(3, 2, 16, 18, 12)
    on_cpu = apply_intensity(image.clone(), policy, generators(3))
    on_gpu = apply_intensity(image.cuda(), policy, generators(3))
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-4, atol=1e-4)
