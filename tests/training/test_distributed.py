"""Two processes that share a batch train the same network as one, fold after fold, with and without a budget."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from autoseg import records
from autoseg.schema.folders import FoldFolder
from autoseg.schema.plan import Plan
from autoseg.training.checkpoint import load_weights
from autoseg.training.distributed import World, local_share
from autoseg.training.fold import FoldTask, train_fold

SCRIPT = """
import sys
from pathlib import Path
import torch
from autoseg import records
from autoseg.schema.folders import FoldFolder
from autoseg.schema.plan import Plan
from autoseg.schema.settings import TrainSettings
from autoseg.schema.splits import Fold
from autoseg.schema.architecture import Recipe
from autoseg.training.distributed import joined_world, read_world
from autoseg.training.fold import FoldTask, train_fold

plan = records.load(Plan, Path(sys.argv[1]))
folder = Path(sys.argv[3])
settings = TrainSettings(epochs=1, iterations=3, val_iterations=2, device="cpu", mirror=False)
with joined_world(read_world(), torch.device("cpu")):
    for name, cases in (("0", Fold(train=("a", "b", "c"), val=("d",))), ("1", Fold(train=("b", "c"), val=("a",)))):
        task = FoldTask(
            plan=plan, configuration=plan.configurations[0], settings=settings, recipe=Recipe(fitted=False), name=name,
            cases=cases, mirror_axes=(), store=Path(sys.argv[2]),
            folder=FoldFolder(folder / name), stop_file=folder / "STOP",
        )
        train_fold(task, stop=lambda: False, target_seconds=(lambda state, kitchen: 1.0) if name == "1" else None)
"""


def test_a_batch_is_shared_evenly() -> None:
    shares = [local_share(5, World(rank=rank, size=2, local_rank=rank)) for rank in (0, 1)]
    assert shares == [(0, 3), (3, 3)]


def test_two_processes_train_the_network_of_one(make_task: Callable[..., FoldTask], tmp_path: Path) -> None:
    # A rate that is given is kept: that for three steps would blow up the rounding of bfloat16.
    task = make_task(epochs=1, iterations=3, lr=0.01)
    task = replace(task, mirror_axes=(), settings=replace(task.settings, mirror=False))
    train_fold(task, stop=lambda: False)
    plan: Plan = task.plan
    records.save(tmp_path / "plan.json", plan)
    (tmp_path / "script.py").write_text(SCRIPT)
    shared = FoldFolder(tmp_path / "shared" / "0")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(tmp_path / "script.py"), str(tmp_path / "plan.json"), str(task.store), str(shared.root.parent)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert FoldFolder(tmp_path / "shared" / "1").weights.exists()
    alone, together = load_weights(task.folder.weights), load_weights(shared.weights)
    assert alone.keys() == together.keys()
    for name in alone:
        # Where bfloat16 is the faster precision, single gradients are only that exact.
        torch.testing.assert_close(together[name], alone[name], rtol=1e-3, atol=1e-4)
