"""Bring a dataset or a model of another program into the work directory."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from autoseg import records
from autoseg.errors import DatasetError, SettingError
from autoseg.interop.collection import Collection, write_collection
from autoseg.interop.dicom import dicom_collection
from autoseg.interop.layouts import manifest_collection, msd_collection, nnunet_collection
from autoseg.interop.merging import merge_collections
from autoseg.interop.nnunet_model import import_model, is_nnunet_model
from autoseg.io.dicom import holds_dicom
from autoseg.io.discover import find_dataset, read_dataset, resolve_workspace
from autoseg.log import get_logger
from autoseg.schema.folders import Workspace
from autoseg.schema.importing import ImportSettings

_LOG = get_logger(__name__)

MERGED = "merged.json"
BEGUN = "imported.json"
_NAME = re.compile(r"Dataset(\d{3,})_\w[^/\\]*")
_NUMBERED = re.compile(r"Dataset\d{3,}_")


def import_source(settings: ImportSettings) -> Path:
    """Recognise ``settings.source`` and bring it; returns the dataset folder or the model folder.

    Raises:
        DatasetError, ModelFolderError, SettingError: it is nothing that is known, it has faults, or datasets to merge
            contradict each other; all are listed.
        PartialError: some cases could not be brought.
    """
    workspace = resolve_workspace(settings.workdir)
    source = Path(settings.source).expanduser().absolute()
    if not source.exists() and not settings.merge:
        raise SettingError(f"{source} does not exist", hint="give a folder, a manifest or a zip with -i")
    if is_nnunet_model(source) and not settings.merge:
        model = import_model(source, workspace.results, configuration=settings.configuration)
        _LOG.info("model: %s", model)
        return model
    _refuse_settings(settings)
    collection = _merged(settings, workspace) if settings.merge else _reader(source, settings)()
    name = _dataset_name(collection.name if settings.name is None else settings.name, workspace.raw)
    _begin(collection, workspace.raw / name, merge=bool(settings.merge))
    done = write_collection(collection, workspace.raw / name, link=settings.link, workers=settings.workers)
    # What was written is read again, by what the other commands read it with.
    spec = read_dataset(done.folder)
    _LOG.info(
        "%d cases in %s (%d new), channels %s, labels %s",
        len(spec.cases),
        done.folder,
        done.written,
        ", ".join(spec.channels),
        ", ".join(spec.labels.names),
    )
    return done.folder


def _refuse_settings(settings: ImportSettings) -> None:
    """What says nothing of a dataset."""
    if settings.configuration is not None:
        raise SettingError(
            "-c chooses between models of nnU-Net, and datasets are to be imported",
            hint="leave it out: autoseg_plan_and_preprocess -c and autoseg_train -c choose configurations",
        )
    if settings.name is not None and not re.search(r"\w", settings.name):
        raise SettingError(
            f"{settings.name!r} cannot be the name of a dataset", hint="give a --name such as Dataset003_Liver"
        )


def _merged(settings: ImportSettings, workspace: Workspace) -> Collection:
    """The source and those to merge with it as one.

    Raises:
        SettingError: the new dataset has no name, a source is given twice, or one is a model.
        DatasetError: a source is wrong, or sources contradict each other; all contradictions are listed.
    """
    if settings.name is None:
        raise SettingError("--merge makes a new dataset, which has no name", hint="give one with --name")
    sources = [_place(text, workspace) for text in (settings.source, *settings.merge)]
    real = [path.resolve() for path in sources]
    twice = sorted({str(path) for path in real if real.count(path) > 1})
    if twice:
        raise SettingError(f"given twice: {', '.join(twice)}", hint="name every source once")
    models = [str(path) for path in sources if is_nnunet_model(path)]
    if models:
        raise SettingError(
            f"models of nnU-Net cannot be merged: {', '.join(models)}",
            hint="give the datasets that they were trained on",
        )
    return merge_collections([_reader(path, settings)() for path in sources], settings.name)


def _place(text: str, workspace: Workspace) -> Path:
    """A source by its path, or a dataset by its number or name."""
    path = Path(text).expanduser().absolute()
    # Not what links lead to: cases are named after what the folder is called here.
    return path if path.exists() else find_dataset(text, workspace).absolute()


def _begin(collection: Collection, folder: Path, *, merge: bool) -> None:
    """Write down how labels are numbered, of a merge and of DICOM: such files do not tell, and a later run keeps them.

    Raises:
        SettingError: the folder holds something else.
    """
    path = folder / MERGED
    if merge or path.exists():
        sources = collection.facts["merged_from"] if merge else {}
        integers = {prefix: source["integers"] for prefix, source in sources.items()}
        content = {"labels": collection.labels, "integers": integers}
    elif any(entry.read for entry in collection.entries) and not (folder / "dataset.json").exists():
        path = folder / BEGUN
        content = {"labels": collection.labels}
    else:
        return
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    if path.exists() or (folder.is_dir() and any(folder.iterdir())):
        what = "a merge of other sources" if path.name == MERGED else "was begun with other labels or integers"
        raise SettingError(
            f"{folder} holds another dataset, or {what}",
            hint="give another --name, or remove that folder",
        )
    records.write_text(path, text)


def _reader(source: Path, settings: ImportSettings) -> Callable[[], Collection]:
    """What reads a source, by what lies in it."""
    labels = None if settings.labels is None else Path(settings.labels).expanduser().absolute()
    if source.is_file():
        if source.suffix.lower() not in {".csv", ".tsv", ".json"}:
            raise SettingError(
                f"{source} is no manifest and no zip of an nnU-Net model",
                hint="give a .csv or .json with the columns image, label, case, split",
            )
        return lambda: manifest_collection(source, channels=settings.channels, labels=labels)
    path = source / "dataset.json"
    if path.is_file():
        decathlon = _has_training_list(path)
        return lambda: msd_collection(source) if decathlon else nnunet_collection(source)
    if holds_dicom(source):
        return lambda: dicom_collection(source, channels=settings.channels, labels=labels, workers=settings.workers)
    raise DatasetError(
        f"{source} is nothing that can be imported: it has no dataset.json, no nnU-Net model and no DICOM files",
        hint="give an nnU-Net or Decathlon folder, a CSV or JSON manifest, an nnU-Net model, or a folder of DICOM",
    )


def _has_training_list(path: Path) -> bool:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        # Whoever reads it as a dataset says what is wrong.
        return False
    return isinstance(data, dict) and isinstance(data.get("training"), list) and bool(data["training"])


def _dataset_name(wanted: str, raw: Path) -> str:
    """``DatasetNNN_Name``: the name if it has this form, the number of a Decathlon task, else the next free number.

    Raises:
        SettingError: it has this form and is no name of a folder, or another dataset has the number.
    """
    there = {match[0]: int(match[1]) for path in _children(raw) if (match := _NAME.fullmatch(path.name))}
    free = f"{max([*there.values(), 0]) + 1:03d}"
    name = _with_number(wanted, there, free)
    number = re.findall(r"\d+", name)[0]
    same = [other for other, taken in there.items() if taken == int(number)]
    if same and name not in there:
        raise SettingError(
            f"{raw / same[0]} has the number {int(number)} already, and {name} would share it",
            hint=f"give --name {name.replace(number, free, 1)}",
        )
    return name


def _with_number(wanted: str, there: Iterable[str], free: str) -> str:
    if _NUMBERED.match(wanted):
        if not _NAME.fullmatch(wanted) or ".." in wanted or not wanted.isprintable():
            raise SettingError(
                f"{wanted!r} cannot be the name of a folder", hint="give a --name such as Dataset003_Liver"
            )
        return wanted
    word = re.sub(r"\W+", "_", wanted).strip("_") or "Imported"
    task = re.fullmatch(r"Task(\d+)_(\w+)", word)
    if task:
        return f"Dataset{int(task[1]):03d}_{task[2]}"
    # Imported before: the same name goes on there.
    before = [name for name in sorted(there) if _NUMBERED.sub("", name) == word]
    return before[0] if before else f"Dataset{free}_{word}"


def _children(folder: Path) -> Iterable[Path]:
    return folder.iterdir() if folder.is_dir() else ()


__all__ = ["import_source"]
