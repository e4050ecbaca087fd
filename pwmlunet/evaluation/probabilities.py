"""Probabilities in files: written small and in their order, read from us and from others, checked."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import join
from pwmlunet.errors import PwmlError
from pwmlunet.files import reading_arrays, replacing

MOST_LOGIT = 16.0
"""Where logits end: beyond it, a probability in single precision is 0 or 1."""

_STEPS = 64  # logits are written in steps of 1/64: probabilities to 0.004, and the files stay small
_ROUNDING = 1e-3  # half precision, as other tools write


def logit_of(probability: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """The logits of probabilities in [0, 1], from -16 to 16.

    Ranks are taken on them: probabilities near 1 differ too little to be told apart in a table.
    """
    p = np.clip(np.asarray(probability, np.float64), 0, 1)  # a mean of ones may come out above 1
    with np.errstate(divide="ignore"):
        logit = np.log(p) - np.log1p(-p)
    return np.asarray(np.clip(logit, -MOST_LOGIT, MOST_LOGIT), np.float32)


def probability_of(logit: NDArray[np.floating[Any]] | float) -> NDArray[np.float32]:
    """The probabilities of logits."""
    return np.asarray(1 / (1 + np.exp(-np.asarray(logit, np.float64))), np.float32)


def write_probability(path: Path, probability: NDArray[np.floating[Any]]) -> None:
    """Writes probabilities (K, Z, Y, X) as `probability`, float32, in a compressed .npz.

    Their logits are rounded to the middles of steps of 1/64, which keeps the order of those near 1 and makes the file smaller than
    half precision would.
    """
    rounded = np.empty(probability.shape, np.float32)
    for index in np.ndindex(probability.shape[:2]):  # by slice: logits are made in double precision
        steps = np.ceil(logit_of(probability[index]) * _STEPS) - 0.5  # so what is above 0.5 stays above
        rounded[index] = probability_of(steps / _STEPS)
    with replacing(path) as temporary:
        np.savez_compressed(temporary, probability=rounded)


def read_probability(path: Path, shape_zyx: tuple[int, ...], n_targets: int) -> NDArray[np.float32]:
    """The probabilities (K, Z, Y, X) in an .npz of ours, or of nnU-Net (its background is left out).

    Raises:
        PwmlError: the file is damaged, of another shape, or holds values outside [0, 1].
    """
    with reading_arrays(path, ".npz of probabilities: write it again") as arrays:
        names = [name for name in ("probability", "probabilities") if name in arrays]
        if not names:
            raise PwmlError(f"{path} holds no array called probability: write it with pwml_predict --save-probabilities")  # fmt: skip
        probability = np.asarray(arrays[names[0]])
    if probability.dtype.kind not in "fiub":
        raise PwmlError(f"{path} holds {probability.dtype} values: probabilities must be numbers from 0 to 1")
    if names[0] == "probabilities" and probability.shape[:1] == (n_targets + 1,):
        probability = probability[1:]
    if probability.shape != (n_targets, *shape_zyx):
        expected = join((n_targets, *shape_zyx))
        raise PwmlError(f"{path} has the shape {join(probability.shape)}, its mask needs {expected} (targets, z, y, x)")  # fmt: skip
    low, high = (float(probability.min()), float(probability.max())) if probability.size else (0.0, 0.0)
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        raise PwmlError(f"{path} holds values from {low:g} to {high:g}: probabilities must be from 0 to 1")
    return np.clip(probability.astype(np.float32), 0, 1)
