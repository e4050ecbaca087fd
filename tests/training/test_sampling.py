from dataclasses import replace

import numpy as np
import pytest
import torch

from pwmlunet.data.dataset import Labels, Target
from pwmlunet.data.store import CaseFacts, Orientation, PreprocessedCase, WayBack
from pwmlunet.errors import PwmlError
from pwmlunet.training.sampling import (
    Location,
    PatchLoader,
    PatchSampler,
    PatchShape,
    TrainingCase,
    _balanced,
    cut,
    training_case,
)

LABELS = Labels((Target("lesion", (1,), 1),), ignore=2)


def case_of(tiny, mask, name="a"):
    """A case whose image says where each pixel lies: channel 0 is z, 1 is y, 2 is x."""
    way_back = WayBack(tiny.oblique(mask.shape), Orientation(), ((0, 1), (0, 1), (0, 1)), mask.shape)
    image = np.stack(np.indices(mask.shape)).astype(np.float32)
    return training_case(PreprocessedCase(CaseFacts(name, name, way_back, {}), image, mask), LABELS)


def one_lesion(tiny, place, size, shape):
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(p, p + s) for p, s in zip(place, size, strict=True))] = 1
    return case_of(tiny, mask)


def test_lesions_and_labelled_slices_are_found(tiny):
    mask = np.zeros((4, 6, 7), np.uint8)
    mask[0, 1, 1] = mask[1, 2, 2] = mask[0, 5, 5] = 1
    mask[3] = 2
    mask[2, 0, 0] = 2
    case = case_of(tiny, mask)
    assert [sorted(map(tuple, lesion.tolist())) for lesion in case.lesions] == [
        [(0, 1, 1), (1, 2, 2)],
        [(0, 5, 5)],
    ]
    assert case.labelled_slices.tolist() == [0, 1, 2]


@pytest.mark.parametrize("shape", [(3, 40, 50), (1, 20, 64), (2, 17, 19)])
@pytest.mark.parametrize("patch", [(16, 24), (32, 32), (64, 48)])
def test_a_patch_lies_in_the_image_and_holds_its_lesion(tiny, shape, patch):
    rng = np.random.default_rng(0)
    corners = [(z, y, x) for z in (0, shape[0] - 1) for y in (0, shape[1] - 1) for x in (0, shape[2] - 1)]
    places = corners + [tuple(int(rng.integers(n)) for n in shape) for _ in range(30)]
    for place in places:
        size = tuple(int(rng.integers(1, 1 + min(6, n - p))) for n, p in zip(shape, place, strict=True))
        sampler = PatchSampler([one_lesion(tiny, place, size, shape)], (1, *patch), 1.0)
        for at in sampler.draw(8, rng):
            for start, length, first, extent, axis in zip(
                (at.y, at.x), patch, place[1:], size[1:], shape[1:], strict=True
            ):
                assert start >= 0 and (start + length <= axis or (start == 0 and length > axis))
                assert start <= first and first + extent <= start + length
            assert place[0] <= at.z < place[0] + size[0]


def test_a_lesion_in_the_middle_keeps_away_from_the_edge_and_is_not_centred(tiny):
    sampler = PatchSampler([one_lesion(tiny, (0, 50, 60), (1, 2, 3), (1, 100, 120))], (1, 32, 32), 1.0)
    drawn = sampler.draw(400, np.random.default_rng(0))
    rows, columns = {50 - at.y for at in drawn}, {60 - at.x for at in drawn}
    assert rows == set(range(8, 32 - 8 - 2 + 1)) and columns == set(range(8, 32 - 8 - 3 + 1))


def test_a_lesion_larger_than_the_patch_is_held_in_part(tiny):
    case = one_lesion(tiny, (0, 2, 3), (1, 30, 40), (1, 40, 50))
    for at in PatchSampler([case], (1, 16, 16), 1.0).draw(50, np.random.default_rng(0)):
        _, mask = cut(case, at, PatchShape((1, 16, 16), 1, 1))
        assert mask.any() and 0 <= at.y <= 24 and 0 <= at.x <= 34


@pytest.mark.parametrize(("share", "n"), [(0.0, 8), (0.25, 8), (0.5, 8), (1.0, 8), (0.6, 4)])
def test_the_share_of_patches_with_a_lesion(tiny, share, n):
    case = one_lesion(tiny, (1, 4, 4), (1, 2, 2), (3, 40, 40))
    sampler = PatchSampler([case], (1, 16, 16), share)
    rng = np.random.default_rng(0)
    shape = PatchShape((1, 16, 16), 1, 1)
    counts = [sum(bool(cut(case, at, shape)[1].any()) for at in sampler.draw(n, rng)) for _ in range(200)]
    assert np.mean(counts) == pytest.approx(share * n, abs=0.12)
    assert set(counts) <= {int(share * n), int(np.ceil(share * n))}


