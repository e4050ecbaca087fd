import numpy as np
import pytest

from pwmlunet.data.dataset import Labels, Target
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.probabilities import logit_of, probability_of
from pwmlunet.inference.candidates import THRESHOLDS
from pwmlunet.inference.counting import LEAST_PEAKS, make_grid
from pwmlunet.inference.postprocessing import Postprocessing
from pwmlunet.networks.dense_crf import DenseCrfConfig

LESION = Labels((Target("lesion", (1,), 3),), None)
TWO = Labels((Target("a", (1,), 1), Target("b", (2,), 2)), None)


def test_the_threshold_itself_is_background():
    probability = np.array([0.2, 0.5, 0.51]).reshape(1, 1, 1, 3)
    assert Postprocessing().apply(probability, LESION, (3, 1, 1)).tolist() == [[[0, 0, 3]]]
    assert Postprocessing(0.1).apply(probability, LESION, (3, 1, 1)).tolist() == [[[3, 3, 3]]]


@pytest.mark.parametrize(
    ("smallest", "kept"), [(0, 6), (3.0, 6), (3.1, 5), (6.0, 5), (6.1, 3), (9, 3), (9.1, 0)]
)
def test_smaller_lesions_go(smallest, kept):
    """Lesions of 1, 2 and 3 voxels of 3 mm3; the last one touches by corners only."""
    mask = np.zeros((2, 6, 9))
    mask[0, 0, 0] = mask[0, 0, 4] = mask[0, 0, 5] = mask[0, 3, 1] = mask[0, 4, 2] = mask[1, 5, 3] = 1
    cleaned = Postprocessing(0.5, smallest).apply(mask[None], LESION, (3.0, 1.0, 1.0))
    assert (cleaned > 0).sum() == kept and cleaned.dtype == np.uint8
    assert np.array_equal(cleaned[cleaned > 0], np.full(kept, 3))


def test_lesions_of_two_labels_do_not_count_together():
    probability = np.zeros((2, 1, 3, 5))
    probability[0, 0, 1, :3] = probability[1, 0, 1, 3:] = 0.9
    cleaned = Postprocessing(0.5, 3.0).apply(probability, TWO, (1, 1, 1))
    assert cleaned[0, 1].tolist() == [1, 1, 1, 0, 0]


def test_single_slices_of_isolated_pixels(tiny):
    probability = np.zeros((1, 1, 1, 3))
    probability[..., ::2] = 1
    assert not Postprocessing(0.5, 2.0).apply(probability, LESION, (1, 1, 1)).any()


@pytest.mark.parametrize("values", [{"threshold": 0}, {"threshold": 1}, {"smallest_lesion_mm3": -1}])
def test_values_out_of_range_are_told(values):
    with pytest.raises(PwmlError, match=next(iter(values))):
        Postprocessing.from_dict(values, "postprocessing.json")


def test_lesions_that_are_nowhere_sure_go():
    probability = np.array([0.6, 0.9, 0.6, 0.1, 0.6, 0.8, 0.1, 0.55]).reshape(1, 1, 1, 8)
    kept = Postprocessing(0.5, least_peak_probability=0.8).apply(probability, LESION, (3, 1, 1))
    assert kept.tolist() == [[[3, 3, 3, 0, 0, 0, 0, 0]]]
    both = Postprocessing(0.5, 6.0, 0.7).apply(probability, LESION, (3, 1, 1))
    assert both.tolist() == [[[3, 3, 3, 0, 3, 3, 0, 0]]]


def test_regions_are_cleaned_before_one_is_written_over_the_other():
    """A core of one voxel goes, and the whole stays whole, as it does around a core of two."""
    regions = Labels((Target("whole", (1, 2), 1), Target("core", (2,), 2)), None, True)
    whole = [0.9, 0.9, 0.9, 0.1, 0.9, 0.9, 0.9, 0.9]
    core = [0.1, 0.9, 0.1, 0.1, 0.1, 0.9, 0.9, 0.1]
    probability = np.array([whole, core]).reshape(2, 1, 1, 8)
    assert Postprocessing(0.5, 2.0).apply(probability, regions, (1, 1, 1)).tolist() == [
        [[1, 1, 1, 0, 1, 2, 2, 1]]
    ]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_logits_are_divided_by_the_temperature(temperature):
    probability = np.array([0.0, 0.2, 0.5, 0.9, 1.0], np.float32).reshape(1, 1, 1, 5)
    calibrated = Postprocessing(temperature=temperature).calibrate(probability)
    odds = (probability[..., 1:4] / (1 - probability[..., 1:4])) ** (1 / temperature)
    assert calibrated[..., 1:4] == pytest.approx(odds / (1 + odds), rel=1e-5)
    assert calibrated.dtype == np.float32 and (np.diff(calibrated) > 0).all()


