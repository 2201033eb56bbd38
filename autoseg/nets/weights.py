"""Tensors into safetensors files: equal content gives equal bytes, and errors of the disk are Python's own."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

_LENGTH_BYTES = 8
# An error of the system comes as text, in the words of Rust: in a message of newer releases, as a value in older ones.
_SYSTEM_ERROR = re.compile(r"os error (\d+)|Os \{ code: (\d+)")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], *, metadata: Mapping[str, str]) -> None:
    """Write contiguous tensors on the CPU and what is to be known of them; not atomic, see ``records.atomic_path``.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
    except SafetensorError as error:
        found = _SYSTEM_ERROR.search(str(error))
        if found is None:
            raise
        code = int(found[1] or found[2])
        raise OSError(code, os.strerror(code), str(path)) from error
    _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    """The library lists metadata in the order of a hash table, which is another one in every process.

    A file is the length of its header (8 bytes, little endian), the header (JSON, padded with spaces) and the tensors.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        # Only the order changes: in the library's own way of writing, the header is as long as before.
        content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        # A library that writes otherwise costs this order, never the weights.
        if len(content) == length:
            file.seek(_LENGTH_BYTES)
            file.write(content)


__all__ = ["write_tensors"]