def test_ignored_slices_are_never_the_slice_to_label(tiny):
    mask = np.full((5, 30, 30), 2, np.uint8)
    mask[[1, 3]] = 0
    mask[3, 10, 10] = 1
    unknown = case_of(tiny, np.full((2, 30, 30), 2, np.uint8), "unknown")
    sampler = PatchSampler([unknown, case_of(tiny, mask)], (1, 16, 16), 0.5)
    drawn = sampler.draw(200, np.random.default_rng(0))
    assert {(at.case, at.z) for at in drawn} == {(1, 1), (1, 3)}


def test_no_slice_dominates_by_its_large_lesions():
    weights = _balanced([1] * 4 + [2, 3] + [100])  # octaves of four, two and one lesion
    assert weights.sum() == pytest.approx(1)
    assert weights[:4].sum() / weights[6] == pytest.approx(2)
    assert weights[4:6].sum() / weights[6] == pytest.approx(2**0.5)


def test_nothing_to_draw_from_is_told(tiny):
    empty, unknown = (case_of(tiny, np.full((2, 9, 9), value, np.uint8)) for value in (0, 2))
    with pytest.raises(PwmlError, match=r"no training case of this fold has a lesion: change splits\.json"):
        PatchSampler([empty], (1, 8, 8), 0.5)
    with pytest.raises(PwmlError, match="no training case has a slice with a known label"):
        PatchSampler([unknown], (1, 8, 8), 0.5)
    assert len(PatchSampler([empty], (1, 8, 8), 0.0).draw(3, np.random.default_rng(0))) == 3


def test_a_patch_is_what_lies_at_its_location(tiny):
    case = one_lesion(tiny, (2, 10, 20), (1, 2, 3), (4, 40, 50))
    image, mask = cut(case, Location(0, 2, 5, 15), PatchShape((1, 16, 24), 3, 1))
    assert image.shape == (3, 3, 16, 24) and mask.shape == (1, 16, 24)
    assert image[0, :, 0, 0].tolist() == [1, 2, 3]
    assert image[1, 0, :, 0].tolist() == list(range(5, 21)) and image[2, 0, 0].tolist() == list(range(15, 39))
    assert np.argwhere(mask[0])[[0, -1]].tolist() == [[5, 5], [6, 7]]


@pytest.mark.parametrize(
    ("z", "n_slices", "step", "expected"),
    [(0, 3, 1, [0, 0, 1]), (3, 3, 1, [2, 3, 3]), (1, 5, 2, [0, 0, 1, 3, 3]), (2, 1, 4, [2])],
)
def test_slices_beyond_the_ends_repeat_the_last_one(tiny, z, n_slices, step, expected):
    case = one_lesion(tiny, (0, 0, 0), (1, 1, 1), (4, 20, 20))
    image, _ = cut(case, Location(0, z, 0, 0), PatchShape((1, 16, 16), n_slices, step))
    assert image[0, :, 3, 3].tolist() == expected


@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_patch_larger_than_the_image_is_padded_below_and_right(tiny, as_tensor):
    case = one_lesion(tiny, (1, 9, 8), (1, 1, 1), (2, 10, 9))
    image = case.image + 5
    if as_tensor:
        image, mask = torch.from_numpy(image), torch.from_numpy(case.mask)
        case = TrainingCase("a", image, mask, case.lesions, case.labelled_slices)
    else:
        case = TrainingCase("a", image, case.mask, case.lesions, case.labelled_slices)
    patch, mask = cut(case, Location(0, 1, 0, 0), PatchShape((1, 16, 12), 1, 1))
    assert tuple(patch.shape) == (3, 1, 16, 12) and tuple(mask.shape) == (1, 16, 12)
    assert patch[1, 0, :10, 0].tolist() == list(range(5, 15))
    assert patch[:, :, 10:].min() == patch[:, :, 10:].max() == 5 and mask.sum() == mask[0, 9, 8] == 1


def loader(tiny, **options):
    masks = [np.zeros((3, 30, 30), np.uint8) for _ in range(2)]
    masks[0][1, 4, 5] = masks[1][2, 20:22, 20] = 1
    cases = [case_of(tiny, mask, name) for mask, name in zip(masks, "ab", strict=True)]
    sampler = PatchSampler(cases, (1, 16, 16), 0.5)
    return PatchLoader(sampler, PatchShape((1, 16, 16), 3, 1), batch_size=4, **{"seed": 3, **options})


