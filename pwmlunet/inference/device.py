"""What a device does well: its choice, its number format, its memory."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

from pwmlunet.errors import PwmlError

Precision = Literal["auto", "float32", "bfloat16", "float16"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_ONE_GB = 1 << 30


def choose_device(name: str) -> torch.device:
    """The device of a name (auto, cpu, cuda, cuda:1, mps); auto takes a GPU where there is one.

    Raises:
        PwmlError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise PwmlError(f"there is no device {name!r} here: choose cpu, or auto for what there is") from error
    return device


def training_format(device: torch.device, precision: Precision) -> torch.dtype:
    """The format of a training's convolutions; losses and weights stay in float32.

    Automatic is bfloat16 where the processor multiplies in it (1.6 times as fast on a CPU with AVX512-BF16),
    else float16 on a GPU and float32 on a CPU.
    """
    if precision != "auto":
        formats = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        return formats[precision]
    if device.type == "cpu":
        return torch.bfloat16 if _cpu_has_bfloat16() else torch.float32
    return prediction_format(device)


def prediction_format(device: torch.device) -> torch.dtype:
    """The format of a prediction's convolutions: on a CPU float32, whose probabilities are finer."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16; torch tells it in private functions, if at all."""
    tests = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    return any(test() for test in tests if test)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Runs convolutions in `dtype`; nothing changes for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def keep_freed_memory() -> None:
    """Makes glibc keep large freed blocks for the next step instead of returning them to the system.

    Otherwise a fifth of a training step on the CPU goes into page faults.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _ONE_GB)
        libc.mallopt(_M_TRIM_THRESHOLD, _ONE_GB)


@contextmanager
def enough_memory(advice: str) -> Iterator[None]:
    """Says in a PwmlError with advice that there is not enough memory, which torch says in several ways."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not is_known and "DefaultCPUAllocator" not in str(error):
            raise
        raise PwmlError(f"there is not enough memory: {advice}") from error
