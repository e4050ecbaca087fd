import logging
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pwmlunet.errors import PwmlError
from pwmlunet.files import make_folder
from pwmlunet.inference.model import load_tensors
from pwmlunet.networks.two_stage import TwoStage, TwoStageConfig
from pwmlunet.networks.unet import UNetConfig
from pwmlunet.training import trainer as trainer_module
from pwmlunet.training.interruption import TrainingStoppedError
from pwmlunet.training.pretrained import check_pretrained, load_pretrained
from pwmlunet.training.run import open_run
from pwmlunet.training.trainer import FoldTrainer

MASK_RCNN = TwoStageConfig(
    width=2, backbone="resnet50", n_stages=6, finest_stride=4, mask_head="mask_rcnn", norm="batch"
)
RESNET = "backbone.body."
OUTPUTS = ("scores", "codes", "mask_fcn_logits")  # their number or order is not torchvision's

RELEASED = {"rpn.conv.": "rpn.head.conv."}
TODAY = {
    "rpn.conv.": "rpn.head.conv.0.0.",
    **{f"{kind}_blocks.{n}.": f"{kind}_blocks.{n}.0." for kind in ("inner", "layer") for n in range(4)},
    **{f"mask_head.mask_fcn{n + 1}.": f"mask_head.{n}.0." for n in range(4)},
}


def mask_rcnn(seed: int = 0, n_channels: int = 3, config: TwoStageConfig = MASK_RCNN) -> TwoStage:
    torch.manual_seed(seed)
    network = config.build(n_channels, 1)
    for value in network.state_dict().values():
        if value.ndim == 1:  # offsets and statistics differ from those of a new network
            value.uniform_(0.5, 1.5)
    return network


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def as_torchvision(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """A Mask R-CNN's state dict as torchvision writes it, whose normalisations count no batches."""
    renamed = {}
    for name, value in state.items():
        if not any(output in name for output in OUTPUTS) and "num_batches" not in name:
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            renamed[name] = value
    renamed["rpn.head.cls_logits.weight"] = torch.zeros(3, 16, 1, 1)
    renamed["rpn.head.bbox_pred.weight"] = torch.zeros(12, 16, 1, 1)
    renamed["roi_heads.mask_predictor.mask_fcn_logits.weight"] = torch.zeros(91, 8, 1, 1)
    renamed["roi_heads.mask_predictor.mask_fcn_logits.bias"] = torch.zeros(91)
    return renamed


def saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "given.pth")
    return folder / "given.pth"


def changed(network: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("names", [RELEASED, TODAY])
def test_a_mask_rcnn_of_torchvision_fits(tmp_path: Path, names: dict[str, str]) -> None:
    theirs, network = state_of(mask_rcnn(seed=1)), mask_rcnn(seed=0)
    before = state_of(network)
    given = as_torchvision(theirs, names)
    result = load_pretrained(network, saved(tmp_path, given))
    kept = {n for n in theirs if "num_batches" in n or any(output in n for output in OUTPUTS)}
    assert changed(network, before) == theirs.keys() - kept
    assert set(result.new) == {name for name in kept if "num_batches" not in name}
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name] if name in kept else theirs[name]), name
    assert len(result.taken) == len(given) - 4 and f"{RESNET}layer4.2.bn3.running_var" in result.taken
    assert f"{names['rpn.conv.']}weight as rpn.conv.weight" in result.taken
    assert sorted(result.left) == [
        "roi_heads.mask_predictor.mask_fcn_logits.bias: (91,) in the file, (1,) in the network",
        "roi_heads.mask_predictor.mask_fcn_logits.weight: (91, 8, 1, 1) in the file, (1, 8, 1, 1) in the network",
        "rpn.head.bbox_pred.weight: not in the network",
        "rpn.head.cls_logits.weight: not in the network",
    ]


def test_the_light_head_takes_as_many_convolutions_as_it_has(tmp_path: Path) -> None:
    given = as_torchvision(state_of(mask_rcnn(seed=1)), TODAY)
    network = mask_rcnn(config=replace(MASK_RCNN, mask_head="lrs"))
    result = load_pretrained(network, saved(tmp_path, given))
    assert torch.equal(
        network.state_dict()["roi_heads.mask_head.mask_fcn2.weight"], given["roi_heads.mask_head.1.0.weight"]
    )
    assert "roi_heads.mask_head.2.0.weight: not in the network" in result.left


