"""The studies that `pwml_reproduce` repeats, as data: rows, recipes, printed figures, and what stays different."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from pwmlunet.config import did_you_mean
from pwmlunet.errors import PwmlError
from pwmlunet.training.config import RECIPES, AugmentationConfig, TrainingConfig

NO_AUGMENTATION = replace(
    AugmentationConfig(),
    flip=False,
    **{f.name: 0.0 for f in fields(AugmentationConfig) if f.name.endswith("_probability")},  # type: ignore[arg-type]
)


@dataclass(frozen=True)
class StudyRow:
    """One line of a paper's table."""

    run: str
    """Name of the model folder."""
    words: str
    """The line as the paper has it."""
    recipe: TrainingConfig
    """How it is trained, configuration included."""
    printed: Mapping[str, float]
    """The paper's figures, by the names of the study's columns."""


@dataclass(frozen=True)
class Table:
    """One table of a paper."""

    title: str
    columns: Mapping[str, str]
    """By the name of a figure of the profile, or of a mean of the honest scores: its heading."""


@dataclass(frozen=True)
class Question:
    """Whether what one row has more than another helps."""

    words: str
    run: str
    """The row that has it."""
    against: str
    """The row that has it not."""


@dataclass(frozen=True)
class Study:
    """A paper's comparison."""

    name: str
    """For `pwml_reproduce`."""
    source: str
    """Which paper, and which of its tables."""
    data: str
    """What the paper's figures were measured on."""
    profile: str
    """How the paper counts."""
    threshold: float
    """Where probabilities are cut, for the paper's figures and the honest ones."""
    tables: tuple[Table, ...]
    rows: tuple[StudyRow, ...]
    questions: tuple[Question, ...]
    different: tuple[str, ...]
    """What remains different from the paper, a sentence each."""
    planned: Mapping[str, str] = field(default_factory=dict)
    """The planned configurations that the study's are made from, which only planning can make; empty where the paper
    says all that is needed."""

    @property
    def configurations(self) -> tuple[str, ...]:
        """The plan's configurations that the rows are trained with."""
        return tuple(dict.fromkeys(row.recipe.configuration for row in self.rows))


@dataclass(frozen=True)
class Quick:
    """What `--quick` makes of a study: networks and trainings for a CPU."""

    width: int = 8
    """Of the widest network; the others are narrowed in proportion."""
    epochs: int = 32
    steps_per_epoch: int = 25
    batch_size: int = 4
    """At most, where the paper names one; else the plan's."""
    learning_rate: float = 2e-3
    """So few steps at a paper's rate would leave a network where it began."""

    def shorten(self, recipe: TrainingConfig) -> TrainingConfig:
        """The recipe with fewer, smaller and faster steps, which end in rest: the last weights are scored."""
        return replace(
            recipe,
            batch_size=recipe.batch_size and min(recipe.batch_size, self.batch_size),
            epochs=self.epochs,
            steps_per_epoch=self.steps_per_epoch,
            learning_rate=self.learning_rate,
            schedule="cosine",
            warmup_steps=self.steps_per_epoch,
            validate_every=self.epochs,
        )


QUICK = Quick()


def get_study(name: str) -> Study:
    """The study of that name; PwmlError where there is none."""
    if name not in STUDIES:
        raise PwmlError(f"there is no study {name!r}{did_you_mean(name, STUDIES)}")
    return STUDIES[name]


_LAST = "The last weights are scored: the best ones on the held-out cases would be judged by what chose them."
_FOLDS = "Folds are those of splits.json, made of subjects"

# Neither paper says how often the held-out cases were looked at; once is enough where the last weights count.
_PRIORITY = TrainingConfig(
    "",
    epochs=50,
    steps_per_epoch=50,
    optimiser="adam",
    learning_rate=1e-4,
    weight_decay=0.0,
    schedule="constant",
    warmup_steps=0,
    gradient_norm=0.0,
    weight_average=0.0,
    checkpoint="last",
    validate_every=50,
)


def _priority_row(run: str, words: str, configuration: str, loss: str, printed: str) -> StudyRow:
    names = (*_DETECTION, *_VOLUME)
    figures = dict(zip(names, map(float, printed.split()), strict=True))
    return StudyRow(run, words, replace(_PRIORITY, configuration=configuration, loss=loss), figures)


_DETECTION = {"detection_precision": "precision", "detection_recall": "recall"}
_VOLUME = {
    "volume_precision": "precision",
    "volume_recall": "recall",
    "dice": "Dice",
    "specificity": "specificity",
}

