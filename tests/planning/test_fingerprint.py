import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from pwmlunet.data.dataset import open_dataset
from pwmlunet.data.image import write_image
from pwmlunet.errors import PwmlError
from pwmlunet.planning import preprocessing
from pwmlunet.planning.fingerprint import Fingerprint, extract_fingerprint


def block(tiny, shape=(3, 20, 24)):
    """A bright block with two lesions: four pixels in slices 0 and 1, one pixel in slice 2."""
    image = np.full(shape, 10, np.int16)
    image[:, 4:14, 6:20] = 100
    mask = np.zeros(shape, np.uint8)
    mask[0, 8, 9:12] = 1
    mask[1, 9, 12] = 1  # touches by a corner
    image[mask > 0] = 150
    mask[-1, 8, 16] = 1
    image[-1, 8, 16] = 120
    return tiny.RawCase(image, mask, tiny.oblique(shape))


def look(folder, workers=1):
    return extract_fingerprint(open_dataset(folder), workers)


def complaint(folder):
    with pytest.raises(PwmlError) as caught:
        look(folder)
    return str(caught.value)


def test_facts_by_hand(tiny, tmp_path):
    folder = tiny.write_raw(tmp_path / "Dataset001_A", {"sub-02": block(tiny)})
    fingerprint = look(folder)
    (case,) = fingerprint.cases
    assert (fingerprint.dataset, fingerprint.channel_names) == ("Dataset001_A", ("T1",))
    assert (case.name, case.subject, case.geometry.shape_zyx) == ("sub-02", "sub-02", (3, 20, 24))
    (z, y, x) = case.head_box_zyx
    assert z == (0, 3) and np.abs(np.array([*y, *x]) - [4, 14, 6, 20]).max() <= 1
    large, small = sorted(case.lesions, key=lambda lesion: -lesion.n_voxels)
    assert (large.target, large.n_voxels, large.extent_zyx) == ("lesion", 4, (2, 2, 4))
    assert large.volume_mm3 == pytest.approx(4 * 3.0 * 0.7 * 0.5)
    # its largest slices along z, y and x hold 3, 3 and 1 pixels
    assert large.diameter_zyx_voxels == pytest.approx([2 * (n / np.pi) ** 0.5 for n in (3, 3, 1)])
    assert large.contrast == pytest.approx(1.5) and small.contrast == pytest.approx(1.2)
    assert large.centre_zyx == pytest.approx((0.25, 8.25, 10.5)) and small.centre_zyx == (2, 8, 16)
    assert 3 * 10 * 14 <= case.head_voxels <= 3 * 12 * 16 and not case.has_fan
    assert (case.n_labelled_slices, case.n_lesion_slices) == (3, 3)
    (channel,) = case.channels
    assert channel.percentiles[1] == pytest.approx(100) and 60 < channel.mean < 101 and channel.std > 1


def test_it_is_the_same_after_writing_and_reading(tiny, raw_home, tmp_path):
    fingerprint = look(raw_home / "raw" / "Dataset001_Tiny", workers=3)
    fingerprint.write(tmp_path / "fingerprint.json")
    assert Fingerprint.read(tmp_path / "fingerprint.json") == fingerprint
    assert [case.name for case in fingerprint.cases] == list(tiny.cases())
    summary = dict(fingerprint.summary())
    assert summary["cases"] == "5 of 4 subjects, channels T1"
    assert summary["without"].startswith("1 subjects; ")
    assert summary["lesions"].startswith("10, of 1 to 9 voxels, median 3.5 (")


def test_each_file_is_read_once(tiny, tmp_path, monkeypatch):
    cases = {name: tiny.head_with_lesions(i) for i, name in enumerate(("sub-02", "sub-03"))}
    folder = tiny.write_raw(tmp_path / "Dataset001_A", cases)
    read, real = [], preprocessing.read_image
    monkeypatch.setattr(preprocessing, "read_image", lambda path: read.append(path.name) or real(path))
    look(folder)
    names = [f"{name}{end}" for name in cases for end in (".nii.gz", "_0000.nii.gz")]
    assert sorted(read) == sorted(names)


