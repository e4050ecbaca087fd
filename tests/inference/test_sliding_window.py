import numpy as np
import pytest
import torch
from torch import nn

from pwmlunet.inference.sliding_window import PlacedNetwork, Window, predict_volume, tile_starts
from pwmlunet.networks.base import SegmentationNetwork
from pwmlunet.networks.resunet_3d import ResUNet3dConfig
from pwmlunet.networks.trident import TridentConfig
from pwmlunet.planning.plan import Configuration

CPU = torch.device("cpu")


class Neighbours(SegmentationNetwork):
    """The mean of T neighbouring slices of channel 0, plus what a test wants; counts its passes."""

    def __init__(self, n_slices=1, extra=lambda image: 0.0):
        super().__init__()
        self.n_slices, self.extra, self.seen = n_slices, extra, []
        self.unused = nn.Parameter(torch.zeros(1))

    def losses(self, batch, criterion):
        raise NotImplementedError

    def segment(self, image):
        self.seen.append(tuple(image.shape))
        first = image[:, :1]
        return first.unfold(2, self.n_slices, 1).mean(-1) + self.extra(first)


def predict(network, image, *, patch=(4, 4), step=1, tiles="slice", flips=False, others=()):
    config = TridentConfig(n_slices=network.n_slices, n_stages=2)  # stride 2
    configuration = Configuration("slices", patch, 1, config, step, tiles)
    return predict_volume(placed(network, *others), image.numpy(), Window(configuration, flips), CPU)[0]


def placed(*networks):
    return [PlacedNetwork(network) for network in networks]


def slices(*values, size=4):
    return torch.tensor(values, dtype=torch.float32)[None, :, None, None].expand(1, -1, size, size).clone()


def values(prediction):
    return prediction[0, :, 0, 0].tolist()


def test_a_4_by_4_image_comes_back():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(predict(Neighbours(), image), image)


@pytest.mark.parametrize("tiles", ["slice", "patch", "trident"])
@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("shape", [(1, 4, 4), (5, 4, 8), (2, 5, 7), (3, 1, 3), (2, 9, 11)])
def test_the_identity_is_kept_at_any_size(tiles, flips, shape):
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    prediction = predict(Neighbours(), image, tiles=tiles, flips=flips)
    assert prediction.shape == (1, *shape)
    assert torch.allclose(prediction, image, atol=1e-6)


def test_sizes_are_padded_to_the_stride_with_the_edge():
    network = Neighbours(extra=lambda image: image.amax((-2, -1), keepdim=True))
    image = torch.full((1, 2, 5, 3), -1.0)
    assert predict(network, image).eq(-2).all()  # zeros would show
    assert network.seen == [(1, 1, 2, 6, 4)]


@pytest.mark.parametrize(
    ("volume", "n_slices", "step", "expected"),
    [
        ((7,), 3, 1, [7]),
        ((0, 3, 6, 9), 3, 1, [1, 3, 6, 8]),
        ((0, 3), 5, 1, [1.2, 1.8]),  # 0 0 0 3 3; 0 0 3 3 3
        ((0, 1, 2, 3, 4, 5), 3, 2, [2 / 3, 4 / 3, 2, 3, 11 / 3, 13 / 3]),  # 0 0 2; 0 1 3; 0 2 4; 1 3 5; 2 4 5; 3 5 5
        ((5, 8), 3, 3, [6, 7]),  # 5 5 8; 5 8 8
    ],
)  # fmt: skip
def test_neighbours_by_hand(volume, n_slices, step, expected):
    assert values(predict(Neighbours(n_slices), slices(*volume), step=step)) == pytest.approx(expected)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_long_volumes_are_led_through_in_pieces_without_a_seam(monkeypatch, step):
    image = torch.rand(1, 17, 4, 4, generator=torch.Generator().manual_seed(1))
    whole = predict(Neighbours(3), image, step=step)
    network = Neighbours(3)
    monkeypatch.setattr("pwmlunet.inference.sliding_window._VOXELS_A_PASS", {"cpu": 5 * 16})
    assert torch.allclose(predict(network, image, step=step), whole)
    assert (
        len(network.seen) > 3 and max(shape[2] for shape in network.seen) == 7
    )  # five and a neighbour a side


