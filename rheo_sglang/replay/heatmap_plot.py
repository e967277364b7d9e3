"""Draws heat maps: steps across, pages up, attention as colour, and what was selected marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rheo_sglang.replay.heatmap import HeatMap, Region

MARKS = {Region.SINK: "tab:cyan", Region.WINDOW: "tab:green", Region.RETRIEVED: "tab:red"}
"""Colours of the regions."""
LEAST = -12.0
"""Logarithm of a share at which colours end."""
PANELS_ACROSS = 6


def overlay(heat_map: HeatMap) -> npt.NDArray[np.float64]:
    """Colours that mark the regions, ``[M, T, 4]``, red, green, blue and opacity, each in [0, 1].

    Sink and window are marked evenly, a retrieved page by the share of layers and KV heads that selected it.
    """
    from matplotlib.colors import to_rgb

    colours = np.zeros((*heat_map.region.shape, 4))
    for region, name in MARKS.items():
        marked = heat_map.region == region
        colours[marked, :3] = to_rgb(name)
        colours[marked, 3] = 0.6 if region is not Region.RETRIEVED else 0.7 * heat_map.selected[marked]
    return colours.transpose(1, 0, 2)


def draw(heat_map: HeatMap, panel: Any) -> Any:
    """Draw one map into a panel of matplotlib; the image, for a colour bar."""
    steps, pages = heat_map.region.shape
    extent = (0, steps, 0, pages)
    options: dict[str, Any] = {"origin": "lower", "aspect": "auto", "extent": extent, "interpolation": "none"}
    image = panel.imshow(heat_map.log_share.T, cmap="Greys", vmin=LEAST, vmax=0.0, **options)
    panel.imshow(overlay(heat_map), **options)
    return image


def plot(heat_maps: Sequence[HeatMap], titles: Sequence[str], heading: str, path: Path) -> None:
    """Write maps of one request, side by side, as .png or .svg."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    across = min(len(heat_maps), PANELS_ACROSS)
    down = -(-len(heat_maps) // across)
    size = (9.0, 5.0) if len(heat_maps) == 1 else (2.6 * across + 1.5, 2.2 * down + 1.2)
    plt.rcParams["svg.hashsalt"] = "rheo heatmap"
    figure, panels = plt.subplots(
        down, across, figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    for panel in panels.flat[len(heat_maps) :]:
        panel.set_axis_off()
    for panel, heat_map, title in zip(panels.flat, heat_maps, titles, strict=False):
        image = draw(heat_map, panel)
        panel.set_title(title, fontsize="small")
    figure.colorbar(image, ax=panels, label="logarithm of the share of attention", shrink=0.8)
    figure.supxlabel("decode step of the request", fontsize="small")
    figure.supylabel("page", fontsize="small")
    names = {Region.SINK: "sink", Region.WINDOW: "window", Region.RETRIEVED: "retrieved"}
    figure.legend(
        handles=[Patch(color=MARKS[region], label=name) for region, name in names.items()],
        loc="outside upper right",
        ncols=3,
        fontsize="small",
    )
    figure.suptitle(heading, x=0.02, ha="left", fontsize="medium")
    figure.savefig(path, **({"metadata": {"Date": None}} if path.suffix == ".svg" else {"dpi": 150}))
    plt.close(figure)
