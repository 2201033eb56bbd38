"""Models of nnU-Net v2 as autoseg's model folders: a results folder, or a zip of one, translated once and kept.

A model lies in ``TRAINER__PLANS__CONFIGURATION`` with plans.json, dataset.json and ``fold_X/checkpoint_final.pth``. Of
a zip (``nnUNetv2_export_model_to_zip``) only these members are read, and they are written under names of our own, so
that the names in an archive never become paths. The second stage of a cascade brings the first along, which lies beside
it under the same trainer and plans.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, Any

import torch

from autoseg import records
from autoseg.errors import ModelFolderError
from autoseg.interop.nnunet_plans import Translated, stage_before, translate_plan
from autoseg.interop.nnunet_weights import Checkpoint, read_checkpoint, rename_weights
from autoseg.io.bundle import BROKEN_ZIP, file_sha256
from autoseg.io.discover import resolve_workspace
from autoseg.io.staging import staging
from autoseg.log import get_logger
from autoseg.nets import build_network
from autoseg.nets.weights import write_tensors
from autoseg.schema.folders import FIRST_STAGE, PREVIOUS_MODEL, ModelFolder
from autoseg.schema.plan import Configuration, Plan
from autoseg.schema.report import RunReport
from autoseg.schema.sharing import is_model_name

_LOG = get_logger(__name__)

# Final weights as nnU-Net itself chooses them; the best ones where training never came to its end.
_CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
_FACTS = ("plans.json", "dataset.json")
_STAGING = "translating"
_LARGEST_PLANS = 64 << 20
_MEMBER = re.compile(rf"^fold_(\d+|all)/({'|'.join(re.escape(name) for name in _CHECKPOINTS)})$")


@dataclass(frozen=True)
class _Model:
    """A model found: where its facts and checkpoints lie, by path inside the model; ``stamp`` tells its state.

    ``folder`` is the path of the model, in a zip that inside the archive.
    """

    place: Path
    folder: PurePath
    name: str
    members: Mapping[str, str]
    stamp: str

    @property
    def checkpoints(self) -> dict[str, str]:
        """Fold -> path inside the model, all of the same kind."""
        matches = [match for match in map(_MEMBER.match, self.members) if match]
        kinds = {match[2] for match in matches}
        kind = next(name for name in _CHECKPOINTS if name in kinds)
        return {match[1]: match[0] for match in matches if match[2] == kind}


def as_model_folder(
    path: Path | str, cache: Path | None = None, *, configuration: str | None = None, stages: bool = True
) -> Path:
    """``path`` itself, or, if it is a model of nnU-Net v2, autoseg's translation of it in ``cache``.

    The translation is kept: the same files are not translated twice. Folds, labels, channels and mirror axes come
    along; predictions with it follow nnU-Net's (docs/from_nnunet.md).

    Args:
        path: a model folder of either program, a folder with nnU-Net models up to two levels below, or a zip.
        cache: default: ``cache/nnunet`` in the work directory.
        configuration: which one, where there are several.
        stages: of a cascade, translate the first stage too; it comes to lie inside the folder of the second.

    Raises:
        ModelFolderError: several models fit or none does, the model cannot be translated (the reasons are listed), or
            the first stage of a cascade is not there.
        DatasetError: its dataset.json is wrong.
    """
    path = Path(path).expanduser().absolute()
    found = _find(path)
    if not found:
        return path
    models = _stages(_choose(path, found, configuration)) if stages else [_choose(path, found, configuration)]
    stamp = models[0].stamp if len(models) == 1 else _stamp(*(model.stamp for model in models))
    root = (cache or resolve_workspace().translated) / f"{models[0].name}-{stamp}"
    if not ModelFolder(root).finished_folds():
        _LOG.info("nnU-Net: translating %s", " and ".join(str(model.folder) for model in models))
        _convert_all(models, root, stages=stages)
    _refuse_other(ModelFolder(root), configuration, path)
    return root


def is_nnunet_model(path: Path | str) -> bool:
    """Whether a folder or zip holds models of nnU-Net v2."""
    return bool(_find(Path(path).expanduser().absolute()))


def import_model(path: Path | str, results: Path, *, configuration: str | None = None) -> Path:
    """Translate a model of nnU-Net v2 into ``results/DATASET/NAME``, where models of autoseg lie.

    Raises:
        ModelFolderError: it cannot be translated, another model has this place, or the first stage of a cascade is not
            there.
        DatasetError: its dataset.json is wrong.
    """
    path = Path(path).expanduser().absolute()
    models = _stages(_choose(path, _find(path), configuration))
    if not is_model_name(models[0].name):
        raise ModelFolderError(f"a model cannot be called {models[0].name!r}: {path}", hint="rename its folder")
    with staging(results, _STAGING) as folder:
        new = _convert_all(models, folder / models[0].name)
        _refuse_other(new, configuration, path)
        target = results / records.load(Plan, new.plan).dataset / models[0].name
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            new.root.rename(target)
        elif _digests(target) != _digests(new.root):
            raise ModelFolderError(f"{target} holds another model", hint="move it away, then import again")
    return target


def _refuse_other(model: ModelFolder, configuration: str | None, path: Path) -> None:
    found = records.load(RunReport, model.run).settings["configuration"]
    if configuration not in {None, found}:
        raise ModelFolderError(
            f"{path} holds a model of {found}, not of {configuration}", hint=f"leave -c out, or say -c {found}"
        )


def _digests(root: Path) -> dict[str, str]:
    files = []
    for model in (ModelFolder(root), ModelFolder(root).first_stage):
        files += [model.plan, *(model.fold(name).weights for name in model.finished_folds())]
    there = {path.relative_to(root).as_posix(): path for path in files if path.is_file()}
    return {name: file_sha256(path) for name, path in there.items()}


def convert(folder: Path, root: Path, *, checkpoints: Mapping[str, str]) -> ModelFolder:
    """Translate the nnU-Net model in ``folder`` into a new autoseg model folder ``root``, which appears when complete.

    Args:
        checkpoints: fold -> path of its checkpoint inside ``folder``.

    Raises:
        ModelFolderError, DatasetError: as ``as_model_folder``.
    """
    return _appearing(root, lambda model: _write(folder, model, checkpoints))


def _convert_all(models: Sequence[_Model], root: Path, *, stages: bool = True) -> ModelFolder:
    """Translate a model and, in a cascade, the one before it into a new folder ``root``.

    Raises:
        ModelFolderError: with ``stages``, only the second stage of a cascade is given.
    """

    def write(model: ModelFolder) -> None:
        named = {PREVIOUS_MODEL: FIRST_STAGE} if len(models) > 1 else {}
        for source, target, facts in zip(models, (model, model.first_stage), (named, {}), strict=False):
            with _unpacked(source) as folder:
                _write(folder, target, source.checkpoints, **facts)
        second = records.load(Plan, model.plan).configurations[-1]
        if stages and len(models) == 1 and second.previous_stage is not None:
            raise ModelFolderError(
                f"{models[0].place} is the second stage of a cascade, and its name does not say where the first lies",
                hint=f"call its folder TRAINER__PLANS__{second.name}, and put TRAINER__PLANS__{second.previous_stage} "
                "beside it",
            )

    return _appearing(root, write)


def _appearing(root: Path, write: Callable[[ModelFolder], None]) -> ModelFolder:
    with staging(root.parent, _STAGING) as folder:
        partial = folder / root.name
        write(ModelFolder(partial))
        if not ModelFolder(root).finished_folds():
            partial.rename(root)
    return ModelFolder(root)


def _write(folder: Path, model: ModelFolder, checkpoints: Mapping[str, str], **named: str) -> None:
    """``named`` are further settings of run.json."""
    translated: Translated | None = None
    for fold, member in checkpoints.items():
        checkpoint = read_checkpoint(folder / member)
        if translated is None:
            translated = translate_plan(folder, checkpoint.configuration, batch_norm=checkpoint.batch_norm)
            translated = replace(translated, plan=_save_facts(model, translated, checkpoint, named))
        configuration = translated.plan.configuration(checkpoint.configuration)
        weights = fitting_weights(checkpoint, translated.plan, configuration)
        with records.atomic_path(model.fold(fold).weights) as temporary:
            write_tensors(temporary, weights, metadata={"configuration": configuration.name})


def _save_facts(model: ModelFolder, translated: Translated, checkpoint: Checkpoint, named: Mapping[str, str]) -> Plan:
    parameters = sum(tensor.numel() for name, tensor in checkpoint.weights.items() if ".running_" not in name)
    configurations = tuple(
        replace(entry, cost=replace(entry.cost, parameters=parameters))
        if entry.name == checkpoint.configuration
        else entry
        for entry in translated.plan.configurations
    )
    plan = replace(translated.plan, configurations=configurations)
    records.save(model.plan, plan)
    records.save(model.dataset, translated.spec)
    settings = {"configuration": checkpoint.configuration, "mirror_axes": list(checkpoint.mirror_axes), **named}
    records.save(model.run, RunReport(command=f"translated from nnU-Net v2, {checkpoint.trainer}", settings=settings))
    return plan


def fitting_weights(checkpoint: Checkpoint, plan: Plan, configuration: Configuration) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint under autoseg's names, float32, checked against the network of the plan.

    Raises:
        ModelFolderError: tensors are missing, left over, or of another shape.
    """
    weights = rename_weights(checkpoint.weights, configuration.architecture.name, configuration.topology.num_stages)
    # Fresh weights are drawn and thrown away; the caller's random numbers stay as they are.
    with torch.random.fork_rng(devices=[]):
        network = build_network(
            configuration.architecture,
            configuration.topology,
            ndim=configuration.ndim,
            in_channels=plan.input_channels(configuration),
            num_heads=plan.labels.num_heads,
            patch_size=configuration.patch_size,
        )
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    different = [name for name in sorted({*wanted, *given}) if wanted.get(name) != given.get(name)]
    if different:
        name = different[0]
        raise ModelFolderError(
            f"the checkpoint of {checkpoint.trainer} does not fit its plans.json: {len(different)} tensors differ, "
            f"first {name}, which is {given.get(name, 'missing')} and should be {wanted.get(name, 'absent')}",
            hint="the trainer changed the network; predict with nnU-Net itself",
        )
    # Integers are the counters of batch normalisation.
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).clone(memory_format=torch.contiguous_format)
        for name, tensor in weights.items()
    }