PRIORITY_UNET = Study(
    name="priority_unet",
    source="Priority U-Net, Erbacher et al. 2020: detection and segmentation",
    data="21 volumes of 3-D cranial ultrasound with 131 lesions, which are not public",
    profile="priority",
    threshold=0.5,
    tables=(Table("Detection", _DETECTION), Table("Volume", _VOLUME)),
    rows=(
        _priority_row("unet_bce_dice", "U-Net, BCE + Dice", "paper_unet", "bce_dice", ".4404 .3217 .5004 .2419 .3040 .9999"),
        _priority_row("unet_sbfl_dice", "U-Net, SBFL + Dice", "paper_unet", "sbfl_dice", ".2347 .5510 .6043 .1806 .2611 .9999"),
        _priority_row("priority_unet_bce_dice", "Priority U-Net, BCE + Dice", "paper_priority_unet", "bce_dice", ".4464 .4347 .5455 .2789 .3565 .9999"),
        _priority_row("priority_unet_sbfl_dice", "Priority U-Net, SBFL + Dice", "paper_priority_unet", "sbfl_dice", ".5370 .5043 .5289 .3206 .3839 .9999"),
    ),
    questions=(
        Question("Does the prior help, with BCE + Dice?", "priority_unet_bce_dice", "unet_bce_dice"),
        Question("Does the prior help, with SBFL + Dice?", "priority_unet_sbfl_dice", "unet_sbfl_dice"),
        Question("Does SBFL help the U-Net?", "unet_sbfl_dice", "unet_bce_dice"),
        Question("Does SBFL help the Priority U-Net?", "priority_unet_sbfl_dice", "priority_unet_bce_dice"),
    ),
    different=(
        f"{_FOLDS}; the paper has ten.",
        "Widths and depth of the networks, the batch and the kernel of the density are not printed: those that were planned are taken.",
        "The paper trains with Adam at 1e-4 and prints neither a schedule nor a number of epochs: the rate stays, for 50 epochs of 50 steps.",
        "The paper prints no augmentation; that of the default recipe is taken, for without any a few subjects are learned by heart.",
        "Six of ten patches are drawn around a lesion; the paper does not say how it chooses slices.",
        _LAST,
        "While it learns, a case is seen with the density of the other training subjects, lest the network trusts peaks that its own lesions made; the paper does not say.",
        "Networks begin with a probability of 0.5 everywhere, as is usual; the paper does not say.",
        "Specificity is its mean over the cases with lesions; the paper does not say how it is averaged.",
    ),
    planned={"paper_unet": "unet_2d", "paper_priority_unet": "priority_2d"},
)  # fmt: skip


_TRIDENT = replace(RECIPES["trident_paper"], checkpoint="last", validate_every=50)
_TS_CNN = {
    "dice": "DSC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "hd_pixels": "HD, pixels",
}


def _trident_row(letter: str, words: str, configuration: str, printed: str, **changes: object) -> StudyRow:
    figures = dict(zip(_TS_CNN, map(float, printed.split()), strict=True))
    recipe = replace(_TRIDENT, configuration=configuration, **changes)  # type: ignore[arg-type]
    return StudyRow(f"trident_row_{letter.lower()}", f"{letter}: {words}", recipe, figures)


TRIDENT = Study(
    name="trident",
    source="TS-CNN, Liu et al. 2019 (arXiv:1910.09773): rows B and D to G",
    data="T1 MRI of preterm neonates, of which 20 slices are public",
    profile="trident",
    threshold=0.7,
    tables=(Table("Segmentation", _TS_CNN),),
    rows=(
        _trident_row("B", "residual U-Net, focal loss", "paper_resunet", ".5838 .6013 .9998 44.7323", loss="focal", augmentation=NO_AUGMENTATION),
        _trident_row("D", "TS-CNN, k = 32, focal loss", "paper_k32", ".6024 .6838 .9998 30.9768", loss="focal", augmentation=NO_AUGMENTATION),
        _trident_row("E", "D with augmentation", "paper_k32", ".6088 .6838 .9998 30.8133", loss="focal"),
        _trident_row("F", "E with k = 64", "paper_k64", ".6186 .6952 .9998 28.3413", loss="focal"),
        _trident_row("G", "F with SBFL", "paper_k64", ".6355 .7126 .9998 24.5836", loss="sbfl"),
    ),
    questions=(
        Question("Do neighbouring slices help (D against B)?", "trident_row_d", "trident_row_b"),
        Question("Does augmentation help (E against D)?", "trident_row_e", "trident_row_d"),
        Question("Do more channels help (F against E)?", "trident_row_f", "trident_row_e"),
        Question("Does SBFL help (G against F)?", "trident_row_g", "trident_row_f"),
    ),
    different=(
        f"{_FOLDS}; theirs are made of slices, so that neighbours of one lesion stand in training and test.",
        "One head box a volume, with a threshold relative to the intensities; theirs is a box a slice, of rows and columns that sum to more than 1024.",
        "Augmentation moves the mask with the image, which their crop does not.",
        "Distances are in pixels enlarged 2.3 times, as a head of about 110 pixels is; theirs are in pixels of each case's own enlargement.",
        "The width of row B is not printed: 64 is taken, and with it D differs from B by its width too.",
        _LAST,
        "Rows A (an older, classical method) and C (RS-RCNN) are left out.",
    ),
)  # fmt: skip

STUDIES: dict[str, Study] = {study.name: study for study in (PRIORITY_UNET, TRIDENT)}
"""By the name that `pwml_reproduce` takes."""
