import numpy as np
import pytest

from pwmlunet.evaluation.probabilities import probability_of
from pwmlunet.inference.candidates import LOGITS, CaseTable
from pwmlunet.inference.temperature import find_temperature


def table(subject, *, n_lesions, outside, inside):
    """A case with so many voxels of these logits outside and inside its lesions."""
    logits = np.zeros((2, len(LOGITS)), np.int64)
    for side, voxels in zip(logits, (outside, inside), strict=True):
        for logit, n in voxels.items():
            side[np.searchsorted(LOGITS, logit)] += n
    return CaseTable(subject, subject, "0", np.ones(n_lesions), n_lesions, (), logits)


def sure(temperature, n_lesions, n_voxels=20000):
    """Three subjects whose voxels are lesion as often as logit / temperature says."""
    rng = np.random.default_rng(0)
    tables = []
    for subject in "abc":
        logit = np.round(np.clip(rng.normal(-1, 4, n_voxels), -16, 16) * 16) / 16
        is_lesion = rng.random(n_voxels) < probability_of(logit / temperature)
        sides = [dict(zip(*np.unique(logit[s], return_counts=True), strict=True)) for s in (~is_lesion, is_lesion)]  # fmt: skip
        tables.append(table(subject, n_lesions=n_lesions, outside=sides[0], inside=sides[1]))
    return tables


@pytest.mark.parametrize("temperature", [2.0, 1.0, 0.75])
def test_the_temperature_is_recovered_from_many_lesions(temperature):
    found = find_temperature(sure(temperature, n_lesions=500))
    assert found.value == pytest.approx(temperature, rel=0.05)
    assert found.error_after < 0.01
    assert (found.error_before > 0.02) == (temperature != 1)


def test_probabilities_are_not_sharpened_until_they_are_the_same():
    """Voxels that are right nearly always at logits of 1: the likeliest temperature would be 0.2."""
    found = find_temperature([table("a", n_lesions=500, outside={-1.0: 500}, inside={1.0: 500})])
    assert found.value == pytest.approx(0.7, abs=0.01)
    assert len(np.unique(probability_of(np.arange(5, 12) / found.value))) == 7


def test_few_lesions_leave_it_near_1():
    values = [find_temperature(sure(2.0, n_lesions=n)).value for n in (1, 4, 16, 64)]
    assert values == sorted(set(values)) and 1.1 < values[0] < 1.4 < 1.8 < values[3] < 2.05


def test_it_is_told_how_strongly_it_is_held_back():
    """One lesion, and all voxels at logit 2 while half of them are lesion: by hand, on a fine grid."""
    t = np.exp(np.linspace(-1, 2, 30001))
    loss = np.log1p(np.exp(2 / t)) / 2 + np.log1p(np.exp(-2 / t)) / 2 + np.log(t) ** 2 / (2 * 0.5**2)
    half = [table("a", n_lesions=1, outside={2.0: 50}, inside={2.0: 50})]
    assert find_temperature(half).value == pytest.approx(t[loss.argmin()], abs=0.01)


def test_subjects_weigh_alike():
    """Ten thousand voxels that say "not sure enough" are one subject, as a hundred that say "too sure" are."""
    calm = table("calm", n_lesions=50, outside={-0.5: 5000}, inside={0.5: 5000})
    wild = table("wild", n_lesions=50, outside={4.0: 50}, inside={4.0: 50})
    assert find_temperature([calm]).value < 0.8
    assert find_temperature([wild]).value > 2 and find_temperature([calm, wild]).value > 1.3


def test_subjects_without_lesions_do_not_choose():
    some = table("some", n_lesions=20, outside={-1.0: 50, 2.0: 3}, inside={2.0: 20})
    clean = table("clean", n_lesions=0, outside={6.0: 500}, inside={})
    assert find_temperature([some, clean]).value == find_temperature([some]).value


def test_the_error_after_is_of_subjects_that_did_not_choose():
    """Two subjects of opposite kinds: each makes the other one worse, both together would not."""
    calm = table("calm", n_lesions=50, outside={-1.0: 500}, inside={1.0: 500})
    wild = table("wild", n_lesions=50, outside={3.0: 500}, inside={3.0: 500})
    found = find_temperature([calm, wild])
    assert found.error_before == pytest.approx((2 * 500 * 0.2689 + 1000 * 0.4526) / 2000, abs=1e-3)
    assert found.error_after > found.error_before + 0.02


def test_without_lesions_it_is_1():
    found = find_temperature([table("a", n_lesions=0, outside={3.0: 10}, inside={})])
    assert found.value == 1 and found.error_before == pytest.approx(0.9526, abs=1e-3) == found.error_after


def test_without_voxels_there_is_no_error():
    found = find_temperature([table("a", n_lesions=0, outside={}, inside={})])
    assert found.value == 1 and found.error_before is None is found.error_after