def _find(path: Path) -> list[_Model]:
    if path.is_dir():
        if ModelFolder(path).finished_folds():
            return []
        places = (plans.parent for depth in ("", "*/", "*/*/") for plans in sorted(path.glob(f"{depth}plans.json")))
        return [model for model in map(_in_folder, places) if model]
    if path.is_file() and zipfile.is_zipfile(path):
        return _in_zip(path)
    return []


def _in_folder(folder: Path) -> _Model | None:
    files = [folder / fact for fact in _FACTS] + sorted(
        file for name in _CHECKPOINTS for file in folder.glob(f"fold_*/{name}")
    )
    there = {file.relative_to(folder).as_posix(): file for file in files if file.is_file()}
    stats = {name: file.stat() for name, file in there.items()}
    stamp = _stamp(str(folder), *(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats.items()))
    return _complete(_Model(folder, folder, folder.name, {name: name for name in there}, stamp))


def _in_zip(path: Path) -> list[_Model]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, *BROKEN_ZIP) as error:
        raise ModelFolderError(f"{path} cannot be read: {error}", hint="copy the file again") from error
    roots = [PurePosixPath(entry.filename).parent for entry in entries if entry.filename.endswith("plans.json")]
    models = []
    for root in roots:
        inside = {
            PurePosixPath(entry.filename).relative_to(root).as_posix(): entry
            for entry in entries
            if PurePosixPath(entry.filename).is_relative_to(root)
        }
        members = {name: entry for name, entry in inside.items() if name in _FACTS or _MEMBER.match(name)}
        stamp = _stamp(*(f"{name} {entry.file_size} {entry.CRC}" for name, entry in members.items()))
        name = re.sub(r"\W+", "_", root.name or path.stem)
        paths = {name: entry.filename for name, entry in members.items()}
        models.append(_complete(_Model(path, root, name, paths, stamp)))
    return [model for model in models if model]


