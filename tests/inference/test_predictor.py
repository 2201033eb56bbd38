from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from safetensors.torch import load_file, save_file
from skimage.transform import resize

from autoseg import records
from autoseg.errors import DatasetError, DivergenceError, ModelFolderError, ResourceError, SettingError
from autoseg.inference.ensemble import Ensemble
from autoseg.inference.predictor import Predictor
from autoseg.io.images import write_image
from autoseg.io.volume import Geometry, Volume
from autoseg.nets import build_network
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Plan

VALUES = np.array([0, 5, 9], np.uint8)


class Bands(torch.nn.Module):
    """Logits (x - c)^2 up to a term common to all classes: the class whose centre is nearest wins."""

    centres = (0.0, 4.0, 8.0)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (torch.cat([centre * x[:, :1] - centre**2 / 2 for centre in self.centres], dim=1),)


def _bands_predictor(plan: Plan, **changes: object) -> Predictor:
    configuration = plan.configurations[0]
    ensemble = Ensemble(networks=(Bands(),), ndim=configuration.ndim, device=torch.device("cpu"))
    return Predictor(plan=plan, configuration=configuration, ensemble=ensemble, **changes)


def _image(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Smooth random values between 1 and 9, so that no voxel is empty."""
    coarse = np.random.default_rng(seed).uniform(1, 9, tuple(max(2, n // 4) for n in shape))
    return resize(coarse, shape, order=1).astype(np.float32)


def _nearest_band(values: np.ndarray) -> np.ndarray:
    distances = np.stack([np.abs(values - centre) for centre in Bands.centres])
    return VALUES[distances.argmin(axis=0)]


def _load(folder: ModelFolder, **arguments: object) -> Predictor:
    # The truth is computed in float32; a processor that is faster in bfloat16 would round differently.
    return Predictor.load(folder.root, device="cpu", exact=True, **arguments)


def _plan(folder: ModelFolder) -> Plan:
    return records.load(Plan, folder.plan)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_network_that_sees_one_voxel_gives_its_decision_in_the_integers_of_the_files(
    write_model, tmp_path: Path, ndim: int
) -> None:
    plan = _plan(write_model(tmp_path, ndim=ndim))
    image = _image((21, 40, 33))
    labels = _bands_predictor(plan).predict_array(image, (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(labels, _nearest_band(image))


def test_logits_are_upsampled_linearly_before_the_decision(write_model, tmp_path: Path) -> None:
    plan = _plan(write_model(tmp_path, spacing=2.0))
    image = _image((24, 32, 28))
    labels = _bands_predictor(plan).predict_array(image, (1.0, 1.0, 1.0))
    coarse = resize(image.astype(np.float64), (12, 16, 14), order=3, mode="edge", anti_aliasing=False)
    fine = resize(coarse, image.shape, order=1, mode="edge", anti_aliasing=False)
    expected = _nearest_band(fine)
    # Decisions are at rounding's mercy where two bands are equally near; there are few such voxels.
    assert (labels == expected).mean() > 0.999


def test_axes_are_transposed_there_and_back(write_model, tmp_path: Path) -> None:
    plan = replace(_plan(write_model(tmp_path)), transpose=(2, 0, 1))
    image = _image((20, 37, 18))
    np.testing.assert_array_equal(_bands_predictor(plan).predict_array(image, (1, 1, 1)), _nearest_band(image))


def test_outside_of_the_cropped_box_is_background(write_model, tmp_path: Path) -> None:
    plan = _plan(write_model(tmp_path))
    image = np.zeros((30, 30, 30), np.float32)
    image[5:20, 8:25, 3:28] = 8.0
    labels = _bands_predictor(plan).predict_array(image, (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(labels, np.where(image > 0, 9, 0))


def test_probabilities_are_the_softmax_on_the_original_grid(write_model, tmp_path: Path) -> None:
    plan = _plan(write_model(tmp_path))
    image = _image((18, 20, 22))
    volume = Volume(image[None], Geometry.upright((1.0, 1.0, 1.0)))
    result = _bands_predictor(plan).segment(volume, probabilities=True)
    with torch.no_grad():
        expected = Bands()(torch.from_numpy(image)[None, None])[0].softmax(1)[0].numpy()
    assert result.probabilities is not None
    assert result.probabilities.dtype == np.float16
    np.testing.assert_allclose(result.probabilities, expected, atol=2e-3)


@pytest.mark.parametrize("ndim", [2, 3])
def test_one_window_gives_the_mean_logits_of_folds_and_mirror_images(write_model, tmp_path: Path, ndim: int) -> None:
    axes = tuple(range(ndim))
    folder = write_model(tmp_path, folds=("0", "1", "all"), mirror_axes=axes, ndim=ndim)
    image = _image((16, 16, 16) if ndim == 3 else (3, 16, 16))
    plan = _plan(folder)
    x = torch.from_numpy(image)
    x = x[None, None] if ndim == 3 else x[:, None]
    total = torch.zeros(())
    with torch.no_grad():
        for fold in ("0", "1", "all"):
            network = _network(folder, plan, fold)
            for count in range(ndim + 1):
                for chosen in itertools.combinations(range(2, ndim + 2), count):
                    total = total + network(x.flip(chosen))[0].flip(chosen)
    logits = total[0] if ndim == 3 else total.transpose(0, 1)
    expected = VALUES[logits.argmax(0).numpy()]
    predictor = _load(folder, tta=True)
    assert predictor.folds == ("0", "1", "all")
    labels = predictor.predict_array(image, (1.0, 1.0, 1.0))
    assert (labels == expected).mean() > 0.999
    assert len(np.unique(labels)) > 1


def _network(folder: ModelFolder, plan: Plan, fold: str) -> torch.nn.Module:
    configuration = plan.configurations[0]
    network = build_network(
        configuration.architecture,
        configuration.topology,
        ndim=configuration.ndim,
        in_channels=1,
        num_heads=3,
        patch_size=configuration.patch_size,
    )
    network.load_state_dict(load_file(folder.fold(fold).weights))
    return network.eval()


def test_mirroring_makes_the_prediction_of_a_mirrored_image_the_mirrored_prediction(
    write_model, tmp_path: Path
) -> None:
    # 24 voxels are covered by windows at 0 and 8: the windows themselves mirror onto each other.
    image = _image((24, 24, 24))
    predictor = _load(write_model(tmp_path, mirror_axes=(0, 2)), tta=True)
    plain = predictor.predict_array(image, (1, 1, 1))
    mirrored = predictor.predict_array(image[::-1, :, ::-1].copy(), (1, 1, 1))[::-1, :, ::-1]
    # The Gaussian sits on voxel patch // 2, half a voxel off the middle, so that blending differs a little.
    assert (plain == mirrored).mean() > 0.98


def test_mirroring_is_off_on_a_cpu_unless_asked_for(write_model, tmp_path: Path) -> None:
    folder = write_model(tmp_path, mirror_axes=(0, 1))
    assert _load(folder).ensemble.mirror_axes == ()
    assert _load(folder, tta=True).ensemble.mirror_axes == (0, 1)
    assert _load(folder, tta=False).ensemble.mirror_axes == ()


def test_calls_may_follow_in_any_number_and_start_no_process(write_model, tmp_path: Path) -> None:
    predictor = _load(write_model(tmp_path, folds=("0", "1")))
    images = [_image((17, 20, 19), seed) for seed in range(3)]
    state, processes = torch.get_rng_state(), psutil.Process().children()
    first = [predictor.predict_array(image, (1, 1, 1)) for image in images]
    again = [predictor.predict_array(image, (1, 1, 1)) for image in reversed(images)]
    for a, b in zip(first, reversed(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert psutil.Process().children() == processes
    assert torch.equal(torch.get_rng_state(), state)


def test_loading_leaves_the_random_numbers_alone(write_model, tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    state = torch.get_rng_state()
    _load(folder)
    assert torch.equal(torch.get_rng_state(), state)


def test_files_sitk_images_and_arrays_give_the_same(write_model, tmp_path: Path) -> None:
    predictor = _load(write_model(tmp_path / "model", channels=2))
    data = np.stack([_image((20, 18, 22), seed) for seed in (1, 2)])
    cosines = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
    geometry = Geometry((1.5, 1.0, 0.75), (10.0, -20.0, 5.5), cosines, 3)
    paths = [tmp_path / f"case_{index:04d}.nii.gz" for index in (0, 1)]
    for channel, path in zip(data, paths, strict=True):
        write_image(path, Volume(channel[None], geometry))
    from_array = predictor.predict_array(data, geometry.spacing)
    from_files = predictor.predict_files(paths)
    np.testing.assert_array_equal(from_files.data[0], from_array)
    image = sitk.Compose(*(sitk.ReadImage(str(path)) for path in paths))
    from_sitk = predictor.predict_sitk(image)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(from_sitk), from_array)
    assert from_sitk.GetSpacing() == image.GetSpacing()
    assert from_sitk.GetOrigin() == image.GetOrigin()
    assert from_sitk.GetDirection() == image.GetDirection()
    assert len(np.unique(from_array)) > 1


def test_a_picture_goes_in_and_out_with_two_axes(write_model, tmp_path: Path) -> None:
    predictor = _bands_predictor(_plan(write_model(tmp_path, ndim=2)))
    picture = _image((40, 30))
    np.testing.assert_array_equal(predictor.predict_array(picture, (1, 1)), _nearest_band(picture))
    image = sitk.GetImageFromArray(picture)
    image.SetOrigin((3.0, 4.0))
    labels = predictor.predict_sitk(image)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(labels), _nearest_band(picture))
    assert labels.GetOrigin() == (3.0, 4.0)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((2, 20, 20, 20), (1, 1, 1)), ((20, 20), (1, 1, 1)), ((20, 20, 20), (1, 1, 0)), ((20, 20, 20), (1,))],
)
def test_arrays_that_do_not_fit_are_refused(
    write_model, tmp_path: Path, shape: tuple[int, ...], spacing: tuple[float, ...]
) -> None:
    with pytest.raises(DatasetError) as caught:
        _load(write_model(tmp_path)).predict_array(np.ones(shape, np.float32), spacing)
    assert caught.value.hint


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_not_finite_are_refused(write_model, tmp_path: Path, value: float) -> None:
    image = _image((16, 16, 16))
    image[3, 4, 5] = value
    with pytest.raises(DatasetError, match="NaN or infinite"):
        _load(write_model(tmp_path)).predict_array(image, (1, 1, 1))


def test_weights_that_are_not_finite_are_an_error_and_not_a_segmentation(write_model, tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    path = folder.fold(0).weights
    weights = load_file(path)
    weights["heads.0.bias"][1] = float("nan")
    save_file(weights, path, {"configuration": "3d_fullres"})
    with pytest.raises(DivergenceError, match="NaN"):
        _load(folder).predict_array(_image((16, 16, 16)), (1, 1, 1))


def test_too_little_memory_is_said_before_it_runs_out(write_model, tmp_path: Path) -> None:
    predictor = _load(write_model(tmp_path), memory=1_000_000)
    with pytest.raises(ResourceError, match="RAM"):
        predictor.predict_array(_image((16, 16, 16)), (1, 1, 1))


def test_folds_are_chosen_by_name(write_model, tmp_path: Path) -> None:
    folder = write_model(tmp_path, folds=("0", "1", "3"))
    assert _load(folder).folds == ("0", "1", "3")
    assert _load(folder, folds=(1, "3")).folds == ("1", "3")
    with pytest.raises(ModelFolderError, match="no trained fold 2") as caught:
        _load(folder, folds=("2",))
    assert "0, 1, 3" in caught.value.hint


def test_a_folder_without_trained_weights_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="no trained fold"):
        _load(ModelFolder(tmp_path))


def test_truncated_weights_are_a_clear_error(write_model, tmp_path: Path) -> None:
    path = write_model(tmp_path).fold(0).weights
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ModelFolderError, match=r"weights\.safetensors"):
        _load(ModelFolder(tmp_path))


def test_weights_of_another_plan_are_a_clear_error(write_model, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "a")
    other = write_model(tmp_path / "b", channels=2)
    records.save(folder.plan, _plan(other))
    with pytest.raises(ModelFolderError, match=r"does not fit plan\.json"):
        _load(folder)


@pytest.mark.parametrize("step", [0.0, 1.5])
def test_a_step_size_that_leaves_gaps_is_refused(write_model, tmp_path: Path, step: float) -> None:
    with pytest.raises(SettingError, match="step size"):
        _load(write_model(tmp_path), step_size=step)
