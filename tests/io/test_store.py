"""The store gives back what it was given, and never takes half a case for a whole one."""

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from autoseg.errors import DatasetError
from autoseg.io.store import CaseStore, chunk_shapes

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(2, 20, 30, 25)).astype(np.float32)
LABEL = RNG.integers(0, 3, (20, 30, 25)).astype(np.uint8)
PATCH = (16, 16, 16)


@pytest.fixture
def store(tmp_path):
    store = CaseStore(tmp_path / "store")
    store.begin("first")
    return store


def write(store, name="a", image=IMAGE, label=LABEL):
    locations = {0: np.argwhere(label == 1), 1: np.empty((0, 3), np.int64), -1: np.argwhere(label == 2)[:5]}
    store.write_case(name, image, label, {"spacing": [1.0, 2.0, 3.0]}, locations, PATCH)


def test_case_comes_back(store):
    write(store)
    case = store.open("a")
    np.testing.assert_array_equal(case.image[:], IMAGE)
    np.testing.assert_array_equal(case.image[1:2, 3:9, 5:6, :], IMAGE[1:2, 3:9, 5:6])
    np.testing.assert_array_equal(case.label[:], LABEL[np.newaxis])
    assert (case.image.dtype, case.label.dtype) == (np.float32, np.uint8)
    assert case.properties == {"spacing": [1.0, 2.0, 3.0]}
    np.testing.assert_array_equal(case.locations(0), np.argwhere(LABEL == 1))
    np.testing.assert_array_equal(case.locations(-1), np.argwhere(LABEL == 2)[:5])
    assert case.locations(0).dtype == np.int32
    assert case.locations(1).shape == case.locations(99).shape == (0, 3)
    assert case.heads == (0, -1)


@pytest.mark.parametrize(("factor", "kind"), [(1, np.int8), (126, np.int16)])
def test_signed_labels_and_slices(store, factor, kind):
    label = LABEL.astype(np.int16) * factor - 1
    store.write_case("a", IMAGE, label, {}, {}, (16, 16))
    np.testing.assert_array_equal(store.open("a").label[0], label)
    assert store.open("a").label.dtype == kind
    assert store.open("a").image.chunks[:2] == (1, 1)


def picture() -> np.ndarray:
    return RNG.integers(0, 256, (3, 1, 40, 50)).astype(np.float32) / np.float32(255)


def write_picture(store, image):
    store.write_case("a", image, np.zeros(image.shape[1:], np.uint8), {}, {}, (16, 16))
    return (store.root / "a.image.b2nd").stat().st_size


def test_pictures_take_a_byte_per_voxel_and_come_back_exactly(store):
    image = picture()
    assert write_picture(store, image) < 1.6 * image.size
    stored = CaseStore(store.root).open("a").image
    assert (stored.dtype, stored.shape) == (np.float32, image.shape)
    for box in ((slice(None),) * 4, (slice(1, 2), slice(0, 1), slice(3, 20), slice(40, 50)), np.s_[2, 0, 5:9]):
        assert stored[box].dtype == np.float32
        np.testing.assert_array_equal(stored[box], image[box])


@pytest.mark.parametrize("change", [np.float32(1e-6), np.float32(-1), np.float32(2), np.float32("nan")])
def test_a_single_voxel_that_no_byte_holds_is_kept(store, change):
    image = picture()
    image[1, 0, 7, 3] += change
    assert write_picture(store, image) > 1.6 * image.size
    np.testing.assert_array_equal(store.open("a").image[:], image)


def test_cases_of_stores_without_a_divisor_are_read(store):
    write(store)
    path = store.root / "a.json"
    description = json.loads(path.read_text())
    assert description["version"] == 1
    del description["divisor"]
    path.write_text(json.dumps(description))
    np.testing.assert_array_equal(CaseStore(store.root).open("a").image[:], IMAGE)


