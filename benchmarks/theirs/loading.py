"""nnU-Net's training data loader in this process: CONFIGURATION of a preprocessed dataset, augmented as it trains.

Targets of deep supervision are left out, because the other side makes them in the loss.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from benchmarks.loading import Answer, Stopwatch, crop_boxes
from benchmarks.watch import report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preprocessed", type=Path)
    parser.add_argument("configuration")
    parser.add_argument("--batches", type=int, required=True)
    parser.add_argument("--warm", type=int, required=True, help="batches that are read ahead of the measured ones")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    np.random.seed(1)
    torch.manual_seed(1)
    plans = load_json(str(asked.preprocessed / "nnUNetPlans.json"))
    trainer = nnUNetTrainer(
        {**plans, "continue_training": False},
        asked.configuration,
        "all",
        load_json(str(asked.preprocessed / "dataset.json")),
        torch.device("cpu"),
    )
    trainer.enable_deep_supervision = False
    trainer._set_batch_size_and_oversample()
    stream, _ = trainer.get_dataloaders()
    answer = Answer(random_samples=round(trainer.batch_size * (1 - trainer.oversample_foreground_percent)))
    clock = Stopwatch()
    for step in range(asked.warm + asked.batches):
        with clock.running(step >= asked.warm):
            batch = next(stream)
        answer.add(batch["data"].numpy(), batch["target"].numpy())
    answer.write(asked.out, _crops(trainer))
    samples = asked.batches * trainer.batch_size
    report(clock.seconds, processor_seconds=clock.processor_seconds, samples_per_second=samples / clock.seconds)


def _crops(trainer: nnUNetTrainer) -> list[tuple[np.ndarray, np.ndarray]]:
    dataset = nnUNetDatasetBlosc2(trainer.preprocessed_dataset_folder)
    image, label, _, _ = dataset.load_case(sorted(dataset.identifiers)[0])
    boxes = crop_boxes(image.shape[1:], trainer.configuration_manager.patch_size)
    return [(crop_and_pad_nd(image, box, 0), crop_and_pad_nd(label, box, -1)) for box in boxes]


if __name__ == "__main__":
    main()
