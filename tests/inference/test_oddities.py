import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pwmlunet.data.image import read_image
from pwmlunet.inference.oddities import oddities
from pwmlunet.planning.cropping import foreground
from pwmlunet.planning.fingerprint import channel_facts
from pwmlunet.planning.plan import ExpectedInput
from pwmlunet.planning.planner import usual_traits

REAL = Path(os.environ.get("PWML_TEST_DATA") or Path(__file__).parents[2] / "../shared/data")
NAMES = ("T2 FLAIR", "T1 FLAIR", "T2")


def expected_of(channels, geometry):
    """What a case like this one is expected to be."""
    spacing, head = geometry.spacing_zyx_mm, foreground(channels[0])
    facts = tuple(channel_facts(image, head) for image in channels)
    return ExpectedInput(spacing, spacing, facts, traits=usual_traits([facts]) if len(facts) > 1 else ())


def odd(channels, geometry, expected):
    return oddities(channels, geometry, expected, foreground(channels[0]), NAMES)


@pytest.fixture
def head(tiny):
    return tiny.head_with_lesions(7)


@pytest.fixture
def pair(head):
    """A flat bright channel, and a darker one of more contrast."""
    return [head.image + 400, (head.image / 10.0) ** 2]


def test_what_does_not_look_like_training_is_told(tiny, head):
    expected = expected_of([tiny.head_with_lesions(1).image], head.geometry)
    assert odd([head.image], head.geometry, expected) == []
    assert odd([head.image * 5 + 300], head.geometry, expected) == []  # scanners scale freely
    (spacing,) = odd([head.image], replace(head.geometry, spacing_zyx_mm=(3.0, 1.6, 0.5)), expected)
    assert "spacing 3, 1.6, 0.5 mm is far from the training cases' (3, 0.7, 0.5 mm)" in spacing
    (contrast,) = odd([np.exp(head.image / 12.0)], head.geometry, expected)
    assert "channel 0 has other contrasts" in contrast


def test_swapped_channels_are_told_by_name(head, pair):
    expected = expected_of(pair, head.geometry)
    assert odd(pair, head.geometry, expected) == []
    scaled = [pair[0] * 3, pair[1] * 2]
    assert odd(scaled, head.geometry, expected) == []
    for factor in (1, 16):
        assert odd([factor * pair[1], factor * pair[0]], head.geometry, expected) == [
            "its channels 0 (T2 FLAIR) and 1 (T1 FLAIR) look swapped: "
            "each looks like the other of the training cases; check which file is which"
        ]
    for twice in pair:  # one file under both names
        assert not any("swapped" in words for words in odd([twice, twice], head.geometry, expected))


def test_many_cases_tell_channels_apart_that_differ_little(tiny):
    """Where training cases are alike, a small difference says which channel is which; gains of a scanner say nothing."""
    heads = [tiny.head_with_lesions(seed) for seed in range(30)]
    rng = np.random.default_rng(0)
    cases = [
        [rng.uniform(0.3, 3) * (h.image + 400.0), rng.uniform(0.3, 3) * (h.image + 400.0) ** 1.5]
        for h in heads
    ]
    geometry, head = heads[0].geometry, foreground(heads[0].image)
    facts = [tuple(channel_facts(image, head) for image in case) for case in cases]
    spacing = geometry.spacing_zyx_mm
    expected = ExpectedInput(spacing, spacing, facts[0], traits=usual_traits(facts[:24]))
    told = [
        [any("swapped" in words for words in odd(case[::way], geometry, expected)) for case in cases[24:]]
        for way in (1, -1)
    ]
    assert not any(told[0]) and all(told[1])


def test_a_plan_without_traits_says_nothing_of_swaps(head, pair):
    expected = replace(expected_of(pair, head.geometry), traits=())
    assert not any("swapped" in words for words in odd(pair[::-1], head.geometry, expected))


def test_two_of_three_are_swapped(head, pair):
    third = [*pair, 3000 - 5.0 * head.image]
    expected = expected_of(third, head.geometry)
    assert odd(third, head.geometry, expected) == []
    (message,) = odd([third[0], third[2], third[1]], head.geometry, expected)
    assert "channels 1 (T1 FLAIR) and 2 (T2) look swapped" in message


def test_channels_that_are_alike_are_never_called_swapped(tiny, head):
    """As of FLAIR at two times: nothing tells the first from the second, whatever the scanner did to one."""
    expected = expected_of([tiny.head_with_lesions(seed).image for seed in (1, 2)], head.geometry)
    for factor in (0.2, 1.0, 5.0):
        assert odd([head.image, factor * head.image], head.geometry, expected) == []


def test_nothing_is_said_of_a_channel_that_is_lacking(head, pair):
    expected = expected_of(pair, head.geometry)
    lacking = np.zeros(head.image.shape, np.uint8)
    assert odd([pair[0], lacking], head.geometry, expected) == []
    found = oddities([lacking, pair[1]], head.geometry, expected, foreground(head.image), NAMES)
    assert found == []
    (strange,) = oddities(
        [lacking, np.exp(head.image / 12.0)], head.geometry, expected, foreground(head.image), NAMES
    )
    assert strange.startswith("channel 1 has other contrasts")


@pytest.mark.parametrize(
    ("folder", "files", "are_told"),
    [
        ("ms_flair_t1", ("flair.nii.gz", "t1.nii.gz"), True),
        ("ms_flair_change", ("flair_baseline.nii.gz", "flair_followup.nii.gz"), False),
    ],
)
def test_swapped_real_channels(folder, files, are_told):
    patients = [path for path in sorted((REAL / folder).glob("patient*")) if path.is_dir()]
    if not patients:
        pytest.skip(f"no public pairs in {REAL}: set PWML_TEST_DATA")
    cases = [[read_image(path / file).array for file in files] for path in patients]
    geometry = read_image(patients[0] / files[0]).geometry
    known, new = cases[0], cases[-1]  # of another scanner or setting
    expected = expected_of(known, geometry)
    assert odd(new, geometry, expected) == []
    told = [message for message in odd(new[::-1], geometry, expected) if "look swapped" in message]
    assert bool(told) == are_told
