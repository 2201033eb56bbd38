from __future__ import annotations

import pytest
import torch

from autoseg.errors import SettingError
from autoseg.nets.device import choose_device, choose_precision


def test_auto_is_a_gpu_if_there_is_one() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "mps", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_a_clear_error(name: str) -> None:
    with pytest.raises(SettingError) as caught:
        choose_device(name)
    assert "cpu" in caught.value.hint


def test_the_probe_leaves_random_numbers_alone_and_runs_in_inference_mode() -> None:
    choose_precision.cache_clear()
    before = torch.get_rng_state()
    with torch.inference_mode():
        precision = choose_precision(torch.device("cpu"))
    assert precision in {None, torch.bfloat16}
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
def test_a_recent_gpu_uses_half_precision() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    major, _ = torch.cuda.get_device_capability(0)
    expected = torch.bfloat16 if major >= 8 else torch.float16 if major >= 7 else None
    assert choose_precision(torch.device("cuda", 0)) is expected
