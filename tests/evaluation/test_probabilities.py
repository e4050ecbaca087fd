from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.probabilities import (
    MOST_LOGIT,
    logit_of,
    probability_of,
    read_probability,
    write_probability,
)

SHAPE = (2, 3, 4)


def random(n_targets: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(0).random((n_targets, *SHAPE)).astype(np.float32)


def test_logits_and_probabilities_are_inverse() -> None:
    logits = np.linspace(-10, 10, 41)
    np.testing.assert_allclose(logit_of(1 / (1 + np.exp(-logits))), logits, atol=1e-6)
    np.testing.assert_allclose(probability_of(logits), 1 / (1 + np.exp(-logits)), rtol=1e-6)
    assert probability_of(0.0) == 0.5


def test_logits_end_where_probabilities_are_zero_or_one() -> None:
    assert logit_of(np.array([0.0, 1.0, 1.0001, -0.0001])).tolist() == [-MOST_LOGIT, MOST_LOGIT, MOST_LOGIT, -MOST_LOGIT]  # fmt: skip


def test_written_and_read_they_keep_their_value_and_their_order_near_one(tmp_path: Path) -> None:
    probability = random(2)
    probability[0, 0, 0] = 0, 0.9999, 0.99999, 0.999999
    write_probability(tmp_path / "a.npz", probability)
    found = read_probability(tmp_path / "a.npz", SHAPE, 2)
    np.testing.assert_allclose(found, probability, atol=0.004)
    assert (np.diff(found[0, 0, 0]) > 0).all()
    assert found.dtype == np.float32


def test_what_is_above_a_half_stays_above_it(tmp_path: Path) -> None:
    near = np.array([0.5 - 1e-6, 0.5 + 1e-6, 0.5, 0.498], np.float32).reshape(1, 1, 1, 4)
    write_probability(tmp_path / "a.npz", near)
    read = read_probability(tmp_path / "a.npz", (1, 1, 4), 1)
    assert (read[0, 0, 0] > 0.5).tolist() == [False, True, False, False]


def test_written_again_they_stay_the_same(tmp_path: Path) -> None:
    write_probability(tmp_path / "a.npz", random())
    first = read_probability(tmp_path / "a.npz", SHAPE, 1)
    write_probability(tmp_path / "b.npz", first)
    np.testing.assert_allclose(read_probability(tmp_path / "b.npz", SHAPE, 1), first, atol=1e-6)


def test_the_background_of_nnunet_is_left_out(tmp_path: Path) -> None:
    probabilities = np.concatenate([1 - random(2).sum(0, keepdims=True) / 2, random(2) / 2])
    np.savez_compressed(tmp_path / "a.npz", probabilities=probabilities.astype(np.float16))
    np.testing.assert_allclose(read_probability(tmp_path / "a.npz", SHAPE, 2), probabilities[1:], atol=1e-3)


def test_regions_of_nnunet_have_no_background(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", probabilities=random(2))
    np.testing.assert_array_equal(read_probability(tmp_path / "a.npz", SHAPE, 2), random(2))


def test_what_rounding_puts_outside_is_brought_back(tmp_path: Path) -> None:
    probability = random()
    probability[0, 0, 0, :2] = -0.0005, 1.0005
    np.savez(tmp_path / "a.npz", probability=probability)
    found = read_probability(tmp_path / "a.npz", SHAPE, 1)
    assert (found.min(), found.max()) == (0, 1)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"probability": random() + 0.5}, r"a.npz holds values from 0\.\d+ to 1\.\d+: probabilities must be"),
        ({"probability": random() - 0.5}, r"holds values from -0\.\d+ to 0\.\d+"),
        ({"probability": np.full((1, *SHAPE), np.nan)}, "holds values from nan to nan"),
        ({"probability": np.where(random() > 0.5, np.inf, 0)}, "to inf"),
        ({"probability": random()[0]}, r"has the shape 2, 3, 4, its mask needs 1, 2, 3, 4 \(targets, z, y, x\)"),
        ({"probability": random(2)}, "has the shape 2, 2, 3, 4"),
        ({"probabilities": random(3)}, "has the shape 3, 2, 3, 4"),
        ({"probability": np.swapaxes(random(), 1, 3)}, "has the shape 1, 4, 3, 2"),
        ({"probabilities": np.float32(0.5)}, "has the shape "),
        ({"probability": np.full((1, *SHAPE), "a")}, "holds <U1 values"),
        ({"probability": np.full((1, *SHAPE), None)}, "is damaged or no .npz"),
        ({"softmax": random()}, "holds no array called probability: write it with pwml_predict --save-prob"),
    ],
)  # fmt: skip
def test_odd_content_is_named(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(PwmlError, match=message):
        read_probability(tmp_path / "a.npz", SHAPE, 1)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_probability(path, random())
    whole = path.read_bytes()
    middle = len(whole) // 2
    changed = whole[:middle] + bytes(20) + whole[middle + 20 :]
    stream = whole.index(b"probability.npy") + 50  # within the compressed bytes
    no_block = whole[:stream] + b"\xff" * 30 + whole[stream + 30 :]
    for content in (b"", b"nothing", whole[:-30], changed, no_block):
        path.write_bytes(content)
        with pytest.raises(PwmlError, match=r"a.npz is damaged"):
            read_probability(path, SHAPE, 1)
    with path.open("wb") as file:
        np.save(file, random())
    with pytest.raises(PwmlError, match=r"a.npz is damaged or no .npz"):
        read_probability(path, SHAPE, 1)
    with pytest.raises(PwmlError, match=r"b.npz does not exist, and should be a .npz of prob"):
        read_probability(tmp_path / "b.npz", SHAPE, 1)


def test_an_empty_volume_has_no_values_to_object_to(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", probability=np.zeros((1, 0, 3, 4), np.float32))
    assert read_probability(tmp_path / "a.npz", (0, 3, 4), 1).size == 0
