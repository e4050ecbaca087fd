import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pwmlunet.data.dataset import Labels, Target
from pwmlunet.data.image import Geometry
from pwmlunet.data.store import Orientation, WayBack
from pwmlunet.errors import PwmlError
from pwmlunet.files import write_json
from pwmlunet.inference.candidate_regions import cut_regions, find_candidates
from pwmlunet.inference.correction import CORRECTION, Correction, Corrector, rewrite
from pwmlunet.inference.model import TrainedModel, save_tensors
from pwmlunet.inference.postprocessing import Postprocessing
from pwmlunet.networks.correction import CorrectionConfig, classify

SHAPE = (4, 40, 50)
SPACING = (3.0, 0.8, 0.5)
ONE = Labels((Target("lesion", (1,), 1),), None)
KINDS = Labels((Target("dark", (1,), 1), Target("bright", (2,), 2), Target("odd", (5,), 5)), None)
REGIONS = Labels((Target("whole", (1, 2), 1), Target("core", (2,), 2)), None, are_regions=True)


def maps(n_targets, seed=0):
    """Stage one's probabilities with a dozen candidates of many shapes, some of which touch at corners."""
    rng = np.random.default_rng(seed)
    probability = 0.15 * rng.random((n_targets, *SHAPE), np.float32)
    for y in range(3, 36, 12):
        for x in range(3, 46, 10):
            z = rng.integers(0, 3)
            probability[:, z : z + 2, y : y + 3, x : x + 4] = rng.uniform(0, 0.9, (n_targets, 2, 3, 4))
    return probability


def judged(n_targets, n_kinds, seed=0):
    probability = maps(n_targets, seed)
    components, n = find_candidates(probability, 0.2)
    scores = np.random.default_rng(seed).dirichlet(np.ones(1 + n_kinds), n).astype(np.float32)
    assert n > 10
    return probability, components, n, scores


def mask_of(probability, labels, threshold):
    return Postprocessing(threshold=threshold).apply(probability, labels, SPACING)


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.77])
def test_a_threshold_keeps_the_candidates_that_score_above_it(threshold):
    probability, components, n, scores = judged(1, 1)
    before = probability.copy()
    rewritten = rewrite(probability, components, scores, ONE)
    assert rewritten.dtype == np.float32 and rewritten.shape == probability.shape
    assert np.array_equal(probability, before)
    mask = mask_of(rewritten, ONE, threshold)
    assert not mask[components == 0].any()
    kept = 1 - scores[:, 0]
    assert 0 < np.count_nonzero(kept > threshold) < n
    for number, score in enumerate(kept, start=1):
        there = components == number
        p = probability[0][there]
        assert np.array_equal(mask[there] > 0, p * score > threshold * p.max())
        assert (mask[there].max() > 0) == (score > threshold)
        assert rewritten[0][there].max() == score


def test_a_candidate_is_wholly_of_the_likeliest_kind():
    """Whatever stage one said voxel by voxel; its shape is that of the largest over the targets."""
    probability, components, _, scores = judged(3, 3)
    assert len(np.unique(scores[:, 1:].argmax(1))) == 3
    rewritten = rewrite(probability, components, scores, KINDS)
    assert not rewritten[:, components == 0].any()
    for threshold in (0.01, 0.2, 0.5):
        mask = mask_of(rewritten, KINDS, threshold)
        for number, row in enumerate(scores, start=1):
            there, score = components == number, 1 - row[0]
            p = probability.max(0)[there]
            drawn = mask[there]
            assert np.array_equal(drawn > 0, p / p.max() * score > threshold)
            assert set(np.unique(drawn)) <= {0, KINDS.targets[row[1:].argmax()].written_as}
            assert rewritten[:, there].max() == score


def test_other_kinds_stay_as_likely_as_the_network_says():
    probability, components, _, scores = judged(3, 3)
    rewritten = rewrite(probability, components, scores, KINDS)
    for number, row in enumerate(scores, start=1):
        peaks = rewritten[:, components == number].max(1)
        others = np.arange(3) != row[1:].argmax()
        assert peaks[others] == pytest.approx(row[1:][others], rel=1e-4)


