import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from pwmlunet.data.store import CaseStore
from pwmlunet.errors import PwmlError
from pwmlunet.networks.two_stage import TwoStageConfig
from pwmlunet.planning.plan import Plan
from pwmlunet.reproduction.entries import paper_entries, planned_network, prepare, remarks_on_plan
from pwmlunet.reproduction.studies import FCI_LACI, PRIORITY_UNET, RS_RCNN, TRIDENT
from pwmlunet.reproduction.study import Quick

QUICK = Quick(width=4, epochs=1, steps_per_epoch=2)
METHODS = Path(__file__).parents[2] / "documentation" / "methods.md"


def test_the_entries_are_those_of_the_documentation(folder) -> None:
    plan = Plan.read(folder / "plan.json")
    (fragment,) = re.findall(r"^```json\n(\{\n  \"preparations\".*?)^```", METHODS.read_text(), re.M | re.S)
    content = plan.to_dict()
    described, added = (
        Plan.from_dict({key: value | entries.get(key, {}) if isinstance(value, dict) else value for key, value in content.items()}, "")
        for entries in (json.loads(fragment), paper_entries(plan, TRIDENT))
    )  # fmt: skip
    assert "paper_resunet" in added.configurations
    assert described == added


def test_slices_run_as_they_were_planned(folder) -> None:
    content = json.loads((folder / "plan.json").read_text())
    content["preparations"]["slices"]["slice_axis"] = "y"
    plan = Plan.from_dict(content, "plan")
    assert paper_entries(plan, TRIDENT)["preparations"]["paper"]["slice_axis"] == "y"


@pytest.mark.usefixtures("small_trident")
def test_what_is_lacking_is_added_and_prepared_once(workspace, folder) -> None:
    plan = prepare(workspace, folder, TRIDENT, QUICK)
    assert plan.configurations["paper_k64"].patch_size_yx == (32, 32)  # there before, and kept
    assert plan.configurations["paper_resunet"].network.n_slices == 1
    widths = {
        name: plan.configurations[name].network.width for name in plan.configurations if "paper" in name
    }  # type: ignore[attr-defined]
    assert widths == {
        "paper_k64": 64,
        "paper_k32": 32,
        "paper_resunet": 64,
        "paper_k64_quick": 4,
        "paper_k32_quick": 2,
        "paper_resunet_quick": 4,
    }
    assert len(CaseStore(folder / "paper").names()) == 5
    written = (folder / "plan.json").read_bytes()
    assert json.loads(written)["configurations"]["paper_k32_quick"]["inherits"] == "paper_k32"
    (folder / "fingerprint.json").unlink()  # planning again would need it
    prepare(workspace, folder, TRIDENT, QUICK)
    assert (folder / "plan.json").read_bytes() == written


@pytest.mark.usefixtures("small_trident")
def test_a_case_that_is_not_prepared_is_prepared(workspace, folder) -> None:
    prepare(workspace, folder, TRIDENT, QUICK)
    CaseStore(folder / "paper").remove("sub-02")
    prepare(workspace, folder, TRIDENT, QUICK)
    assert "sub-02" in CaseStore(folder / "paper").names()


@pytest.mark.usefixtures("small_trident")
def test_without_quick_nothing_is_narrowed(workspace, folder) -> None:
    assert not [name for name in prepare(workspace, folder, TRIDENT, None).configurations if "quick" in name]


@pytest.mark.usefixtures("small_priority")
def test_networks_that_are_narrow_already_stay(workspace, folder) -> None:
    plan = prepare(workspace, folder, PRIORITY_UNET, Quick(width=9))
    network = plan.configurations["paper_priority_unet_quick"].network
    assert network.width == 4 and network.prior_probability == 0.5  # type: ignore[attr-defined]


def test_a_plan_without_a_prior_is_refused(workspace, folder) -> None:
    path = folder / "plan.json"
    content = json.loads(path.read_text())
    for name in ("log_odds_2d", "priority_2d"):  # the first inherits from the second
        content["configurations"].pop(name, None)
    path.write_text(json.dumps(content))
    before = path.read_bytes()
    with pytest.raises(PwmlError, match=r"plan.json has no configuration priority_2d, .*--replan"):
        prepare(workspace, folder, PRIORITY_UNET, QUICK)
    assert path.read_bytes() == before


@pytest.mark.usefixtures("small_trident")
def test_a_dataset_that_changed_meanwhile_is_told(workspace, folder, home) -> None:
    path = home / "raw" / folder.name / "dataset.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"channel_names": {"0": "T2"}}))
    with pytest.raises(PwmlError, match="changed and was planned again: run the same command once more"):
        prepare(workspace, folder, TRIDENT, None)


@pytest.mark.usefixtures("small_trident")
def test_edited_entries_are_told(folder, workspace) -> None:
    remarks = list(remarks_on_plan(prepare(workspace, folder, TRIDENT, None), TRIDENT))
    assert remarks[0] == "paper in plan.json is not the paper's: long_side 64."
    assert "patch_size_yx 32, 32" in remarks[1]
    assert "network.n_stages 3" in remarks[1]


def test_the_papers_own_entries_need_no_remark(folder) -> None:
    plan = Plan.read(folder / "plan.json")
    content = plan.to_dict()
    whole = {**content, **{key: content[key] | new for key, new in paper_entries(plan, TRIDENT).items()}}
    assert not list(remarks_on_plan(Plan.from_dict(whole, "plan"), TRIDENT))


