"""The streaming way back against resizing all logits at once with scikit-image and scipy."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.transform import resize as skimage_resize

from autoseg.errors import SettingError
from autoseg.preprocessing import Restorer, Trace, restore_labels
from autoseg.schema.dataset import Label, Labels
from autoseg.schema.plan import Resampling

SHAPE = st.tuples(*[st.integers(1, 14)] * 3)


def plain_labels(count: int, step: int = 1) -> Labels:
    return Labels(foreground=tuple(Label(name=f"c{i}", values=(i * step,)) for i in range(1, count + 1)))


def make_trace(
    network: Sequence[int],
    cropped: Sequence[int],
    *,
    margin: Sequence[tuple[int, int]] = ((0, 0),) * 3,
    transpose: tuple[int, ...] = (0, 1, 2),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    target: Sequence[float] = (1.0, 1.0, 1.0),
) -> Trace:
    """``margin`` is what was cut off before and behind each transposed axis; spacings follow the transposed axes."""
    full = [before + length + behind for (before, behind), length in zip(margin, cropped, strict=True)]
    back = np.argsort(transpose)
    return Trace(
        shape=tuple(full[axis] for axis in back),
        spacing=tuple(spacing[axis] for axis in back),
        transpose=transpose,
        box=tuple((before, before + length) for (before, _), length in zip(margin, cropped, strict=True)),
        cropped_shape=tuple(cropped),
        resampled_shape=tuple(network),
        target_spacing=tuple(target),
        separate_axis=None,
    )


def dense(logits: np.ndarray, trace: Trace, apart: int | None, order_z: int = 0) -> np.ndarray:
    """All logits at full resolution in float64, in the transposed and cropped frame."""
    if apart is None:
        return np.stack([resized(head, trace.cropped_shape) for head in logits])
    plane = [length for axis, length in enumerate(trace.cropped_shape) if axis != apart]
    grid = np.indices(trace.cropped_shape).astype(float)
    grid[apart] = (grid[apart] + 0.5) * logits.shape[1 + apart] / trace.cropped_shape[apart] - 0.5
    heads = []
    for head in logits:
        slices = np.stack([resized(part, plane) for part in np.moveaxis(head, apart, 0)], axis=apart)
        heads.append(ndimage.map_coordinates(slices, grid, order=order_z, mode="nearest"))
    return np.stack(heads)


def resized(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    return skimage_resize(values.astype(np.float64), shape, 1, mode="edge", anti_aliasing=False)


def original_frame(cropped: np.ndarray, trace: Trace) -> np.ndarray:
    full = np.zeros([trace.shape[axis] for axis in trace.transpose], dtype=cropped.dtype)
    full[tuple(slice(*side) for side in trace.box)] = cropped
    return full.transpose(np.argsort(trace.transpose))


def stream(logits: np.ndarray, restorer: Restorer, cuts: Sequence[int]) -> np.ndarray:
    """Hand over slabs of the lengths in ``cuts`` in turn, through one buffer that is overwritten each time."""
    buffer = np.empty((logits.shape[0], max(cuts), *logits.shape[2:]), dtype=np.float32)
    start, turn = 0, 0
    while start < logits.shape[1]:
        depth = min(cuts[turn % len(cuts)], logits.shape[1] - start)
        buffer[:, :depth] = logits[:, start : start + depth]
        restorer.add(buffer[:, :depth])
        buffer[:] = np.nan
        start, turn = start + depth, turn + 1
    return restorer.finish()


def blobs(seed: int, heads: int, shape: Sequence[int], smooth: float) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((heads, *shape)).astype(np.float32)
    return ndimage.gaussian_filter(noise, (0, smooth, smooth, smooth)) if smooth else noise


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    network=SHAPE,
    cropped=SHAPE,
    margin=st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 3),
    transpose=st.permutations((0, 1, 2)),
    apart=st.sampled_from([None, None, 0, 1, 2]),
    smooth=st.sampled_from([0.0, 2.0]),
    cuts=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_streaming_equals_resizing_everything(
    network: tuple[int, ...],
    cropped: tuple[int, ...],
    margin: tuple[tuple[int, int], ...],
    transpose: list[int],
    apart: int | None,
    smooth: float,
    cuts: list[int],
    seed: int,
) -> None:
    spacing = tuple(9.0 if axis == apart else 1.0 for axis in range(3))
    trace = make_trace(
        network, cropped, margin=margin, transpose=tuple(transpose), spacing=spacing, target=(1.0, 1.0, 1.0)
    )
    logits = blobs(seed, 5, network, smooth)
    restorer = Restorer(trace, labels=plain_labels(4, step=3), resampling=Resampling())
    result = stream(logits, restorer, cuts)
    expected = dense(logits, trace, apart)
    ordered = np.sort(expected, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-5
    inside = original_frame(clear, trace)
    np.testing.assert_array_equal(
        result[inside], original_frame(3 * expected.argmax(axis=0).astype(np.uint8), trace)[inside]
    )
    outside = ~original_frame(np.ones_like(clear), trace)
    assert result.shape == trace.shape and result.dtype == np.uint8 and not result[outside].any()


def test_order_z_one_is_linear_along_the_separate_axis() -> None:
    trace = make_trace((6, 9, 8), (13, 11, 15), spacing=(5, 1, 1), target=(10, 1, 1))
    logits = blobs(1, 3, (6, 9, 8), 1.0)
    result = restore_labels(logits, trace, labels=plain_labels(2), resampling=Resampling(order_z=1))
    np.testing.assert_array_equal(result, dense(logits, trace, 0, order_z=1).argmax(axis=0))


def test_network_spacing_decides_first_which_axis_is_apart() -> None:
    trace = make_trace((6, 9, 8), (13, 11, 15), spacing=(1, 1, 9), target=(9, 1, 1))
    logits = blobs(2, 3, (6, 9, 8), 1.0)
    result = restore_labels(logits, trace, labels=plain_labels(2), resampling=Resampling())
    np.testing.assert_array_equal(result, dense(logits, trace, 0).argmax(axis=0))


@pytest.mark.parametrize("smooth", [0.0, 4.0], ids=["most voxels undecided", "few voxels undecided"])
def test_large_planes_go_through_every_chunk(smooth: float) -> None:
    """Planes wider than one working set and than one band of the resizing matrix."""
    trace = make_trace((3, 150, 170), (4, 210, 190))
    logits = blobs(3, 40, (3, 150, 170), smooth)
    result = restore_labels(logits, trace, labels=plain_labels(39), resampling=Resampling())
    expected = dense(logits, trace, None)
    ordered = np.sort(expected, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(result[clear], expected.argmax(axis=0)[clear])


def test_regions_are_on_above_zero_and_later_ones_win() -> None:
    labels = Labels(
        foreground=(
            Label(name="whole", values=(1, 2, 3)),
            Label(name="core", values=(2, 3)),
            Label(name="enhancing", values=(3,)),
        ),
        regions_class_order=(1, 20, 3),
    )
    trace = make_trace((8, 9, 10), (12, 13, 9), margin=((1, 2), (0, 1), (2, 0)))
    logits = blobs(4, 3, (8, 9, 10), 1.5)
    restorer = Restorer(trace, labels=labels, resampling=Resampling(), probabilities=True)
    result = stream(logits, restorer, [3])
    fine = dense(logits, trace, None)
    expected = np.zeros(trace.cropped_shape, dtype=np.uint8)
    for head, value in zip(fine, (1, 20, 3), strict=True):
        expected[head > 0] = value
    clear = original_frame((np.abs(fine) > 1e-6).all(axis=0), trace)
    np.testing.assert_array_equal(result[clear], original_frame(expected, trace)[clear])
    assert restorer.probabilities is not None
    for found, head in zip(restorer.probabilities, fine, strict=True):
        np.testing.assert_allclose(found, original_frame(1 / (1 + np.exp(-head)), trace), atol=1e-3)
    np.testing.assert_array_equal(result, restore_labels(logits, trace, labels=labels, resampling=Resampling()))


def test_probabilities_are_the_softmax_of_resized_logits() -> None:
    trace = make_trace((5, 9, 10), (7, 12, 8), margin=((1, 0), (0, 2), (1, 1)), transpose=(2, 0, 1))
    logits = 3 * blobs(5, 4, (5, 9, 10), 1.0)
    restorer = Restorer(trace, labels=plain_labels(3), resampling=Resampling(), probabilities=True)
    result = stream(logits, restorer, [2, 1])
    exponential = np.exp(dense(logits, trace, None))
    expected = exponential / exponential.sum(axis=0)
    found = restorer.probabilities
    assert found is not None and found.dtype == np.float16 and found.shape == (4, *trace.shape)
    outside = ~original_frame(np.ones(trace.cropped_shape, dtype=bool), trace)
    for head in range(4):
        inside = original_frame(expected[head], trace)
        np.testing.assert_allclose(found[head], np.where(outside, head == 0, inside), atol=1e-3)
    np.testing.assert_array_equal(result, original_frame(expected.argmax(axis=0).astype(np.uint8), trace))


@pytest.mark.parametrize(("largest", "kind"), [(255, np.uint8), (256, np.uint16), (70_000, np.int32)])
def test_the_integers_of_the_dataset_come_back_in_the_smallest_dtype(largest: int, kind: type) -> None:
    labels = Labels(foreground=(Label(name="b", values=(largest,)), Label(name="a", values=(5,))))
    logits = np.zeros((3, 2, 1, 2), dtype=np.float32)
    logits[1, 0] = logits[2, 1] = 1
    result = restore_labels(logits, make_trace((2, 1, 2), (2, 1, 2)), labels=labels, resampling=Resampling())
    assert result.dtype == kind
    assert result.tolist() == [[[5, 5]], [[largest, largest]]]


def test_more_heads_than_a_byte_counts() -> None:
    truth = np.random.default_rng(6).permutation(300).reshape(3, 10, 10)
    logits = (np.arange(300)[:, None, None, None] == truth).astype(np.float32)
    labels = plain_labels(299)
    same = restore_labels(logits, make_trace((3, 10, 10), (3, 10, 10)), labels=labels, resampling=Resampling())
    np.testing.assert_array_equal(same, truth)
    doubled = restore_labels(logits, make_trace((3, 10, 10), (3, 20, 20)), labels=labels, resampling=Resampling())
    np.testing.assert_array_equal(doubled, truth.repeat(2, axis=1).repeat(2, axis=2))


def test_memory_does_not_grow_with_the_depth() -> None:
    heads, plane, fine = 30, (64, 64), (96, 96)
    plane_bytes = heads * plane[0] * plane[1] * 4
    slab = blobs(7, heads, (4, *plane), 3.0)

    def peak(depth: int) -> int:
        trace = make_trace((depth, *plane), (depth * 3 // 2, *fine))
        tracemalloc.start()
        restorer = Restorer(trace, labels=plain_labels(heads - 1), resampling=Resampling())
        for _ in range(depth // 4):
            restorer.add(slab)
        beside = tracemalloc.get_traced_memory()[1] - restorer.finish().nbytes
        tracemalloc.stop()
        return beside

    peak(4)
    shallow, deep = peak(16), peak(128)
    assert deep < 4 * plane_bytes + 8_000_000
    assert deep < shallow + 200_000
    assert heads * 128 * plane[0] * plane[1] * 4 > 5 * deep


def test_wrong_planes_are_refused() -> None:
    restorer = Restorer(make_trace((3, 4, 5), (6, 4, 5)), labels=plain_labels(1), resampling=Resampling())
    with pytest.raises(ValueError, match=r"expected planes of shape \(2, dz, 4, 5\)"):
        restorer.add(np.zeros((3, 1, 4, 5), dtype=np.float32))
    restorer.add(np.zeros((2, 2, 4, 5), dtype=np.float32))
    with pytest.raises(ValueError, match="only 2 of 3"):
        restorer.finish()
    with pytest.raises(ValueError, match="more than 3"):
        restorer.add(np.zeros((2, 2, 4, 5), dtype=np.float32))


def test_cubic_logits_are_a_settings_error() -> None:
    with pytest.raises(SettingError, match="order_logits 3"):
        Restorer(make_trace((3, 4, 5), (6, 4, 5)), labels=plain_labels(1), resampling=Resampling(order_logits=3))
