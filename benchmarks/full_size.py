"""Times the whole job on volumes of ultrasound as large as a scanner's, beside nnU-Net where it is installed.

    python benchmarks/full_size.py [--nnunet-bin DIR] [--size 400] [--workers 2] [--width 16]

Stages: fingerprint, plan and preprocessing of two synthetic cases from nothing; prediction of a third on the CPU
without flips, with random weights. Prints one table in Markdown; every measurement is a line of JSON in --log.
See benchmarks/README.md.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from against_nnunet import nnunet
from stages import Inputs, Tool, compare, ours
from tiny_lesions import NAME

STAGES = ("plan", "predict")
TRAINING_CASES = ("sub-01", "sub-02")  # folds need two subjects
CASE_TO_PREDICT = "sub-03"
N_LESIONS = 6
LOGIT_OF_NO_LESION = -6.0  # untrained networks must not call half of a volume lesion: no trained one does


def main() -> None:
    """Makes the inputs, measures, and prints the table."""
    arguments = _parse()
    if arguments.untrained:
        write_untrained(arguments.configuration, arguments.width)
        return
    inputs = make_inputs(arguments.folder / str(arguments.size), arguments.size)
    tools = [_ours(arguments, inputs)]
    if arguments.nnunet_bin and (Path(arguments.nnunet_bin) / "nnUNetv2_predict").is_file():
        tools.append(nnunet(Path(arguments.nnunet_bin), inputs.raw.parent, inputs))
    else:
        print("nnU-Net is left out: no nnUNetv2_predict in --nnunet-bin or $NNUNET_BIN\n")
    log = arguments.log or arguments.folder / "measurements.jsonl"
    print(f"{len(TRAINING_CASES)} cases to plan, 1 to predict, {shape_of(arguments.size)} voxels (z, y, x)\n")
    print(compare(tools, log, stages=arguments.stages, repetitions=arguments.repetitions))
    print(f"\nevery measurement: {log}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "pwmlunet_full_size")
    parser.add_argument("--log", type=Path, help="default: measurements.jsonl in the folder")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--size", type=int, default=400, help="voxels along the longest axis (default: 400, of 0.15 mm; at least 64)")  # fmt: skip
    parser.add_argument("--workers", type=int, default=2, help="our cases at a time while planning")
    parser.add_argument("--configuration", default="priority_2d", help="of our plan, to predict with")
    parser.add_argument("--width", type=int, default=16, help="channels of its first stage")
    parser.add_argument("--nnunet-bin", type=Path, default=os.environ.get("NNUNET_BIN"), help="folder of nnUNetv2_predict and its python (default: $NNUNET_BIN)")  # fmt: skip
    parser.add_argument("--untrained", action="store_true", help=argparse.SUPPRESS)  # what `compare` calls
    return parser.parse_args()


def shape_of(size: int) -> tuple[int, int, int]:
    """Voxels along z, y and x of a volume whose longest axis has `size`."""
    from pwmlunet.demo.ultrasound import TRUE_SHAPE_ZYX

    z, y, x = (round(n * size / max(TRUE_SHAPE_ZYX)) for n in TRUE_SHAPE_ZYX)
    return z, y, x


def make_inputs(folder: Path, size: int) -> Inputs:
    """A raw dataset and the images of a case to predict below a folder, made where they are new."""
    from pwmlunet.data.dataset import write_dataset_json

    dataset, images = folder / "raw" / NAME, folder / "images"
    if not (dataset / "dataset.json").is_file():
        for seed, case in enumerate(TRAINING_CASES):
            _write_case(case, seed, size, dataset / "imagesTr", dataset / "labelsTr")
        _write_case(CASE_TO_PREDICT, len(TRAINING_CASES), size, images, folder / "references")
        subjects = {case: case for case in TRAINING_CASES}
        write_dataset_json(dataset, channel_names=("cUS",), labels={"background": 0, "lesion": 1}, subjects=subjects)  # fmt: skip
    return Inputs(folder / "raw", dataset, images, folder / "references", folder / "masks")


def _write_case(case: str, seed: int, size: int, images: Path, masks: Path) -> None:
    from pwmlunet.data.image import write_image
    from pwmlunet.demo.ultrasound import make_case

    rng = np.random.default_rng(seed)
    image, mask, geometry = make_case(rng, shape_zyx=shape_of(size), n_lesions=N_LESIONS)
    write_image(images / f"{case}_0000.nii.gz", image, geometry)
    write_image(masks / f"{case}.nii.gz", mask, geometry)


def _ours(arguments: argparse.Namespace, inputs: Inputs) -> Tool:
    tool = ours(inputs.raw.parent, inputs)
    plan: Sequence[str] = [*tool.commands["plan"], "--workers", str(arguments.workers)]
    choice = ["--configuration", arguments.configuration, "--width", str(arguments.width)]
    untrained = [sys.executable, str(Path(__file__)), "--untrained", *choice]
    return replace(tool, commands={**tool.commands, "plan": plan}, untrained=untrained)


def write_untrained(configuration: str, width: int) -> None:
    """Writes a model of random weights for fold 0 of the planned dataset; all but certain of no lesion."""
    from pwmlunet.data.workspace import Workspace
    from pwmlunet.inference.model import save_tensors
    from pwmlunet.training.config import RECIPES
    from pwmlunet.training.run import fold_density, open_run

    workspace = Workspace.from_environment()
    _set_width(workspace.preprocessed / NAME / "plan.json", configuration, width)
    run = open_run(workspace, NAME, replace(RECIPES["default"], configuration=configuration), None)
    run.model.fold_folder("0").mkdir(exist_ok=True)
    fold_density(run, "0")
    weights = run.model.build().state_dict()
    for name, values in weights.items():
        if "head" in name and name.endswith("bias"):
            values.fill_(LOGIT_OF_NO_LESION)
    save_tensors(run.model.fold_folder("0") / "weights.pt", weights)


def _set_width(path: Path, configuration: str, width: int) -> None:
    plan = json.loads(path.read_text())
    plan["configurations"][configuration].setdefault("network", {})["width"] = width
    path.write_text(json.dumps(plan))


if __name__ == "__main__":
    main()