def test_a_plain_resnet_fits_the_backbone(tmp_path: Path) -> None:
    theirs = {
        name.removeprefix(RESNET): value
        for name, value in state_of(mask_rcnn(seed=1)).items()
        if name.startswith(RESNET)
    }
    network = mask_rcnn()
    before = state_of(network)
    path = saved(tmp_path, {**theirs, "fc.weight": torch.zeros(1000, 64), "fc.bias": torch.zeros(1000)})
    result = load_pretrained(network, path)
    expected = {RESNET + name for name, value in theirs.items() if "num_batches" not in name}
    assert changed(network, before) == expected
    assert all(torch.equal(network.state_dict()[RESNET + name], value) for name, value in theirs.items())
    assert "layer2.0.downsample.1.bias as backbone.body.layer2.0.downsample.1.bias" in result.taken
    assert result.left == ("fc.weight: not in the network", "fc.bias: not in the network")


def test_weights_of_a_part_go_to_one_part(tmp_path: Path) -> None:
    given = {  # four blocks have such names, and one such shapes
        "bn1.weight": torch.full((4,), 3.0),
        "bn1.bias": torch.full((4,), 5.0),
        "downsample.0.weight": torch.full((16, 8, 1, 1), 7.0),
        "conv1.weight": torch.full((4, 8, 1, 1), 9.0),
    }
    network = mask_rcnn()
    before = state_of(network)
    load_pretrained(network, saved(tmp_path, given))
    assert changed(network, before) == {f"backbone.body.layer2.0.{name}" for name in given}


@pytest.mark.parametrize("wrap", [None, "model", "state_dict"])
def test_our_own_weights_fit_whole(tmp_path: Path, wrap: str | None) -> None:
    one, other = mask_rcnn(seed=1), mask_rcnn()
    state = state_of(one)
    path = saved(tmp_path, {wrap: state, "epoch": 3} if wrap else state)
    result = load_pretrained(other, path)
    assert result.taken == tuple(state) and result.left == result.new == ()
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("n_channels", [1, 2, 5])
def test_the_first_convolution_keeps_its_scale_with_other_channels(tmp_path: Path, n_channels: int) -> None:
    theirs, ours = mask_rcnn(seed=1, n_channels=3), mask_rcnn(n_channels=n_channels)
    result = load_pretrained(ours, saved(tmp_path, theirs.state_dict()))
    grey = torch.randn(1, 1, 32, 40)
    responses = [
        network.get_submodule("backbone.body.conv1")(grey.expand(-1, n, -1, -1))
        for network, n in ((theirs, 3), (ours, n_channels))
    ]
    torch.testing.assert_close(*responses)
    assert not result.left and not result.new


def test_no_other_convolution_is_stretched(tmp_path: Path) -> None:
    theirs, ours = UNetConfig(width=4, n_stages=2).build(3, 1), UNetConfig(width=4, n_stages=2).build(3, 1)
    given = state_of(theirs)
    given["encoder.0.3.weight"] = given["encoder.0.3.weight"][:, :3]
    before = state_of(ours)
    result = load_pretrained(ours, saved(tmp_path, given))
    kept = {"encoder.0.3.weight", "encoder.0.3.bias"}
    assert not changed(ours, before) & kept and set(result.new) == kept
    assert result.left == (
        "encoder.0.3.weight: (4, 3, 3, 3) in the file, (4, 4, 3, 3) in the network",
        "encoder.0.3.bias: nothing fits encoder.0.3.weight of the same layer",
    )


def test_a_layer_is_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    given = state_of(mask_rcnn(seed=1))
    del given["backbone.fpn.inner_blocks.0.bias"], given["backbone.body.bn1.weight"]
    network = mask_rcnn()
    before = state_of(network)
    result = load_pretrained(network, saved(tmp_path, given))
    assert [text.split(":")[0] for text in result.left] == [
        "backbone.body.bn1.bias",
        "backbone.body.bn1.num_batches_tracked",
        "backbone.body.bn1.running_mean",
        "backbone.body.bn1.running_var",
        "backbone.fpn.inner_blocks.0.weight",
    ]
    assert not any(n.startswith(("backbone.body.bn1", "backbone.fpn.inner_blocks.0")) for n in changed(network, before))  # fmt: skip