def test_batches_have_their_shapes_and_say_where_they_are_from(tiny):
    batch = loader(tiny).generate_train_batch()
    assert batch["image"].shape == (4, 3, 3, 16, 16) and batch["mask"].shape == (4, 1, 16, 16)
    for place, image in zip(batch["where"], batch["image"], strict=True):
        case, z, row, column = place.replace(",", "").split()[1::2]
        assert case in "ab" and image[:, 1, 0, 0].tolist() == [int(z), int(row), int(column)]


def wheres(batches):
    return [batch["where"] for batch in batches]


def test_batches_depend_on_seed_and_index_alone(tiny):
    one = loader(tiny)
    six = wheres(one.generate_train_batch() for _ in range(6))
    assert len({str(where) for where in six}) == 6
    late = loader(tiny, first_batch=4)
    assert wheres(late.generate_train_batch() for _ in range(2)) == six[4:]
    other = loader(tiny, seed=4)
    assert wheres(other.generate_train_batch() for _ in range(6)) != six
    workers = [loader(tiny, workers=2) for _ in range(2)]
    for thread, worker in enumerate(workers):
        worker.set_thread_id(thread)
        assert wheres(worker.generate_train_batch() for _ in range(3)) == six[thread::2]


@pytest.mark.parametrize("shape", [(12, 40, 50), (5, 20, 64), (30, 17, 19)])
def test_a_patch_of_a_volume_lies_in_it_and_holds_its_lesion(tiny, shape):
    rng = np.random.default_rng(0)
    size = (8, 24, 16)
    for _ in range(30):
        place = tuple(int(rng.integers(n)) for n in shape)
        extent = tuple(int(rng.integers(1, 1 + min(6, n - p))) for n, p in zip(shape, place, strict=True))
        sampler = PatchSampler([one_lesion(tiny, place, extent, shape)], size, 1.0)
        for at in sampler.draw(8, rng):
            for start, length, first, n, axis in zip(
                (at.z, at.y, at.x), size, place, extent, shape, strict=True
            ):
                assert start >= 0 and (start + length <= axis or (start == 0 and length > axis))
                assert start <= first and first + n <= start + length


def test_patches_of_a_volume_keep_away_from_lesions_where_they_shall(tiny):
    case = one_lesion(tiny, (10, 18, 18), (3, 4, 4), (24, 40, 40))
    sampler = PatchSampler([case], (8, 16, 16), 0.0)
    drawn = sampler.draw(300, np.random.default_rng(0))
    assert {at.z for at in drawn} == set(range(24 - 8 + 1))  # every depth, the first and last slices included
    assert not any(cut(case, at, PatchShape((8, 16, 16), 1, 1))[1].any() for at in drawn)


def test_of_a_lesion_deeper_than_the_patch_all_is_held_that_its_slices_show(tiny):
    mask = np.zeros((20, 40, 100), np.uint8)
    for z in range(20):
        mask[z, 20, 4 * z : 4 * z + 6] = 1  # askew: four slices of it are 18 pixels long, all are 82
    case = case_of(tiny, mask)
    for at in PatchSampler([case], (4, 16, 24), 1.0).draw(60, np.random.default_rng(0)):
        shown = mask[at.z : at.z + 4]
        assert shown[..., at.x : at.x + 24].sum() == shown.sum()


def test_a_known_slice_lies_anywhere_in_a_patch_of_a_volume(tiny):
    mask = np.full((24, 30, 30), 2, np.uint8)
    mask[10] = 0
    drawn = PatchSampler([case_of(tiny, mask)], (8, 16, 16), 0.0).draw(200, np.random.default_rng(0))
    assert {at.z for at in drawn} == set(range(3, 11))


def test_a_volume_shallower_than_its_patch_repeats_its_last_slice_with_its_label(tiny):
    case = one_lesion(tiny, (2, 3, 4), (1, 2, 3), (3, 20, 20))
    image, mask = cut(case, Location(0, 0, 0, 0), PatchShape((5, 16, 16), 1, 1))
    assert image[0, :, 0, 0].tolist() == [0, 1, 2, 2, 2]
    assert mask.any((1, 2)).tolist() == [False, False, True, True, True]


