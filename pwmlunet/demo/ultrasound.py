"""Synthetic cranial ultrasound of preterm newborns with punctate white matter lesions, in three dimensions.

What is imitated is the data of the Priority U-Net's paper: volumes of 360 x 400 x 380 voxels of 0.15 mm about the
corpus callosum's splenium, seen through the anterior fontanel, with lesions of 1.75 to 61 mm3 (median 4; a quarter
of them hold 62.5 % of the volume) around the lateral ventricles. Spots as large and as bright lie elsewhere too.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from pwmlunet.data.image import Geometry
from pwmlunet.demo.brain import Anatomy, make_anatomy
from pwmlunet.demo.fan import Fan
from pwmlunet.demo.lesions import Blob, Floats, draw_blob, draw_number, draw_volume_mm3

FIELD_ZYX_MM = (54.0, 57.0, 60.0)
"""Height, length and width of what a volume shows."""

DEMO_SHAPE_ZYX, TRUE_SHAPE_ZYX = (72, 76, 80), (360, 380, 400)
"""Voxels of 0.75 mm, and of 0.15 mm as in the paper."""

COARSEST_MM = 1.0
"""Larger voxels would hold a lesion each."""

LESIONS = (2, 10)
"""Of a subject that has any: at least and at most."""

_LESION_MM, _LOOKALIKE_MM = 6.0, 9.0
"""Lesions begin nearer to a lateral ventricle than this, what only looks like one further away."""

_FADING_MM = 1.5
"""Over this distance from the wall lesions become rarer by a factor e."""

_APART_MM = 2.5
"""Between lesions, so that they do not touch in the coarsest voxels."""

_LOOKALIKES = (12, 21)
_ECHOES_DB = (-27.0, -15.0)
"""From little more than the white matter beside the ventricles to the choroid plexus."""


@dataclass(frozen=True, eq=False)
class Brain:
    """A subject before a scan."""

    anatomy: Anatomy
    size: float
    """1 for the average."""
    lesions: tuple[Blob, ...]
    lookalikes: tuple[Blob, ...]
    """Vessels and normal tissue as large and as bright as lesions, far from the ventricles."""


@dataclass(frozen=True, eq=False)
class Pose:
    """How a subject lies under the probe."""

    turn: Floats
    """(3, 3), from the subject's axes z, y, x to the scanner's."""
    shift_zyx_mm: Floats

    def to_subject(self, points: Floats) -> Floats:
        """Places (3, ...) in the scanner as places in the subject."""
        moved = points - self.shift_zyx_mm.reshape(3, *[1] * (points.ndim - 1))
        return np.asarray(np.tensordot(self.turn.T, moved, 1))

    def to_scanner(self, point: Floats) -> Floats:
        """A place (3) in the subject as one in the scanner."""
        return np.asarray(self.turn @ point + self.shift_zyx_mm)


def make_case(
    rng: Generator, *, shape_zyx: tuple[int, int, int] = DEMO_SHAPE_ZYX, n_lesions: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Geometry]:
    """A scan (Z, Y, X), its lesion mask (0 or 1) and a grid of cubes whose axes are nearly left, back and up.

    Without `n_lesions`, one case in five has none and the others have 2 to 10.
    """
    if n_lesions is None:
        n_lesions = draw_number(rng, *LESIONS)
    return scan(make_brain(rng, n_lesions=n_lesions), rng, shape_zyx=shape_zyx)


def make_brain(rng: Generator, *, n_lesions: int) -> Brain:
    """A subject with `n_lesions` in the white matter around the lateral ventricles, or as many as have room."""
    anatomy, size = make_anatomy(rng), float(rng.uniform(0.95, 1.05))
    places = _visible_places(rng)
    bent = anatomy.bend(places / np.float32(size))
    to_wall, to_skull = anatomy.to_ventricle(bent) * size, anatomy.to_skull(bent) * size
    near = anatomy.is_white_matter(bent) & (to_wall < _LESION_MM)
    odds = np.where(near, np.exp(-to_wall / _FADING_MM), 0)
    lesions = _put_blobs(rng, places, odds, to_wall, n_lesions)
    room = np.minimum(to_wall - _LOOKALIKE_MM, to_skull)
    lookalikes = _put_blobs(rng, places, np.ones_like(room), room, int(rng.integers(*_LOOKALIKES)))
    return Brain(anatomy, size, lesions, lookalikes)


def _visible_places(rng: Generator) -> Floats:
    """Places (3, n) in the field of view, however the subject will lie."""
    half = np.reshape(FIELD_ZYX_MM, (3, 1)) / 2 - 4
    places = rng.uniform(-half, half, (3, 40_000)).astype(np.float32)
    return np.asarray(places[:, Fan().holds(places, margin_mm=4)])


def _put_blobs(rng: Generator, places: Floats, odds: Floats, room_mm: Floats, n: int) -> tuple[Blob, ...]:
    """At most `n` blobs at places (3, m) chosen by their odds, with room around them and apart from each other."""
    blobs: list[Blob] = []
    apart_mm = np.full_like(room_mm, np.inf)
    for _ in range(n):
        blob = draw_blob(rng, volume_mm3=draw_volume_mm3(rng), echo_db=float(rng.uniform(*_ECHOES_DB)))
        fits = (room_mm > 0.8 * blob.radius_mm + 0.3) & (apart_mm > blob.reach_mm + _APART_MM)
        if not (odds * fits).any():
            break
        centre = places[:, rng.choice(len(odds), p=odds * fits / (odds * fits).sum())]
        blobs.append(replace(blob, centre_zyx_mm=centre))
        apart_mm = np.minimum(apart_mm, np.linalg.norm(places - centre[:, None], axis=0) - blob.reach_mm)
    return tuple(blobs)


def scan(
    brain: Brain, rng: Generator, *, shape_zyx: tuple[int, int, int] = DEMO_SHAPE_ZYX
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Geometry]:
    """A subject as one session sees it: shifted by a few mm, turned by a few degrees, with new speckle."""
    spacing = max(length / n for length, n in zip(FIELD_ZYX_MM, shape_zyx, strict=True))
    if spacing > COARSEST_MM:
        least = tuple(int(length / COARSEST_MM) for length in FIELD_ZYX_MM)
        raise ValueError(f"{shape_zyx} voxels are too few for a brain with lesions: ask for at least {least}")
    pose, fan = _draw_pose(rng), Fan(voxel_mm=spacing)
    heard = fan.listen(rng, *_answer(brain, pose, fan))
    z, y, x = ((np.arange(n, dtype=np.float32) - (n - 1) / 2) * np.float32(spacing) for n in shape_zyx)
    return (
        fan.convert(heard, (z, y, x)),
        _draw_mask(brain, pose, (z, y, x)),
        _nearly_straight_grid(rng, shape_zyx, spacing),
    )


def _draw_pose(rng: Generator) -> Pose:
    turn = Rotation.from_euler("xyz", rng.normal(0, 2.5, 3).clip(-5, 5), degrees=True).as_matrix()
    return Pose(turn.astype(np.float32), rng.normal(0, 1.2, 3).clip(-3, 3).astype(np.float32))


def _answer(brain: Brain, pose: Pose, fan: Fan) -> tuple[Floats, Floats]:
    """How the subject echoes and weakens the fan's beams, in decibels and decibels per mm."""
    echo, loss = np.empty(fan.shape, np.float32), np.empty(fan.shape, np.float32)
    edge_mm = max(0.3, fan.step_mm)
    everything = slice(None)
    for sweep in range(len(fan.sweeps)):  # a plane at a time, to stay in the processor's cache
        part = (slice(sweep, sweep + 1), everything, everything)
        places = pose.to_subject(fan.points(part)) / np.float32(brain.size)
        echo[part], loss[part] = brain.anatomy.paint(places, edge_mm)
    for blob in brain.lesions + brain.lookalikes:
        part = fan.around(pose.to_scanner(blob.centre_zyx_mm), blob.reach_mm + edge_mm)
        depth = blob.depth_mm(pose.to_subject(fan.points(part)))
        echo[part] += np.clip(depth / edge_mm + 0.5, 0, 1) * np.maximum(blob.echo_db - echo[part], 0)
    return echo, loss