def test_half_precision_becomes_the_networks_own(tmp_path: Path) -> None:
    state = {n: v.half() if v.is_floating_point() else v for n, v in mask_rcnn(seed=1).state_dict().items()}
    network = mask_rcnn()
    load_pretrained(network, saved(tmp_path, state))
    kernel = network.state_dict()["rpn.conv.weight"]
    assert kernel.dtype == torch.float32 and torch.equal(kernel, state["rpn.conv.weight"].float())


class Code:
    """What a file would run if it were trusted."""

    def __reduce__(self):
        return exec, (
            "raise SystemExit('code of a file was run')",
        )  # no Exception, which would be told as damage


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot read .*given.pth: it does not exist: check the path"),
        (b"", "given.pth is damaged or holds more than weights: give --pretrained"),
        (b"half a file", "given.pth is damaged"),
        pytest.param(
            pickle.dumps(Code()), "given.pth is damaged or holds more than weights", id="pickled code"
        ),
        ({"rpn.conv.weight": Code()}, "given.pth is damaged or holds more than weights"),
        ([torch.zeros(2)], "given.pth holds no weights by name"),
        (torch.zeros(2), "given.pth holds no weights by name"),
        ({}, "nothing in .*given.pth fits the network by name and shape: leave out --pretrained"),
        ({"epoch": 3, 4: torch.zeros(2)}, "nothing in .*given.pth fits"),
        ({"rpn.conv.weight": torch.zeros(2)}, "nothing in .*given.pth fits"),
        ({"backbone.body.conv1.weight": torch.zeros(4)}, "nothing in .*given.pth fits"),
        ({"rpn.conv.bias": torch.zeros(16)}, "nothing in .*given.pth fits"),
    ],
)
def test_what_cannot_be_taken_is_told_in_a_sentence(tmp_path: Path, content: object, complaint: str) -> None:
    path = tmp_path / "given.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        saved(tmp_path, content)
    network = mask_rcnn()
    before = state_of(network)
    with pytest.raises(PwmlError, match=complaint) as error:
        load_pretrained(network, path)
    assert "\n" not in str(error.value) and not changed(network, before)


def test_a_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(PwmlError, match="it is a folder, not a file: check the path"):
        load_pretrained(mask_rcnn(), tmp_path)


# training


@pytest.fixture
def home(copied, prepared_home, monkeypatch):
    monkeypatch.setattr(trainer_module, "draw_progress", lambda *_: None)
    return copied(prepared_home)


@pytest.fixture
def run_of(home, tiny):
    """Opens a run with changes to the recipe."""

    def open_it(name, **changes):
        recipe = replace(tiny.recipe, validate_every=2, steps_per_epoch=3, **changes)
        return open_run(tiny.workspace_in(home), "1", recipe, name)

    return open_it


@pytest.fixture
def given(run_of, tmp_path):
    """Weights of the run's network, all of them moved a little."""
    torch.manual_seed(99)
    state = run_of("throwaway").model.build().state_dict()
    return saved(tmp_path, {n: v + 0.01 if v.is_floating_point() else v for n, v in state.items()})


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def weights(run):
    return load_tensors(run.model.fold_folder("0") / "weights.pt")


def stop_at(monkeypatch, step):
    """The training is asked to stop in a step."""
    real = FoldTrainer._train_epochs

    def train_epochs(self, stop):
        step_of = self._train_step

        def train_step(*arguments):
            stop.asked = self.step == step
            return step_of(*arguments)

        self._train_step = train_step
        real(self, stop)

    monkeypatch.setattr(FoldTrainer, "_train_epochs", train_epochs)


def test_training_begins_from_the_weights_and_its_average_too(run_of, given):
    trainer = FoldTrainer(run_of("a", pretrained=given), "0")
    state = load_tensors(given)
    assert same(trainer.network.state_dict(), state) and same(trainer.average.state_dict(), state)
    assert all(p.requires_grad for p in trainer.network.parameters())
    assert not same(FoldTrainer(run_of("b"), "0").network.state_dict(), state)


