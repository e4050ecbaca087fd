import pytest
import torch

from pwmlunet.errors import PwmlError
from pwmlunet.inference.device import enough_memory


def too_large():
    torch.empty(2**60, dtype=torch.uint8)


def too_large_on_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory.")


def too_large_for_numpy():
    raise MemoryError


@pytest.mark.parametrize("ask", [too_large, too_large_on_a_gpu, too_large_for_numpy])
def test_too_little_memory_is_told_with_advice(ask):
    with pytest.raises(PwmlError, match=r"^there is not enough memory: buy some$"), enough_memory("buy some"):
        ask()


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="mat1 and mat2"), enough_memory("buy some"):
        torch.ones(2, 3) @ torch.ones(2, 3)
