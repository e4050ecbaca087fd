import pytest

from pwmlunet.data.image import Geometry
from pwmlunet.planning.modality import (
    may_hold_fan,
    name_like_other,
    name_like_ultrasound,
    recognise_ultrasound,
)


def grid(*spacing_zyx_mm, is_2d=False):
    return Geometry((40, 40, 40), spacing_zyx_mm, is_2d=is_2d)


@pytest.mark.parametrize("name", ["cUS", "US", "us", "3D-cUS", "3dUS", "ultrasound", "Ultrasonography", "cUS_coronal", "sonogram", "head US"])  # fmt: skip
def test_names_of_ultrasound(name):
    assert name_like_ultrasound([name]) == name and not name_like_other([name])


@pytest.mark.parametrize("name", ["T1", "T2w", "FLAIR", "flair", "T1ce", "MR", "MRI", "DWI", "ADC", "neonatal T1", "T2_FLAIR", "CT"])  # fmt: skip
def test_names_of_other_images(name):
    assert name_like_other([name]) == name and not name_like_ultrasound([name])


@pytest.mark.parametrize("name", ["image", "0", "sinus", "focus", "usual", "contrast", "grey"])
def test_names_that_say_nothing(name):
    assert not name_like_other([name]) and not name_like_ultrasound([name])


@pytest.mark.parametrize(
    ("names", "spacing", "expected"),
    [
        (("image",), (0.15, 0.15, 0.15), True),
        (("image",), (0.15, 0.15, 0.16), True),
        (("image",), (0.15, 0.15, 0.2), False),  # no cubes
        (("image",), (1.0, 1.0, 1.0), False),  # not fine
        (("T1",), (0.5, 0.5, 0.5), False),
        (("cUS",), (0.5, 0.2, 0.2), True),
        (("cUS", "T1"), (0.2, 0.2, 0.2), False),
    ],
)
def test_a_fan_is_looked_for_where_there_may_be_one(names, spacing, expected):
    assert may_hold_fan(names, grid(*spacing)) is expected


def test_a_picture_without_a_name_is_not_taken_for_ultrasound():
    assert not may_hold_fan(("image",), grid(0.2, 0.2, 0.2, is_2d=True))
    assert may_hold_fan(("US",), grid(1.0, 0.2, 0.2, is_2d=True))


@pytest.mark.parametrize(
    ("names", "has_fan", "expected", "words"),
    [
        (("cUS",), (False, False), True, "a channel is named cUS"),
        (("image",), (True, True), True, "every case is a fan in a field of zeros"),
        (("image",), (True, False), False, "not every case is a fan"),
        (("image", "T2"), (True, True), False, "a channel is named T2"),
        (("cUS", "T2"), (True, True), False, "a channel is named T2"),
    ],
)
def test_the_modality_and_its_reason(names, has_fan, expected, words):
    is_ultrasound, reason = recognise_ultrasound(names, has_fan)
    assert is_ultrasound is expected and words in reason
