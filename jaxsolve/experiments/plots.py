"""One look for all plots."""

from typing import Any

OURS, FIRST, SECOND, THIRD, SOFT = "#1f5fa8", "#c2571a", "#10714a", "#8a4fa3", "#5d6b7c"


def axes(columns: int = 1, width: float = 4.6, height: float = 3.5) -> tuple[Any, Any]:
    """A figure and a list of its axes, side by side. No global state: no `pyplot`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained")
    FigureCanvasAgg(figure)
    found = list(figure.subplots(1, columns, squeeze=False)[0])
    for one in found:
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color("#c4ccd6")
        one.tick_params(colors=SOFT, labelsize=9)
        one.title.set_fontsize(10.5)
        one.xaxis.label.set_fontsize(9.5)
        one.yaxis.label.set_fontsize(9.5)
        one.set_axisbelow(True)
        one.grid(axis="y", color="#e8ecf0", linewidth=0.8)
    return figure, found
