import pytest

from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.bootstrap import Interval
from pwmlunet.inference.calibration import calibrate
from pwmlunet.inference.correction_trial import (
    WITH,
    WITHOUT,
    Trial,
    _at_equal_recall,
    _verdict,
    other_settings,
)
from pwmlunet.inference.model import TrainedModel
from pwmlunet.inference.postprocessing import Postprocessing


def cases(synthetic, *logits):
    """Six subjects, each with these logits of two lesions and of false candidates."""
    return synthetic.tables([synthetic.out_of_fold(f"sub-{i}", *logits) for i in range(6)])


def at_equal_recall(synthetic, plain, corrected):
    without = calibrate(plain)
    found = _at_equal_recall(plain, corrected, without, 0.0)
    if found is None:
        return None
    return [settings.threshold for settings in found], [settings.correction for settings in found]


def test_equal_recall_is_where_both_find_as_much_with_the_fewest_false(synthetic):
    plain = cases(synthetic, (2.0, 1.0), (1.5, 0.5))
    corrected = cases(synthetic, (3.0, 1.0), (-1.0, -2.0))
    thresholds, are_corrected = at_equal_recall(synthetic, plain, corrected)
    assert are_corrected == [False, True]
    assert 0.6 <= thresholds[0] <= 0.7  # below the second lesion (.73), above the second false one (.62)
    assert thresholds[1] == 0.5  # of all that keep both lesions and nothing else, the nearest to the default


def test_there_is_no_equal_recall_where_the_correction_loses_lesions(synthetic):
    plain = cases(synthetic, (2.0, 1.0), (1.5,))
    assert at_equal_recall(synthetic, plain, cases(synthetic, (2.0, -9.0), ())) is None


def test_nor_where_stage_one_finds_nothing(synthetic):
    plain = cases(synthetic, (-9.0, -9.0), ())
    assert at_equal_recall(synthetic, plain, plain) is None


def trial(low, high):
    return Trial(None, None, (low + high) / 2, Interval(low, high), None, "", "")


@pytest.mark.parametrize(("low", "helps"), [(0.01, True), (0.0, False), (-0.2, False)])
def test_a_correction_helps_where_it_is_better_for_certain(low, helps):
    assert trial(low, 0.3).helps == helps
    assert ("taken" in _verdict("lesion_f1", 0.1, Interval(low, 0.3), "")) == helps


def test_too_few_lesions_do_not_tell():
    assert not Trial(None, None, 0.5, Interval(0.1, 0.9), None, "too few", "").helps
    assert _verdict("lesion_f1", 0.5, Interval(0.1, 0.9), "too few").endswith("left out, too few")


def test_one_subject_does_not_tell():
    assert not Trial(None, None, 0.5, None, None, "", "").helps
    assert "one subject does not tell" in _verdict("lesion_f1", 0.5, None, "")


def test_settings_of_either_kind(copied, trained_home):
    folder = copied(trained_home) / "results" / "Dataset001_Tiny" / "trident"
    model = TrainedModel.open(folder)
    for corrected in (True, False):
        with pytest.raises(PwmlError, match="is missing, which says how: run pwml_train_correction"):
            other_settings(model, corrected=corrected)
    Postprocessing(threshold=0.3, correction=True).write(folder / WITH)
    Postprocessing(threshold=0.6).write(folder / WITHOUT)
    assert other_settings(model, corrected=True).threshold == 0.3
    assert other_settings(model, corrected=False).threshold == 0.6
