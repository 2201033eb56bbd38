"""One file for a model: a zip of known members, each with its checksum, with the same bytes for the same content.

Members are stored, not packed: weights do not shrink, and a file that is no larger on disk than it says cannot be a
zip bomb. Reading trusts nothing: names, kinds, sizes and checksums are held against the manifest before a byte is
written, and only names that ``schema.sharing`` knows can be written at all.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from autoseg import records
from autoseg.errors import ModelFolderError, RecordError, joined
from autoseg.schema.sharing import MANIFEST, Manifest, Member, is_folder_name, is_member, is_model_name, missing_members

_BLOCK = 1 << 20
# The time before which zip files cannot have been made.
_NO_TIME = (1980, 1, 1, 0, 0, 0)
_UNIX = 3
# Records and texts are kilobytes; what is read into memory is bounded.
_LARGEST_TEXT = 64 << 20
_ENCRYPTED = 0x1
# What zipfile raises for a damaged or encrypted file, whatever its content says.
BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    UnicodeDecodeError,
    OverflowError,
    ValueError,
    RuntimeError,
)

Content = Path | bytes


def describe(members: Mapping[str, Content]) -> tuple[Member, ...]:
    """Name, size and checksum of each, sorted by name."""
    return tuple(_described(name, members[name]) for name in sorted(members))


def write_bundle(path: Path, manifest: Manifest, members: Mapping[str, Content]) -> None:
    """Write the manifest and ``members`` (by name: bytes, or the file to copy), atomically.

    Raises:
        ResourceError: the disk is full.
        SettingError: the folder cannot be written to.
        ModelFolderError: a member changed since the manifest was made.
    """
    text = records.to_json(manifest).encode()
    with records.atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        _write(archive, Member(name=MANIFEST, size=len(text), sha256=hashlib.sha256(text).hexdigest()), text)
        for member in manifest.members:
            _write(archive, member, members[member.name])


@dataclass(frozen=True)
class Bundle:
    """An open file whose names, sizes and kinds are checked; checksums are checked as members are read."""

    path: Path
    manifest: Manifest
    archive: zipfile.ZipFile

    def text(self, name: str) -> str:
        """A member as text.

        Raises:
            ModelFolderError: it is not what the manifest says.
        """
        with _refusing(self.path):
            data = self.archive.read(name)
            member = next(member for member in self.manifest.members if member.name == name)
            if hashlib.sha256(data).hexdigest() != member.sha256:
                raise _damaged(self.path, [f"{name} is not what its checksum says"])
            return data.decode()

    def extract(self, folder: Path) -> None:
        """Write every member below ``folder``, which must be new.

        Raises:
            ModelFolderError: a member is not what the manifest says; what was written is for the caller to remove.
            ResourceError: the disk is full.
        """
        for member in self.manifest.members:
            target = folder / member.name
            with records.writing(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as out:
                    self._copy(member, out)
                    out.flush()
                    os.fsync(out.fileno())

    def _copy(self, member: Member, out: BinaryIO) -> None:
        digest, count = hashlib.sha256(), 0
        with _refusing(self.path), self.archive.open(member.name) as source:
            while block := source.read(_BLOCK):
                digest.update(block)
                count += len(block)
                out.write(block)
        if (count, digest.hexdigest()) != (member.size, member.sha256):
            raise _damaged(self.path, [f"{member.name} is not what its checksum says"])


@contextmanager
def open_bundle(path: Path) -> Iterator[Bundle]:
    """Open a file of ``write_bundle`` and check everything but the content of its members.

    Raises:
        ModelFolderError: missing, truncated, of another kind, or with members that no model has; all reasons.
        RecordError: written by another version of autoseg.
    """
    if not path.is_file():
        raise ModelFolderError(f"{path} is not a file", hint="give the file that autoseg_export made")
    with ExitStack() as stack:
        with _refusing(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            manifest = _checked(path, archive)
        # Outside of the context above: errors of whoever uses the bundle are not faults of the file.
        yield Bundle(path, manifest, archive)


def is_bundle(path: Path) -> bool:
    """Whether a file looks like one of ``write_bundle``; ``open_bundle`` tells whether it is whole."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return MANIFEST in archive.namelist()
    except (OSError, *BROKEN_ZIP):
        return False


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return _digest(stream)[0]


