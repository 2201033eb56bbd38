"""The table of commands: what each one is called, which settings it takes, and which pipeline it runs."""

from __future__ import annotations

from collections.abc import Mapping

from autoseg.cli.afterwards import AFTERWARDS
from autoseg.cli.command import Command
from autoseg.cli.tools import TOOLS
from autoseg.schema.settings import (
    ArchitecturesSettings,
    DemoSettings,
    EvaluateSettings,
    PredictSettings,
    PrepareSettings,
    RaceSettings,
    TrainSettings,
)

_PREPARE_GROUPS = {
    "dataset": ("dataset", "verify", "tolerance"),
    "plan": ("configurations", "arch", "memory", "time_budget", "device", "spacing", "patch_size", "batch_size"),
    "work": ("workers", "clean"),
}

_COMMANDS = (
    Command(
        verb="plan_and_preprocess",
        summary="measure a dataset, plan the training, preprocess the images",
        description="Check a dataset, measure it, plan a training for it and preprocess its images. "
        "The same as autoseg_fingerprint, autoseg_plan and autoseg_preprocess one after the other; "
        "what is already done and still fits is not done again.",
        settings=PrepareSettings,
        target="autoseg.pipeline.prepare:plan_and_preprocess",
        groups=_PREPARE_GROUPS,
        examples=(
            ("autoseg_plan_and_preprocess -d 3", "ready for autoseg_train"),
            ("autoseg_plan_and_preprocess -d 3 -c 2d 3d_fullres", "two ways to train"),
            ("autoseg_plan_and_preprocess -d 3 --memory 8GB", "plan for a GPU with 8 GB"),
            ("autoseg_plan_and_preprocess -d ~/Dataset003_Liver", "a dataset elsewhere"),
        ),
    ),
    Command(
        verb="fingerprint",
        summary="measure a dataset: shapes, spacings, classes, intensities",
        description="Check every file of a dataset and measure it: shapes, spacings, class volumes, connected "
        "components and intensities, per case and together, in one JSON file.",
        settings=PrepareSettings,
        target="autoseg.pipeline.prepare:fingerprint",
        groups=_PREPARE_GROUPS,
        examples=(
            ("autoseg_fingerprint -d 3", "measure it, or list its faults"),
            ("autoseg_fingerprint -d 3 --tolerance 1", "bear 1 mm between image and label"),
            ("autoseg_fingerprint -d 3 -w 2", "two processes, when memory is short"),
        ),
    ),
    Command(
        verb="plan",
        summary="plan the training from the fingerprint, show the plan as a table",
        description="Decide spacing, patch size, network and batch size from the fingerprint, show the plan as "
        "a table and say why. The plan is a JSON file that you may edit before preprocessing.",
        settings=PrepareSettings,
        target="autoseg.pipeline.prepare:plan",
        groups=_PREPARE_GROUPS,
        examples=(
            ("autoseg_plan -d 3", "plan for this machine"),
            ("autoseg_plan -d 3 --memory 24GB --device cuda", "plan for another one"),
            ("autoseg_plan -d 3 --spacing 3,1,1 --patch-size 32,96,96", "decide two things"),
        ),
    ),
    Command(
        verb="preprocess",
        summary="crop, normalise and resample the images as planned",
        description="Crop, normalise and resample every case as the plan says. A run that was stopped goes on "
        "with the missing cases; a changed plan starts afresh.",
        settings=PrepareSettings,
        target="autoseg.pipeline.prepare:preprocess",
        groups=_PREPARE_GROUPS,
        examples=(
            ("autoseg_preprocess -d 3", "what autoseg_train needs"),
            ("autoseg_preprocess -d 3 -c 2d 3d_fullres", "two configurations"),
            ("autoseg_preprocess -d 3 --clean -w 0", "all again, in one process"),
        ),
    ),
    Command(
        verb="train",
        summary="train the folds one after the other and validate them",
        description="Train the folds of a dataset one after the other and score each on its held-out cases. "
        "Ctrl-C, or an empty file STOP in the model folder, ends with a checkpoint; the same command goes on "
        "from there.",
        settings=TrainSettings,
        target="autoseg.pipeline.joint:train_any",
        groups={
            "what": ("dataset", "configuration", "arch", "fold", "folds", "splits"),
            "fine-tuning": ("init", "freeze"),
            "how long": ("epochs", "iterations", "val_iterations", "time_budget"),
            "recipe": ("optimizer", "lr", "weight_decay", "warmup", "batch_size", "seed", "mirror"),
            "loss": ("loss", "class_weights", "sampling"),
            "machine": ("device", "workers", "compile"),
            "watching": ("logger",),
            "afterwards": ("validate",),
        },
        examples=(
            ("autoseg_train", "all folds of the dataset planned last"),
            ("autoseg_train --time-budget 2h", "the same, fitted to two hours"),
            ("autoseg_train -d 3 -c 2d -f 0", "one fold of the 2D configuration"),
            ("autoseg_train -c 3d_cascade_fullres", "low resolution first, then refine it"),
            ("autoseg_train -d 3 --arch unetpp", "another architecture"),
            ("autoseg_train -d 3 4 --arch u2net3d", "one model of two datasets"),
            ("autoseg_train -d 3 -f all --epochs 2000", "one model on every case, longer"),
            ("autoseg_train -d 3 --splits splits.json", "folds of your own"),
            ("autoseg_train -d 3 --loss small_objects", "for targets of a few voxels"),
            ("autoseg_train -d 7 --init model", "fine-tune a trained model"),
        ),
    ),
    Command(
        verb="race",
        summary="find the best architecture for a dataset within a time",
        description="Train architectures on the same folds for the same time and compare them by the Dice of the "
        "validation cases. After each round the better half goes on with twice the time (successive halving). The "
        "winner's plan becomes the plan of the dataset. A race that was stopped, with Ctrl-C or an empty file STOP "
        "in its folder, goes on with the same command.",
        settings=RaceSettings,
        target="autoseg.pipeline.race:race",
        required=("arch", "time_budget"),
        groups={
            "what": ("dataset", "configuration", "arch", "fold"),
            "how": ("time_budget", "seed", "device", "workers"),
            "afterwards": ("adopt", "clean"),
        },
        examples=(
            ("autoseg_race --arch unet unetpp unet2022 --time-budget 6h", "two rounds"),
            ("autoseg_race -d 3 --arch unet vnet --time-budget 2h -f 0 1 2", "more cases"),
            ("autoseg_race -d 3 --arch unet vnet --time-budget 2h --no-adopt", "only look"),
        ),
    ),
    Command(
        verb="predict",
        summary="segment new images with every trained fold",
        description="Segment new images with the ensemble of all trained folds. An image that cannot be read "
        "does not stop the others; it is listed at the end and the exit status is 6.",
        settings=PredictSettings,
        target="autoseg.pipeline.predict:predict",
        required=("inputs", "outputs"),
        groups={
            "files": ("inputs", "outputs", "continue_", "save_probabilities", "dicom_seg", "uncertainty"),
            "model": ("model", "dataset", "configuration", "arch", "fold", "postprocess"),
            "accuracy and speed": ("tta", "prune", "step_size", "device", "memory"),
        },
        examples=(
            ("autoseg_predict -i in -o out", "with the model trained last"),
            ("autoseg_predict -i in -o out --continue", "only what is not done yet"),
            ("autoseg_predict -i scan.nii.gz -o out -m model", "one image"),
            ("autoseg_predict -i in -o out --tta", "mirror too: slower, better"),
            ("autoseg_predict -i in -o out --prune L2", "unetpp without its deep part"),
        ),
    ),
    Command(
        verb="evaluate",
        summary="score segmentations against reference labels",
        description="Score segmentations against references, per case and class: Dice, IoU, precision, recall, "
        "volumes, surface distances and lesion-wise F1, in summary.json and scores.csv.",
        settings=EvaluateSettings,
        target="autoseg.pipeline.evaluate:evaluate",
        required=("references", "predictions"),
        groups={"files": ("references", "predictions", "labels", "output"), "how": ("tolerance", "workers")},
        examples=(
            ("autoseg_evaluate -r labelsTs -p out", "summary.json in out"),
            ("autoseg_evaluate -r labelsTs -p out --tolerance 1", "surface Dice, 1 mm"),
            ("autoseg_evaluate -r labelsTs -p out --labels dataset.json", "names of labels"),
        ),
    ),
    Command(
        verb="architectures",
        summary="list the architectures with what each would cost on a dataset",
        description="List every architecture, those of other packages too, with the patch, batch, parameters, "
        "operations and memory that autoseg_plan --arch NAME would give it on a measured dataset. Nothing is written.",
        settings=ArchitecturesSettings,
        target="autoseg.pipeline.architectures:architectures",
        text="autoseg.pipeline.architectures_text:listing_text",
        groups={
            "what": ("dataset", "configuration", "arch"),
            "budget": ("memory", "device"),
            "output": ("json",),
        },
        examples=(
            ("autoseg_architectures", "for the last dataset"),
            ("autoseg_architectures -d 3 --memory 24GB --device cuda", "for another machine"),
            ("autoseg_architectures --arch unet resenc_unet:L", "only these two"),
            ("autoseg_architectures -d 3 -c 2d --json", "for a program"),
        ),
    ),
    Command(
        verb="demo",
        summary="generate a small dataset and walk through every stage",
        description="Generate a small labelled 3D dataset and walk through every stage with the commands that "
        "you would type: plan, preprocess, train five folds, segment held-out cases, score them. A few minutes on "
        "two cores, no GPU needed.",
        settings=DemoSettings,
        target="autoseg.cli.walk:demo",
        groups={"data": ("cases", "test_cases", "seed", "data_only"), "training": ("time_budget",)},
        examples=(
            ("autoseg_demo", "everything, in ./autoseg_data"),
            ("autoseg_demo --workdir demo --time-budget 10m", "elsewhere, and longer"),
            ("autoseg_demo --data-only", "only the dataset"),
        ),
    ),
)

COMMANDS: Mapping[str, Command] = {command.verb: command for command in (*_COMMANDS, *AFTERWARDS, *TOOLS)}
