"""What only nnU-Net's own Python can do for the benchmarks; run by it, with nnU-Net's three folders set.

python inside_nnunet.py untrained DATASET            makes a 2-D model of random weights for fold 0
python inside_nnunet.py samples DATASET SECONDS      prints augmented patches a second on one thread, as JSON
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


def make_trainer(dataset: str) -> nnUNetTrainer:
    """nnU-Net's default trainer for fold 0 of the 2-D configuration."""
    folder = Path(os.environ["nnUNet_preprocessed"]) / dataset  # noqa: SIM112 - nnU-Net's name
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    content = json.loads((folder / "dataset.json").read_text())
    plans["continue_training"] = False
    return nnUNetTrainer(plans, "2d", 0, content, torch.device("cpu"))


def untrained(dataset: str) -> None:
    """Writes the model folder that nnUNetv2_predict reads."""
    trainer = make_trainer(dataset)
    trainer.initialize()
    model = Path(trainer.output_folder_base)
    (model / "plans.json").write_text(json.dumps(trainer.plans_manager.plans))
    (model / "dataset.json").write_text(json.dumps(trainer.dataset_json))
    trainer.inference_allowed_mirroring_axes = (0, 1)
    trainer.save_checkpoint(str(model / "fold_0" / "checkpoint_final.pth"))


def samples(dataset: str, seconds: str) -> None:
    """Draws batches for a while, in this process and on one thread."""
    torch.set_num_threads(1)
    trainer = make_trainer(dataset)
    trainer.initialize()
    batches, _ = trainer.get_dataloaders()
    shape = next(batches)["data"].shape
    n, start, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < float(seconds):
        n += len(next(batches)["data"])
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(json.dumps({"samples": n, "wall_seconds": wall, "cpu_seconds": cpu, "shape": list(shape[1:])}))


if __name__ == "__main__":
    {"untrained": untrained, "samples": samples}[sys.argv[1]](*sys.argv[2:])
