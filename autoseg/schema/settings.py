"""Every setting of every command: name, default, help. Flags and keyword arguments are both made from here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from autoseg.schema.architecture import OPTIMIZERS
from autoseg.schema.parsing import parse_bytes, parse_class_weights, parse_duration, parse_integers, parse_numbers


def option(
    default: Any,
    help: str,  # noqa: A002 - the field's word
    *,
    flags: tuple[str, ...] = (),
    metavar: str | None = None,
    choices: tuple[str, ...] | None = None,
    parse: Callable[[str], Any] | None = None,
    many: bool = False,
    minimum: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field that the command line turns into a flag (``--field-name`` unless ``flags`` says else).

    A number must be at least ``minimum``, more than ``above``, less than ``below``, and finite.
    """
    return field(
        default=default,
        metadata={
            "help": help,
            "flags": flags,
            "metavar": metavar,
            "choices": choices,
            "parse": parse,
            "many": many,
            "minimum": minimum,
            "above": above,
            "below": below,
        },
    )


DEVICE_HELP = "cpu, cuda, cuda:1, ...; default: a GPU if there is one, else the CPU"
WORKERS_HELP = "worker processes; 0 does everything in one process; default: what cores and memory allow"
_WORKDIR = "work directory; default: AUTOSEG_HOME, else ./autoseg_data"


@dataclass(frozen=True, kw_only=True)
class CommonSettings:
    workdir: str | None = option(None, _WORKDIR, metavar="DIR")
    quiet: bool = option(False, "say only what went wrong", flags=("-q", "--quiet"))
    debug: bool = option(False, "show the Python traceback of an error")


@dataclass(frozen=True, kw_only=True)
class PrepareSettings(CommonSettings):
    """Fingerprint, plan and preprocess."""

    dataset: str | None = option(
        None, "dataset: its number, name or folder", flags=("-d", "--dataset"), metavar="DATASET"
    )
    configurations: tuple[str, ...] = option(
        (),
        "configurations to preprocess; default: the one that autoseg_train trains",
        flags=("-c", "--configurations"),
        metavar="NAME",
        many=True,
    )
    arch: str = option(
        "auto",
        "architecture, NAME or NAME:PRESET; autoseg_architectures lists them; auto chooses and says why",
        metavar="NAME",
    )
    memory: int | None = option(
        None,
        "memory for training, and on a CPU for preparing, such as 8GB; default: the GPU's, else the free RAM",
        metavar="SIZE",
        parse=parse_bytes,
    )
    device: str = option("auto", f"device to plan for: {DEVICE_HELP}", metavar="DEVICE")
    spacing: tuple[float, ...] | None = option(
        None, "target spacing in mm, z,y,x, instead of the planned one", metavar="MM", parse=parse_numbers
    )
    patch_size: tuple[int, ...] | None = option(
        None, "patch size in voxels, in the plan's axis order", metavar="VOXELS", parse=parse_integers
    )
    batch_size: int | None = option(None, "batch size instead of the planned one", metavar="N", minimum=1)
    time_budget: float | None = option(
        None,
        "time for training all folds, such as 2h: plans the network that gets furthest, and autoseg_train takes it",
        metavar="TIME",
        parse=parse_duration,
        above=0,
    )
    verify: bool = option(True, "check every file of the dataset first")
    tolerance: float = option(
        0.1, "largest distance in mm between the corners of an image and its label", metavar="MM", minimum=0
    )
    workers: int | None = option(None, WORKERS_HELP, flags=("-w", "--workers"), metavar="N", minimum=0)
    clean: bool = option(False, "measure, plan and preprocess again even if nothing changed")


