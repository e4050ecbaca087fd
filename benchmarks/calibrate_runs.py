"""What calibration brings: every run of a dataset, and every recipe's seeds together, at .5, at .7 and at its own point.

    python benchmarks/calibrate_runs.py DATASET [--recipes sbfl bce_dice]

Runs are called RECIPE-SEED, as `compare_recipes.py` calls them. F1 counts lesions one to one from IoU 0.1, over
all out-of-fold cases; `nested` counts each subject at the point that the other subjects chose. Nothing is written.
"""

import argparse
from collections.abc import Sequence

from pwmlunet.data.workspace import Workspace
from pwmlunet.inference.calibration import calibrate
from pwmlunet.inference.postprocessing import Estimate, Postprocessing
from pwmlunet.inference.runs import Run, comparable_runs, gather_runs, tabulate_groups

HEADER = "| run | F1 at .5 | F1 at .7 | nested | nested less .5 | chosen | temperature | ECE | ECE, nested |"


def main() -> None:
    """Prints one row a run and one an ensemble."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset")
    parser.add_argument("--recipes", nargs="+", help="default: all")
    arguments = parser.parse_args()
    workspace = Workspace.from_environment()
    prepared = workspace.find_preprocessed(arguments.dataset)
    runs, left_out = comparable_runs(gather_runs(workspace.results / prepared.name, prepared, None))
    recipes = arguments.recipes or sorted({run.name.rpartition("-")[0] for run in runs})
    groups = [group for recipe in recipes for group in groups_of_recipe(runs, recipe)]
    print(*left_out, sep="\n")
    print(HEADER + "\n" + "|---" * HEADER.count(" |") + "|")
    for group, tables in zip(groups, tabulate_groups(runs, groups), strict=True):
        found = calibrate(tables).postprocessing
        print(f"| {' + '.join(run.name for run in group)} | " + " | ".join(cells(found)) + " |")


def groups_of_recipe(runs: Sequence[Run], recipe: str) -> list[tuple[Run, ...]]:
    """Each seed, and all of them together."""
    seeds = [run for run in runs if run.name.rpartition("-")[0] == recipe]
    return [*((run,) for run in seeds), *([tuple(seeds)] if len(seeds) > 1 else [])]


def cells(found: Postprocessing) -> list[str]:
    """The columns after the name."""
    choice = found.chosen
    assert choice is not None
    f1 = [shown(choice.figures[name].f1) for name in ("fixed 0.5", "fixed 0.7", "nested")]
    before, after = choice.ece_before, choice.ece_after
    return [
        *f1,
        shown(choice.f1_differences["fixed 0.5"]),
        found.in_words(),
        f"{found.temperature:.2f}",
        "–" if before is None else f"{before:.3f}",
        "–" if after is None else f"{after:.3f}",
    ]


def shown(estimate: Estimate) -> str:
    """A figure with its interval."""
    interval = f" ({estimate.interval.low:.2f}–{estimate.interval.high:.2f})" if estimate.interval else ""
    return "–" if estimate.value is None else f"{estimate.value:.2f}{interval}"


if __name__ == "__main__":
    main()
