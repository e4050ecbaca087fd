"""The studies that `pwml_reproduce` repeats, as data: rows, recipes, printed figures, and what stays different."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pwmlunet.config import did_you_mean
from pwmlunet.errors import PwmlError
from pwmlunet.reproduction.fci_laci import FCI_LACI
from pwmlunet.reproduction.study import (
    FOLDS,
    LAST,
    NO_AUGMENTATION,
    Question,
    Quick,
    Study,
    StudyRow,
    Table,
)
from pwmlunet.training.config import RECIPES, TrainingConfig

QUICK = Quick()


def get_study(name: str) -> Study:
    """The study of that name; PwmlError where there is none."""
    if name not in STUDIES:
        raise PwmlError(f"there is no study {name!r}{did_you_mean(name, STUDIES)}")
    return STUDIES[name]


_ROW_A = "Row A is the same to the last digit in the papers of TS-CNN and RS-RCNN, whose grids differ: it was copied, not measured again. Here it is our own version of that method, which looks at the files themselves and takes limits of size from each fold's training lesions; it is cut at 0.5. Its other settings were made with the public slices of Liu et al. 2019 in view, on which it is flattered."

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
    recipe = replace(_PRIORITY, configuration=configuration, loss=loss)
    return StudyRow(run, words, run, recipe, figures)


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
        f"{FOLDS}; the paper has ten.",
        "Widths and depth of the networks, the batch and the kernel of the density are not printed: those that were planned are taken.",
        "The paper trains with Adam at 1e-4 and prints neither a schedule nor a number of epochs: the rate stays, for 50 epochs of 50 steps.",
        "The paper prints no augmentation; that of the default recipe is taken, for without any a few subjects are learned by heart.",
        "Six of ten patches are drawn around a lesion; the paper does not say how it chooses slices.",
        LAST,
        "While it learns, a case is seen with the density of the other training subjects, lest the network trusts peaks that its own lesions made; the paper does not say.",
        "Networks begin with a probability of 0.5 everywhere, as is usual; the paper does not say.",
        "Specificity is its mean over the cases with lesions; the paper does not say how it is averaged.",
    ),
    planned={"paper_unet": "unet_2d", "paper_priority_unet": "priority_2d"},
)  # fmt: skip


_TRIDENT = replace(RECIPES["trident_paper"], checkpoint="last", validate_every=50)
_VOXELS = {
    "dice": "DSC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "hd_pixels": "HD, pixels",
}


def _trident_row(letter: str, words: str, configuration: str, printed: str, **changes: object) -> StudyRow:
    figures = dict(zip(_VOXELS, map(float, printed.split()), strict=True))
    recipe = replace(_TRIDENT, configuration=configuration, **changes)  # type: ignore[arg-type]
    return StudyRow(letter, f"{letter}: {words}", f"trident_row_{letter.lower()}", recipe, figures)


_CLASSICAL = StudyRow(
    "A",
    "A: Mukherjee et al. 2019 (classical)",
    run=None,
    recipe=None,
    printed={"dice": 0.4288, "sensitivity": 0.4533, "specificity": 0.9961, "hd_pixels": 59.6432},
)


TRIDENT = Study(
    name="trident",
    source="TS-CNN, Liu et al. 2019 (arXiv:1910.09773): rows A, B and D to G",
    data="T1 MRI of preterm neonates, of which 20 slices are public",
    profile="trident",
    threshold=0.7,
    tables=(Table("Segmentation", _VOXELS),),
    rows=(
        _CLASSICAL,
        _trident_row("B", "residual U-Net, focal loss", "paper_resunet", ".5838 .6013 .9998 44.7323", loss="focal", augmentation=NO_AUGMENTATION),
        _trident_row("D", "TS-CNN, k = 32, focal loss", "paper_k32", ".6024 .6838 .9998 30.9768", loss="focal", augmentation=NO_AUGMENTATION),
        _trident_row("E", "D with augmentation", "paper_k32", ".6088 .6838 .9998 30.8133", loss="focal"),
        _trident_row("F", "E with k = 64", "paper_k64", ".6186 .6952 .9998 28.3413", loss="focal"),
        _trident_row("G", "F with SBFL", "paper_k64", ".6355 .7126 .9998 24.5836", loss="sbfl"),
    ),
    questions=(
        Question("Do neighbouring slices help (D against B)?", "D", "B"),
        Question("Does augmentation help (E against D)?", "E", "D"),
        Question("Do more channels help (F against E)?", "F", "E"),
        Question("Does SBFL help (G against F)?", "G", "F"),
    ),
    different=(
        f"{FOLDS}; theirs are made of slices, so that neighbours of one lesion stand in training and test.",
        "One head box a volume, with a threshold relative to the intensities; theirs is a box a slice, of rows and columns that sum to more than 1024.",
        "Augmentation moves the mask with the image, which their crop does not.",
        "Distances are in pixels enlarged 2.3 times, as a head of about 110 pixels is; theirs are in pixels of each case's own enlargement.",
        "The width of row B is not printed: 64 is taken, and with it D differs from B by its width too.",
        LAST,
        _ROW_A,
        "Row C (RS-RCNN) is left out: it has a study of its own, rs_rcnn.",
    ),
)  # fmt: skip

# An epoch is a pass over the paper's 490 training slices; all of them hold lesions.
_RS_RCNN = TrainingConfig(
    "",
    loss="bce",
    epochs=100,
    steps_per_epoch=250,
    batch_size=2,
    optimiser="sgd",
    learning_rate=1e-3,
    weight_decay=1e-4,
    schedule="plateau",
    plateau_epochs=10,
    warmup_steps=0,
    gradient_norm=0.0,
    weight_average=0.0,
    lesion_share=1.0,
    checkpoint="last",
    validate_every=100,
    augmentation=replace(NO_AUGMENTATION, flip=True, scaling_probability=1.0, scaling=(0.85, 1.15)),
)


def _rs_rcnn_row(
    name: str, words: str, configuration: str, network: Mapping[str, Any], printed: str
) -> StudyRow:
    columns = list(_VOXELS)[: len(printed.split())]  # of the sweep over k only the first is printed
    figures = dict(zip(columns, map(float, printed.split()), strict=True))
    recipe = replace(_RS_RCNN, configuration=configuration)
    return StudyRow(name, words, f"rs_rcnn_row_{name.lower()}", recipe, figures, network)


_MASK_RCNN: Mapping[str, Any] = {"score_relu": False, "enlargement": 1.0, "mask_head": "mask_rcnn"}
_H_RPN = {**_MASK_RCNN, "score_relu": True, "enlargement": 1.3}
_LRS = {**_H_RPN, "mask_head": "lrs"}
_ROW_D = _rs_rcnn_row("D", "D: C + LRS-Net", "paper_lrs", _LRS, ".6561 .7126 .9997 53.3620")
_ROW_E = {"dice": 0.6616, "sensitivity": 0.7069, "specificity": 0.9998, "hd_pixels": 52.9130}
_SWEEP = (
    (1.0, ".6326"),
    (1.1, ".6432"),
    (1.2, ".6472"),
    (1.4, ".6497"),
    (1.5, ".6477"),
    (1.7, ".6460"),
    (2.0, ".6425"),
    (3.0, ".6366"),
)
_LEFT_OUT = {"dice_all_slices": "DSC, slices left out as 0", "slices_left_out": "slices left out"}

RS_RCNN = Study(
    name="rs_rcnn",
    source="RS-RCNN, Liu et al. 2019: tables 1 and 2",
    data="T1 MRI of 70 preterm neonates, 704 slices with lesions, which are not public",
    profile="rs_rcnn",
    threshold=0.5,
    tables=(
        Table("Table 1: one module after the other", _VOXELS, _LEFT_OUT, ("A", "B", "C", "D", "E", "E_keep")),
        Table("Table 2: the enlargement k of a region, row C being k = 1.3", {"dice": "DSC"}, _LEFT_OUT, ("k1.0", "k1.1", "k1.2", "C", "k1.4", "k1.5", "k1.7", "k2.0", "k3.0")),
    ),
    rows=(
        _CLASSICAL,
        _rs_rcnn_row("B", "B: Mask R-CNN", "paper_mask_rcnn", _MASK_RCNN, ".5989 .6002 .9998 62.0655"),
        _rs_rcnn_row("C", "C: B + H-RPN (k = 1.3)", "paper_h_rpn", _H_RPN, ".6508 .7569 .9996 49.0464"),
        _ROW_D,
        replace(_ROW_D, name="E", words="E: D + DCRF", crf=True, printed=_ROW_E),
        replace(_ROW_D, name="E_keep", words="E, but no lesion may be deleted (ours)", crf=True, may_delete=False, printed={}),
        *(
            _rs_rcnn_row(f"k{k}", f"C with k = {k}", f"paper_h_rpn_k{k}", {**_H_RPN, "enlargement": k}, dice)
            for k, dice in _SWEEP
        ),
    ),
    questions=(
        Question("Does the heuristic RPN help (C against B)?", "C", "B"),
        Question("Does the light mask head help (D against C)?", "D", "C"),
        Question("Does the dense CRF help (E against D)?", "E", "D"),
        Question("Does the dense CRF help where it may delete no lesion (E_keep against D)?", "E_keep", "D"),
        Question("Do a region's surroundings help (k = 1.3 against k = 1)?", "C", "k1.0"),
        Question("Does training help (C against A)?", "C", "A"),
    ),
    different=(
        f"{FOLDS}; the paper does not say what theirs are made of.",
        "The paper shows whole slices of 512 × 512, of which a head fills about half; here a square twice as wide as the head, one a volume, is brought to that size.",
        "Intensities have zero mean and unit variance inside the head; theirs have it in the slice.",
        "The paper begins with weights from MS-COCO, which must be brought along (--pretrained); without, networks begin at random.",
        "The paper stretches the width alone by 0.85 to 1.15 and mirrors left and right; here both axes are scaled together, and both mirrored.",
        "The rate is halved where the loss of training has not fallen for 10 epochs; theirs goes by the loss of held-out slices, which here are for scoring alone.",
        "The paper does not say how long an epoch is: one pass over its 490 training slices is taken.",
        _ROW_A,
        "Row E is row D with the CRF of the paper's code: it may delete a lesion, which ours elsewhere never does (row E_keep). Lengths of the CRF are pixels of the prepared grid, as theirs are of 512 × 512, while its sums run over the case's own pixels.",
        "Distances are in pixels of the case's own slices, theirs in pixels of 512 × 512.",
        LAST,
    ),
    quick_parent="two_stage",
)  # fmt: skip

STUDIES: dict[str, Study] = {study.name: study for study in (PRIORITY_UNET, TRIDENT, RS_RCNN, FCI_LACI)}
"""By the name that `pwml_reproduce` takes."""