def _complete(model: _Model) -> _Model | None:
    folds = any(map(_MEMBER.match, model.members))
    return model if folds and all(fact in model.members for fact in _FACTS) else None


def _stamp(*facts: str) -> str:
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


def _choose(path: Path, found: list[_Model], configuration: str | None) -> _Model:
    fitting = [model for model in found if configuration is None or model.name.endswith(f"__{configuration}")]
    if len(found) == 1:
        return found[0]
    if len(fitting) == 1:
        return fitting[0]
    # Who gives both stages of a cascade means the second, which brings the first along.
    firsts = set(map(_folder_before, found)) if configuration is None else set()
    rest = [model for model in found if model.folder not in firsts]
    if len(rest) == 1:
        return rest[0]
    names = ", ".join(model.name for model in found)
    wanted = f" for {configuration}" if configuration else ""
    raise ModelFolderError(
        f"{path} holds several models of nnU-Net and {len(fitting)} of them are fit{wanted}: {names}",
        hint="name one with -c CONFIGURATION, or give its own folder",
    )


def _stages(model: _Model) -> list[_Model]:
    """The model and, in a cascade, the one before it.

    Raises:
        ModelFolderError: that one is not there.
    """
    wanted = _folder_before(model)
    if wanted is None:
        return [model]
    beside = [_in_folder(Path(wanted))] if model.place.is_dir() else _in_zip(model.place)
    for before in beside:
        if before is not None and before.folder == wanted:
            return [model, before]
    raise ModelFolderError(
        f"{model.folder.name} is the second stage of a cascade, and the model of its first stage is not beside it: "
        f"{wanted if model.place.is_dir() else f'{wanted} in {model.place}'} is missing or holds no trained fold",
        hint=f"copy {wanted.name} there, or export both: nnUNetv2_export_model_to_zip -c {wanted.name.split('__')[-1]} "
        f"{model.folder.name.split('__')[-1]}",
    )


