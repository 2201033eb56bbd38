"""Prediction with a part of a trained network: pruned UNet++, and branches that only train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from autoseg import records
from autoseg.errors import SettingError
from autoseg.inference.predictor import Predictor
from autoseg.nets import build_network
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Plan


def _full(folder: ModelFolder) -> torch.nn.Module:
    plan = records.load(Plan, folder.plan)
    configuration = plan.configurations[0]
    network = build_network(
        configuration.architecture,
        configuration.topology,
        ndim=3,
        in_channels=1,
        num_heads=3,
        patch_size=configuration.patch_size,
    )
    network.load_state_dict(load_file(folder.fold("0").weights))
    return network


def _size(predictor: Predictor) -> int:
    return sum(parameter.numel() for parameter in predictor.ensemble.networks[0].parameters())


def test_a_pruned_model_is_the_head_of_its_level_without_the_deeper_weights(write_model, tmp_path: Path) -> None:
    folder = write_model(tmp_path, architecture="unetpp", stages=4)
    image = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    with torch.no_grad():
        # In training the heads come finest level first: L3, L2, L1.
        heads = _full(folder).train()(torch.from_numpy(image)[None, None])
    sizes = []
    for level, expected in zip(("L3", "l2", "L1"), heads, strict=True):
        predictor = Predictor.load(folder.root, device="cpu", prune=level, exact=True)
        with torch.no_grad():
            logits = predictor.ensemble.networks[0](torch.from_numpy(image)[None, None])[0]
        torch.testing.assert_close(logits, expected)
        sizes.append(_size(predictor))
        assert predictor.predict_array(image, (1, 1, 1)).shape == image.shape
    whole = _size(Predictor.load(folder.root, device="cpu", exact=True))
    assert whole >= sizes[0] > sizes[1] > sizes[2]


def test_a_level_that_is_not_there_is_a_clear_error(write_model, tmp_path: Path) -> None:
    folder = write_model(tmp_path, architecture="unetpp", stages=3)
    for level in ("L0", "L3", "deep"):
        with pytest.raises(SettingError) as caught:
            Predictor.load(folder.root, device="cpu", prune=level, exact=True)
        assert "L1" in f"{caught.value.message} {caught.value.hint}" or "1" in caught.value.hint


def test_other_architectures_cannot_be_pruned(write_model, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="unet cannot be pruned"):
        Predictor.load(write_model(tmp_path).root, device="cpu", prune="L1")


def test_the_variational_branch_is_not_even_built(write_model, tmp_path: Path) -> None:
    folder = write_model(tmp_path, architecture="segresnet_vae", stages=3)
    image = torch.randn(1, 1, 16, 16, 16)
    full = _full(folder)
    predictor = Predictor.load(folder.root, device="cpu", exact=True)
    with torch.no_grad():
        torch.testing.assert_close(predictor.ensemble.networks[0](image)[0], full.eval()(image)[0])
    assert _size(predictor) < sum(parameter.numel() for parameter in full.parameters())
