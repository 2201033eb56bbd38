"""A trained model that is loaded once and segments images from files or memory, in this process alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from autoseg import records
from autoseg.errors import DatasetError, ModelFolderError, SettingError
from autoseg.inference.budget import choose_sweep
from autoseg.inference.cascade import check_before, model_before, segment_before
from autoseg.inference.ensemble import Ensemble, load_network, prepared, weights_configuration
from autoseg.inference.stitch import stitch
from autoseg.interop.nnunet_model import as_model_folder
from autoseg.io import itk
from autoseg.io.images import non_finite, read_channels
from autoseg.io.volume import Geometry, Volume
from autoseg.log import get_logger
from autoseg.nets import traits_of
from autoseg.nets.device import choose_device, choose_precision, tune
from autoseg.nets.label_channels import integer_groups, label_groups
from autoseg.ops.crop import nonzero_mask
from autoseg.preprocessing.case import PreprocessedCase, preprocess_case
from autoseg.preprocessing.restore import Restorer
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Configuration, Plan
from autoseg.schema.report import RunReport

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813

    from autoseg.inference.uncertainty import Doubt

_LOG = get_logger(__name__)


@dataclass(frozen=True)
class Segmentation:
    """``labels`` (z, y, x) with the integers of the dataset; ``probabilities`` float16 (heads, z, y, x) if asked.

    ``doubt`` is there where ``inference.uncertainty`` made the segmentation.
    """

    labels: np.ndarray
    probabilities: np.ndarray | None = None
    doubt: Doubt | None = None


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Segments images with all folds of a model. Nothing changes between calls, so calls may follow in any number.

    ``first`` is of a cascade: the model whose segmentation this one refines.

    >>> predictor = Predictor.load(Path("results/Dataset003_Name/unet_3d_fullres"))  # doctest: +SKIP
    >>> labels = predictor.predict_array(array, spacing=(2.0, 1.0, 1.0))  # doctest: +SKIP
    """

    plan: Plan
    configuration: Configuration
    ensemble: Ensemble
    folds: tuple[str, ...] = ()
    step_size: float = 0.5
    memory: int | None = None
    first: Predictor | None = None

    @staticmethod
    def load(
        model_folder: Path | str,
        *,
        folds: Sequence[str | int] = (),
        device: str = "auto",
        tta: bool | None = None,
        step_size: float = 0.5,
        memory: int | None = None,
        prune: str | None = None,
        exact: bool = False,
        stages: bool = True,
    ) -> Predictor:
        """Load the trained folds of a model folder.

        Args:
            folds: which folds ("0", 1, "all"); default: every one that has final weights.
            tta: average over mirror images along the axes that training mirrored; None: on a GPU yes, on a CPU no.
            step_size: distance of windows as a fraction of the patch, at most 1.
            memory: bytes that a prediction may use; None: 70% of what is free.
            prune: ``L1``, ``L2``, ...: only the shallower part of a UNet++, without the weights of the rest.
            exact: float32 also where half precision is faster.
            stages: of a cascade, also load the first stage, with all its folds; else ``infer`` is given what it says.

        Raises:
            ModelFolderError: no trained model, a fold is missing, or files do not fit each other.
            SettingError: a step size outside (0, 1], no such device, or a model that cannot be pruned so.
        """
        if not 0 < step_size <= 1:
            raise SettingError(f"a step size of {step_size} is not possible", hint="use more than 0, at most 1")
        folder = ModelFolder(as_model_folder(model_folder, stages=stages))
        names = chosen_folds(folder, tuple(str(name) for name in folds))
        plan = records.load(Plan, folder.plan)
        configuration = for_inference(_configuration(folder, names, plan), prune)
        partial = configuration.architecture != plan.configuration(configuration.name).architecture
        chosen = choose_device(device)
        tune(chosen)
        mirror = tta if tta is not None else chosen.type == "cuda"
        refines = configuration.previous_stage is not None
        groups = integer_groups if configuration.previous_as_nnunet else label_groups
        first = None
        if refines and stages:
            first = Predictor.load(
                model_before(folder, configuration).root,
                device=device,
                tta=tta,
                step_size=step_size,
                memory=memory,
                exact=exact,
            )
            check_before(first.plan, first.configuration.name, plan, configuration)
        ensemble = Ensemble(
            networks=tuple(
                load_network(folder.fold(name).weights, plan, configuration, chosen, partial=partial) for name in names
            ),
            ndim=configuration.ndim,
            device=chosen,
            precision=None if exact else choose_precision(chosen),
            mirror_axes=mirror_axes(folder, configuration) if mirror else (),
            previous=groups(plan.labels) if refines else (),
        )
        channels, heads = plan.input_channels(configuration), plan.labels.num_heads
        return Predictor(
            plan=plan,
            configuration=configuration,
            ensemble=prepared(ensemble, configuration, channels=channels, heads=heads),
            folds=names,
            step_size=step_size,
            memory=memory,
            first=first,
        )

    def predict(self, volume: Volume) -> np.ndarray:
        """Labels (z, y, x) of an image, with the integers of the dataset; errors as ``segment``."""
        return self.segment(volume).labels

    def predict_files(self, paths: Sequence[Path | str]) -> Volume:
        """Labels (1, z, y, x) of the image whose channels are ``paths``, with the geometry of the first file.

        Raises:
            DatasetError: a file cannot be read or the files do not fit each other; else as ``segment``.
        """
        volume = read_channels([Path(path) for path in paths])
        return Volume(self.predict(volume)[None], volume.geometry)

    def predict_array(self, array: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
        """Labels (z, y, x) of an array (z, y, x) or (c, z, y, x); with two spacings, pictures without the z.

        Args:
            spacing: mm per voxel in the array's axis order: (z, y, x), or (y, x) for a picture.

        Raises:
            DatasetError: axes and spacing do not fit; else as ``segment``.
        """
        axes = len(spacing)
        if axes not in {2, 3} or array.ndim not in {axes, axes + 1} or min(spacing) <= 0:
            raise DatasetError(
                f"an array of shape {array.shape} does not go with the spacing {tuple(spacing)}",
                hint="give (z, y, x) or (c, z, y, x) with three spacings, or (y, x) or (c, y, x) with two, above 0",
            )
        channels = array if array.ndim == axes + 1 else array[None]
        if axes == 2:
            return self.predict(Volume(channels[:, None], Geometry.picture(spacing)))[0]
        return self.predict(Volume(channels, Geometry.upright(spacing)))

    def predict_sitk(self, image: sitk.Image) -> sitk.Image:
        """Labels of a SimpleITK image (vector components are channels) with its geometry; errors as ``segment``."""
        volume = itk.from_image(image)
        return itk.to_image(self.predict(volume)[None], volume.geometry)

    def segment(self, volume: Volume, *, probabilities: bool = False) -> Segmentation:
        """Preprocess, predict and restore one image.

        Raises:
            DatasetError: another number of channels than in training, or NaN or infinite voxels.
            DivergenceError: the networks return values that are not finite.
            ResourceError: memory does not suffice.
        """
        return self.infer(self.prepare(volume), probabilities=probabilities)

    def prepare(self, volume: Volume) -> PreprocessedCase:
        """The image as the networks want it; the first half of ``segment``, which needs no device."""
        expected = self.plan.channels
        if len(volume.data) != len(expected):
            raise DatasetError(
                f"the image has {len(volume.data)} channels, the model was trained with {len(expected)}",
                hint=f"give {', '.join(expected)}, in this order",
            )
        finding = non_finite(volume.data)
        if finding is not None:
            raise DatasetError(f"the image {finding.fault}", hint=finding.remedy)
        case = preprocess_case(volume, None, plan=self.plan, configuration=self.configuration)
        if self.first is None:
            return case
        empty = ~nonzero_mask(volume.data) if self.configuration.previous_as_nnunet else None
        return replace(case, coarse=self.first.prepare(volume), empty=empty)

    def network_image(self, case: PreprocessedCase, previous: np.ndarray | None = None) -> np.ndarray:
        """What windows are cut from, float32 (c, z, y, x): in the second stage of a cascade, the last channel is the
        segmentation of the first, ``previous`` (z, y, x) if it is known.
        """
        if self.configuration.previous_stage is None:
            return case.image
        if previous is None:
            if self.first is None:
                raise ValueError("the second stage of a cascade needs what the first one says")
            previous = segment_before(self.first, case, self.configuration)
        return np.concatenate([case.image, previous[np.newaxis]], dtype=np.float32, casting="unsafe")

    def infer(
        self, case: PreprocessedCase, *, probabilities: bool = False, previous: np.ndarray | None = None
    ) -> Segmentation:
        """Labels on the original grid; the second half of ``segment``. ``previous`` as for ``network_image``."""
        image = self.network_image(case, previous)
        heads = self.plan.labels.num_heads
        voxels = int(np.prod(case.trace.shape))
        sweep = choose_sweep(
            case.image.shape[1:],
            self.configuration,
            heads=heads,
            features=self.ensemble.features,
            step=self.step_size,
            device=self.ensemble.device,
            memory=self.memory,
            extra_bytes=voxels * (2 + 2 * heads * probabilities),
        )
        restorer = Restorer(
            case.trace,
            labels=self.plan.labels,
            resampling=self.configuration.resampling,
            probabilities=probabilities,
        )

        def evaluate(windows: torch.Tensor) -> torch.Tensor:
            return self.ensemble.evaluate(windows, per_batch=sweep.per_batch)

        head = self.ensemble.head if self.ensemble.heads else None
        with torch.inference_mode():
            for planes in stitch(image, evaluate, sweep, head=head):
                restorer.add(planes)
        return Segmentation(restorer.finish(), restorer.probabilities)


def for_inference(configuration: Configuration, prune: str | None) -> Configuration:
    """The configuration whose network leaves out what only trains, and what is pruned away.

    Raises:
        SettingError: the architecture cannot be pruned, or ``prune`` is not a level.
    """
    architecture = configuration.architecture
    traits = traits_of(architecture.name)
    arguments = {**architecture.arguments, **traits.inference_arguments}
    if prune is not None:
        if not traits.prunable:
            raise SettingError(
                f"a model of architecture {architecture.name} cannot be pruned", hint="leave out --prune; unetpp can be"
            )
        level = prune.upper().removeprefix("L")
        if not level.isdecimal():
            raise SettingError(f"{prune!r} is not a level of pruning", hint="write --prune L1, L2, L3 or L4")
        arguments["prune"] = int(level)
    return replace(configuration, architecture=replace(architecture, arguments=arguments))


def chosen_folds(folder: ModelFolder, asked: tuple[str, ...]) -> tuple[str, ...]:
    """The folds that are asked for, or all that are trained.

    Raises:
        ModelFolderError: none is trained, or not these.
    """
    finished = folder.finished_folds()
    if not finished:
        raise ModelFolderError(
            f"{folder.root} has no trained fold",
            hint="train one first, or give the folder that holds plan.json and fold_0",
        )
    missing = [name for name in asked if name not in finished]
    if missing:
        raise ModelFolderError(
            f"{folder.root} has no trained fold {', '.join(missing)}", hint=f"trained are: {', '.join(finished)}"
        )
    return tuple(dict.fromkeys(asked)) or finished


def _configuration(folder: ModelFolder, folds: Sequence[str], plan: Plan) -> Configuration:
    names = {weights_configuration(folder.fold(name).weights) for name in folds}
    if len(names) > 1:
        raise ModelFolderError(
            f"the folds in {folder.root} are of different configurations: {', '.join(sorted(names))}",
            hint="keep one configuration per model folder",
        )
    return plan.configuration(names.pop())


def mirror_axes(folder: ModelFolder, configuration: Configuration) -> tuple[int, ...]:
    """The axes of the patch that a model may be mirrored along.

    Raises:
        ModelFolderError: what its run.json says are no such axes.
    """
    axes = records.load(RunReport, folder.run).settings.get("mirror_axes", [])
    if not isinstance(axes, list) or not all(axis in range(configuration.ndim) for axis in axes):
        raise ModelFolderError(
            f"{folder.run}: mirror_axes {axes} are not axes of {configuration.name}",
            hint=f"list axes from 0 to {configuration.ndim - 1}, or predict with --no-tta",
        )
    return tuple(axes)
