import gzip

import numpy as np
import pytest
import SimpleITK as sitk

from pwmlunet.data.image import read_image
from pwmlunet.errors import PwmlError


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_itk_would_turn_into_zeros_are_told(tmp_path, ending, kind, value):
    array = np.random.default_rng(0).random((2, 400, 401)).astype(kind)  # more than a block is read at once
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    assert np.array_equal(read_image(path).array, array)
    array[-1, -1, -1] = value
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    with pytest.raises(PwmlError, match=r"a\.nii.* cannot be read: it holds values that are not finite"):
        read_image(path)


def test_the_other_byte_order_is_understood(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    array[1, 1, 1] = np.frombuffer(b"\x3f\x80\x80\x7f", ">f4")[0]  # backwards it is NaN
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "a.nii"))
    content = bytearray((tmp_path / "a.nii").read_bytes())
    with gzip.open(tmp_path / "b.nii.gz", "wb") as file:
        file.write(_swapped(content, array))
    assert np.array_equal(read_image(tmp_path / "b.nii.gz").array, array)


def _swapped(content: bytearray, array: np.ndarray) -> bytes:
    """A NIfTI-1 file in the other byte order: every field of the header by its size."""
    shorts = [36, *range(40, 56, 2), 68, 70, 72, 74, 120, 252, 254]
    words = [0, 32, 56, 60, 64, *range(76, 120, 4), *range(124, 148, 4), *range(256, 328, 4)]
    header = content[:352]
    for size, places in ((2, shorts), (4, words)):
        for place in places:
            header[place : place + size] = header[place : place + size][::-1]
    return bytes(header) + array.astype(">f4").tobytes()