@pytest.mark.parametrize(("labels", "n_targets"), [(KINDS, 3), (ONE, 1), (REGIONS, 2)])
def test_the_kind_alone_can_be_changed(labels, n_targets):
    probability, components, _, scores = judged(n_targets, 3 if labels is KINDS else 1)
    rewritten = rewrite(probability, components, scores, labels, removes=False)
    inside = components > 0
    assert not rewritten[:, ~inside].any()
    assert np.allclose(rewritten.max(0)[inside], probability.max(0)[inside], rtol=1e-6)
    if labels is KINDS:
        kinds = (scores[:, 1:].argmax(1))[components[inside] - 1]
        assert np.array_equal(rewritten.argmax(0)[inside], kinds)
        assert not np.array_equal(probability.argmax(0)[inside], kinds)
    else:
        assert np.allclose(rewritten[:, inside], probability[:, inside], rtol=1e-6)


def test_regions_keep_their_proportions():
    probability, components, _, scores = judged(2, 1)
    rewritten = rewrite(probability, components, scores, REGIONS)
    for number, row in enumerate(scores, start=1):
        there = components == number
        expected = probability[:, there] / probability[:, there].max() * (1 - row[0])
        assert np.allclose(rewritten[:, there], expected, rtol=1e-5)
    assert not rewritten[:, components == 0].any()


@pytest.mark.parametrize("removes", [True, False])
@pytest.mark.parametrize(("labels", "n_targets"), [(KINDS, 3), (ONE, 1), (REGIONS, 2)])
def test_scores_of_0_and_1(labels, n_targets, removes):
    probability, components, n, scores = judged(n_targets, 3 if labels is KINDS else 1)
    scores[:] = np.eye(scores.shape[1])[np.arange(n) % scores.shape[1]]
    rewritten = rewrite(probability, components, scores, labels, removes=removes)
    assert np.isfinite(rewritten).all() and rewritten.min() == 0
    for number in range(1, n + 1):
        there, none = components == number, scores[number - 1, 0] == 1
        peak = probability[:, there].max()
        assert rewritten[:, there].max() == pytest.approx(float(not none) if removes else peak)


def test_without_candidates_nothing_is_left():
    probability = maps(3)
    components, n = find_candidates(probability, 0.95)
    rewritten = rewrite(probability, components, np.zeros((n, 4), np.float32), KINDS)
    assert n == 0 and not rewritten.any() and rewritten.dtype == np.float32


def test_half_precision_is_written_in_single():
    probability, components, _, scores = judged(3, 3)
    whole = rewrite(probability, components, scores, KINDS)
    half = rewrite(probability.astype(np.float16), components, scores.astype(np.float64), KINDS)
    assert half.dtype == np.float32 and np.allclose(half, whole, atol=2e-3)


SEEN = CorrectionConfig(region_mm=8, region_pixels=16, width=4, n_hidden=8)
DESCRIBED = Correction(1, SEEN, 0.2, {"0": 0.3, "1": 0.1}, ("lesion",), 1)
WAY_BACK = WayBack(Geometry(SHAPE, SPACING), Orientation(), tuple((0, n) for n in SHAPE), SHAPE)


@pytest.fixture
def model(prepared_home, tmp_path):
    """A run's folder with a correction of two folds, of which no segmentation network is needed."""
    prepared = prepared_home / "preprocessed" / "Dataset001_Tiny"
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("plan.json", "dataset.json"):
        (folder / name).write_bytes((prepared / name).read_bytes())
    write_json(folder / "training.json", {"configuration": "trident"})
    DESCRIBED.write(folder / CORRECTION / "correction.json")
    for fold in DESCRIBED.thresholds:
        torch.manual_seed(int(fold))
        save_tensors(weights(folder, fold), DESCRIBED.build().state_dict())
    return TrainedModel.open(folder)


def weights(folder, fold):
    return folder / CORRECTION / f"fold_{fold}" / "weights.pt"


def case():
    image = np.random.default_rng(4).random((1, *SHAPE), np.float32)
    return image, maps(1, seed=4)


def test_the_description_is_read_as_it_was_written(model):
    assert Corrector.open(model).correction == DESCRIBED


def test_the_folds_networks_judge_together(model):
    image, probability = case()
    components, n = find_candidates(probability, 0.2)
    assert n > 10
    first, second, both = (Corrector.open(model, folds) for folds in (["0"], ["1"], None))
    a, b, mean = (c.score(image, WAY_BACK, probability, components, n) for c in (first, second, both))
    assert mean.shape == (n, 2) and mean.dtype == np.float32 and np.allclose(mean.sum(1), 1, atol=1e-5)
    assert np.allclose(mean, (a + b) / 2, atol=1e-6) and not np.allclose(a, b, atol=1e-3)
    regions = cut_regions(image, WAY_BACK, probability, components, n, SEEN)
    network = DESCRIBED.build()
    network.load_state_dict(torch.load(weights(model.folder, "1"), weights_only=True))
    assert np.allclose(b, classify(network, regions).numpy(), atol=1e-6)


