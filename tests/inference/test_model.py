import json
import pickle
import shutil
from dataclasses import replace

import pytest
import torch

from pwmlunet.errors import PwmlError
from pwmlunet.inference.model import TrainedModel, find_model, load_tensors, save_tensors


@pytest.fixture
def home(copied, trained_home):
    return copied(trained_home)


@pytest.fixture
def folder(home):
    return home / "results" / "Dataset001_Tiny" / "trident"


@pytest.fixture
def find(home, tiny):
    def find(dataset=None, run=None):
        return (
            find_model(tiny.workspace_in(home), dataset, run).folder.relative_to(home / "results").as_posix()
        )

    return find


def copy_model(folder, dataset, run):
    shutil.copytree(folder, folder.parents[1] / dataset / run)


def test_the_only_model_is_found_by_all_its_names(find):
    for dataset in (None, "1", "001", "0001", "Tiny", "Dataset001_Tiny"):
        for run in (None, "trident"):
            assert find(dataset, run) == "Dataset001_Tiny/trident"


def test_several_models_are_listed_and_chosen_from(find, folder):
    copy_model(folder, "Dataset001_Tiny", "wide")
    copy_model(folder, "Dataset1001_Other", "trident")
    with pytest.raises(PwmlError) as caught:
        find()
    for line in (
        "-d Dataset001_Tiny -c trident",
        "-d Dataset001_Tiny -c wide",
        "-d Dataset1001_Other -c trident",
    ):
        assert line in str(caught.value)
    assert find("1", "wide") == "Dataset001_Tiny/wide"
    assert find("1001") == "Dataset1001_Other/trident"
    assert find(None, "wide") == "Dataset001_Tiny/wide"
    with pytest.raises(PwmlError, match="several trained models"):
        find("1")


def test_none_is_told(find, folder, home):
    with pytest.raises(
        PwmlError, match=r"no trained model of dataset 'Tini' \(did you mean 'Dataset001_Tiny'|known"
    ):
        find("Tini")
    with pytest.raises(PwmlError, match=r"no trained model 'tridnt' \(did you mean 'trident'"):
        find("1", "tridnt")
    for path in folder.glob("fold_*/weights.pt"):
        path.unlink()
    with pytest.raises(PwmlError, match=r"no trained model in .*run pwml_train"):
        find()
    shutil.rmtree(home / "results")
    with pytest.raises(PwmlError, match="no trained model in"):
        find()


def test_a_model_is_opened_and_loaded(folder):
    model = TrainedModel.open(folder)
    assert model.finished_folds() == ["0", "1"]
    first, second = model.load(None)
    assert not first.network.training and not second.network.training
    weights = zip(first.network.parameters(), second.network.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in weights)
    assert first.density is None
    assert len(model.load(["1"])) == 1
    with pytest.raises(PwmlError, match=r"has no finished fold 3 \(finished: 0, 1\)"):
        model.load(["0", "3"])


def test_fold_all_is_taken_only_where_it_stands_alone_or_is_named(folder):
    shutil.copytree(folder / "fold_0", folder / "fold_all")
    model = TrainedModel.open(folder)
    assert len(model.load(None)) == 2 and len(model.load(["all"])) == 1
    shutil.rmtree(folder / "fold_0")
    shutil.rmtree(folder / "fold_1")
    assert len(model.load(None)) == 1


@pytest.mark.parametrize("name", ["plan.json", "dataset.json", "training.json"])
def test_a_missing_or_broken_file_is_told(folder, name):
    for content in ("{", "[]", "{}", "null", '{"labels": {}}', '{"configuration": ["trident"]}'):
        (folder / name).write_text(content)
        with pytest.raises(PwmlError, match=name):
            TrainedModel.open(folder)
    (folder / name).unlink()
    with pytest.raises(PwmlError, match=rf"is not a model folder: {name} is missing"):
        TrainedModel.open(folder)


def test_a_configuration_that_the_plan_lacks_is_told(folder):
    (folder / "training.json").write_text(json.dumps({"configuration": "gone"}))
    with pytest.raises(PwmlError, match="unknown configuration 'gone'"):
        TrainedModel.open(folder)


def test_the_network_has_the_channels_and_maps_of_its_configuration(folder):
    model = TrainedModel.open(folder)
    two = model.labels.targets * 2
    plan = replace(model.plan, channel_names=("a", "b", "c"))
    wide = replace(model, plan=plan, labels=replace(model.labels, targets=two))
    assert (wide.n_channels, wide.n_outputs) == (3, 2)
    narrow = replace(wide, configuration=replace(model.configuration, channels=(0, 2), finds="any"))
    assert (narrow.n_channels, narrow.n_outputs) == (2, 1)
    shape = narrow.build().segment(torch.zeros(1, 2, 3, 32, 32)).shape  # of a trident
    assert shape == (1, 1, 1, 32, 32)


@pytest.mark.parametrize(
    ("augmentation", "may"),
    [({"channel_dropout": 0.2}, True), ({"channel_dropout": 0.0}, False), ({}, False)],
)
def test_a_case_may_lack_channels_where_training_left_some_out(folder, augmentation, may):
    recipe = json.loads((folder / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps(recipe | {"augmentation": augmentation}))
    assert TrainedModel.open(folder).may_lack_channels == may


def damage(path, n_bytes):
    path.write_bytes(path.read_bytes()[:n_bytes])


@pytest.mark.parametrize("n_bytes", [0, 10, 5000])
def test_half_written_weights_are_told(folder, n_bytes):
    damage(folder / "fold_1" / "weights.pt", n_bytes)
    with pytest.raises(
        PwmlError, match=r"fold_1/weights.pt is damaged or no checkpoint: delete it and train"
    ):
        TrainedModel.open(folder).load(None)


@pytest.mark.parametrize("content", [{"other": torch.zeros(1)}, [torch.zeros(1)], 3, {}])
def test_weights_of_another_network_are_told(folder, content):
    torch.save(content, folder / "fold_0" / "weights.pt")
    with pytest.raises(PwmlError, match=r"belongs to another network than plan\.json describes"):
        TrainedModel.open(folder).load(["0"])


class Code:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_is_refused_and_not_run(folder, tmp_path, save):
    path = folder / "fold_0" / "weights.pt"
    save({"network": Code(tmp_path / "was_here")}, path)
    with pytest.raises(PwmlError, match="is damaged or no checkpoint"):
        load_tensors(path)
    assert not (tmp_path / "was_here").exists()


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(PwmlError, match="does not exist"):
        load_tensors(tmp_path / "weights.pt")


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    save_tensors(path, {"a": torch.ones(2)})

    def half(content, file):
        file.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(PwmlError, match="is the disk full"):
        save_tensors(path, {"a": torch.zeros(2)})
    assert load_tensors(path)["a"].tolist() == [1, 1] and [p.name for p in tmp_path.iterdir()] == [
        "weights.pt"
    ]