def test_a_training_that_goes_on_equals_one_that_was_not_stopped_and_reads_the_file_once(
    run_of, given, monkeypatch
):
    whole, broken, random = run_of("w", pretrained=given), run_of("b", pretrained=given), run_of("r")
    for run in (whole, random):
        FoldTrainer(run, "0").train()
    with monkeypatch.context() as patched:
        stop_at(patched, 3)
        with pytest.raises(TrainingStoppedError):
            FoldTrainer(broken, "0").train()
    given.unlink()
    broken = run_of("b", pretrained=given)
    check_pretrained(broken, ["0"])
    FoldTrainer(broken, "0").train()
    assert same(weights(whole), weights(broken)) and not same(weights(whole), weights(random))
    check_pretrained(broken, ["0"])
    assert FoldTrainer(broken, "0").train() == []
    with pytest.raises(PwmlError, match=r"cannot read .*given\.pth: it does not exist"):
        check_pretrained(broken, ["0", "1"])
    with pytest.raises(PwmlError, match=r"was begun with pretrained .*given\.pth \(now None\): name another"):
        run_of("b")


def test_the_log_names_every_weight_and_the_terminal_counts_them(run_of, given, caplog):
    state = load_tensors(given)
    state["head.weight"], state["extra"] = torch.zeros(7, 4, 1, 1), torch.zeros(3)
    torch.save(state, given)
    run = run_of("a", pretrained=given, epochs=1)
    with caplog.at_level(logging.INFO):
        FoldTrainer(run, "0").train()
    log = (run.model.fold_folder("0") / "training.log").read_text()
    counted = f"begins from {given}: {len(state) - 3} weights taken, 3 left, 2 of the network are new (training.log names them)"
    logger = load_pretrained.__module__
    records = [record for record in caplog.records if record.name == logger]
    assert [r.message for r in records if r.levelno == logging.INFO] == [counted]
    assert counted in log
    assert "left: head.weight: (7, 4, 1, 1) in the file, (1, 4, 1, 1) in the network\n" in log
    assert "left: head.bias: nothing fits head.weight of the same layer\n" in log
    assert "left: extra: not in the network\n" in log and "new: head.weight\n" in log
    for name in state.keys() - {"head.weight", "head.bias", "extra"}:
        assert f"taken: {name}\n" in log


def test_the_command_takes_the_file_from_any_folder(home, given, command, tmp_path, monkeypatch):
    options = ("--epochs", 1, "--steps", 1, "--device", "cpu", "--precision", "float32", "--run", "mine")
    monkeypatch.chdir(tmp_path)
    code, _, told = command("train", "1", "0", *options, "--pretrained", "given.pth")
    assert code == 0 and f"begins from {given}: " in told
    given.unlink()
    monkeypatch.chdir(tmp_path.parent)
    code, printed, _ = command("train", "1", "0", *options, "--pretrained", f"{tmp_path.name}/given.pth")
    assert code == 0 and "fold 0 is trained already" in printed


def test_weights_that_know_a_held_out_case_are_refused(run_of):
    run = run_of("first")
    for fold in ("0", "all"):
        torch.save(run.model.build().state_dict(), make_folder(run.model.fold_folder(fold)) / "weights.pt")
    second = run_of("second", pretrained=run.model.fold_folder("0") / "weights.pt")
    check_pretrained(second, ["0"])
    check_pretrained(second, ["all"])
    with pytest.raises(PwmlError, match="has learned from cases that fold 1 holds out"):
        check_pretrained(second, ["0", "1"])
    third = run_of("third", pretrained=run.model.fold_folder("all") / "weights.pt")
    with pytest.raises(PwmlError, match="has learned from cases that fold 0 holds out"):
        check_pretrained(third, ["0"])


def test_names_may_begin_as_several_cards_write_them(tmp_path: Path) -> None:
    state = state_of(mask_rcnn(1))
    network = mask_rcnn(2)
    load_pretrained(network, saved(tmp_path, {f"module.{name}": value for name, value in state.items()}))
    assert same(state_of(network), state)


@pytest.mark.parametrize("content", [None, b"half"])
def test_the_command_tells_a_bad_file_before_it_trains(home, given, command, content):
    given.unlink()
    if content:
        given.write_bytes(content)
    options = ("--device", "cpu", "--run", "mine", "--pretrained", given)
    code, printed, told = command("train", "1", "0", *options)
    assert code == 2 and not printed
    assert re.fullmatch(r"error: .*given\.pth.*\n", told)
    assert not list(home.glob("results/*/mine/fold_*"))