@pytest.mark.usefixtures("small_priority")
def test_networks_that_differ_by_more_than_their_kind_are_told(workspace, folder, edit) -> None:
    alike = list(remarks_on_plan(prepare(workspace, folder, PRIORITY_UNET, None), PRIORITY_UNET))
    assert len(alike) == 1
    assert "paper_unet was planned with" in alike[0]
    assert "network.width 4" in alike[0]
    edit(configurations={"priority_2d": {"inherits": "unet_2d", "batch_size": 2, "network": {"type": "priority", "width": 4, "n_stages": 3}, "prior": {}}})  # fmt: skip
    _, told = remarks_on_plan(Plan.read(folder / "plan.json"), PRIORITY_UNET)
    assert told == "paper_priority_unet differs from paper_unet in more than its kind: batch_size 2."


def test_the_entries_of_rs_rcnn_are_its_papers(folder) -> None:
    plan = Plan.read(folder / "plan.json")
    content = plan.to_dict()
    entries = paper_entries(plan, RS_RCNN)
    added = Plan.from_dict({**content, **{key: content[key] | new for key, new in entries.items()}}, "plan")
    assert set(entries["configurations"]) == {"paper_rs_rcnn", *RS_RCNN.configurations}
    row_b, row_d, widest = (
        added.configurations[f"paper_{name}"] for name in ("mask_rcnn", "lrs", "h_rpn_k3.0")
    )
    assert (row_b.preparation, row_b.patch_size_yx, row_b.batch_size) == ("paper_rs_rcnn", (512, 512), 2)
    assert row_d.network == TwoStageConfig(
        width=64,
        n_stages=6,
        backbone="resnet101",
        finest_stride=4,
        anchor_sizes=(8, 16, 32, 64, 128),
        score_relu=True,
        enlargement=1.3,
        mask_head="lrs",
        n_proposals=50,
    )
    assert row_b.network == replace(row_d.network, score_relu=False, enlargement=1.0, mask_head="mask_rcnn")
    assert widest.network == replace(row_d.network, enlargement=3.0, mask_head="mask_rcnn")
    preparation = added.preparations["paper_rs_rcnn"]
    assert (preparation.long_side, preparation.margin) == (512, 0.5)  # the head fills half of the slice
    assert not list(remarks_on_plan(added, RS_RCNN))


@pytest.mark.usefixtures("small_two_stage")
def test_a_quick_rs_rcnn_is_the_planned_network_with_what_a_row_has_of_its_own(workspace, folder) -> None:
    before = json.loads((folder / "plan.json").read_text())
    some = RS_RCNN.only(["B", "E"])
    plan = prepare(workspace, folder, some, QUICK)
    added = plan.configurations.keys() - before["configurations"].keys()
    assert added == {"paper_mask_rcnn_quick", "paper_lrs_quick"}
    assert plan.preparations.keys() == before["preparations"].keys()  # no slices of 512 x 512 for nothing
    planned, row_b = (plan.configurations[name] for name in ("two_stage", "paper_mask_rcnn_quick"))
    network = replace(planned.network, score_relu=False, enlargement=1.0, mask_head="mask_rcnn")
    assert row_b == replace(planned, network=network)
    assert not list(remarks_on_plan(plan, some, QUICK))
    assert "the planned two_stage with what a row has of its own" in planned_network(plan, some, QUICK)
    assert "network.width 2" in planned_network(plan, some, QUICK)


def test_a_quick_rs_rcnn_needs_the_planned_network(workspace, folder) -> None:
    path = folder / "plan.json"
    content = json.loads(path.read_text())
    content["configurations"].pop("two_stage", None)
    path.write_text(json.dumps(content))
    with pytest.raises(PwmlError, match=r"plan.json has no configuration two_stage, .*--replan"):
        prepare(workspace, folder, RS_RCNN, QUICK)
    prepare(workspace, folder, RS_RCNN.only(["A"]), QUICK)
    assert json.loads(path.read_text()) == content  # nothing is trained: nothing is added


def test_the_entries_of_fci_laci_see_what_the_plan_says(pairs, tiny) -> None:
    workspace = tiny.workspace_in(pairs.parents[1])
    plan = prepare(workspace, pairs, FCI_LACI, None)
    task_a, task_b, task_a_all = (plan.configurations[f"paper_task_{name}"] for name in ("a", "b", "a_all"))
    assert task_a.patch_size_yx == (32, 48)  # whole strides of five levels, of which the plan has three
    assert task_a.network == replace(plan.configurations["unet_2d"].network, n_stages=5, head_convolutions=2)
    assert (task_a.channels, task_a.finds) == ((1,), "each")
    assert task_b == replace(task_a, finds="any")
    assert task_a_all == replace(task_a, channels=None)
    sizes, *seen = remarks_on_plan(plan, FCI_LACI)
    assert sizes.startswith("paper_task_a was planned with")
    assert seen == [
        "paper_task_a sees T2_FLAIR.",
        "paper_task_b sees T2_FLAIR.",
        "paper_task_a_all sees T1_FLAIR, T2_FLAIR.",
        "A second network sees T1_FLAIR, the candidate's mask, the first network's probability in squares of 8 mm; the paper's sees T1 FLAIR alone, in squares of 32 pixels.",
    ]
    assert list(remarks_on_plan(plan, FCI_LACI.only(["a_all"])))[1:] == seen[2:3]


def test_the_entries_of_fci_laci_see_all_where_the_plan_has_no_first_network(folder) -> None:
    plan = Plan.read(folder / "plan.json")
    assert "primary_2d" not in plan.configurations
    entries = paper_entries(plan, FCI_LACI)["configurations"]
    assert entries["paper_task_a"]["channels"] is None
