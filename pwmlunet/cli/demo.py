"""pwml_demo."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from pwmlunet.cli.command import Command, Parser, command, new_parser, say
from pwmlunet.cli.correcting import train_correction
from pwmlunet.cli.predicting import predict
from pwmlunet.cli.preparing import plan_and_preprocess
from pwmlunet.cli.scoring import evaluate, report
from pwmlunet.cli.selecting import find_best
from pwmlunet.cli.training import train
from pwmlunet.errors import PwmlError


@dataclass(frozen=True)
class _Demo:
    """What is made for a modality, and where."""

    number: int
    name: str
    cases: str
    folder: Path
    n_train: int
    """Training cases."""
    epochs: int
    """Of each fold, so that the whole job takes a few minutes on two cores."""
    seed: int = 0
    configuration: str | None = None
    """What is trained; none for the plan's default."""
    folds: tuple[str, ...] = ("0", "1")
    """That are trained."""
    corrects: bool = False
    """Whether a correction network learns from the candidates."""

    @property
    def dataset(self) -> str:
        """The raw dataset's folder."""
        return f"Dataset{self.number:03d}_{self.name}"


_DEMOS = {
    "t1": _Demo(1, "SyntheticT1", "synthetic neonatal T1 heads", Path("demo"), n_train=12, epochs=20),
    # 22 subjects: with fewer there are ten folds, of which the two that are trained hold out next to nobody
    "cus": _Demo(
        2,
        "SyntheticUltrasound",
        "synthetic cranial ultrasound of newborns",
        Path("demo", "cus"),
        n_train=23,
        epochs=32,
    ),
    # its primary network finds lesions, whose kinds its correction network tells
    "flair": _Demo(
        3,
        "SyntheticFLAIR",
        "synthetic pairs of T2 FLAIR and T1 FLAIR",
        Path("demo", "flair"),
        n_train=24,
        epochs=12,
        seed=2,  # both kinds are among the four that are held out
        configuration="primary_2d",
        folds=("0", "1", "2"),  # in fewer a judge learns from hardly a lacune
        corrects=True,
    ),
}


def _run_demo(arguments: argparse.Namespace) -> None:
    demo = _DEMOS[arguments.modality]
    epochs = demo.epochs if arguments.epochs is None else arguments.epochs
    if epochs < 1:
        raise PwmlError(f"--epochs {epochs}: a fold needs 1 or more")
    home: Path = arguments.folder or demo.folder
    raw = home / "raw" / demo.dataset
    _write_cases(raw, arguments.modality, demo)
    os.environ["PWML_HOME"] = str(home)
    for variable in ("PWML_RAW", "PWML_PREPROCESSED", "PWML_RESULTS", "nnUNet_raw"):
        os.environ.pop(variable, None)
    for step, options in _steps(demo, home, raw, epochs):
        say(f"\n$ pwml_{step.__name__} {' '.join(options)}")
        step(options)
    say(f"\ndone; open {home / 'report.html'} in a browser")


def _write_cases(raw: Path, modality: str, demo: _Demo) -> None:
    from pwmlunet.demo.dataset import write_dataset

    if others := [folder for folder in raw.parent.glob("Dataset*") if folder.name != raw.name]:
        raise PwmlError(f"{others[0]} is another dataset: give the demo a --folder of its own")
    say(f"{demo.cases} in {raw}", flush=True)  # making them takes a while
    if not (raw / "dataset.json").is_file():
        write_dataset(raw, modality=modality, n_train=demo.n_train, seed=demo.seed)


def _steps(demo: _Demo, home: Path, raw: Path, epochs: int) -> list[tuple[Command, list[str]]]:
    """Each command of the whole job and its options."""
    number, predictions = str(demo.number), home / "predictions"
    chosen = ["-c", demo.configuration] if demo.configuration else []
    images, masks = ["--images", str(raw / "imagesTs")], ["-r", str(raw / "labelsTs"), "-p", str(predictions)]
    return [
        (plan_and_preprocess, ["-d", number]),
        (train, [number, *demo.folds, *chosen, "--epochs", str(epochs)]),
        *([(train_correction, [number, *chosen])] if demo.corrects else []),
        (find_best, [number]),
        (predict, ["-i", str(raw / "imagesTs"), "-o", str(predictions), "--save-probabilities", "--review"]),
        (evaluate, [*masks, *images]),
        (report, [*masks, *images, "-o", str(home / "report.html")]),
    ]


@command(_run_demo)
def demo() -> Parser:
    """pwml_demo: the whole job on synthetic cases."""
    parser = new_parser(
        "pwml_demo",
        "Make synthetic cases, then plan, train, correct (flair), calibrate, predict, score and report.",
    )
    parser.add_argument(
        "--modality",
        choices=sorted(_DEMOS),
        default="t1",
        help="t1: neonatal heads; cus: cranial ultrasound in three dimensions; flair: pairs of T2 FLAIR and T1 FLAIR (default: t1)",
    )
    parser.add_argument(
        "--folder", type=Path, help="where everything goes (default: demo; demo/cus or demo/flair for those)"
    )
    parser.add_argument(
        "--epochs",
        type=int,
        help="epochs of each fold that is trained, two or for flair three (default: 20; 32 for cus, 12 for flair)",
    )
    return parser