def test_flips_are_averaged_and_turned_back():
    ramp = torch.arange(16.0).view(4, 4)
    image = torch.zeros(1, 1, 4, 4)
    network = Neighbours(extra=lambda first: ramp)
    assert torch.equal(predict(network, image)[0, 0], ramp)
    assert torch.allclose(predict(network, image, flips=True), torch.full((1, 1, 4, 4), 7.5))
    assert sum(shape[0] for shape in network.seen) == 1 + 4


def test_networks_are_averaged():
    other = Neighbours(extra=lambda image: 3.0)
    assert values(predict(Neighbours(), slices(1, 2), others=[other])) == [2.5, 3.5]


@pytest.mark.parametrize(
    ("size", "patch", "step", "expected"),
    [(4, 4, 2, [0]), (3, 4, 2, [0]), (5, 4, 2, [0, 1]), (8, 4, 2, [0, 2, 4]), (9, 4, 2, [0, 2, 3, 5]), (10, 4, 4, [0, 3, 6])],
)  # fmt: skip
def test_tiles_cover_an_axis(size, patch, step, expected):
    assert tile_starts(size, patch, step) == expected


def test_patches_are_weighted_towards_their_centres():
    """Each tile says how many came before it; two tiles of four columns overlap by two."""
    network = Neighbours()
    network.extra = lambda image: float(len(network.seen) - 1)
    row = predict(network, torch.zeros(1, 1, 4, 6), tiles="patch")[0, 0, 0]
    assert network.seen == [(1, 1, 1, 4, 4)] * 2
    near, far = (torch.tensor(d / 0.5).square().mul(-0.5).exp().item() for d in (0.5, 1.5))  # sigma = 4 / 8
    assert row[:2].tolist() == [0, 0] and row[4:].tolist() == [1, 1]
    assert row[2].item() == pytest.approx(far / (near + far)) and row[3].item() == pytest.approx(
        near / (near + far)
    )


def test_the_public_codes_average_leans_towards_the_last_tile():
    """Tiles of four begin at columns 0, 2 and 2 again (2 * 2 > 6 - 4), so at 0 and 2; at rows 0."""
    network = Neighbours()
    network.extra = lambda image: float(2 ** len(network.seen))
    assert predict(network, torch.zeros(1, 1, 4, 6), tiles="trident")[0, 0, 0].tolist() == [2, 2, 3, 3, 4, 4]
    network.seen.clear()
    row = predict(network, torch.zeros(1, 1, 4, 8), patch=(4, 6), tiles="trident")[0, 0, 0]  # starts 0 and 2
    assert row.tolist() == [2, 2, 3, 3, 3, 3, 4, 4]
    network.seen.clear()
    row = predict(network, torch.zeros(1, 1, 4, 6), patch=(4, 2), tiles="trident")[0, 0, 0]  # 0, 2, 4
    assert row.tolist() == [2, 2, 4, 4, 8, 8]
    network.seen.clear()
    row = predict(network, torch.zeros(1, 1, 4, 9), patch=(4, 6), tiles="trident")[
        0, 0, 0
    ]  # padded to 10: 0, 3, 4
    assert row.tolist() == [2, 2, 2, 3, (3 + 8) / 2, (3 + 8) / 2, 6, 6, 6]


def test_a_real_network_sees_a_run_as_it_sees_each_slice():
    config = TridentConfig(width=4, n_stages=2)
    torch.manual_seed(0)
    network = config.build(1, 2).eval()
    image = torch.randn(1, 6, 10, 12, generator=torch.Generator().manual_seed(2))
    whole, _ = predict_volume(
        placed(network), image.numpy(), Window(Configuration("slices", (4, 4), 1, config), False), CPU
    )
    assert whole.shape == (2, 6, 10, 12)
    with torch.inference_mode():
        single = network.segment(image[None, :, [0, 0, 1]])
    assert torch.allclose(whole[:, :1], single[0], atol=1e-5)


def test_trident_tiles_leave_no_gap_in_a_slice_far_larger_than_the_patch():
    image = torch.ones(1, 1, 40, 36)
    assert torch.equal(predict(Neighbours(), image, patch=(4, 8), tiles="trident"), image)


def test_the_spread_is_the_standard_deviation_over_networks():
    image = slices(0.1, 0.3, 0.2)
    networks = [Neighbours(extra=lambda image, plus=plus: plus) for plus in (0.0, 0.3, 0.6)]
    configuration = Configuration("slices", (4, 4), 1, TridentConfig(n_slices=1, n_stages=2))
    mean, spread = predict_volume(placed(*networks), image.numpy(), Window(configuration, False), CPU)
    assert values(mean) == pytest.approx([0.4, 0.6, 0.5])
    assert values(spread) == pytest.approx([0.06**0.5] * 3)
    assert predict_volume(placed(networks[0]), image.numpy(), Window(configuration, False), CPU)[1] is None