def test_temperature_1_costs_nothing():
    probability = np.zeros((1, 2, 3, 4), np.float32)
    assert Postprocessing().calibrate(probability) is probability


@pytest.mark.parametrize("temperature", [0.6, 1.0, 3.0])
def test_a_point_finds_the_same_at_every_temperature(temperature):
    rng = np.random.default_rng(0)
    logit = np.repeat(rng.normal(0, 3, (1, 4, 30, 20)), 2, axis=-1)
    probability = (1 / (1 + np.exp(-logit))).astype(np.float32)
    point = Postprocessing(0.7, 3.5, 0.98)
    at = point.at_temperature(temperature)
    expected = point.apply(probability, LESION, (3.0, 0.7, 0.5))
    assert np.array_equal(at.apply(at.calibrate(probability), LESION, (3.0, 0.7, 0.5)), expected)
    assert expected.any() and (at.threshold == 0.7) == (temperature == 1)
    assert Postprocessing().at_temperature(temperature).threshold == 0.5
    assert at.threshold_before_temperature == pytest.approx(0.7)


@pytest.mark.parametrize("temperature", [0.7, 0.85, 1.0, 1.7, 4.9])
def test_every_point_of_a_grid_finds_the_same_at_its_temperature(synthetic, temperature):
    """Lesions just above and just below every cut."""
    cuts = logit_of(np.array([*THRESHOLDS, *LEAST_PEAKS]))
    probability = probability_of(np.concatenate([cuts - 0.02, cuts + 0.02])).reshape(1, 1, 1, -1)
    sizes = np.ones(probability.size)
    points = make_grid(synthetic.tables([synthetic.out_of_fold("a")]), temperature).points
    for point in points:
        at = point.at_temperature(temperature)
        calibrated = at.calibrate(probability)
        assert not list(at.problems())
        assert np.array_equal(calibrated > at.threshold, probability > point.threshold)
        assert np.array_equal(at.keeps(sizes, calibrated.ravel()), point.keeps(sizes, probability.ravel()))
    assert len({p.least_peak_probability for p in points}) == (8 if temperature == 0.7 else 9 if temperature == 0.85 else 10)  # fmt: skip


def test_a_file_from_before_there_was_a_choice_still_loads(tmp_path):
    path = tmp_path / "postprocessing.json"
    path.write_text('{"threshold": 0.7, "smallest_lesion_mm3": 2}')
    assert Postprocessing.read(path) == Postprocessing(0.7, 2.0)
    assert Postprocessing.read(path).crf is None


def test_a_crf_may_be_written_by_hand(tmp_path):
    path = tmp_path / "postprocessing.json"
    crf = '{"smooth_mm": 1, "smooth_weight": 3, "alike_mm": 2, "alike_intensity": 0.05, "alike_weight": 1}'
    path.write_text(f'{{"crf": {crf}}}')
    settings = Postprocessing.read(path)
    assert settings.crf == DenseCrfConfig(1, 3, 2, 0.05, 1)
    settings.write(path)
    assert Postprocessing.read(path) == settings == settings.at_temperature(1)
    assert settings.at_temperature(2).crf == settings.crf
    path.write_text(f'{{"crf": {crf[:-2]}-1}}}}')
    with pytest.raises(PwmlError, match=r"postprocessing.json: crf: alike_weight cannot be negative, not -1"):
        Postprocessing.read(path)


@pytest.mark.parametrize(
    "values", [{"least_peak_probability": 1}, {"least_peak_probability": -0.1}, {"temperature": 0}]
)
def test_new_values_out_of_range_are_told(values):
    with pytest.raises(PwmlError, match=next(iter(values))):
        Postprocessing.from_dict(values, "postprocessing.json")


def test_settings_are_put_into_words():
    assert Postprocessing().in_words() == "threshold 0.5"
    assert (
        Postprocessing(0.25, 1.5, 0.99, 1.2).in_words()
        == "threshold 0.25, lesions from 1.5 mm³, highest probability above 0.99, temperature 1.2"
    )
    assert (
        Postprocessing(crf=DenseCrfConfig(0.7, 3, 1.4, 0.05, 10)).in_words()
        == "threshold 0.5, after a dense CRF (smooth 0.7 mm × 3, alike 1.4 mm and 0.05 of the range × 10)"
    )
