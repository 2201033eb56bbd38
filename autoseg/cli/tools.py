"""Commands beside the way from data to predictions."""

from __future__ import annotations

from autoseg.cli.command import Command
from autoseg.schema.calibration import CalibrateSettings
from autoseg.schema.importing import ImportSettings
from autoseg.schema.tools import DoctorSettings, ExportSettings, InstallSettings, MovePlanSettings, PlotSettings

TOOLS = (
    Command(
        verb="import",
        summary="bring in datasets and models of other programs",
        description="Bring a dataset into the work directory: a raw folder of nnU-Net, a task of the Medical "
        "Segmentation Decathlon, a list of paths (CSV or JSON), or DICOM series with RTSTRUCT or SEG. A model of "
        "nnU-Net v2, folder or zip, becomes a model of autoseg. With --merge several datasets, whose labels may "
        "differ, become one. What was stopped goes on with the same command; all faults are listed together.",
        settings=ImportSettings,
        target="autoseg.pipeline.importing:import_source",
        required=("source",),
        groups={"what": ("source", "merge", "name", "channels", "labels", "configuration"), "how": ("link", "workers")},
        examples=(
            ("autoseg_import -i Task04_Hippocampus", "a task of the Decathlon"),
            ("autoseg_import -i Dataset003_Liver --link", "of nnU-Net, without copies"),
            ("autoseg_import -i cases.csv --channels CT", "paths in a table: image, label"),
            ("autoseg_import -i dicom --name Heart", "DICOM with RTSTRUCT or SEG"),
            ("autoseg_import -i model.zip", "a model of nnU-Net"),
            ("autoseg_import -i 3 --merge 7 8 --name Abdomen", "three datasets as one"),
        ),
    ),
    Command(
        verb="export",
        summary="make one file of a trained model, to share it",
        description="Pack a trained model into one file: weights, plan, labels, scores, licence and a data card, each "
        "with its checksum; of a cascade both stages. Paths, case names and the images themselves stay here. With "
        "--onnx, write graphs for onnxruntime instead, with everything that is done before and after them.",
        settings=ExportSettings,
        target="autoseg.pipeline.export:export",
        groups={
            "model": ("model", "dataset", "configuration", "arch", "fold"),
            "file": ("output", "licence", "intended_use", "onnx", "force"),
        },
        examples=(
            ("autoseg_export -d 3 --licence CC-BY-4.0", "one file in this folder"),
            ("autoseg_export -m model -o liver.zip -f 0", "one fold only"),
            ("autoseg_export -d 3 --intended-use use.txt", "words for its card"),
            ("autoseg_export -d 3 --onnx -o liver_onnx", "for onnxruntime"),
        ),
    ),
    Command(
        verb="install",
        summary="put a shared model into the work directory",
        description="Check every byte of a file that autoseg_export made and put its model where autoseg_predict finds "
        "it. Shows licence and card. Nothing in the file is run, and nothing is written outside the model's folder.",
        settings=InstallSettings,
        target="autoseg.pipeline.install:install",
        text="autoseg.pipeline.install:installed_text",
        required=("file",),
        examples=(
            ("autoseg_install -i liver.zip", "ready for autoseg_predict"),
            ("autoseg_install -i liver.zip --name theirs", "beside your own"),
            ("autoseg_install -i liver.zip --sha256 9f86d0...", "only this very file"),
        ),
    ),
    Command(
        verb="calibrate",
        summary="make the probabilities of a trained model honest",
        description="Fit the temperature that makes the probabilities of a trained model as sure as they are right, on "
        "the cases that each fold did not see. autoseg_predict --uncertainty uses it; labels do not change.",
        settings=CalibrateSettings,
        target="autoseg.pipeline.calibrate:calibrate",
        groups={"model": ("model", "dataset", "configuration", "arch", "fold"), "how": ("tta", "device")},
        examples=(
            ("autoseg_calibrate", "the best trained model"),
            ("autoseg_calibrate -m model -f 0", "with the cases of one fold"),
        ),
    ),
    Command(
        verb="move_plan",
        summary="give a dataset the plan of another one",
        description="Plan a dataset like another one: spacing, patch, network, normalisation and its intensities are "
        "taken over, labels are those of the target. For pretraining and fine-tuning, where networks must be alike.",
        settings=MovePlanSettings,
        target="autoseg.pipeline.move_plan:move_plan",
        required=("source", "target"),
        examples=(
            ("autoseg_move_plan -s 3 -t 7", "plan 7 like 3"),
            ("autoseg_move_plan -s model/plan.json -t 7", "the plan of a model"),
            ("autoseg_move_plan -s 3 -t 7 --source-workdir ../b", "from elsewhere"),
        ),
    ),
    Command(
        verb="plot",
        summary="draw images with the outlines of labels and segmentations",
        description="Draw for every case the slice that shows most of its labels, as PNG: references as solid lines, "
        "segmentations dashed, one colour per label.",
        settings=PlotSettings,
        target="autoseg.pipeline.plot:plot",
        required=("images", "outputs"),
        groups={"files": ("images", "references", "predictions", "outputs", "labels"), "how": ("channel", "workers")},
        examples=(
            ("autoseg_plot -i imagesTs -p out -o pictures", "segmentations"),
            ("autoseg_plot -i imagesTr -r labelsTr -o pictures", "labels of a dataset"),
            ("autoseg_plot -i imagesTs -r labelsTs -p out -o pictures", "both"),
        ),
    ),
    Command(
        verb="doctor",
        summary="look at this computer and say what to change",
        description="Look at versions, devices, threads, memory and disk, time convolutions in the precisions that "
        "training may use, and say in plain words what to change. The exit status is 0 unless autoseg cannot work.",
        settings=DoctorSettings,
        target="autoseg.pipeline.doctor:doctor",
        text="autoseg.pipeline.doctor_text:report_text",
        verdict="autoseg.pipeline.doctor:verdict",
        examples=(
            ("autoseg_doctor", "about 15 seconds"),
            ("autoseg_doctor --seconds 0", "without the benchmark"),
            ("autoseg_doctor --json", "for a program, or a bug report"),
        ),
    ),
)