class Recorded:
    """A density whose value is the voxel's own index, for any place."""

    def region(self, slices, rows, columns):
        z, y, x = np.meshgrid(slices, np.arange(*rows), np.arange(*columns), indexing="ij")
        return (10_000 * z + 100 * y + x).astype(np.float32)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize(("at", "slices"), [((1, 3, 5), [0, 1, 2]), ((3, 0, 0), [2, 3, 3])])
def test_a_prior_is_the_last_channel_of_the_same_voxels(tiny, as_tensor, at, slices):
    case = replace(one_lesion(tiny, (1, 4, 4), (1, 1, 1), (4, 12, 10)), prior=Recorded())
    if as_tensor:
        case = replace(case, image=torch.from_numpy(case.image), mask=torch.from_numpy(case.mask))
    image, _ = cut(case, Location(0, *at), PatchShape((1, 16, 16), 3, 1))
    assert tuple(image.shape) == (4, 3, 16, 16)
    assert image[0, :, 0, 0].tolist() == slices
    _, y, x = at
    assert [int(v) // 10_000 for v in image[3, :, 0, 0]] == slices
    assert (int(image[3, 0, 2, 1]) - 10_000 * slices[0]) == 100 * (y + 2) + x + 1
    assert int(image[3, 1, 15, 15]) % 10_000 == 100 * (y + 15) + x + 15  # beyond the image it goes on


class Half:
    """A density of a half everywhere."""

    def region(self, slices, rows, columns):
        return np.full((len(slices), rows[1] - rows[0], columns[1] - columns[0]), 0.5, np.float32)


@pytest.mark.parametrize("size", [(1, 16, 16), (4, 32, 16), (8, 8, 8)])
def test_patches_of_half_precision_stay_so_beyond_the_image_and_with_a_prior(tiny, size):
    case = replace(one_lesion(tiny, (1, 4, 4), (1, 1, 1), (5, 12, 20)), prior=Half())
    case = replace(case, image=(case.image + 1).astype(np.float16))
    held = replace(case, image=torch.from_numpy(case.image), mask=torch.from_numpy(case.mask))
    at, shape = Location(0, 2, 0, 1), PatchShape(size, 1, 1)
    (image, mask), (held_image, held_mask) = cut(case, at, shape), cut(held, at, shape)
    assert image.dtype == np.float16 and held_image.dtype == torch.float16
    assert np.array_equal(image, held_image.numpy()) and np.array_equal(mask, held_mask.numpy())
    assert image.shape == (4, *size) and mask.shape == size


def rich_case(tiny):
    """Lesions in slices 1, 2 and 4, of which 2 is rich."""
    mask = np.zeros((6, 40, 50), np.uint8)
    mask[1:3, 20:22, 20:23] = mask[2, 5, 40] = mask[4, 30, 10] = 1
    return replace(case_of(tiny, mask), rich_slices=(2,))


@pytest.mark.parametrize(("size", "starts"), [((1, 16, 16), {2}), ((2, 16, 16), {1, 2})])
def test_only_rich_draws_lesions_in_rich_slices_and_the_others_as_before(tiny, size, starts):
    rng = np.random.default_rng(0)
    case = rich_case(tiny)
    drawn = PatchSampler([case], size, 1.0, only_rich=True).draw(100, rng)
    assert {at.z for at in drawn} == starts
    cuts = [cut(case, at, PatchShape(size, 1, 1))[1] for at in drawn]
    assert all(mask[2 - at.z].any() for mask, at in zip(cuts, drawn, strict=True))
    assert len({(mask.shape, int(mask.sum())) for mask in cuts}) > 1  # both lesions of the slice
    none = [
        PatchSampler([case], size, 0.0, only_rich=rich).draw(200, np.random.default_rng(1)) for rich in (0, 1)
    ]
    assert none[0] == none[1]
    assert not any(cut(case, at, PatchShape(size, 1, 1))[1].any() for at in none[1])


@pytest.mark.parametrize("depth", [1, 2])
def test_patches_say_whether_they_are_of_a_rich_slice(tiny, depth):
    plain, case = case_of(tiny, np.zeros((6, 40, 50), np.uint8), "plain"), rich_case(tiny)
    size = (depth, 16, 16)
    loader = PatchLoader(
        PatchSampler([plain, case], size, 0.5), PatchShape(size, 1, 1), batch_size=60, seed=0
    )
    batch = loader.generate_train_batch()
    starts = [(where.split()[1].strip(","), int(where.split()[3].strip(","))) for where in batch["where"]]
    assert batch["rich"] == [name == "a" and z <= 2 < z + depth for name, z in starts]
    assert 0 < sum(batch["rich"]) < 60