def resident(root) -> int:
    """Bytes of files in a folder that the memory of this process holds."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = str(root) in line
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="memory is told by Linux alone")
def test_what_was_read_does_not_pile_up_in_memory(store, monkeypatch):
    image = RNG.normal(size=(1, 40, 100, 100)).astype(np.float32)
    for name in ("a", "b", "c"):
        store.write_case(name, image, np.zeros(image.shape[1:], np.uint8), {}, {}, PATCH)
    size = store.open("a").mapped_bytes
    monkeypatch.setattr("autoseg.io.store._MAPPED_BYTES", int(1.5 * size))
    for name in ("a", "b", "c", "a"):
        case = store.open(name)
        np.testing.assert_array_equal(case.image[:], image)
        assert resident(store.root) > size / 2
        store.was_read(case)
        assert resident(store.root) < 1.5 * size
    assert resident(store.root) == 0


def test_ids_are_the_complete_cases(store):
    write(store, "b")
    write(store, "a")
    assert store.ids() == ("a", "b")
    assert not store.is_complete("c")
    with pytest.raises(DatasetError, match="case c is missing"):
        store.open("c")


@pytest.mark.parametrize("part", [".image.b2nd", ".label.b2nd", ".locations.npy", ".json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_case_with_a_damaged_file_does_not_count(store, part, damage):
    write(store)
    path = store.root / f"a{part}"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-7])
    assert not store.is_complete("a")
    assert store.ids() == ()
    with pytest.raises(DatasetError):
        CaseStore(store.root).open("a")


def test_same_hash_continues_and_another_starts_anew(store):
    write(store)
    store.begin("first")
    assert store.ids() == ("a",)
    (store.root / ".b.image.b2nd.x.partial.b2nd").write_bytes(b"half")
    (store.root / "notes.txt").write_text("of a person")
    store.begin("second")
    assert store.ids() == ()
    assert store.content_hash() == "second"
    assert sorted(os.listdir(store.root)) == ["manifest.json", "notes.txt"]


def test_store_without_a_manifest_is_begun_anew(store):
    write(store)
    (store.root / "manifest.json").unlink()
    store.begin("first")
    assert store.ids() == ()


def test_writing_again_replaces_and_is_seen_through_an_open_store(store):
    write(store)
    store.open("a")
    write(store, image=IMAGE + 1)
    np.testing.assert_array_equal(store.open("a").image[:], IMAGE + 1)


def test_open_cases_stay_open_but_not_without_end(store, monkeypatch):
    monkeypatch.setattr("autoseg.io.store._OPEN_CASES", 5)
    for index in range(20):
        store.write_case(f"c{index}", IMAGE[:1, :2, :2, :2], LABEL[:2, :2, :2], {}, {}, (2, 2, 2))
    assert store.open("c0") is store.open("c0")
    handles = Path("/proc/self/fd")
    before = len(os.listdir(handles)) if handles.exists() else 0
    for name in store.ids():
        assert store.open(name).image.shape == (1, 2, 2, 2)
    if handles.exists():
        assert len(os.listdir(handles)) - before <= 3 * 5


def test_store_travels_to_workers_by_its_path(store):
    write(store)
    store.open("a")
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.open("a").image[:], IMAGE)


def test_properties_must_be_json(store):
    with pytest.raises((TypeError, ValueError)):
        store.write_case("a", IMAGE, LABEL, {"x": float("nan")}, {}, PATCH)
    assert store.ids() == ()


KILLED = """
import os, signal, sys
import numpy as np
from autoseg.io import store as module

store = module.CaseStore(sys.argv[1])
store.begin("first")
image = np.ones((1, 8, 8, 8), np.float32)
label = np.ones((8, 8, 8), np.uint8)
store.write_case("whole", image, label, {}, {0: np.zeros((3, 3))}, (8, 8, 8))
steps = iter(range(100))
replace = type(store.root).replace

def dying(path, target):
    # The machine goes down just before, or just after, a file gets its name.
    step = next(steps)
    if step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(path, target)

type(store.root).replace = dying
store.write_case("whole", image * 2, label, {}, {0: np.zeros((3, 3))}, (8, 8, 8))
store.write_case("second", image, label, {}, {0: np.zeros((3, 3))}, (8, 8, 8))
"""


@pytest.mark.parametrize("step", [0, 1, 2, 3, 4, 7])
def test_kill_at_any_step_leaves_only_whole_cases(tmp_path, step):
    root = tmp_path / "store"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", KILLED, str(root), str(step)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    store = CaseStore(root)
    # Steps 0 to 3 write the three files and the JSON of the first case again, 4 to 7 those of the second.
    assert store.ids() == (() if step <= 3 else ("whole",))
    store.begin("first")
    assert not [name for name in os.listdir(root) if name.startswith(".")]
    for name in {"whole", "second"} - set(store.ids()):
        write(store, name)
    assert store.ids() == ("second", "whole")
    assert json.loads((root / "manifest.json").read_text())["hash"] == "first"


@pytest.mark.parametrize(
    ("shape", "patch"),
    [
        ((1, 432, 512, 512), (128, 128, 128)),
        ((2, 20, 320, 320), (20, 320, 256)),
        ((1, 36, 50, 35), (40, 56, 40)),
        ((3, 1, 1040, 1388), (1, 512, 512)),
        ((1, 300, 512, 512), (1, 512, 512)),
        ((1, 7, 5, 3), (1, 1, 1)),
    ],
)
@pytest.mark.parametrize("itemsize", [1, 4])
def test_chunks_fit_cache_and_patch(shape, patch, itemsize):
    chunks, blocks = chunk_shapes(shape, patch, itemsize)
    assert chunks[0] == blocks[0] == 1
    assert np.prod(blocks) * itemsize <= 128 * 1024
    assert np.prod(chunks) * itemsize <= 4 * 1024 * 1024
    for axis in range(3):
        assert 1 <= blocks[axis + 1] <= chunks[axis + 1] <= shape[axis + 1]
        assert chunks[axis + 1] < 2 * min(patch[axis], shape[axis + 1])
    # Short rows take long to copy.
    assert blocks[3] >= min(32, patch[2], shape[3])