@pytest.mark.parametrize(("folds", "threshold"), [(None, 0.2), (["0", "1"], 0.2), (["0"], 0.3), (["1"], 0.1)])
def test_correcting_finds_judges_and_rewrites(model, folds, threshold):
    """A single fold looks at the candidates at its own threshold."""
    image, probability = case()
    corrector = Corrector.open(model, folds)
    before = image.copy(), probability.copy()
    corrected = corrector.correct(probability, image, WAY_BACK)
    components, n = find_candidates(probability, threshold)
    scores = corrector.score(image, WAY_BACK, probability, components, n)
    assert np.array_equal(corrected, rewrite(probability, components, scores, ONE))
    assert np.array_equal(corrected[0] > 0, probability[0] > threshold)
    assert np.array_equal(image, before[0]) and np.array_equal(probability, before[1])


def test_a_case_without_candidates_is_corrected_too(model):
    image, probability = case()
    corrected = Corrector.open(model).correct(probability / 9, image, WAY_BACK)
    assert corrected.shape == probability.shape and corrected.dtype == np.float32 and not corrected.any()


def opening(model, message, folds=None):
    with pytest.raises(PwmlError, match=message) as caught:
        Corrector.open(model, folds)
    assert "\n" not in str(caught.value)


def test_missing_files_are_told(model):
    opening(
        model,
        r"has no network of fold 7, all \(there are 0, 1\): run pwml_train_correction",
        ["0", "7", "all"],
    )
    weights(model.folder, "1").unlink()
    assert len(Corrector.open(model, ["0"]).networks) == 1
    opening(model, r"correction/fold_1/weights\.pt is missing: run pwml_train_correction")
    (model.folder / CORRECTION / "correction.json").unlink()
    opening(model, r"correction\.json is missing: run pwml_train_correction")


@pytest.mark.parametrize("content", ["{", "[]", "{}", "null"])
def test_a_broken_description_is_told(model, content):
    (model.folder / CORRECTION / "correction.json").write_text(content)
    opening(model, r"correction\.json")


@pytest.mark.parametrize("n_bytes", [0, 10, 3000])
def test_half_written_weights_are_told(model, n_bytes):
    path = weights(model.folder, "0")
    path.write_bytes(path.read_bytes()[:n_bytes])
    opening(model, r"fold_0/weights\.pt is damaged or no checkpoint")


@pytest.mark.parametrize("content", [{"other": torch.zeros(1)}, [torch.zeros(1)], 3, {}])
def test_weights_of_another_network_are_told(model, content):
    torch.save(content, weights(model.folder, "0"))
    opening(model, r"belongs to another network than correction\.json describes")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"n_channels": 2},
            "is for images of 2 channels, the model's have 1: run pwml_train_correction again",
        ),
        ({"classes": ["dark", "bright"]}, "tells dark, bright apart, the model's labels are lesion: run"),
        ({"classes": []}, "cannot be empty"),
        ({"thresholds": {}}, "cannot be empty"),
        ({"thresholds": {"0": 1.0}}, "thresholds must be at least 0 and below 1"),
        ({"threshold": -0.1}, "thresholds must be at least 0 and below 1"),
        ({"version": 2}, "of version 2, not 1"),
    ],
)
def test_the_description_of_another_dataset_or_version_is_told(model, changes, message):
    path = model.folder / CORRECTION / "correction.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    opening(model, message)


@pytest.mark.parametrize("settings", [{"width": 5}, {"views": "slices"}, {"sees_mask": False}])
def test_another_network_is_told(model, settings):
    other = replace(DESCRIBED, network=replace(SEEN, **settings))
    other.write(model.folder / CORRECTION / "correction.json")
    opening(model, r"belongs to another network than correction\.json describes")


def test_channels_that_are_not_there_are_told(model):
    replace(DESCRIBED, network=replace(SEEN, channels=(1,))).write(
        model.folder / CORRECTION / "correction.json"
    )
    opening(model, r"the network sees channels 1, there are 1")


def test_networks_that_see_some_channels():
    corrections = [
        replace(DESCRIBED, network=replace(SEEN, channels=channels), n_channels=3, classes=("dark", "bright"))
        for channels in (None, (2, 0))
    ]
    for correction, n_seen in zip(corrections, (3, 2), strict=True):
        assert correction.build()(torch.rand(2, 1, n_seen + 2, 16, 16)).shape == (2, 3)