def test_every_problem_is_listed(tiny, tmp_path):
    raw = tiny.head_with_lesions(0)
    hole = raw.image.astype(np.float32)
    hole[0, 0, 0] = np.nan
    cases = {
        "nan": replace(raw, image=hole),
        "constant": replace(raw, image=np.zeros_like(raw.image)),
        "moved": raw,
        "unknown": replace(raw, mask=raw.mask * 3),
        "fractions": replace(raw, mask=raw.mask * np.float32(0.5)),
        "cut": raw,
        "good": raw,
    }
    folder = tiny.write_raw(tmp_path / "Dataset001_A", cases)
    moved = replace(raw.geometry, origin_xyz_mm=(0.0, 0.0, 0.0))
    write_image(folder / "labelsTr" / "moved.nii.gz", raw.mask, moved)
    path = folder / "imagesTr" / "cut_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:2000])
    message = complaint(folder)
    assert message.startswith("Dataset001_A has problems (6):")
    for words in (
        "nan_0000.nii.gz cannot be read: it holds values that are not finite (NaN)",
        "case constant: channel 0 is constant (0 everywhere)",
        "case moved: its mask lies on another grid than its image (origin",
        "case unknown: its mask holds labels that dataset.json does not name (3)",
        "case fractions: its mask holds fractions",
        "cut_0000.nii.gz cannot be read: it is damaged or cut short",
    ):
        assert words in message
    assert "good" not in message


def test_no_lesion_at_all_is_told(tiny, tmp_path):
    cases = {"sub-02": tiny.head_with_lesions(0, n_lesions=0)}
    assert "no mask holds a lesion" in complaint(tiny.write_raw(tmp_path / "Dataset001_A", cases))


def test_2d_among_3d_is_told(tiny, tmp_path):
    flat = tiny.head_with_lesions(1, (1, 56, 48))
    flat = replace(
        flat, geometry=replace(flat.geometry, is_2d=True, direction_xyz=(1.0, 0, 0, 0, 1, 0, 0, 0, 1))
    )
    cases = {"solid": tiny.head_with_lesions(0), "flat": flat}
    folder = tiny.write_raw(tmp_path / "Dataset001_A", cases, ending=".nrrd")
    assert "2-D and 3-D images are mixed (2-D: flat)" in complaint(folder)


def test_a_case_of_ignored_slices_is_kept_with_a_word(tiny, tmp_path, caplog):
    raw = tiny.head_with_lesions(0)
    partly = raw.mask.copy()
    lesion_free = int(np.flatnonzero(~raw.mask.any((1, 2)))[0])
    partly[lesion_free] = 2
    cases = {"whole": replace(raw, mask=partly), "unknown": replace(raw, mask=np.full_like(raw.mask, 2))}
    labels = {"background": 0, "lesion": 1, "ignore": 2}
    with caplog.at_level(logging.WARNING):
        fingerprint = look(tiny.write_raw(tmp_path / "Dataset001_A", cases, labels))
    assert [case.n_labelled_slices for case in fingerprint.cases] == [0, 3]
    assert [len(case.lesions) > 0 for case in fingerprint.cases] == [False, True]
    assert caplog.messages == ["case unknown: every voxel is labelled ignore; it cannot teach anything"]


def test_contrasts_are_measured_in_each_of_several_channels(tiny, tmp_path):
    raw = block(tiny)
    folder = tiny.write_raw(tmp_path / "Dataset001_A", {"a": raw})
    dark = np.where(raw.mask > 0, 50, np.full_like(raw.image, 80))
    write_image(folder / "imagesTr" / "a_0001.nii.gz", dark, raw.geometry)
    content = json.loads((folder / "dataset.json").read_text())
    content["channel_names"] = {"0": "T2 FLAIR", "1": "T1 FLAIR"}
    (folder / "dataset.json").write_text(json.dumps(content))
    fingerprint = look(folder)
    large, small = sorted(fingerprint.lesions, key=lambda lesion: -lesion.n_voxels)
    assert large.contrasts == pytest.approx((1.5, 50 / 80)) and small.contrasts == pytest.approx(
        (1.2, 50 / 80)
    )
    assert large.contrast == large.contrasts[0] and not fingerprint.are_regions
    older = fingerprint.to_dict()
    del older["are_regions"], older["cases"][0]["lesions"][0]["contrasts"]
    assert Fingerprint.from_dict(older, "older").lesions[0].contrasts == ()


def test_regions_are_known_as_such(tiny, tmp_path):
    folder = tiny.write_raw(tmp_path / "Dataset001_A", {"a": block(tiny)})
    content = json.loads((folder / "dataset.json").read_text())
    content |= {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]}
    (folder / "dataset.json").write_text(json.dumps(content))
    fingerprint = look(folder)
    assert fingerprint.are_regions and fingerprint.lesions[0].contrasts == ()


def test_lesions_of_several_labels_are_told_apart(tiny, tmp_path):
    raw = block(tiny)
    mask = raw.mask.copy()
    mask[1, 9, 12] = 2
    folder = tiny.write_raw(
        tmp_path / "Dataset001_A", {"a": replace(raw, mask=mask)}, {"background": 0, "one": 1, "two": 2}
    )
    assert sorted((lesion.target, lesion.n_voxels) for lesion in look(folder).lesions) == [
        ("one", 1),
        ("one", 3),
        ("two", 1),
    ]


