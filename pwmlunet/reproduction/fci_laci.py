"""The study of FLAIR pairs as data: one network for everything, or one that finds and one that names."""

from dataclasses import replace
from typing import Any

from pwmlunet.reproduction.study import FOLDS, LAST, NO_AUGMENTATION, Question, Study, StudyRow, Table
from pwmlunet.training.config import TrainingConfig
from pwmlunet.training.correction_learning import CorrectionRecipe

_PLAIN = TrainingConfig(
    "",
    loss="bce",
    epochs=50,
    steps_per_epoch=50,
    optimiser="rmsprop",
    learning_rate=1e-3,
    weight_decay=0.0,
    schedule="constant",
    warmup_steps=0,
    gradient_norm=0.0,
    weight_average=0.0,
    checkpoint="last",
    validate_every=50,
    augmentation=NO_AUGMENTATION,
)
_OVERSAMPLED = replace(_PLAIN, curriculum=True)
_TURNED = replace(_OVERSAMPLED, augmentation=replace(NO_AUGMENTATION, rich_rotation_degrees=(5.0, 10.0)))


def _row(name: str, words: str, configuration: str, recipe: TrainingConfig, **changes: Any) -> StudyRow:
    recipe = replace(recipe, configuration=configuration)
    return StudyRow(name, words, f"fci_laci_{name}", recipe, {}, **changes)


_FIRST = replace(
    _row("b_none", "b: + augmentation", "paper_task_b", _TURNED, names_kinds=False), run="fci_laci_b"
)
_WHOLE = replace(
    _FIRST,
    name="b",
    words="b: + second network for the kind",
    printed={"detection_precision": 0.9176, "classification_precision": 0.9289},
    correction="kind",
    names_kinds=True,
)
_DETECTION = {"detection_precision": "detection precision"}
_DICE = {"dice": "Dice"}
_LEFT_OUT = {"detection_recall": "detection recall", "detection_f1": "detection F1"}

FCI_LACI = Study(
    name="fci_laci",
    source="Segmentation and correction networks for FCI and LACI, Liu et al. 2021: tasks a and b",
    data="T1 and T2 FLAIR of 113 patients: 191 slices with FCI, 70 with LACI, 152 healthy ones, which are not public",
    profile="fci_laci",
    threshold=0.5,
    tables=(
        Table("Lesions and their kinds", {**_DETECTION, "classification_precision": "classification precision", **_DICE}, _LEFT_OUT, ("a_plain", "a_oversampled", "a", "b", "b_ours", "a_all")),
        Table("Task b's first network alone, which names no kind", {**_DETECTION, **_DICE}, _LEFT_OUT, ("b_plain", "b_oversampled", "b_none")),
    ),
    rows=(
        _row("a_plain", "a: one network that finds and names", "paper_task_a", _PLAIN),
        _row("a_oversampled", "a: + oversampling", "paper_task_a", _OVERSAMPLED),
        _row("a", "a: + augmentation", "paper_task_a", _TURNED),
        _row("b_plain", "b: a first network that finds", "paper_task_b", _PLAIN, names_kinds=False),
        _row("b_oversampled", "b: + oversampling", "paper_task_b", _OVERSAMPLED, names_kinds=False),
        _FIRST,
        _WHOLE,
        replace(_WHOLE, name="b_ours", words="b, and it removes what is no lesion (ours)", printed={}, correction="all"),
        _row("a_all", "a, but seeing all channels (ours)", "paper_task_a_all", _TURNED),
    ),
    questions=(
        Question("Does a second network that names the kind help (b against a)?", "b", "a"),
        Question("Does it help that it removes what is no lesion (b_ours against b)?", "b_ours", "b"),
        Question("Does it help that one network sees all channels (a_all against a)?", "a_all", "a"),
        Question("Does a second network help where one may see all channels (b_ours against a_all)?", "b_ours", "a_all"),
        Question("Does oversampling help one network?", "a_oversampled", "a_plain"),
        Question("Does augmentation help one network?", "a", "a_oversampled"),
        Question("Does oversampling help the first of two?", "b_oversampled", "b_plain"),
        Question("Does augmentation help the first of two?", "b_none", "b_oversampled"),
    ),
    different=(
        f"{FOLDS}; theirs are made of slices, so that neighbours of one lesion stand in training and test.",
        "Of the paper's Table 1 only the two figures that its text repeats are set beside ours, those of its whole method: the others are not known here. Its steps (oversampling, then augmentation, then the second network) are taken from the text.",
        "Rows a_all and b_ours are ours: in the paper's task a the network never sees T1 FLAIR, by which the kinds differ, so that task b has to win; a_all is the fair opponent.",
        "The paper gives a first network five levels and two 1 × 1 convolutions at the end; width, patch and batch are not printed: those planned for unet_2d are taken, and its cases, prepared as planned instead of slices of 512 × 512.",
        "RMSProp (α .9) learns at .001: .01, which the paper prints, is high for it. Neither a schedule nor a number of epochs is printed: the rate stays, for 50 epochs of 50 steps.",
        "Six of ten patches are drawn around a lesion in every row, about the share of the paper's slices that have one. Oversampling begins with the slices richest in tiny lesions, about a quarter, until the loss no longer falls, or for half of the training; which slices the paper begins with is not printed.",
        "Augmentation turns the patches of these slices by 5° to 10°, each time anew; the paper adds turned copies of 48 slices with more than five lesions.",
        "A second network is only asked about subjects that neither it nor the first networks whose candidates it learned from have seen, for which a first network is trained without every two folds; the paper does not say whose masks its second network learned from.",
        "A candidate is a component above a low threshold, in volumes, and has one kind; theirs is a component of the mask in a slice.",
        "The second network also knows what is no lesion: row b takes the kind alone from it, row b_ours both. It learns with RMSProp at .001 too, while candidates are turned, mirrored and changed in contrast, and rare kinds weigh more, of which the paper says nothing.",
        LAST,
    ),
    planned=dict.fromkeys(("paper_task_a", "paper_task_a_all", "paper_task_b"), "unet_2d"),
    quick_loss="sbfl_dice",
    correction=CorrectionRecipe(optimiser="rmsprop", learning_rate=1e-3, label_smoothing=0.0),
)  # fmt: skip
