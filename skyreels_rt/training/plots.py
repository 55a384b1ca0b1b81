"""Loss curves of a run as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def plot_history(history: Sequence[dict[str, float]], path: Path) -> None:
    """Draw every recorded loss over the steps, one panel each.

    Parameters
    ----------
    history : sequence of dict
        Rows of :attr:`skyreels_rt.training.trainer.Trainer.history`.
    path : Path
        PNG to write; nothing is written for an empty history.
    """
    if not history:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = sorted({name for row in history for name in row} - {"step"})
    figure = Figure(figsize=(4.5 * len(names), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        points = [(row["step"], row[name]) for row in history if name in row]
        panel.plot(*zip(*points, strict=True), linewidth=1)
        if min(value for _, value in points) > 0 and name != "psnr":
            panel.set_yscale("log")
        panel.set_title(name)
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial, dpi=110)
    partial.replace(path)
