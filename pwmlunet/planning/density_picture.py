"""A picture of a prior density, for people."""

from pathlib import Path
from typing import Any

from pwmlunet.files import replacing
from pwmlunet.planning.density import Density


def draw_density(path: Path, density: Density) -> None:
    """Draws the greatest values along slices, rows and columns, in mm from the middle, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lattice = density.facts.lattice
    ends = [
        (origin - step / 2, origin + (n - 0.5) * step)
        for origin, step, n in zip(lattice.origin_zyx_mm, lattice.step_zyx_mm, lattice.shape_zyx, strict=True)
    ]
    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    names = ("slices", "rows", "columns")
    for along, axes in enumerate(figure.subplots(1, 3)):
        down, right = ((1, 2), (0, 2), (1, 0))[along]
        seen = density.values.max(along)
        shown: Any = axes.imshow(
            seen if down < right else seen.T,
            extent=(*ends[right], *ends[down][::-1]),
            interpolation="bilinear",
            cmap="inferno",
            vmin=0,
            vmax=1,
        )
        axes.set(title=f"through the {names[along]}", xlabel=f"{names[right]}, mm", ylabel=f"{names[down]}, mm")  # fmt: skip
    figure.colorbar(shown, ax=figure.axes, label="prior density")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