@dataclass(frozen=True, kw_only=True)
class TrainSettings(CommonSettings):
    """Train folds and validate them. The defaults are the peer-reviewed recipe of nnU-Net."""

    dataset: tuple[str, ...] = option(
        (),
        "dataset; several train one model for all of them (--arch u2net3d); default: the one planned last",
        flags=("-d", "--dataset"),
        metavar="DATASET",
        many=True,
    )
    configuration: str | None = option(
        None,
        "configuration; default: 3d_fullres, or 2d for pictures",
        flags=("-c", "--configuration"),
        metavar="NAME",
    )
    arch: str | None = option(
        None, "architecture, NAME or NAME:PRESET, planned alike; default: that of the plan", metavar="NAME"
    )
    fold: tuple[str, ...] = option(
        (),
        "folds to train, such as 0 or 0 3, or all to train one model on every case; default: each in turn",
        flags=("-f", "--fold"),
        metavar="FOLD",
        many=True,
    )
    epochs: int = option(1000, "number of epochs; more on a finished model extends it", metavar="N", minimum=1)
    iterations: int = option(250, "training steps per epoch", metavar="N", minimum=1)
    val_iterations: int = option(50, "validation patches per epoch, in batches", metavar="N", minimum=1)
    time_budget: float | None = option(
        None,
        "time for everything this command does, such as 30m or 2h; the schedule is fitted to it",
        metavar="TIME",
        parse=parse_duration,
    )
    optimizer: str | None = option(None, "optimizer; default: the architecture's", metavar="NAME", choices=OPTIMIZERS)
    lr: float | None = option(
        None, "highest learning rate; default: the architecture's, 0.01 for the U-Net", metavar="RATE", above=0
    )
    weight_decay: float | None = option(None, "weight decay; default: the architecture's", metavar="RATE", minimum=0)
    warmup: float | None = option(
        None,
        "share of training in which the learning rate rises; default: the architecture's",
        metavar="SHARE",
        minimum=0,
        below=1,
    )
    loss: str | None = option(
        None,
        "dice_ce, dice_topk, dice_focal, tversky or small_objects; default: dice_ce, or what the model had before",
        metavar="NAME",
    )
    class_weights: str | None = option(
        None,
        "weights of the classes in the loss: auto, or numbers such as 1,5,5, background first, or one per region",
        metavar="WEIGHTS",
        parse=parse_class_weights,
    )
    sampling: str | None = option(
        None,
        "how patches that show foreground are drawn; default: default, or small_objects with that loss",
        metavar="NAME",
        choices=("default", "class_balanced", "offset", "small_objects"),
    )
    batch_size: int | None = option(None, "batch size instead of the planned one", metavar="N", minimum=1)
    seed: int = option(0, "seed of everything that is drawn", metavar="N", minimum=0)
    device: str = option("auto", DEVICE_HELP, metavar="DEVICE")
    folds: int = option(5, "number of folds when splits are made", metavar="K", minimum=2)
    splits: str | None = option(
        None, "JSON with folds of your own, or with a group per case that stays on one side", metavar="FILE"
    )
    mirror: bool = option(True, "mirror patches at random; left/right label names switch that axis off")
    init: str | None = option(
        None,
        "start from this trained model: a model folder, one of its folds, or a model of nnU-Net v2",
        metavar="MODEL",
    )
    freeze: tuple[str, ...] = option(
        (), "parts of the network that keep the weights of --init, such as encoder", metavar="PART", many=True
    )
    workers: int | None = option(
        None, "worker processes that load patches", flags=("-w", "--workers"), metavar="N", minimum=0
    )
    compile: bool = option(True, "compile the network on a GPU, if a short trial shows that it works")
    logger: tuple[str, ...] = option(
        (), "tensorboard, mlflow, wandb: log there too, besides log.jsonl and log.csv", metavar="NAME", many=True
    )
    validate: bool = option(True, "predict and score the cases of the fold after training")


@dataclass(frozen=True, kw_only=True)
class RaceSettings(CommonSettings):
    """Train architectures on the same folds for the same time, and find the best."""

    dataset: str | None = option(
        None, "dataset; default: the one planned last", flags=("-d", "--dataset"), metavar="DATASET"
    )
    configuration: str | None = option(
        None,
        "configuration; default: the one that autoseg_train trains with each architecture",
        flags=("-c", "--configuration"),
        metavar="NAME",
    )
    arch: tuple[str, ...] = option(
        (), "two architectures or more, each NAME or NAME:PRESET, planned alike", metavar="NAME", many=True
    )
    fold: tuple[str, ...] = option(
        ("0",),
        "folds that each is trained on, such as 0 1 2; more of them score more cases; default: 0",
        flags=("-f", "--fold"),
        metavar="FOLD",
        many=True,
    )
    time_budget: float | None = option(
        None, "time for the whole race, such as 2h or 1d", metavar="TIME", parse=parse_duration, above=0
    )
    device: str = option("auto", DEVICE_HELP, metavar="DEVICE")
    workers: int | None = option(
        None, "worker processes that load patches", flags=("-w", "--workers"), metavar="N", minimum=0
    )
    seed: int = option(0, "seed of everything that is drawn", metavar="N", minimum=0)
    adopt: bool = option(True, "make the plan for the winner the plan of the dataset")
    clean: bool = option(False, "remove an earlier race and start a new one")


