from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pwmlunet.errors import PwmlError
from pwmlunet.networks.correction import CorrectionConfig, CorrectionNetwork, classify


def built(n_channels: int = 1, n_classes: int = 2, **values: Any) -> CorrectionNetwork:
    torch.manual_seed(0)
    return CorrectionConfig(**values).build(n_channels, n_classes).eval()


def random_regions(n: int, n_views: int, n_maps: int, n_pixels: int) -> Tensor:
    return torch.rand(n, n_views, n_maps, n_pixels, n_pixels, generator=torch.Generator().manual_seed(1))


def test_it_has_the_layers_of_the_paper() -> None:
    network = built(dropout=0.25)
    layers = [type(layer).__name__ for layer in [*network.groups, *network.classifier]]
    unit = ["Conv2d", "BatchNorm2d", "ReLU"]
    groups = [*unit, *unit, "MaxPool2d"] * 2 + [*unit, "MaxPool2d"]
    assert layers == [*groups, "Flatten", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert all(layer.kernel_size == (3, 3) for layer in network.groups if isinstance(layer, nn.Conv2d))
    assert all(layer.p == 0.25 for layer in network.classifier if isinstance(layer, nn.Dropout))
    averaging = built(pooling="average").groups
    assert sum(isinstance(layer, nn.AvgPool2d) for layer in averaging) == 3
    assert not any(isinstance(layer, nn.MaxPool2d) for layer in averaging)


def test_its_parameters_are_counted_by_hand() -> None:
    network = built(2, 3, views="slices", sees_probability=False, width=4, n_hidden=5, region_pixels=21)
    n_inputs = 3 * (2 + 1)  # views of image channels and mask
    convolutions = 9 * (n_inputs * 4 + 4 * 4 + 4 * 8 + 8 * 8 + 8 * 16) + (4 + 4 + 8 + 8 + 16)
    normalisations = 2 * (4 + 4 + 8 + 8 + 16)
    layers = 16 * 2 * 2 * 5 + 5 + 5 * 3 + 3  # 21 pixels are halved to 10, 5, 2
    assert sum(p.numel() for p in network.parameters()) == convolutions + normalisations + layers


@pytest.mark.parametrize("n_pixels", [8, 13, 32, 64])
@pytest.mark.parametrize(("views", "n_views"), [("slice", 1), ("slices", 3), ("planes", 3)])
def test_it_judges_regions_of_any_size(views: Any, n_views: int, n_pixels: int) -> None:
    network = built(2, 4, views=views, region_pixels=n_pixels, width=2)
    assert network.config.n_views == n_views
    assert network(random_regions(5, n_views, 4, n_pixels).half()).shape == (5, 4)


@torch.no_grad()
def test_gamma_bends_image_channels_alone() -> None:
    """What a network with gamma sees of x is what one without sees of x to the power of gamma."""
    bent, plain = (built(2, 2, gamma=gamma, region_pixels=8, width=2) for gamma in (1.5, 1.0))
    regions = random_regions(4, 1, 4, 8)
    by_hand = torch.cat((regions[:, :, :2] ** 1.5, regions[:, :, 2:]), 2)
    torch.testing.assert_close(bent(regions), plain(by_hand))
    assert not torch.allclose(bent(regions), plain(regions))


@torch.no_grad()
def test_every_channel_and_view_is_seen() -> None:
    network = built(1, 2, views="planes", region_pixels=8, width=4)
    regions = random_regions(1, 3, 3, 8)
    for view in range(3):
        for channel in range(3):
            other = regions.clone()
            other[:, view, channel] = 1 - other[:, view, channel]
            assert not torch.equal(network(other), network(regions))


def test_probabilities_do_not_depend_on_what_else_is_classified() -> None:
    network = built(region_pixels=8, width=2).train()
    regions = random_regions(260, 1, 3, 8)  # more than one batch
    probability = classify(network, regions.half())
    assert probability.dtype == torch.float32
    torch.testing.assert_close(probability.sum(1), torch.ones(260))
    torch.testing.assert_close(classify(network, regions[255:258].half()), probability[255:258])
    torch.testing.assert_close(probability, network(regions.half()).softmax(1))


def test_no_candidates_have_no_probabilities() -> None:
    assert classify(built(region_pixels=8, n_classes=3), torch.empty(0, 1, 3, 8, 8)).shape == (0, 3)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"channels": []}, "channels must be different numbers"),
        ({"channels": [1, 1]}, "channels must be different numbers"),
        ({"channels": [-1]}, "channels must be different numbers"),
        ({"region_mm": 0.0}, "region_mm must be positive"),
        ({"gamma": -1.0}, "gamma must be positive"),
        ({"region_pixels": 7}, "region_pixels must be at least 8"),
        ({"width": 0}, "width must be at least 1"),
        ({"n_hidden": 0}, "n_hidden must be at least 1"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"views": "cube"}, "views"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(PwmlError, match=f"plan.json: .*{complaint}"):
        CorrectionConfig.from_dict(values, "plan.json")


def test_a_config_is_read_as_it_was_written() -> None:
    config = CorrectionConfig(channels=(1, 0), views="planes")
    assert CorrectionConfig.from_dict(config.to_dict(), "plan.json") == config
