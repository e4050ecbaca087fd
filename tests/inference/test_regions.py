"""Where a two-stage network loses lesions: counted on boxes made by hand, and on a tiny trained run."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from pwmlunet.data.store import CaseStore
from pwmlunet.evaluation.lesions import measure_lesions
from pwmlunet.inference.model import TrainedModel, load_tensors, save_tensors
from pwmlunet.inference.postprocessing import Postprocessing
from pwmlunet.inference.regions import (
    MeasuredRegions,
    SliceRegions,
    count_by_size,
    count_false,
    follow,
    measure_regions,
    text,
)
from pwmlunet.networks.boxes import enlarge
from pwmlunet.networks.two_stage import TwoStageConfig
from pwmlunet.training.run import open_run
from pwmlunet.training.trainer import FoldTrainer

DRAWN = """
    ............
    .AA.....B...
    .AA.........
    .....CCCC...
    .....CCCC...
    ............
    ..........D.
    ...........D
    """
DATASET = "Dataset001_Tiny"
NEVER = math.inf


def drawn(letters, text=DRAWN):
    rows = text.split()
    return np.array([[cell in letters for cell in row] for row in rows])


LESIONS = measure_lesions(drawn("ABCD")[None], (3.0, 0.7, 0.5))
EVERYWHERE = np.ones((8, 12), bool)


def order():
    """The numbers of A, B, C and D."""
    return [int(LESIONS.components[0][drawn(letter)].max()) - 1 for letter in "ABCD"]


def seen(proposals=(), regions=(), scores=(), mask=None):
    def as_boxes(boxes):
        return np.array(boxes, np.float32).reshape(-1, 4)

    mask = drawn("") if mask is None else mask
    return SliceRegions(as_boxes(proposals), as_boxes(regions), np.array(scores, np.float32), mask)


def fates_of(*, valid=EVERYWHERE, **what):
    """Fates with A, B, C and D in this order."""
    fates = follow(LESIONS, valid, seen(**what))
    return {name: getattr(fates, name)[order()].tolist() for name in vars(fates)}


def test_the_first_proposal_that_covers_a_lesion():
    boxes = [
        (3, 5, 4, 7),  # a quarter of C
        (1, 1, 2, 3),  # half of A
        (0, 8, 1, 9),  # the row above B
        (1, 0, 3, 12),  # A and B
        (3, 5, 5, 7),  # half of C
        (6, 10, 8, 12),  # D
    ]
    fates = fates_of(proposals=boxes)
    assert fates["n_pixels"] == [4, 1, 8, 2]
    assert fates["proposal"] == [2, 4, 5, 6]
    assert fates["region"] == [NEVER] * 4 and fates["score"] == [0.0] * 4


def test_a_pixel_lies_in_a_box_with_its_centre():
    assert fates_of(proposals=[(1.5, 8.5, 1.6, 8.6)])["proposal"] == [NEVER, 1, NEVER, NEVER]
    assert fates_of(proposals=[(1.0, 8.0, 1.5, 9.0)])["proposal"] == [NEVER] * 4  # half-open
    assert fates_of(proposals=[(1.51, 8.0, 2.0, 9.0)])["proposal"] == [NEVER] * 4
    assert fates_of(proposals=[(1.0, 8.51, 2.0, 9.0)])["proposal"] == [NEVER] * 4
    assert fates_of(proposals=[(0.0, 0.0, 0.0, 0.0)])["proposal"] == [NEVER] * 4


def test_half_of_a_lesion_must_lie_in_one_box():
    """Two boxes with a quarter each do not cover it together."""
    quarters = [(3, 5, 4, 7), (3, 7, 4, 9)]
    assert fates_of(proposals=quarters)["proposal"] == [NEVER] * 4
    assert fates_of(proposals=[*quarters, (3, 5, 4, 9)])["proposal"] == [NEVER, NEVER, 3, NEVER]


def test_regions_have_a_rank_and_the_highest_score_of_those_that_cover():
    fates = fates_of(regions=[(3, 5, 5, 9), (1, 1, 3, 9), (2, 0, 8, 12)], scores=[0.9, 0.4, 0.3])
    assert fates["region"] == [2, 2, 1, 3]
    assert fates["score"] == pytest.approx([0.4, 0.4, 0.9, 0.3])
    assert fates["proposal"] == [NEVER] * 4


def test_a_lesion_is_found_by_a_component_of_the_mask_with_an_overlap_of_a_tenth():
    assert fates_of(mask=drawn("AD"))["segmented"] == [True, False, False, True]
    row = np.zeros((8, 12), bool)
    row[1, 2:12] = True  # one of A's four pixels, B's only one, and eight others
    assert fates_of(mask=row)["segmented"] == [False, True, False, False]  # 1/13 and 1/10
    row[0, 11] = True
    assert fates_of(mask=row)["segmented"] == [False] * 4  # 1/11
    valid = ~drawn("B")
    assert fates_of(mask=drawn("B"), valid=valid)["segmented"] == [False] * 4


def test_a_sure_region_without_a_lesion_is_false():
    boxes = [(3, 5, 5, 9), (5, 0, 8, 9), (0, 0, 1, 12), (6, 0, 8, 4), (1, 8, 2, 9)]
    scores = [0.99, 0.9, 0.5, 0.49, 0.4]
    assert count_false(LESIONS, EVERYWHERE, seen(regions=boxes, scores=scores)) == 2
    unknown = EVERYWHERE.copy()
    unknown[7, 8] = False  # in the second
    assert count_false(LESIONS, unknown, seen(regions=boxes, scores=scores)) == 1
    assert count_false(LESIONS, EVERYWHERE, seen()) == 0
    empty = measure_lesions(drawn("")[None], (3.0, 0.7, 0.5))
    assert count_false(empty, EVERYWHERE, seen(regions=boxes, scores=scores)) == 3


def test_a_slice_without_lesions_has_no_fates():
    empty = measure_lesions(drawn("")[None], (3.0, 0.7, 0.5))
    fates = follow(empty, EVERYWHERE, seen([(0, 0, 2, 2)], [(0, 0, 2, 2)], scores=[0.5], mask=EVERYWHERE))
    assert [len(values) for values in vars(fates).values()] == [0] * 5


def test_lesions_are_counted_by_rank_and_size():
    """Eight lesions of 1, 1, 1, 2, 3, 4, 5 and 9 pixels; the third quartile is 4.25."""
    one = follow(LESIONS, EVERYWHERE, seen())
    fates = [
        replace(
            one,
            n_pixels=np.array(sizes),
            proposal=np.array(proposals, float),
            region=np.array(regions, float),
            score=np.array(scores),
            segmented=np.array(found),
        )
        for sizes, proposals, regions, scores, found in [
            ([1, 9, 1], [60, 1, NEVER], [NEVER, 1, NEVER], [0.0, 0.9, 0.0], [False, True, False]),
            ([4, 1, 2, 3, 5], [50, 10, 11, 51, 70], [7, 8, 9, 10, 11], [0.5, 0.49, 0.2, 0.1, 0.6], [True] + [False] * 4),
        ]
    ]  # fmt: skip
    everything, by_size = count_by_size(fates, TwoStageConfig(n_proposals=64, n_regions=8))
    assert everything.proposed == {"10": 2, "50": 4, "100": 7}  # of those listed, judged or not
    assert everything.kept == {"8": 3}
    assert (everything.n_lesions, everything.sure, everything.segmented) == (8, 3, 2)
    assert (everything.low_pixels, everything.high_pixels) == (1, 9)
    assert [(row.low_pixels, row.high_pixels, row.n_lesions) for row in by_size] == [
        (1, 2, 4),
        (3, 4, 2),
        (5, 9, 2),
    ]
    assert [row.proposed["50"] for row in by_size] == [2, 1, 1]
    assert [row.sure for row in by_size] == [0, 1, 2]
    many, _ = count_by_size(fates, TwoStageConfig(n_regions=200))
    assert set(many.kept) == {"10", "50", "100"}


# a run


@pytest.fixture(scope="module")
def trained(prepared_home, tmp_path_factory, tiny):
    """A home with two trained folds of a tiny two-stage network."""
    home = tmp_path_factory.mktemp("two_stage") / "home"
    shutil.copytree(prepared_home, home)
    _propose_more(prepared_in(home) / "plan.json")
    run = open_run(tiny.workspace_in(home), "1", replace(tiny.recipe, configuration="two_stage"), None)
    for fold in ("0", "1"):
        FoldTrainer(run, fold).train()
    _encourage(run.model.fold_folder("0") / "weights.pt")
    return home


def _propose_more(path):
    """So many regions that some cover a lesion whatever was learned."""
    content = json.loads(path.read_text())
    content["configurations"]["two_stage"]["network"] |= {"n_proposals": 120, "n_regions": 60}
    path.write_text(json.dumps(content))


def _encourage(path):
    """Makes a network of so few steps sure of its regions."""
    weights = load_tensors(path)
    weights["roi_heads.box_head.scores.bias"][1] += 6.0
    save_tensors(path, weights)


@pytest.fixture
def home(trained, copied):
    return copied(trained)


def prepared_in(home):
    return home / "preprocessed" / DATASET


def measure(tiny, home, **options):
    return measure_regions(tiny.workspace_in(home), "1", "two_stage", device="cpu", **options)


def counted_plainly(home, threshold=0.5):
    """Lesions, those covered by the first 50 proposals, regions, and sure regions, those found, false regions."""
    model = TrainedModel.open(home / "results" / DATASET / "two_stage")
    splits = json.loads((prepared_in(home) / "splits.json").read_text())
    counts = np.zeros(6, int)
    for fold in ("0", "1"):
        network = model.load([fold])[0].network
        for name in splits[int(fold)]["val"]:
            case = CaseStore(prepared_in(home) / "slices").read(name)
            stride = network.config.stride
            sides = [(0, 0), *((0, -side % stride) for side in case.mask.shape[1:])]
            images = np.pad(case.image.astype(np.float32), [(0, 0), *sides], mode="edge")
            for z, mask in enumerate(np.pad(case.mask, sides)):
                counts += _counted_in_slice(network, images[:, z], mask, threshold)
    return counts.tolist()


@torch.inference_mode()
def _counted_in_slice(network, image, mask, threshold):
    shape_yx = mask.shape
    shown = torch.from_numpy(image)[None, :, None]
    found = network.find_regions(shown)
    segmented, n_segmented = ndimage.label(
        network.segment(shown)[0, 0, 0].numpy() > threshold, np.ones((3, 3))
    )
    labelled, n = ndimage.label(mask, np.ones((3, 3)))
    centre_y, centre_x = np.mgrid[: shape_yx[0], : shape_yx[1]] + 0.5

    def filled(boxes):
        """Of each box, enlarged, the share of each lesion that it holds."""
        for y0, x0, y1, x1 in enlarge(boxes, 1.3, shape_yx).tolist():
            inside = (centre_y >= y0) & (centre_y < y1) & (centre_x >= x0) & (centre_x < x1)
            yield [inside[labelled == number].mean() for number in range(1, n + 1)]

    def n_covered(shares):
        return sum(any(share >= 0.5 for share in of_lesion) for of_lesion in zip(*shares, strict=True))

    def iou(number, other):
        first, second = labelled == number, segmented == other
        return (first & second).sum() / (first | second).sum()

    first = filled(found.proposals[0][found.proposal_scores[0] > 0][:50])
    kept = filled(found.boxes[0][found.scores[0] > 0][:50])
    sure = [*filled(found.boxes[0][found.scores[0] >= 0.5])]
    n_found = sum(any(iou(a, b + 1) >= 0.1 for b in range(n_segmented)) for a in range(1, n + 1))
    return [n, *map(n_covered, (first, kept, sure)), n_found, sum(not any(shares) for shares in sure)]


def figures(measured):
    """What is counted plainly."""
    lesions, n_false = measured.lesions, measured.false_regions_per_slice * measured.n_slices
    covered = (lesions.n_lesions, lesions.proposed["50"], lesions.kept["50"], lesions.sure)
    return [*covered, lesions.segmented, round(n_false)]


def test_a_run_is_measured_on_the_cases_that_its_folds_held_out(home, tiny):
    measured = measure(tiny, home)
    assert (measured.folds, measured.n_cases) == (("0", "1"), 2)
    assert measured.n_slices == 2 * tiny.shape_zyx[0]
    assert figures(measured) == counted_plainly(home)
    n, proposed, kept, sure, _, n_false = figures(measured)
    assert n >= proposed > 0 and kept > sure > 0 and n_false > 0
    assert sum(row.n_lesions for row in measured.by_size) == n
    assert measured.lesions.proposed.keys() == {"10", "50", "100"}
    assert measured.lesions.kept.keys() == {"10", "50", "60"}


def test_slices_of_any_size_are_padded_as_in_a_prediction(home, tiny):
    for folder in (prepared_in(home) / "slices").iterdir():
        for name in ("image.npy", "mask.npy"):
            np.save(folder / name, np.load(folder / name)[..., 3:, :-10])
    assert figures(measure(tiny, home)) == counted_plainly(home)


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_the_mask_is_that_of_the_runs_threshold_and_temperature(home, tiny, temperature):
    def n_found(threshold, temperature):
        chosen = Postprocessing(threshold=threshold, temperature=temperature)
        chosen.write(home / "results" / DATASET / "two_stage" / "postprocessing.json")
        measured = measure(tiny, home)
        assert measured.threshold == threshold
        return measured.lesions.segmented

    at_half = counted_plainly(home)[4]
    for uncalibrated in (0.003, 0.01, 0.03, 0.1, 0.2, 0.8, 0.9, 0.97, 0.999):
        if (expected := counted_plainly(home, uncalibrated)[4]) != at_half:
            break
    assert expected != at_half
    logit = math.log(uncalibrated / (1 - uncalibrated)) / temperature
    assert n_found(1 / (1 + math.exp(-logit)), temperature) == expected
    assert n_found(0.5, temperature) == at_half


def test_ignored_slices_count_nowhere(home, tiny):
    before = measure(tiny, home)
    for path in (
        prepared_in(home) / "dataset.json",
        home / "results" / DATASET / "two_stage" / "dataset.json",
    ):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"labels": {"background": 0, "lesion": 1, "ignore": 2}}))
    n_lost, n_unknown = 0, 0
    for path in sorted((prepared_in(home) / "slices").glob("*/mask.npy")):
        mask = np.load(path)
        if path.parent.name in held_out(home):
            first = int(mask.any((1, 2)).argmax())
            n_lost += ndimage.label(mask[first], np.ones((3, 3)))[1]
            n_unknown += 1
            mask[first] = 2
        np.save(path, mask)
    after = measure(tiny, home)
    assert after.n_slices == before.n_slices - n_unknown
    assert after.lesions.n_lesions == before.lesions.n_lesions - n_lost < before.lesions.n_lesions


def held_out(home):
    splits = json.loads((prepared_in(home) / "splits.json").read_text())
    return {name for split in splits[:2] for name in split["val"]}


def test_the_command_prints_a_table_and_writes_the_same(home, command, tiny):
    code, out, _ = command("regions", "-d", "Tiny", "-c", "two_stage", "--device", "cpu")
    folder = home / "results" / DATASET / "two_stage"
    measured = MeasuredRegions.read(folder / "regions.json")
    assert code == 0 and out.strip() == text(measured)
    everything = next(line.split() for line in out.splitlines() if line.strip().startswith("all"))
    lesions = measured.lesions
    counts = [*lesions.proposed.values(), *lesions.kept.values(), lesions.sure, lesions.segmented]
    assert everything[1:] == [str(lesions.n_lesions), *(f"{n / lesions.n_lesions:.0%}" for n in counts)]
    assert "120 proposals" in out and "60 regions" in out and "fold 0, 1" in out
    written = (folder / "regions.json").read_bytes()
    measure(tiny, home)
    assert (folder / "regions.json").read_bytes() == written


def test_folds_that_are_not_finished_are_left_out_and_named(home, command):
    code, out, err = command("regions", "-d", "1", "-c", "two_stage", "--folds", "3", "1", "--device", "cpu")
    assert code == 0 and "held out by fold 1:" in out
    assert "not finished and left out: fold 3" in err
    code, _, err = command("regions", "-d", "1", "-c", "two_stage", "--folds", "3", "4")
    assert code == 2 and err.strip().endswith("has no finished fold 3, 4 (finished: 0, 1): run pwml_train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-d", "9", "-c", "two_stage"], "unknown dataset '9' (known: Dataset001_Tiny)"),
        (["-d", "1", "-c", "two_stages"], "has no trained run 'two_stages' (did you mean 'two_stage'?)"),
    ],
)
def test_what_is_not_there_is_told(home, command, arguments, message):
    code, _, err = command("regions", *arguments)
    assert code == 2 and message in err and err.count("\n") == 1


def test_a_run_of_another_network_is_told(trained_home, copied, command):
    copied(trained_home)
    code, _, err = command("regions", "-d", "1", "-c", "trident")
    assert code == 2 and "proposes no regions: name a run of a network of type two_stage with -c" in err


def test_cases_without_lesions_are_told(home, command):
    for path in (prepared_in(home) / "slices").glob("*/mask.npy"):
        np.save(path, np.zeros_like(np.load(path)))
    code, _, err = command("regions", "-d", "1", "-c", "two_stage", "--device", "cpu")
    assert code == 2 and "have no lesion: there is nothing to measure" in err