@pytest.mark.parametrize("shape", [(1, 3, 64), (1, 64, 3), (3, 1, 3)])
def test_images_with_an_axis_of_one_voxel(tiny, tmp_path, shape):
    image = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    mask = np.zeros(shape, np.uint8)
    mask[::2, ::2, ::2] = 1
    folder = tiny.write_raw(tmp_path / "Dataset001_A", {"a": tiny.RawCase(image, mask, tiny.oblique(shape))})
    assert len(look(folder).lesions) == mask.sum()


def probe(tiny, seed, shape=(40, 44, 36)):
    """A cone of speckle in zeros, which opens along the file's first axis, with a deep shadow and one lesion."""
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[tuple(slice(n) for n in shape)]
    inside = (np.hypot(y - 20, x - 16) < 4 + 0.35 * (shape[0] - z)) & (z > 1)
    depth = np.where((x > 18) & (z < 30), 0.05, 1)
    image = np.where(inside, (depth * rng.gamma(4, 20, shape)).clip(1, 250), 0).astype(np.uint8)
    mask = np.zeros(shape, np.uint8)
    mask[10:13, 18:22, 15:20] = 1
    return tiny.RawCase(image, mask, tiny.oblique(shape, (0.5, 0.5, 0.5))), inside


def named(folder, channel_name):
    path = folder / "dataset.json"
    path.write_text(path.read_text().replace('"T1"', f'"{channel_name}"'))
    return folder


@pytest.mark.parametrize("channel_name", ["cUS", "image"])
def test_the_fan_is_the_head_of_ultrasound(tiny, tmp_path, channel_name):
    raw, inside = probe(tiny, 0)
    (case,) = look(named(tiny.write_raw(tmp_path / "Dataset001_A", {"a": raw}), channel_name)).cases
    assert case.has_fan
    assert inside.sum() <= case.head_voxels < 1.5 * inside.sum()
    for axis, (start, stop) in enumerate(case.head_box_zyx):
        seen = np.flatnonzero(inside.any(tuple({0, 1, 2} - {axis})))
        assert seen[0] - 4 < start <= seen[0] and seen[-1] < stop <= seen[-1] + 4
    # neither the zeros around it nor its bright part alone
    assert case.channels[0].mean == pytest.approx(raw.image[inside].mean(), rel=0.3)


def test_no_fan_is_looked_for_in_mr(tiny, tmp_path):
    raw, _ = probe(tiny, 0)
    (case,) = look(tiny.write_raw(tmp_path / "Dataset001_A", {"a": raw})).cases
    assert not case.has_fan


def test_lesions_are_measured_where_they_lie_in_the_whole_volume(tiny, tmp_path):
    """Only the box of what is labelled is looked at; nothing depends on where that is."""
    raw, _ = probe(tiny, 0)
    moved = np.roll(raw.mask, (20, 10, 9), (0, 1, 2))
    corner = np.zeros_like(raw.mask)
    corner[0, 0, 0] = corner[-1, -1, -1] = 1
    cases = {"a": raw, "b": replace(raw, mask=moved), "c": replace(raw, mask=corner)}
    a, b, c = look(named(tiny.write_raw(tmp_path / "Dataset001_A", cases), "cUS")).cases
    assert a.lesions[0].centre_zyx == (11, 19.5, 17) and b.lesions[0].centre_zyx == (31, 29.5, 26)
    assert a.lesions[0].n_voxels == b.lesions[0].n_voxels == 60
    assert (a.n_lesion_slices, b.n_lesion_slices, c.n_lesion_slices) == (3, 3, 2)
    assert sorted(lesion.centre_zyx for lesion in c.lesions) == [(0, 0, 0), (39, 43, 35)]


def test_the_ring_of_a_lesion_reaches_beyond_what_is_labelled(tiny, tmp_path):
    raw, _ = probe(tiny, 0)
    image = np.full_like(raw.image, 50)
    image[:, :, 20:] = 150  # on one side of the lesion, which ends there
    image[0] = 0
    image[raw.mask > 0] = 200
    (case,) = look(tiny.write_raw(tmp_path / "Dataset001_A", {"a": replace(raw, image=image)})).cases
    # rows 15 to 24, columns 12 to 22 less the lesion's 4 x 5: of 90 pixels a slice 30 lie on the bright side
    assert case.lesions[0].contrast == pytest.approx(200 / ((60 * 50 + 30 * 150) / 90))
