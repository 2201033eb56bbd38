"""Commands that work on trained models and finished segmentations."""

from __future__ import annotations

from autoseg.cli.command import Command
from autoseg.schema.afterwards import EnsembleSettings, PostprocessSettings, SelectSettings

AFTERWARDS = (
    Command(
        verb="select",
        summary="choose model, ensemble and post-processing on cross-validation",
        description="Compare every trained model of a dataset, and every two together, on the cases that they did not "
        "see in training, each with the post-processing that helps it there. autoseg_predict follows the choice, which "
        "is written to selection.json. A run that was stopped goes on with the same command.",
        settings=SelectSettings,
        target="autoseg.pipeline.select:select",
        groups={"what": ("dataset", "ensembles"), "machine": ("device", "memory", "workers")},
        examples=(
            ("autoseg_select", "for the dataset planned last"),
            ("autoseg_select -d 3 --no-ensembles", "single models only, which is fast"),
        ),
    ),
    Command(
        verb="ensemble",
        summary="make one segmentation of those of several folders",
        description="Decide every case together: by the mean of the probabilities where every folder has them "
        "(autoseg_predict --save-probabilities, or nnU-Net's .npz), else by majority vote of the labels. Which of the "
        "two it is, is said.",
        settings=EnsembleSettings,
        target="autoseg.pipeline.ensemble:ensemble",
        required=("inputs", "outputs"),
        groups={"files": ("inputs", "outputs", "labels")},
        examples=(
            ("autoseg_ensemble -i out2d out3d -o both", "mean of probabilities"),
            ("autoseg_ensemble -i a b c -o vote", "majority of three, whoever made them"),
        ),
    ),
    Command(
        verb="postprocess",
        summary="keep largest components, remove small ones, fill holes",
        description="Apply post-processing to a folder of segmentations: the steps that autoseg_select chose, or "
        "steps of your own.",
        settings=PostprocessSettings,
        target="autoseg.pipeline.postprocess:postprocess_folder",
        required=("inputs", "outputs"),
        groups={
            "files": ("inputs", "outputs", "labels"),
            "steps": ("selection", "keep_largest", "min_size", "fill_holes"),
            "machine": ("workers",),
        },
        examples=(
            ("autoseg_postprocess -i out -o clean --keep-largest liver", "one component"),
            ("autoseg_postprocess -i out -o clean --min-size lesion=50", "in mm3"),
            ("autoseg_postprocess -i out -o clean --selection selection.json", "as chosen"),
        ),
    ),
)