def _described(name: str, content: Content) -> Member:
    if isinstance(content, bytes):
        return Member(name=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
    with content.open("rb") as stream:
        digest, count = _digest(stream)
    return Member(name=name, size=count, sha256=digest)


def _digest(stream: BinaryIO) -> tuple[str, int]:
    digest, count = hashlib.sha256(), 0
    while block := stream.read(_BLOCK):
        digest.update(block)
        count += len(block)
    return digest.hexdigest(), count


def _write(archive: zipfile.ZipFile, member: Member, content: Content) -> None:
    info = zipfile.ZipInfo(member.name, _NO_TIME)
    info.create_system, info.external_attr = _UNIX, (stat.S_IFREG | 0o644) << 16
    info.compress_type, info.file_size = zipfile.ZIP_STORED, member.size
    with archive.open(info, "w") as out:
        if isinstance(content, bytes):
            out.write(content)
            return
        digest = hashlib.sha256()
        with content.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
                out.write(block)
    if digest.hexdigest() != member.sha256:
        raise ModelFolderError(f"{content} changed while it was read", hint="export again when training is over")


def _checked(path: Path, archive: zipfile.ZipFile) -> Manifest:
    infos = archive.infolist()
    problems = _problems(path, infos)
    if problems:
        raise _damaged(path, problems)
    manifest = _manifest(path, archive)
    problems = _contradictions(manifest, infos)
    if problems:
        raise _damaged(path, problems)
    return manifest


def _problems(path: Path, infos: list[zipfile.ZipInfo]) -> list[str]:
    """What is wrong with the list of members, whatever their content."""
    found = []
    names = [info.filename for info in infos]
    found += [f"{name!r} is there twice" for name in sorted({name for name in names if names.count(name) > 1})]
    for info in infos:
        # Some versions of zipfile cut names at a zero byte.
        if info.filename != info.orig_filename or not (info.filename == MANIFEST or is_member(info.filename)):
            found.append(f"{info.orig_filename!r} is not a member that a model has")
            continue
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in {0, stat.S_IFREG}:
            found.append(f"{info.filename} is a link or another special file")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            found.append(f"{info.filename} is packed, which autoseg never does")
        if info.flag_bits & _ENCRYPTED:
            found.append(f"{info.filename} is encrypted")
        if not info.filename.endswith(".safetensors") and info.file_size > _LARGEST_TEXT:
            found.append(f"{info.filename} is larger than any such member")
    if MANIFEST not in names:
        found.append(f"it has no {MANIFEST}")
    # Members that share bytes could say more than the file holds.
    if sum(info.file_size for info in infos) > path.stat().st_size:
        found.append("its members are larger than the file")
    return found


def _manifest(path: Path, archive: zipfile.ZipFile) -> Manifest:
    try:
        return records.from_json(Manifest, archive.read(MANIFEST).decode(), source=f"{MANIFEST} in {path}")
    except RecordError as error:
        if "version" in error.message:
            raise
        raise _damaged(path, [error.message]) from error


def _contradictions(manifest: Manifest, infos: list[zipfile.ZipInfo]) -> list[str]:
    found = []
    listed = {member.name: member.size for member in manifest.members}
    present = {info.filename: info.file_size for info in infos if info.filename != MANIFEST}
    found += [f"{name} is listed and not there" for name in sorted(set(listed) - set(present))]
    found += [f"{name} is there and not listed" for name in sorted(set(present) - set(listed))]
    found += [
        f"{name} has {present[name]} bytes, not {size}"
        for name, size in sorted(listed.items())
        if name in present and present[name] != size
    ]
    found += [f"{name} is missing" for name in missing_members(set(listed) & set(present))]
    for text, fits in ((manifest.dataset, is_folder_name), (manifest.model, is_model_name)):
        if not fits(text):
            found.append(f"{text!r} cannot be the name of a folder")
    return found


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except BROKEN_ZIP as error:
        raise _damaged(path, [str(error) or type(error).__name__]) from error
    except OSError as error:
        # An offset that no file has.
        if error.errno != errno.EINVAL:
            raise
        raise _damaged(path, [str(error)]) from error


def _damaged(path: Path, reasons: list[str]) -> ModelFolderError:
    return ModelFolderError(
        f"{path} is damaged, or no model of autoseg:\n{joined(reasons)}",
        hint="fetch it again; nothing was installed",
    )
