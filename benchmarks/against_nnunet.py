"""Times the commands of pwmlunet and of nnU-Net 2 on the same cases, one after the other.

    python benchmarks/against_nnunet.py [--nnunet-bin DIR] [--repetitions 3] [--stages plan predict]

See benchmarks/README.md. Prints one table in Markdown; every measurement is a line of JSON in --log.
"""

import argparse
import os
import tempfile
from pathlib import Path

from stages import COMMANDS, HERE, STAGES, Inputs, Tool, compare, make_inputs, ours
from tiny_lesions import NAME


def main() -> None:
    """Makes the inputs, measures, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--nnunet-bin", type=Path, default=os.environ.get("NNUNET_BIN"), help="folder of nnUNetv2_predict and its python (default: $NNUNET_BIN)")  # fmt: skip
    arguments = parser.parse_args()
    inputs = make_inputs(
        arguments.folder,
        n_training=arguments.cases,
        n_predicted=arguments.predicted,
        shape_zyx=arguments.shape,
    )
    tools = [ours(arguments.folder, inputs)]
    if arguments.nnunet_bin and (Path(arguments.nnunet_bin) / "nnUNetv2_predict").is_file():
        tools.append(nnunet(Path(arguments.nnunet_bin), arguments.folder, inputs))
    else:
        print("nnU-Net is left out: no nnUNetv2_predict in --nnunet-bin or $NNUNET_BIN\n")
    log = arguments.log or arguments.folder / "measurements.jsonl"
    print(compare(tools, log, stages=arguments.stages, repetitions=arguments.repetitions))
    print(f"\nevery measurement: {log}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every comparison of stages can be told."""
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "pwmlunet_benchmarks")
    parser.add_argument("--log", type=Path, help="default: measurements.jsonl in the folder")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--cases", type=int, default=20, help="training cases")
    parser.add_argument("--predicted", type=int, default=3, help="cases to predict and to evaluate")
    parser.add_argument("--shape", type=int, nargs=3, default=[24, 256, 256], metavar=("Z", "Y", "X"))


def nnunet(scripts: Path, folder: Path, inputs: Inputs) -> Tool:
    """nnU-Net as its users call it, at its fastest on a small machine: two workers, prediction without pools."""
    home = folder / "nnunet"
    places = {name: home / name for name in ("preprocessed", "results")}
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "nnUNet_raw": str(inputs.raw),
        **{f"nnUNet_{name}": str(place) for name, place in places.items()},
        "nnUNet_n_proc_DA": "2",
        "nnUNet_compile": "f",
    }
    names = {"plan": "plan_and_preprocess", "evaluate": "evaluate_folder", "train": "train", "predict": "predict"}  # fmt: skip
    command = {key: str(scripts / f"nnUNetv2_{name}") for key, name in names.items()}
    plans, content = (str(places["preprocessed"] / NAME / f) for f in ("nnUNetPlans.json", "dataset.json"))
    predict = ["-i", str(inputs.images), "-o", str(home / "masks"), "-d", "501", "-c", "2d", "-f", "0"]
    evaluate = ["-djfile", content, "-pfile", plans, "-o", str(home / "summary.json"), "-np", "2"]
    return Tool(
        "nnU-Net",
        environment,
        {
            **{f"{c} --help": [command[c], "-h"] for c in COMMANDS},
            "plan": [command["plan"], "-d", "501", "-c", "2d", "--verify_dataset_integrity", "-npfp", "2", "-np", "2"],
            "predict": [command["predict"], *predict, "-device", "cpu", "--disable_tta", "-npp", "0", "-nps", "0"],
            "evaluate": [command["evaluate"], str(inputs.references), str(inputs.masks), *evaluate],
        },
        [str(scripts / "python"), str(HERE / "inside_nnunet.py"), "untrained", NAME],
        places["preprocessed"] / NAME,
    )  # fmt: skip


if __name__ == "__main__":
    main()