class Volume(SegmentationNetwork):
    """The image itself, plus what a test wants; counts its passes. Its stride through slices is 2."""

    def __init__(self, extra=lambda image: 0.0):
        super().__init__()
        self.extra, self.seen = extra, []
        self.unused = nn.Parameter(torch.zeros(1))

    def losses(self, batch, criterion):
        raise NotImplementedError

    def segment(self, image):
        self.seen.append(tuple(image.shape))
        return image[:, :1] + self.extra(image)


def predict_3d(network, image, *, depth=4, patch=(4, 4), flips=False, slices=None):
    config = ResUNet3dConfig(n_stages=2)
    configuration = Configuration("slices", patch, 1, config, patch_slices=depth, tiles="patch")
    window = Window(configuration, flips)
    return predict_volume(placed(network), image.numpy(), window, CPU, slices)[0]


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("shape", [(1, 4, 4), (5, 4, 8), (9, 5, 7), (3, 1, 3), (12, 9, 11)])
def test_volumes_of_any_size_come_back(flips, shape):
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    network = Volume()
    prediction = predict_3d(network, image, flips=flips)
    assert prediction.shape == (1, *shape)
    assert torch.allclose(prediction, image, atol=1e-6)
    assert {seen[2] for seen in network.seen} == {4}


def test_runs_of_a_volume_overlap_by_half_and_count_most_in_their_middle():
    """Each run says how many came before it; runs of four begin at slices 0 and 2 of six."""
    network = Volume()
    network.extra = lambda image: float(len(network.seen) - 1)
    column = predict_3d(network, torch.zeros(1, 6, 4, 4))[0, :, 0, 0]
    assert len(network.seen) == 2
    near, far = (torch.tensor(d / 0.5).square().mul(-0.5).exp().item() for d in (0.5, 1.5))  # sigma = 4 / 8
    assert column[:2].tolist() == [0, 0] and column[4:].tolist() == [1, 1]
    assert column[2].item() == pytest.approx(far / (near + far))
    assert column[3].item() == pytest.approx(near / (near + far))


def test_some_slices_are_predicted_as_they_are_in_the_whole():
    image = torch.rand(1, 9, 4, 4, generator=torch.Generator().manual_seed(3))
    config = TridentConfig(n_slices=3, n_stages=2)
    window = Window(Configuration("slices", (4, 4), 1, config, 2), False)
    whole, part = (
        predict_volume(placed(Neighbours(3)), image.numpy(), window, CPU, slices)[0]
        for slices in (None, (3, 7))
    )
    assert torch.equal(part, whole[:, 3:7])
    network = Volume()
    assert torch.allclose(predict_3d(network, image, slices=(3, 8)), image[:, 3:8])
    assert len(network.seen) == 2


class Ramp:
    """A density whose value is the voxel's own index."""

    def region(self, slices, rows, columns):
        z, y, x = np.meshgrid(slices, np.arange(*rows), np.arange(*columns), indexing="ij")
        return (100 * z + 10 * y + x).astype(np.float32)


@pytest.mark.parametrize("flips", [False, True])
def test_a_network_sees_its_prior_beside_the_image_and_another_network_does_not(flips):
    class LastChannel(Neighbours):
        def segment(self, image):
            assert image.shape[1] == 2
            return image[:, 1:]

    image = torch.zeros(1, 4, 3, 5)
    config = TridentConfig(n_slices=1, n_stages=2)
    window = Window(Configuration("slices", (4, 4), 1, config), flips)
    networks = [PlacedNetwork(LastChannel(), Ramp()), PlacedNetwork(Neighbours())]
    mean, _ = predict_volume(networks, image.numpy(), window, CPU)
    z, y, x = np.indices((4, 3, 5))
    assert np.allclose(mean[0], (100 * z + 10 * y + x) / 2)


def test_an_image_of_half_precision_is_predicted_in_single():
    image = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(4)).half()
    network = Neighbours(extra=lambda first: 0.0 if first.dtype == torch.float32 else 9.0)
    prediction = predict(network, image)
    assert prediction.dtype == torch.float32 and torch.equal(prediction, image.float())
