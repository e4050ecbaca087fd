"""Trains several recipes over seeds and folds, and sets their out-of-fold scores side by side.

    python benchmarks/compare_recipes.py DATASET RECIPES.json [--seeds 0 1 2] [--folds 0 1 2] [--jobs 2]

RECIPES.json maps a name to options of `pwml_train`: {"sbfl": ["--loss", "sbfl"], "t1": ["-c", "resunet_2d"]}.
Each training runs on one thread, `--jobs` at a time; finished ones are not repeated. Scores count lesions
one to one from IoU 0.1, pooled over all held-out cases; sensitivities are the highest over all thresholds
that stay within the false positives a labelled slice. `ensemble` is the mean over the seeds' probabilities.
"""

import argparse
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pwmlunet.data.workspace import Workspace
from pwmlunet.evaluation.scores import score_case
from pwmlunet.evaluation.summary import summarise
from pwmlunet.inference.model import TrainedModel

THRESHOLDS = (0.01, 0.02, 0.05, *np.arange(0.1, 0.95, 0.05).round(2), 0.95, 0.98, 0.99)
COLUMNS = ("Dice .5", "Dice .7", "F1 .5", "F1 .7", "sens ½", "sens 1", "sens 2")


def main() -> None:
    """Trains what is missing, then prints one row a recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset")
    parser.add_argument("recipes", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folds", nargs="+", default=["0", "1", "2"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--score-only", action="store_true", help="score what is there")
    arguments = parser.parse_args()
    recipes = json.loads(arguments.recipes.read_text())
    if not arguments.score_only:
        jobs = [(n, s, f) for s in arguments.seeds for n in recipes for f in arguments.folds]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(lambda job: train(arguments.dataset, recipes[job[0]], *job), jobs))
    prepared = Workspace.from_environment().find_preprocessed(arguments.dataset)
    print("| recipe | n | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 2) + "|")
    for name in recipes:
        runs = [probabilities(prepared.name, f"{name}-{s}", arguments.folds) for s in arguments.seeds]
        runs = [run for run in runs if run]
        if not runs:
            continue
        rows = np.array([scores(prepared, run) for run in runs])
        spread = [f"{m:.2f} ({low:.2f}–{high:.2f})" for m, low, high in zip(rows.mean(0), rows.min(0), rows.max(0), strict=True)]  # fmt: skip
        print(f"| {name} | {len(runs)} | " + " | ".join(spread) + " |")
        together = {case: np.mean([run[case] for run in runs], axis=0) for case in runs[0] if all(case in r for r in runs)}  # fmt: skip
        print(
            f"| {name}, ensemble | 1 | " + " | ".join(f"{v:.2f}" for v in scores(prepared, together)) + " |"
        )


def train(dataset: str, options: list[str], name: str, seed: int, fold: str) -> None:
    """One training in a process of its own, on one thread."""
    command = ["pwml_train", dataset, fold, "--run", f"{name}-{seed}", "--seed", str(seed), *options]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)


def probabilities(dataset: str, run: str, folds: list[str]) -> dict[str, np.ndarray]:
    """Out-of-fold probabilities (K, Z, Y, X) by case."""
    folder = Workspace.from_environment().results / dataset / run
    paths = [p for fold in folds for p in sorted(folder.glob(f"fold_{fold}/validation/*.npz"))]
    return {path.stem: np.load(path)["probability"].astype(np.float32) for path in paths}


def scores(prepared: Path, run: dict[str, np.ndarray]) -> list[float]:
    """The columns of the table."""
    points = {t: point(prepared, run, t) for t in THRESHOLDS}
    within = [max([r for _, _, r, fp in points.values() if fp <= most], default=0.0) for most in (0.5, 1, 2)]
    return [points[0.5][0], points[0.7][0], points[0.5][1], points[0.7][1], *within]


def point(prepared: Path, run: dict[str, np.ndarray], threshold: float) -> tuple[float, float, float, float]:
    """Pooled Dice, lesion F1, recall and false positives a labelled slice at a threshold."""
    from pwmlunet.data.store import CaseStore

    store = CaseStore(prepared / "slices")
    labels = TrainedModel.open(next((Workspace.from_environment().results / prepared.name).iterdir())).labels
    cases = []
    for name, probability in run.items():
        facts = store.facts(name)
        assert facts is not None
        spacing = facts.way_back.geometry.spacing_zyx_mm
        mask = labels.decode(probability, threshold)
        cases.append(score_case(store.reference(name), mask, spacing_zyx_mm=spacing, labels=labels, name=name, subject=facts.subject))  # fmt: skip
    voxels = [c.targets["lesion"].voxels for c in cases]
    tp, fp, fn = (sum(getattr(v, k) for v in voxels) for k in ("true_positives", "false_positives", "false_negatives"))  # fmt: skip
    target = summarise(cases).targets["lesion"]
    pooled = target.pooled["iou_0.1"]
    dice = 2 * tp / max(2 * tp + fp + fn, 1)
    return dice, pooled.f1 or 0.0, pooled.recall or 0.0, target.false_positives_per_labelled_slice


if __name__ == "__main__":
    main()