def _draw_mask(brain: Brain, pose: Pose, axes_zyx_mm: tuple[Floats, Floats, Floats]) -> NDArray[np.uint8]:
    """The lesions (Z, Y, X), 0 or 1."""
    mask = np.zeros([len(axis) for axis in axes_zyx_mm], np.uint8)
    voxel_mm = float(axes_zyx_mm[0][1] - axes_zyx_mm[0][0])
    for blob in brain.lesions:
        centre, reach = pose.to_scanner(blob.centre_zyx_mm), blob.reach_mm + 2 * voxel_mm
        box = tuple(
            slice(*np.searchsorted(axis, (at - reach, at + reach)))
            for axis, at in zip(axes_zyx_mm, centre, strict=True)
        )
        near = np.meshgrid(*(axis[part] for axis, part in zip(axes_zyx_mm, box, strict=True)), indexing="ij")
        mask[box] |= blob.draw(pose.to_subject(np.stack(near)), voxel_mm**3)
    return mask


def _nearly_straight_grid(rng: Generator, shape_zyx: tuple[int, int, int], spacing_mm: float) -> Geometry:
    """Cubes in rows to the left, the back and the top, up to 8 degrees off, away from the scanner's centre."""
    angles = rng.uniform(3, 8, 3) * rng.choice([-1, 1], 3)
    direction = Rotation.from_euler("xyz", angles, degrees=True).as_matrix().ravel().tolist()
    origin = -np.array(FIELD_ZYX_MM[::-1]) / 2 + rng.uniform(-20, 20, 3)
    return Geometry(shape_zyx, (spacing_mm,) * 3, tuple(origin.round(3).tolist()), tuple(direction))
