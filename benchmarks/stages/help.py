"""How long a person waits for ``--help``, and a script for the import."""

from __future__ import annotations

from benchmarks.bench import Row, Setting, Side
from benchmarks.watch import Usage

_COMMANDS = {
    "autoseg_plan_and_preprocess": "nnUNetv2_plan_and_preprocess",
    "autoseg_train": "nnUNetv2_train",
    "autoseg_predict": "nnUNetv2_predict",
    "autoseg_evaluate": "nnUNetv2_evaluate_folder",
}


def rows(setting: Setting) -> list[Row]:
    """One row per command that both have, and one for the imports that a script needs to predict."""
    helps = [
        _row(f"{ours} -h", setting.tool(ours, "-h"), setting.tool(theirs, "-h")) for ours, theirs in _COMMANDS.items()
    ]
    importing = _row(
        "import of what predicts",
        [str(setting.ours), "-c", "from autoseg import Predictor"],
        [str(setting.peer), "-c", "from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor"],
        least=None,
    )
    return [*helps, importing]


def _row(task: str, ours: list[str], theirs: list[str], least: float | None = 10.0) -> Row:
    return Row(
        stage="help",
        task=task,
        ours=Side(command=ours),
        peer=Side(
            command=theirs, env=dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), "/nowhere")
        ),
        least_time=least,
        compare=_nothing_to_compare,
        repeats=5,
    )


def _nothing_to_compare(_ours: Usage, _theirs: Usage) -> str:
    return "-"
