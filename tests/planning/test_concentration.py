import numpy as np
import pytest

from pwmlunet.planning.concentration import CANDIDATES_MM, concentration

HALF_AXES = np.array((35.0, 28.0, 28.0))
HEAD_MM3 = 4 / 3 * np.pi * HALF_AXES.prod()


def anywhere(rng, n):
    """Lesions anywhere in the head."""
    points = rng.normal(size=(n, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points * rng.uniform(size=(n, 1)) ** (1 / 3) * HALF_AXES


def at_the_ventricles(rng, n):
    """Lesions around two bent tubes, in a head that lies 2 mm off."""
    along, side = rng.uniform(-1, 1, n), rng.choice([-1, 1], n)
    tubes = np.stack([18 * along, 6 * along**2 - 4, side * (8 + 5 * np.abs(along))], 1)
    return tubes + rng.normal(0, 4, (n, 3)) + rng.normal(0, 2, 3)


def share_of_yes(kind, n_subjects, n_lesions=8, repetitions=30):
    rng = np.random.default_rng(0)
    found = [
        concentration([kind(rng, rng.geometric(1 / n_lesions)) for _ in range(n_subjects)], HEAD_MM3)
        for _ in range(repetitions)
    ]
    return np.mean([c.helps for c in found])


@pytest.mark.parametrize("n_subjects", [4, 10, 20])
def test_lesions_anywhere_need_no_prior(n_subjects):
    assert share_of_yes(anywhere, n_subjects) <= 0.04


def test_lesions_of_each_subject_in_a_place_of_its_own_need_no_prior():
    assert share_of_yes(lambda rng, n: anywhere(rng, 1) * 0.9 + rng.normal(0, 3, (n, 3)), 10) <= 0.04


@pytest.mark.parametrize("n_subjects", [8, 16])
def test_lesions_at_the_ventricles_are_told_from_chance(n_subjects):
    assert share_of_yes(at_the_ventricles, n_subjects) >= 0.9


def test_the_gain_is_over_lesions_anywhere():
    subjects = [np.array([[0.0, 0, 0], [0, 3, 0]]), np.array([[0.0, 0, 4]]), np.empty((0, 3))]
    found = concentration(subjects, 1000.0)
    assert found.n_subjects == 2 and not found.helps
    means = []
    for h in CANDIDATES_MM:
        near, far = (np.exp(-(d**2) / 2 / h**2) / (2 * np.pi * h**2) ** 1.5 for d in (4, 5))
        first = (np.log(0.99e3 * near + 0.01) + np.log(0.99e3 * far + 0.01)) / 2
        means.append((first + np.log(0.99e3 * (near + far) / 2 + 0.01)) / 2)
    assert found.gain == pytest.approx(max(means)) and found.bandwidth_mm == CANDIDATES_MM[np.argmax(means)]
    assert found.interval.low <= found.gain <= found.interval.high


def test_single_slices_are_told_in_their_plane():
    """Lesions of a Gaussian of 2 mm in a head of 1600 mm²: the gain is what its entropy says."""
    subjects = [np.random.default_rng(i).normal((5, -3), 2, (40, 2)) for i in range(6)]
    found = concentration(subjects, 1600.0)
    density = np.log(1600 / (2 * np.pi * 2**2)) - 1  # of a Gaussian, less that of the square
    assert found.gain == pytest.approx(density, abs=0.25) and found.helps


@pytest.mark.parametrize("n_subjects", [0, 1, 3])
def test_few_subjects_are_not_enough(n_subjects):
    found = concentration([np.zeros((5, 3))] * n_subjects, HEAD_MM3)
    assert not found.helps and found.n_subjects == n_subjects
    assert (found.gain is None) == (n_subjects < 2)
    assert concentration([np.zeros((5, 3))] * 4, HEAD_MM3).helps
