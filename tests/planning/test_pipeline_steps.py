import json
import logging
import os
from dataclasses import replace

import numpy as np
import pytest

from pwmlunet.data.dataset import Labels, Target, open_dataset
from pwmlunet.data.image import write_image
from pwmlunet.data.store import CaseStore
from pwmlunet.errors import PwmlError
from pwmlunet.planning.fingerprint import Fingerprint
from pwmlunet.planning.pipeline import lost_lesions, plan_and_preprocess
from pwmlunet.planning.plan import Plan
from pwmlunet.planning.preprocessing import Preparation, preprocess_case

DATASET = "Dataset001_Tiny"


@pytest.fixture
def home(copied, prepared_home):
    return copied(prepared_home)


@pytest.fixture
def again(home, tiny):
    return lambda **options: plan_and_preprocess(tiny.workspace_in(home), "1", workers=1, **options)


@pytest.fixture
def folder(home):
    return home / "preprocessed" / DATASET


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_what_is_there_is_kept(again, folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert again().n_made == 0
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert Plan.read(folder / "plan.json").configurations["trident"].network.width == 4  # as it was edited


def test_only_cases_that_are_not_done_are_done(again, folder, home):
    store = CaseStore(folder / "slices")
    times = {name: (store.folder / name / "case.json").stat().st_mtime_ns for name in store.names()}
    (store.folder / "sub-02" / "case.json").unlink()  # half-written
    image = home / "raw" / DATASET / "imagesTr" / "sub-03_0000.nii.gz"
    os.utime(image, ns=(1, 1))  # touched
    assert again().n_made == 2
    made = {name for name in times if (store.folder / name / "case.json").stat().st_mtime_ns != times[name]}
    assert made == {"sub-02", "sub-03"}


def test_an_edited_preparation_makes_all_cases_again(again, folder):
    edit(folder / "plan.json", lambda plan: plan["preparations"]["slices"].update(long_side=128))
    assert again().n_made == 5
    assert CaseStore(folder / "slices").read("sub-02").image.shape == (1, 4, 128, 128)
    assert again().n_made == 0


def test_a_new_plan_is_made_on_demand_and_the_old_one_kept(again, folder):
    edited = (folder / "plan.json").read_text()
    assert again(replan=True).plan.configurations["trident"].network.width > 4
    assert (folder / "plan.json.old").read_text() == edited


def test_a_wish_that_an_existing_plan_would_ignore_is_told(again):
    with pytest.raises(PwmlError, match="--memory-gb asks for another plan: add --replan"):
        again(memory_gb=3)
    assert again(memory_gb=3, replan=True).n_made == 0


def test_a_changed_dataset_is_planned_anew_and_stale_cases_go(again, folder, home, tiny, caplog):
    raw = home / "raw" / DATASET
    for path in raw.glob("*/sub-03*"):
        path.unlink()
    extra = tiny.head_with_lesions(9)
    write_image(raw / "imagesTr" / "sub-09_0000.nii.gz", extra.image, extra.geometry)
    write_image(raw / "labelsTr" / "sub-09.nii.gz", extra.mask, extra.geometry)
    edit(raw / "dataset.json", lambda content: content["subjects"].pop("sub-03"))
    with pytest.raises(
        PwmlError, match=r"splits.json, fold \d names cases that are not preprocessed \(sub-03\)"
    ):
        again()
    assert CaseStore(folder / "slices").names() == [
        "sub-01_ses-1",
        "sub-01_ses-2",
        "sub-02",
        "sub-04",
        "sub-09",
    ]
    assert (folder / "plan.json.old").is_file()
    (folder / "splits.json").unlink()
    assert again().n_made == 0
    assert "sub-09" in (folder / "splits.json").read_text()


def test_splits_are_kept_and_what_they_leave_out_is_told(again, folder, caplog):
    mine = [{"train": ["sub-02"], "val": ["sub-03"]}]
    (folder / "splits.json").write_text(json.dumps(mine))
    with caplog.at_level(logging.WARNING):
        again()
    assert json.loads((folder / "splits.json").read_text()) == mine
    assert "leaves out sub-01_ses-1, sub-01_ses-2, sub-04" in caplog.text


def test_folds_hold_out_each_case_once(folder):
    splits = json.loads((folder / "splits.json").read_text())
    assert len(splits) == 4  # subjects
    assert sorted(case for split in splits for case in split["val"]) == CaseStore(folder / "slices").names()


def test_a_damaged_fingerprint_is_made_again_and_the_plan_kept_beside(again, folder):
    (folder / "fingerprint.json").write_text('{"half": ')
    edited = (folder / "plan.json").read_text()
    again()
    assert Fingerprint.read(folder / "fingerprint.json").dataset == "Dataset001_Tiny"
    assert (folder / "plan.json.old").read_text() == edited


@pytest.mark.parametrize("name", ["plan.json", "splits.json"])
def test_files_broken_by_hand_are_told_and_left(again, folder, name):
    (folder / name).write_text('{"half": ')
    with pytest.raises(PwmlError, match=f"{name} is not valid JSON"):
        again()
    assert (folder / name).read_text() == '{"half": '


def test_a_lost_lesion_is_an_error_and_the_case_is_not_kept(again, folder):
    def coarsen(plan):
        plan["preparations"]["slices"] = {
            "slice_axis": "z", "crop": "nonzero", "normalisation": ["zscore_head"], "spacing_yx_mm": [4.2, 3.0],
        }  # fmt: skip

    edit(folder / "plan.json", coarsen)
    with pytest.raises(
        PwmlError,
        match=r"(?s)the others are done.*case sub-02 loses lesions on the planned grid \(\d of them\): widen",
    ):
        again()
    assert CaseStore(folder / "slices").names() == ["sub-04"]  # which has none to lose


def test_a_lesion_beside_the_fan_is_the_masks_fault(tiny, tmp_path):
    seen = tiny.head_with_lesions(0)
    image, mask = np.zeros_like(seen.image), np.zeros_like(seen.mask)
    image[:, 10:40, 10:40] = seen.image[:, 10:40, 10:40] + 200  # all that the probe saw
    mask[2, 20:22, 20] = mask[1, 3, 45] = 1
    raw = tiny.write_raw(tmp_path / "raw" / DATASET, {n: replace(seen, image=image, mask=mask) for n in "ab"})
    edit(raw / "dataset.json", lambda dataset: dataset.update(channel_names={"0": "cUS"}))
    with pytest.raises(PwmlError, match=r"case a loses .* \(1 of them\): its mask reaches beyond the fan"):
        plan_and_preprocess(tiny.workspace_in(tmp_path), "1", memory_gb=2, workers=1)


def test_lost_lesions_are_counted(tiny, tmp_path):
    raw = tiny.head_with_lesions(0, n_lesions=0)
    mask = raw.mask.copy()
    mask[0, 30, 20] = mask[2, 28:34, 18:24] = 1
    folder = tiny.write_raw(tmp_path / DATASET, {"a": replace(raw, mask=mask)})
    (files,) = open_dataset(folder).cases
    labels = Labels((Target("lesion", (1,), 1),), None)

    def lost(preparation):
        return lost_lesions(preprocess_case(files, labels, preparation), labels)

    assert lost(Preparation("z", "head_square", ("none",), long_side=64)) == 0
    coarse = preprocess_case(files, labels, Preparation("z", "nonzero", ("none",), spacing_yx_mm=(1.4, 1.0)))
    elsewhere = np.zeros_like(coarse.mask)
    elsewhere[1].flat[: mask.sum()] = 1  # as many voxels as the lesions have
    assert lost_lesions(replace(coarse, mask=elsewhere), labels) == 2
    assert lost(Preparation("z", "nonzero", ("none",), spacing_yx_mm=(2.1, 1.5))) == 1
    assert lost(Preparation("z", "nonzero", ("none",), spacing_yx_mm=(70.0, 50.0))) == 2


def test_lost_lesions_of_a_native_grid_are_those_cut_off(tiny, tmp_path):
    raw = tiny.head_with_lesions(0, n_lesions=0)
    mask = raw.mask.copy()
    mask[0, 30, 20] = mask[2, 28:34, 18:24] = 1
    folder = tiny.write_raw(tmp_path / DATASET, {"a": replace(raw, mask=mask)})
    (files,) = open_dataset(folder).cases
    labels = Labels((Target("lesion", (1,), 1),), None)
    case = preprocess_case(files, labels, Preparation("z", "none", ("none",)))
    assert lost_lesions(case, labels) == 0
    box = ((0, 4), (0, 56), (19, 48))
    facts = replace(
        case.facts, way_back=replace(case.facts.way_back, box_zyx=box, grid_shape_zyx=(4, 56, 29))
    )
    cut = replace(case, facts=facts, mask=case.mask[:, :, 19:])
    assert lost_lesions(cut, labels) == 0  # no lesion, only what is left of none
    far = ((0, 4), (0, 56), (21, 48))
    facts = replace(
        case.facts, way_back=replace(case.facts.way_back, box_zyx=far, grid_shape_zyx=(4, 56, 27))
    )
    cut = replace(case, facts=facts, mask=case.mask[:, :, 21:])
    assert lost_lesions(cut, labels) == 1  # the single pixel; of the other one a part stays


def test_the_plan_says_how_many_folds(again, folder):
    (folder / "splits.json").unlink()
    edit(folder / "plan.json", lambda plan: plan.update(n_folds=2))
    again()
    assert len(json.loads((folder / "splits.json").read_text())) == 2


def align(plan):
    plan["preparations"]["slices"].update(align="rigid", long_side=None)


def test_cases_are_registered_to_the_one_of_median_size(again, folder, caplog):
    edit(folder / "plan.json", align)
    with caplog.at_level(logging.INFO):
        assert again().n_made == 5
    sizes = {case.name: case.head_voxels for case in Fingerprint.read(folder / "fingerprint.json").cases}
    median = sorted(sizes.values())[2]
    assert sizes[next(n for n in sizes if f"registered to {n}," in caplog.text)] == median
    store = CaseStore(folder / "slices")
    assert all(store.facts(name).way_back.to_reference is not None for name in sizes)
    assert store.names() == sorted(sizes)
    reference = folder / "slices" / "reference.npz"
    before = reference.read_bytes()
    assert again().n_made == 0 and reference.read_bytes() == before


def test_a_new_reference_makes_all_cases_again(again, folder, home, caplog):
    edit(folder / "plan.json", align)
    with caplog.at_level(logging.INFO):
        again()
    name = caplog.text.split("registered to ")[1].split(",")[0]
    reference = folder / "slices" / "reference.npz"
    whole = reference.read_bytes()
    reference.unlink()
    assert again().n_made == 0 and reference.is_file()
    reference.write_bytes(whole[:100])
    assert again().n_made == 0 and len(reference.read_bytes()) == len(whole)
    other = next(case for case in CaseStore(folder / "slices").names() if case != name)
    for case, n_made in ((other, 1), (name, 5)):
        os.utime(home / "raw" / DATASET / "imagesTr" / f"{case}_0000.nii.gz", ns=(1, 1))
        assert again().n_made == n_made
    os.utime(home / "raw" / DATASET / "labelsTr" / f"{name}.nii.gz", ns=(1, 1))
    assert again().n_made == 1  # the image alone is registered to


def test_no_reference_stays_where_cases_are_not_registered(again, folder):
    edit(folder / "plan.json", align)
    again()
    edit(folder / "plan.json", lambda plan: plan["preparations"]["slices"].update(align="middle"))
    assert again().n_made == 5
    assert not (folder / "slices" / "reference.npz").exists()
    assert CaseStore(folder / "slices").facts("sub-02").way_back.to_reference is None


def test_one_subject_gets_no_folds(tiny, tmp_path, caplog):
    home = tmp_path / "home"
    cases = {name: tiny.head_with_lesions(i) for i, name in enumerate(("sub-01_ses-1", "sub-01_ses-2"))}
    tiny.write_raw(home / "raw" / DATASET, cases)
    with caplog.at_level(logging.WARNING):
        prepared = plan_and_preprocess(tiny.workspace_in(home), "Tiny", memory_gb=2, workers=2)
    assert prepared.n_made == 2 and not (prepared.folder / "splits.json").exists()
    assert "only fold 'all' can be trained" in caplog.text


def test_nothing_of_the_raw_dataset_is_touched(raw_home, prepared_home):
    for path in (raw_home / "raw").rglob("*"):
        twin = prepared_home / path.relative_to(raw_home)
        assert path.is_dir() or path.read_bytes() == twin.read_bytes()
    assert np.all([twin.exists() for twin in (prepared_home / "raw").rglob("*")])