@dataclass(frozen=True, kw_only=True)
class ModelSettings(CommonSettings):
    """Which trained model a command is about."""

    model: str | None = option(
        None, "model folder; default: the best trained model of the dataset", flags=("-m", "--model"), metavar="DIR"
    )
    dataset: str | None = option(
        None, "dataset; default: the one planned last", flags=("-d", "--dataset"), metavar="DATASET"
    )
    configuration: str | None = option(
        None, "configuration; default: the best one that is trained", flags=("-c", "--configuration"), metavar="NAME"
    )
    arch: str | None = option(None, "architecture of the model; default: the best one that is trained", metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class PredictSettings(ModelSettings):
    """Segment new images with every trained fold."""

    inputs: str = option("", "folder with images (or one image)", flags=("-i", "--inputs"), metavar="IN")
    outputs: str = option("", "folder for segmentations", flags=("-o", "--outputs"), metavar="OUT")
    fold: tuple[str, ...] = option(
        (), "folds of the ensemble; default: all that are trained", flags=("-f", "--fold"), metavar="FOLD", many=True
    )
    tta: bool | None = option(None, "mirroring test-time augmentation; default: on a GPU yes, on a CPU no")
    prune: str | None = option(
        None, "L1, L2, ...: use only the shallower part of a unetpp model, which is faster", metavar="LEVEL"
    )
    step_size: float = option(0.5, "distance of windows as a fraction of the patch", metavar="FRACTION")
    continue_: bool = option(False, "skip images whose segmentation is complete", flags=("--continue",))
    save_probabilities: bool = option(False, "also write class probabilities as .npz (float16)")
    dicom_seg: bool = option(False, "of DICOM series also write the segmentation as DICOM SEG (.dcm)")
    uncertainty: bool = option(False, "also write the entropy of every voxel, and which cases are least certain")
    postprocess: bool = option(True, "do to segmentations what autoseg_select found to help, if it was run")
    device: str = option("auto", DEVICE_HELP, metavar="DEVICE")
    memory: int | None = option(
        None, "memory that prediction may use; default: 70% of what is free", metavar="SIZE", parse=parse_bytes
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(CommonSettings):
    """Score a folder of segmentations against references."""

    references: str = option("", "folder with reference labels", flags=("-r", "--references"), metavar="REF")
    predictions: str = option("", "folder with segmentations", flags=("-p", "--predictions"), metavar="PRED")
    output: str | None = option(
        None, "folder for summary.json and scores.csv; default: that of the segmentations", metavar="DIR"
    )
    labels: str | None = option(
        None, "dataset.json that names the labels; default: found beside the files, else plain integers", metavar="FILE"
    )
    tolerance: float = option(2.0, "tolerance of the surface Dice in mm", metavar="MM", minimum=0)
    workers: int | None = option(None, WORKERS_HELP, flags=("-w", "--workers"), metavar="N", minimum=0)


@dataclass(frozen=True, kw_only=True)
class ArchitecturesSettings(CommonSettings):
    """List the architectures with what each would cost on a dataset."""

    dataset: str | None = option(
        None, "dataset; default: the one planned last", flags=("-d", "--dataset"), metavar="DATASET"
    )
    configuration: str | None = option(
        None,
        "configuration to plan; default: 3d_fullres, or 2d for pictures and architectures without 3D",
        flags=("-c", "--configuration"),
        metavar="NAME",
    )
    arch: tuple[str, ...] = option(
        (), "only these, NAME with its presets or NAME:PRESET; default: all", metavar="NAME", many=True
    )
    memory: int | None = option(
        None,
        "memory for training, such as 8GB; default: that of the plan, else the GPU's, else the free RAM",
        metavar="SIZE",
        parse=parse_bytes,
    )
    device: str | None = option(
        None, "cpu, cuda, ...; default: that of the plan, else a GPU if there is one", metavar="DEVICE"
    )
    json: bool = option(False, "print one JSON document instead of tables")


@dataclass(frozen=True, kw_only=True)
class DemoSettings(CommonSettings):
    """Generate a small labelled dataset and walk through every stage."""

    cases: int = option(30, "training cases to generate", metavar="N", minimum=5)
    test_cases: int = option(6, "held-out cases to generate", metavar="N", minimum=1)
    seed: int = option(0, "seed of the generated data", metavar="N", minimum=0)
    time_budget: float = option(
        120.0, "time for training the five folds", metavar="TIME", parse=parse_duration, above=0
    )
    data_only: bool = option(False, "generate the data and stop")