def _folder_before(model: _Model) -> PurePath | None:
    """Of the second stage of a cascade, where nnU-Net keeps the model of the first: same trainer, same plans."""
    plans = _plans(model)
    start, _, configuration = model.folder.name.rpartition("__")
    if not start or configuration not in plans.get("configurations", {}):
        return None
    previous = stage_before(plans, configuration)
    return None if previous is None else model.folder.with_name(f"{start}__{previous}")


def _plans(model: _Model) -> Mapping[str, Any]:
    """The content of plans.json, empty where it is none: translating the model will say so."""
    try:
        with _opened(model, "plans.json") as stream:
            data = json.loads(stream.read(_LARGEST_PLANS).decode())
    except (OSError, *BROKEN_ZIP):
        return {}
    return data if isinstance(data, dict) and isinstance(data.get("configurations"), dict) else {}


def _opened(model: _Model, fact: str) -> IO[bytes]:
    """A file of a model, which in a zip stays in the archive."""
    if model.place.is_dir():
        return (model.place / fact).open("rb")
    with zipfile.ZipFile(model.place) as archive:
        # The archive's file stays open until its members are closed.
        return archive.open(model.members[fact])


@contextmanager
def _unpacked(model: _Model) -> Iterator[Path]:
    """The folder of a model; that of a zip is temporary."""
    if model.place.is_dir():
        yield model.place
        return
    needed = {*_FACTS, *model.checkpoints.values()}
    with tempfile.TemporaryDirectory(prefix="autoseg_nnunet_") as temporary, zipfile.ZipFile(model.place) as archive:
        for name in needed:
            target = Path(temporary, name)
            target.parent.mkdir(exist_ok=True)
            try:
                with records.writing(target), archive.open(model.members[name]) as source, target.open("wb") as out:
                    shutil.copyfileobj(source, out)
            except BROKEN_ZIP as error:
                raise ModelFolderError(f"{model.place} is damaged: {error}", hint="copy the file again") from error
        yield Path(temporary)


__all__ = ["as_model_folder", "convert", "fitting_weights", "import_model", "is_nnunet_model"]
