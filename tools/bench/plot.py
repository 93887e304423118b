"""The plot of a comparison: every side of every row as a bar, relative to the best yardstick of its row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from report import best_peer, median_speed, shown

mpl.use("Agg")
mpl.rcParams["svg.hashsalt"] = "halfbyte"  # the same figures give the same file
mpl.rcParams["svg.fonttype"] = "none"  # text stays text
import matplotlib.pyplot as plt  # noqa: E402

_OURS, _BEST, _OTHER = "#1b6e53", "#c2662d", "#b9b9b9"


def write(run: dict[str, Any], folder: Path) -> None:
    """folder/performance.png and folder/performance.svg."""
    results = [result for result in run["results"] if best_peer(result) is not None]
    heights = [0.45 + 0.26 * sum("error" not in side for side in result["sides"].values()) for result in results]
    figure, every = plt.subplots(
        len(results),
        1,
        figsize=(9, sum(heights) + 0.6),
        gridspec_kw={"height_ratios": heights},
        squeeze=False,
        layout="constrained",
    )
    for axes, result in zip(every[:, 0], results, strict=True):
        best = best_peer(result)
        reference = median_speed(result, str(best)) or 1.0
        speeds = {label: speed for label in result["sides"] if (speed := median_speed(result, label)) is not None}
        labels = list(speeds)
        values = [speeds[label] / reference for label in labels]
        colours = [_OURS if label.startswith("halfbyte") else _BEST if label == best else _OTHER for label in labels]
        bars = axes.barh(labels, values, color=colours, height=0.72)
        axes.bar_label(bars, [f" {shown(result, label)}" for label in labels], fontsize=7)
        axes.axvline(1.0, color="#555555", linewidth=0.6, linestyle=":")
        axes.invert_yaxis()
        axes.set_title(result["title"], fontsize=8, loc="left")
        axes.set_xlim(0, max(values) * 1.18)
        axes.tick_params(labelsize=7, length=0)
        axes.set_xticks([])
        for side in ("top", "right", "bottom"):
            axes.spines[side].set_visible(False)
    conditions = run["conditions"]
    figure.suptitle(
        f"Speed, longer is quicker; dotted: the best yardstick of the row\n{conditions['processor']}, "
        f"{conditions['threads']} threads, {conditions['date']}",
        fontsize=8,
    )
    for suffix in ("png", "svg"):
        metadata = {"Date": None} if suffix == "svg" else {}
        figure.savefig(folder / f"performance.{suffix}", dpi=110, metadata=metadata)
    plt.close(figure)
