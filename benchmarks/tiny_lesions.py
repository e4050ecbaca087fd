"""A synthetic dataset of tiny lesions, the same on every machine: what all benchmarks run on."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pwmlunet.data.dataset import write_dataset_json
from pwmlunet.data.image import Geometry, write_image

NAME = "Dataset501_TinyLesions"
SPACING_ZYX_MM = (3.0, 0.7, 0.7)
N_LESIONS = (3, 10)
N_VOXELS = (5, 60)


def write_dataset(raw: Path, *, n_training: int, n_test: int, shape_zyx: tuple[int, int, int]) -> Path:
    """The dataset's folder below `raw`, written where it is new: imagesTr, labelsTr, imagesTs, labelsTs."""
    folder = raw / NAME
    if (folder / "dataset.json").is_file():
        return folder
    geometry = Geometry(shape_zyx, SPACING_ZYX_MM)
    names = [f"case_{number:03d}" for number in range(n_training + n_test)]
    for number, name in enumerate(names):
        image, mask = make_case(np.random.default_rng(number), shape_zyx)
        part = "Tr" if number < n_training else "Ts"
        write_image(folder / f"images{part}" / f"{name}_0000.nii.gz", image, geometry)
        write_image(folder / f"labels{part}" / f"{name}.nii.gz", mask, geometry)
    subjects = {name: name for name in names[:n_training]}
    labels = {"background": 0, "lesion": 1}
    write_dataset_json(folder, channel_names=("T1",), labels=labels, subjects=subjects)
    return folder


def make_case(
    rng: np.random.Generator, shape_zyx: tuple[int, int, int]
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """An image of a head in noisy air and the mask of its lesions, bright spots in a shell below the surface."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape_zyx), indexing="ij", sparse=True)
    radii = rng.uniform((0.9, 0.75, 0.62), (1.0, 0.85, 0.72))
    depth = np.sqrt((z / radii[0]) ** 2 + (y / radii[1]) ** 2 + (x / radii[2]) ** 2)  # 1 on the surface
    white_matter = (depth > 0.3) & (depth < 0.75)
    grain = gaussian_filter(rng.standard_normal(shape_zyx), (1.5, 12, 12))
    tissue = (depth < 1) * (300 + 25 * grain / grain.std()) + 40 * white_matter
    mask = np.zeros(shape_zyx, np.uint8)
    places = np.argwhere(white_matter)
    for _ in range(rng.integers(N_LESIONS[0], N_LESIONS[1], endpoint=True)):
        _grow(mask, rng.choice(places), int(rng.integers(N_VOXELS[0], N_VOXELS[1], endpoint=True)), rng)
    lit = tissue + rng.uniform(70, 120) * gaussian_filter(mask.astype(float), (0.3, 0.6, 0.6))
    coil = 1 + 0.15 * rng.uniform(-1, 1) * y + 0.15 * rng.uniform(-1, 1) * x
    noise = np.abs(rng.normal(0, 12, shape_zyx))
    return (gaussian_filter(lit, (0, 0.6, 0.6)) * coil + noise).astype(np.int16), mask


def _grow(mask: NDArray[np.uint8], centre: NDArray[np.intp], n_voxels: int, rng: np.random.Generator) -> None:
    """Marks the voxels nearest to a centre, in mm along axes that are stretched at random."""
    low = np.maximum(centre - np.array((2, 8, 8)), 0)
    around = tuple(slice(a, b) for a, b in zip(low, centre + np.array((3, 9, 9)), strict=True))
    places = np.argwhere(np.ones_like(mask[around])) + low
    step_mm = np.array(SPACING_ZYX_MM) * rng.uniform((1, 0.6, 0.6), (1, 1.6, 1.6))
    nearest = np.argsort((((places - centre) * step_mm) ** 2).sum(1))[:n_voxels]
    mask[tuple(places[nearest].T)] = 1
