"""Charts of a comparison as SVG: for a page, where their colours follow light and dark, and as a file of their own."""

import io
import re
from collections.abc import Sequence
from html import escape
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox, BboxBase

from prefopt.lab.measure import Result

# Those of a page's style sheet, ``evaluation/templates/style.css``, on a light background. Markers and names tell the
# algorithms apart without any colour.
COLOURS = ("#0067a5", "#c24a00", "#00795a", "#ad4c86", "#2b88bf", "#946200", "#6b6b6b", "#7a3fb0", "#a3262b")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*")
INK, PALE, PAPER = "#1b1b1c", "#c9c9cc", "#fefefe"


def reward_chart(start: Result, results: Sequence[Result]) -> Figure:
    """Gold reward against KL to the start, with intervals in both and a label at every point."""
    figure = Figure(figsize=(5.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    bare(axes)
    axes.axhspan(start.reward.low, start.reward.high, color=PALE, alpha=0.45, linewidth=0)
    axes.axhline(start.reward.mean, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    points = [("starting model", 0.0, start.reward.mean, INK)]
    axes.plot(0, start.reward.mean, marker="o", color=INK, **_MARKER, linestyle="none", clip_on=False)
    boxes = []
    for i, result in enumerate(results):
        x, y, colour = result.kl, result.reward, COLOURS[i % len(COLOURS)]
        errors = {"xerr": [[x.mean - x.low], [x.high - x.mean]], "yerr": [[y.mean - y.low], [y.high - y.mean]]}
        axes.errorbar(x.mean, y.mean, **errors, fmt=MARKERS[i % len(MARKERS)], color=colour, linewidth=1.3, **_MARKER)
        points.append((result.name, x.mean, y.mean, colour))
        boxes += [((x.low, y.mean), (x.high, y.mean)), ((x.mean, y.low), (x.mean, y.high))]
    axes.set_xlabel("KL to the starting model, nats per completion")
    axes.set_ylabel("gold reward")
    axes.margins(x=0.12, y=0.12)
    place_labels(axes, points, boxes)
    return figure


def place_labels(axes: Axes, points: Sequence[tuple[str, float, float, str]], bars: Sequence[Any]) -> list[Annotation]:
    """Write each name next to its point where it covers neither a point, a bar, nor another name; a line leads to it
    where that is some way off.

    Args:
        axes: limits must be final.
        points: name, x, y, colour.
        bars: ((x, y), (x, y)) ends of error bars.
    """
    figure = axes.figure
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    renderer, to_pixels = figure.canvas.get_renderer(), axes.transData.transform
    taken = [Bbox([c - 6, c + 6]) for c in (to_pixels((x, y)) for _, x, y, _ in points)]
    taken += [Bbox([to_pixels(a) - 1, to_pixels(b) + 1]) for a, b in bars]
    inside, placed = axes.get_window_extent(renderer), []
    for name, x, y, colour in points:
        best = None
        for dx, dy in _OFFSETS:
            align = {"ha": "center" if dx == 0 else "left" if dx > 0 else "right", "va": "center"}
            label = axes.annotate(name, (x, y), (dx, dy), textcoords="offset points", fontsize=9, color=colour, **align)
            box = label.get_window_extent(renderer).padded(1.5)
            out_of_axes = 1 - _overlap(box, inside)
            cost = sum(_overlap(box, other) for other in taken) + 4 * out_of_axes
            if best is None or cost < best[0]:
                if best is not None:
                    best[1].remove()
                best = (cost, label, box, (dx, dy))
            else:
                label.remove()
            if best[0] <= 1e-9:
                break
        _, label, box, (dx, dy) = best
        if dx * dx + dy * dy > 20**2:
            axes.annotate(
                "",
                (x, y),
                (dx, dy),
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.7},
            )
        taken.append(box)
        placed.append(label)
    return placed


_MARKER = {"markersize": 8, "markeredgecolor": PAPER, "markeredgewidth": 0.9}

# Offsets in points, nearest first: beside, diagonal, above and below, and then rings further out.
_OFFSETS = [
    (round(r * dx), round(r * dy))
    for r in (9, 13, 19, 28, 40, 55, 75)
    for dx, dy in ((1, 0.7), (-1, 0.7), (1, -0.7), (-1, -0.7), (0, 1.2), (0, -1.2), (1, 0.15), (-1, 0.15))
]


def _overlap(box: BboxBase, other: BboxBase) -> float:
    """The share of a box that another one covers."""
    both = Bbox.intersection(box, other)
    return 0.0 if both is None else both.width * both.height / (box.width * box.height)


def loss_chart(curve: Sequence[tuple[int, float]], colour: str) -> Figure:
    """Training loss over optimizer steps, in the units of its own algorithm."""
    figure = Figure(figsize=(2.5, 1.55), layout="constrained")
    axes = figure.add_subplot()
    bare(axes, size=8)
    axes.plot(*zip(*curve, strict=True), color=colour, linewidth=1.6)
    axes.locator_params(nbins=4)
    return figure


def bare(axes: Axes, size: float = 9) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(PALE)
    axes.tick_params(colors=INK, labelsize=size, length=0)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=INK, fontsize=size)
    axes.grid(color=PALE, linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)


def _svg(figure: Figure, salt: str) -> str:
    """The ``<svg>`` element, the same at every run, with text as text and no metadata."""
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, -apple-system, 'Segoe UI', sans-serif", text)
    return re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)


def standalone(figure: Figure, title: str) -> str:
    """A file for a README: white behind it, so that it can be read on any page."""
    svg = _svg(figure, "reward-kl")
    head, rest = svg.split(">", 1)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head).groups()
    paper = f'<title>{escape(title)}</title><rect width="{width}" height="{height}" fill="{PAPER}"/>'
    return f'{head} role="img" width="{float(width) * 1.5:.0f}" height="{float(height) * 1.5:.0f}">{paper}{rest}'


def inline(figure: Figure, name: str) -> Markup:
    """For the page: its colours follow light and dark, and its names need no namespaces."""
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", _svg(figure, name))
    names = {INK: "ink", PALE: "rule", PAPER: "paper"} | {colour: f"c{i}" for i, colour in enumerate(COLOURS)}
    for colour, name in names.items():
        svg = svg.replace(colour, f"var(--{name})")
    # On a narrow screen a chart scrolls before its text, 9 units high, is less than 8 pixels.
    width = float(re.search(r'viewBox="0 0 ([\d.]+) ', svg)[1])
    style = f'style="min-width:{0.9 * width:.0f}px"'
    # Trusted: the figure is drawn here, and matplotlib escapes the text in it.
    return Markup(svg.replace("<svg", f'<svg aria-hidden="true" focusable="false" {style}', 1))
