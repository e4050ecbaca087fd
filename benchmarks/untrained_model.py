"""Makes a model of random weights for fold 0 of a planned dataset: python benchmarks/untrained_model.py DATASET."""

import sys

from pwmlunet.data.workspace import Workspace
from pwmlunet.inference.model import save_tensors
from pwmlunet.training.config import RECIPES
from pwmlunet.training.run import open_run

if __name__ == "__main__":
    run = open_run(Workspace.from_environment(), sys.argv[1], RECIPES["default"], None)
    folder = run.model.fold_folder("0")
    folder.mkdir(exist_ok=True)
    save_tensors(folder / "weights.pt", run.model.build().state_dict())
