"""Several channels and several targets: what a network sees of them in training."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pwmlunet.data.dataset import Labels, Target
from pwmlunet.errors import PwmlError
from pwmlunet.inference.model import FoldNetwork
from pwmlunet.training import trainer as trainer_module
from pwmlunet.training.batches import draw_batches, to_batch, training_cases
from pwmlunet.training.run import open_run
from pwmlunet.training.trainer import FoldTrainer, _trial
from pwmlunet.training.validation import look

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(trainer_module, "draw_progress", lambda *_: None)


@pytest.fixture
def run_of(copied, prepared_home, tiny):
    """Opens runs of the tiny dataset with channels a, b and c, b being noise, and every second lesion a scar."""
    home = copied(prepared_home)
    prepared = home / "preprocessed" / "Dataset001_Tiny"
    path = prepared / "plan.json"
    plan = json.loads(path.read_text()) | {"channel_names": ["a", "b", "c"]}
    for preparation in plan["preparations"].values():
        preparation["normalisation"] *= 3
    plan["expected_input"]["channels"] *= 3
    plan["configurations"] |= {
        "pair": {"inherits": "trident", "channels": [0, 2], "finds": "any"},
        "one": {"inherits": "trident", "channels": [1]},
    }
    path.write_text(json.dumps(plan))
    dataset = json.loads((prepared / "dataset.json").read_text())
    dataset |= {"channel_names": {"0": "a", "1": "b", "2": "c"}}
    dataset["labels"] = {"background": 0, "lesion": 1, "scar": 2}
    (prepared / "dataset.json").write_text(json.dumps(dataset))
    rng = np.random.default_rng(0)
    for path in prepared.rglob("image.npy"):
        image = np.load(path)
        np.save(path, np.concatenate([image, rng.normal(9, 1, image.shape).astype(image.dtype), -image]))
        for name in ("mask.npy", "reference.npz"):
            change_labels(path.with_name(name))

    def open_it(configuration, **changes):
        recipe = replace(tiny.recipe, configuration=configuration, **changes)
        return open_run(tiny.workspace_in(home), "1", recipe, None)

    return open_it


def change_labels(path):
    """Lesions of odd slices become scars."""
    loaded = np.load(path)
    mask = loaded if path.suffix == ".npy" else loaded["reference"]
    mask[1::2] *= 2
    np.save(path, mask) if path.suffix == ".npy" else np.savez(path, reference=mask)


def test_patches_show_the_channels_that_the_network_sees(run_of):
    run = run_of("pair")
    cases = training_cases(run, run.split("0").train, CPU)
    drawn = next(draw_batches(run, cases, seed=0, first=0))
    assert drawn["image"].shape[1] == 2
    assert np.array_equal(drawn["image"][:, 1], -drawn["image"][:, 0])
    assert [case.image.shape[0] for case in cases] == [2] * len(cases)
    shapes = [
        (_trial(r.model).image.shape[1], _trial(r.model).target.shape[1])
        for r in (run, run_of("trident"), run_of("one"))
    ]
    assert shapes == [(2, 1), (3, 2), (1, 2)]


def test_any_lesion_is_the_union_of_the_targets():
    labels = Labels((Target("spot", (1,), 1), Target("scar", (3, 4), 3)), ignore=5)
    mask = torch.tensor([[0, 1, 3], [4, 5, 2]], dtype=torch.uint8)[None, None]
    drawn = {"image": torch.zeros(1, 1, 1, 2, 3), "mask": mask}
    each, anything = (to_batch(drawn, labels, CPU, finds) for finds in ("each", "any"))
    assert each.target[0, :, 0].tolist() == [[[0, 1, 0], [0, 0, 0]], [[0, 0, 1], [1, 0, 0]]]
    assert anything.target[0, :, 0].tolist() == [[[0, 1, 1], [1, 0, 0]]]
    assert torch.equal(each.valid, anything.valid)


class Bright(torch.nn.Module):
    """Finds what is bright in the first of two channels: all lesions, of whichever kind."""

    def segment(self, image):
        assert image.shape[1] == 2
        middle = image[:, :1, 1:-1]
        return (middle > 1.9).float()


def test_a_look_at_a_network_of_any_lesion_asks_for_no_kind(run_of):
    run = run_of("pair")
    f1, dice = look(run, run.store.names(), FoldNetwork(Bright()), CPU)
    each = replace(
        run, model=replace(run.model, configuration=replace(run.model.configuration, finds="each"))
    )

    class Both(Bright):
        def segment(self, image):
            return (
                super().segment(image).expand(-1, 2, -1, -1, -1)
                * torch.tensor([1.0, 0.0])[:, None, None, None]
            )

    kinds = look(each, run.store.names(), FoldNetwork(Both()), CPU)
    assert f1 > 0.8 and dice > 0.6 and kinds[0] < 0.5


def test_a_pair_of_channels_learns_without_one_of_them_and_is_validated(run_of, tiny):
    augmentation = replace(tiny.recipe.augmentation, channel_dropout=0.5)
    run = run_of("pair", augmentation=augmentation, epochs=1, steps_per_epoch=2)
    assert run.model.may_lack_channels
    scores = FoldTrainer(run, "0").train()
    assert [case.name for case in scores] == list(run.split("0").val)
    assert list(scores[0].targets) == ["lesion + scar"]


def test_the_only_channel_cannot_be_left_out(run_of, tiny):
    with pytest.raises(
        PwmlError, match=r"^one sees one channel, which cannot be left out: leave --channel-dropout at 0$"
    ):
        run_of("one", augmentation=replace(tiny.recipe.augmentation, channel_dropout=0.1))
