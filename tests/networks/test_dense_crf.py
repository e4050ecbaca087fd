import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pwmlunet.errors import PwmlError
from pwmlunet.networks import dense_crf
from pwmlunet.networks.dense_crf import DenseCrfConfig, mean_field

SPACING_YX_MM = (0.9, 0.4)
CONFIG = DenseCrfConfig(
    smooth_mm=0.8, smooth_weight=1.3, alike_mm=1.7, alike_intensity=0.2, alike_weight=2.1, n_iterations=2
)


def regions(n=2, n_channels=2, shape_yx=(5, 7)):
    """Noise, with the last two columns of the last region outside of the slice."""
    generator = torch.Generator().manual_seed(3)
    probability = torch.rand(n, *shape_yx, generator=generator)
    intensities = torch.rand(n, n_channels, *shape_yx, generator=generator)
    valid = torch.ones(n, *shape_yx, dtype=torch.bool)
    valid[-1, :, -2:] = False
    return probability, intensities, valid


def plain(probability, intensities, valid, spacing_yx_mm, config):
    """One region by two loops over its pixels and two labels, from the energy as the paper writes it."""
    pixels = [tuple(place) for place in np.argwhere(valid)]

    def kernel(a, b, deviation_mm, deviation):
        distance = sum(((i - j) * s / deviation_mm) ** 2 for i, j, s in zip(a, b, spacing_yx_mm, strict=True))
        if deviation:
            distance += sum(((channel[a] - channel[b]) / deviation) ** 2 for channel in intensities)
        return math.exp(-distance / 2)

    terms = [
        (config.smooth_weight, config.smooth_mm, None),
        (config.alike_weight, config.alike_mm, config.alike_intensity),
    ]
    sums = {
        (m, a): sum(kernel(a, b, *term[1:]) for b in pixels) for m, term in enumerate(terms) for a in pixels
    }
    unary = {a: (-math.log(1 - probability[a]), -math.log(probability[a])) for a in pixels}
    q = {a: (1 - probability[a], probability[a]) for a in pixels}
    for _ in range(config.n_iterations):
        new = {}
        for a in pixels:
            energy = list(unary[a])
            for label in (0, 1):
                for m, (weight, *deviations) in enumerate(terms):
                    for b in pixels:
                        k = kernel(a, b, *deviations) / math.sqrt(sums[m, a] * sums[m, b])
                        energy[label] += weight * k * q[b][1 - label]  # Potts: who disagrees costs
            likely = [math.exp(-e) for e in energy]
            new[a] = tuple(value / sum(likely) for value in likely)
        q = new
    refined = np.array(probability)
    for a in pixels:
        refined[a] = q[a][1]
    return refined


def test_it_is_the_mean_field_of_the_energy():
    probability, intensities, valid = regions()
    refined = mean_field(probability, intensities, valid, SPACING_YX_MM, CONFIG)
    for region in range(2):
        arrays = (tensor[region].double().numpy() for tensor in (probability, intensities))
        expected = plain(*arrays, valid[region].numpy(), SPACING_YX_MM, CONFIG)
        assert np.allclose(refined[region].numpy(), expected, atol=1e-5)
    assert refined.dtype == torch.float32 and (refined - probability).abs().max() > 0.1


def test_padding_takes_no_part():
    probability, intensities, valid = regions(n=1)
    refined = mean_field(probability, intensities, valid, SPACING_YX_MM, CONFIG)
    alone = mean_field(probability[..., :-2], intensities[..., :-2], valid[..., :-2], SPACING_YX_MM, CONFIG)
    assert torch.allclose(refined[..., :-2], alone, atol=1e-6)
    assert torch.equal(refined[..., -2:], probability[..., -2:])
    probability[..., -2:], intensities[..., -2:] = 0.0, 1e3
    again = mean_field(probability, intensities, valid, SPACING_YX_MM, CONFIG)
    assert (again[..., -2:] == 0).all()
    assert torch.equal(again[..., :-2], refined[..., :-2])


