"""Files of tensors: the same content has the same bytes, other programs read them, a full disk is one sentence."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from autoseg import records
from autoseg.errors import ResourceError
from autoseg.nets import weights
from autoseg.nets.weights import write_tensors

# Of eight keys there are 40320 orders.
METADATA = {
    **{f"key {number}": str(number) for number in range(6)},
    "leber\u2028ü\x7f": 'a "quoted"\n\\ word\x01',
    "": "{}",
}

WRITE = """
import ast, sys
from pathlib import Path
import torch
from autoseg.nets.weights import write_tensors
write_tensors(Path(sys.argv[1]), {"b.weight": torch.arange(6.0).reshape(2, 3)}, metadata=ast.literal_eval(sys.argv[2]))
"""

LIMITED = """
import resource, signal, sys
from pathlib import Path
from torch import nn
from autoseg.errors import ResourceError
from autoseg.training.checkpoint import save_weights
network = nn.Linear(100, 100)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
try:
    save_weights(Path(sys.argv[1]), network, metadata={"configuration": "2d"})
except ResourceError as error:
    print(error.message)
"""


def test_equal_content_gives_equal_bytes_in_every_process(tmp_path: Path) -> None:
    tensors = {"b.weight": torch.arange(6.0).reshape(2, 3)}
    turned = dict(reversed(METADATA.items()))
    for number, metadata in enumerate((METADATA, turned, METADATA)):
        write_tensors(tmp_path / f"{number}.safetensors", tensors, metadata=metadata)
    words = [sys.executable, "-c", WRITE, str(tmp_path / "other.safetensors"), repr(METADATA)]
    subprocess.run(words, check=True)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert len(list(tmp_path.iterdir())) == 4


def test_the_file_is_what_the_library_reads(tmp_path: Path) -> None:
    tensors = {"z": torch.ones(3), "a": torch.tensor(7), "größe": torch.zeros(2, 2, dtype=torch.bfloat16)}
    path = tmp_path / "x.safetensors"
    write_tensors(path, tensors, metadata=METADATA)
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(found[name].dtype == tensors[name].dtype and torch.equal(found[name], tensors[name]) for name in found)
    with safe_open(str(path), framework="pt") as file:
        assert file.metadata() == METADATA
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == sorted(METADATA)


def test_nothing_to_say_is_fine(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2)}, metadata={})
    assert torch.equal(load_file(tmp_path / "x.safetensors")["a"], torch.ones(2))


def test_a_file_that_may_not_grow_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="Unix")
    path = tmp_path / "weights.safetensors"
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], check=True, capture_output=True, text=True)
    assert done.stdout == f"{path} would be larger than files may be here\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        "Error while serializing: I/O error: No space left on device (os error 28)",
        'Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })',
    ],
)
def test_the_words_of_the_library_for_a_full_disk_are_understood(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError(words)

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_tensors(tmp_path / "x.safetensors", {}, metadata={})
    assert caught.value.errno == errno.ENOSPC
    path = tmp_path / "y.safetensors"
    with pytest.raises(ResourceError, match="no space left to write"), records.atomic_path(path) as temporary:
        write_tensors(temporary, {}, metadata={})


def test_other_errors_of_the_library_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise SafetensorError("header too large")

    monkeypatch.setattr(weights, "save_file", broken)
    with pytest.raises(SafetensorError, match="header too large"):
        write_tensors(tmp_path / "x.safetensors", {}, metadata={})