def test_regions_that_do_not_fit_together_go_one_after_the_other(monkeypatch):
    batch = regions(n=5)
    together = mean_field(*batch, SPACING_YX_MM, CONFIG)
    sizes, refine = [], dense_crf._mean_field

    def counted(probability, *arguments):
        sizes.append(len(probability))
        return refine(probability, *arguments)

    monkeypatch.setattr(dense_crf, "_mean_field", counted)
    monkeypatch.setattr(dense_crf, "_MOST_BYTES", 2 * 4 * 35**2)
    assert torch.allclose(mean_field(*batch, SPACING_YX_MM, CONFIG), together, atol=1e-6)
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize(("left_out", "kept"), [("smooth", "alike"), ("alike", "smooth")])
def test_a_weight_of_0_leaves_a_kernel_out(left_out, kept):
    batch = regions()
    without = DenseCrfConfig(**CONFIG.to_dict() | {f"{left_out}_weight": 0.0})
    faint = DenseCrfConfig(**CONFIG.to_dict() | {f"{left_out}_weight": 1e-9})
    assert torch.allclose(
        mean_field(*batch, SPACING_YX_MM, without), mean_field(*batch, SPACING_YX_MM, faint), atol=1e-6
    )
    neither = DenseCrfConfig(**without.to_dict() | {f"{kept}_weight": 0.0})
    assert torch.allclose(mean_field(*batch, SPACING_YX_MM, neither), batch[0], atol=1e-6)


def test_like_neighbours_agree_and_an_edge_is_kept():
    """A dark and a bright half; the networks are sure of the bright one but for a hole and a speck beside it."""
    intensities = torch.zeros(1, 1, 12, 12)
    intensities[..., 6:] = 1.0
    probability = torch.where(intensities[:, 0] > 0, 0.9, 0.1)
    probability[0, 5, 8], probability[0, 5, 3] = 0.4, 0.6
    valid = torch.ones(1, 12, 12, dtype=torch.bool)
    refined = mean_field(probability, intensities, valid, (0.5, 0.5), DenseCrfConfig.of_paper((0.5, 0.5)))
    assert torch.equal(refined > 0.5, intensities[:, 0] > 0)


def test_what_is_certain_can_be_doubted():
    """A pixel of probability 1, like all around it, of probability 0."""
    certain = torch.zeros(1, 9, 9)
    certain[0, 4, 4] = 1
    flat, valid = torch.zeros(1, 1, 9, 9), torch.ones(1, 9, 9, dtype=torch.bool)
    refined = mean_field(certain, flat, valid, (0.5, 0.5), DenseCrfConfig.of_paper((0.5, 0.5)))
    assert refined.isfinite().all() and refined.min() > 0 and 0.5 < refined[0, 4, 4] < 0.99


def test_the_paper_counts_in_pixels():
    config = DenseCrfConfig.of_paper((0.5, 0.5))
    assert (config.smooth_mm, config.smooth_weight, config.alike_mm) == (1.0, 3.0, 2.0)
    assert (config.alike_intensity, config.alike_weight, config.n_iterations) == (6 / 255, 10.0, 1)
    assert not config.may_delete
    assert DenseCrfConfig.of_paper((0.25, 1.0)) == config  # pixels of the same area


@pytest.mark.parametrize(
    "values",
    [{"smooth_mm": 0}, {"alike_mm": -1}, {"alike_intensity": 0}, {"smooth_weight": -1}, {"alike_weight": -1}, {"n_iterations": 0}],
)  # fmt: skip
def test_values_out_of_range_are_told(values):
    assert DenseCrfConfig.from_dict(CONFIG.to_dict(), "postprocessing.json: crf") == CONFIG
    with pytest.raises(PwmlError, match=f"postprocessing.json: crf: {next(iter(values))}"):
        DenseCrfConfig.from_dict(CONFIG.to_dict() | values, "postprocessing.json: crf")


def test_what_is_not_usual_is_said():
    usual = DenseCrfConfig.of_paper((0.5, 0.5))
    words = "smooth 1 mm × 3, alike 2 mm and 0.024 of the range × 10"
    assert usual.in_words() == f"dense CRF ({words})"
    unusual = replace(usual, n_iterations=3, may_delete=True)
    assert unusual.in_words() == f"dense CRF ({words}, 3 steps, may delete lesions)"


def test_it_counts_memory_on_the_meta_device():
    batch = (tensor.to("meta") for tensor in regions())
    assert mean_field(*batch, SPACING_YX_MM, CONFIG).shape == (2, 5, 7)
