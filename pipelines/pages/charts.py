"""Charts of the report, as HTML and SVG that follow the page's colours in light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from infra.log import format_count
from preprocessing.picking import evenly
from preprocessing.shards.statistics import Distribution, Histogram, histogram

CURVE_POINTS = 400  # what a chart of 300 pixels can show
SMOOTHING = 0.04  # of the steps: standard deviation of the window of the bold curve
PLOT_SIZE = (300, 150)
MAX_TICKS = 5
DECADE = 10  # lines over each other that stay within one are drawn to a linear scale
LINE_COLORS = ("--ours", "--copy", "--ceiling", "--mean", "--box", "--floor")  # of the style sheet
BAR_GAP = 0.12  # of a bar's width
LEAST_BAR = 1.5  # units of the plot: a single one among millions is seen


def strip_chart(values: Mapping[str, tuple[str, Sequence[float]]], *, unit: str) -> str:
    """One line per method: a dot for every object, a bar at their mean.

    Keys are labels, values (CSS class, numbers).
    """
    everything = [value for _, numbers in values.values() for value in numbers]
    low, high = math.floor(min(everything)), math.ceil(max(everything))
    span = max(high - low, 1e-9)

    def place(value: float) -> str:
        return f"left:{100 * (value - low) / span:.2f}%"

    items = []
    for label, (kind, numbers) in values.items():
        mean = float(np.mean(numbers))
        dots = "".join(f'<i style="{place(value)}"></i>' for value in numbers)
        items.append(
            f'<li class="{kind}"><span class="name">{escape(label)}</span>'
            f'<span class="track" aria-hidden="true">{dots}<b style="{place(mean)}"></b></span>'
            f'<span class="value">{mean:.2f} <small>{escape(unit)}</small></span></li>'
        )
    return f'<ul class="strips">{"".join(items)}</ul>'


def curve(title: str, steps: Sequence[float], values: Sequence[float], *, logarithmic: bool = False) -> str:
    """A line over training steps: what was measured, faint, and smoothed, bold."""
    x, y = np.asarray(steps, float), np.asarray(values, float)
    if len(x) > CURVE_POINTS:
        kept = evenly(len(x), CURVE_POINTS)
        smooth, x, y = _smooth(y)[kept], x[kept], y[kept]
    else:
        smooth = _smooth(y)
    scale = np.log10 if logarithmic else np.asarray
    ticks = _log_ticks(y) if logarithmic else _ticks(float(y.min()), float(np.quantile(y, 0.99)))
    low, high = (float(scale(value)) for value in (ticks[0], ticks[-1]))
    heights = {tick: 1 - (float(scale(tick)) - low) / (high - low) for tick in ticks}
    grid = "".join(f'<path class="grid" d="M0 {PLOT_SIZE[1] * at:.1f}H{PLOT_SIZE[0]}"/>' for at in heights.values())
    labels = "".join(f'<span style="top:{100 * at:.1f}%">{tick:g}</span>' for tick, at in heights.items())
    raw, bold = (_path(x, (scale(line) - low) / (high - low)) for line in (y, smooth))
    description = f"{title} over {int(x[-1])} steps, from {y[0]:.4g} to {smooth[-1]:.4g}"
    return (
        f'<figure class="curve"><figcaption>{escape(title)}<span>{smooth[-1]:.4g}</span></figcaption>'
        f'<div class="plot">{labels}<svg viewBox="0 0 {PLOT_SIZE[0]} {PLOT_SIZE[1]}" preserveAspectRatio="none" '
        f'role="img" aria-label="{escape(description)}">{grid}<path class="raw" d="{raw}"/>'
        f'<path class="smooth" d="{bold}"/></svg></div>'
        f'<div class="steps"><span>step {int(x[0])}</span><span>{int(x[-1])}</span></div></figure>'
    )


def overlaid_curves(title: str, lines: Mapping[int, tuple[np.ndarray, np.ndarray]], names: Sequence[str]) -> str:
    """Smoothed lines over training steps in one chart; the keys of `lines` say which of `names` each is of."""
    smooth = {place: (x.astype(float), _smooth(y.astype(float))) for place, (x, y) in lines.items()}
    everything = np.concatenate([y for _, y in smooth.values()])
    logarithmic = bool(everything.min() > 0 and everything.max() > DECADE * everything.min())
    scale = np.log10 if logarithmic else np.asarray
    ticks = _log_ticks(everything) if logarithmic else _ticks(float(everything.min()), float(everything.max()))
    low, high = (float(scale(value)) for value in (ticks[0], ticks[-1]))
    first, last = (float(end([end(x) for x, _ in smooth.values()])) for end in (min, max))
    heights = {tick: 1 - (float(scale(tick)) - low) / (high - low) for tick in ticks}
    grid = "".join(f'<path class="grid" d="M0 {PLOT_SIZE[1] * at:.1f}H{PLOT_SIZE[0]}"/>' for at in heights.values())
    labels = "".join(f'<span style="top:{100 * at:.1f}%">{tick:g}</span>' for tick, at in heights.items())
    paths = []
    for place, (x, y) in smooth.items():
        kept = evenly(len(x), CURVE_POINTS)
        path = _path(x[kept], (scale(y[kept]) - low) / (high - low), extent=(first, last))
        paths.append(
            f'<path class="smooth" style="{_stroke(place)}" d="{path}"><title>{escape(names[place])}</title></path>'
        )
    ends = ", ".join(f"{names[place]} {y[-1]:.4g}" for place, (_, y) in smooth.items())
    return (
        f'<figure class="curve"><figcaption>{escape(title)}</figcaption>'
        f'<div class="plot">{labels}<svg viewBox="0 0 {PLOT_SIZE[0]} {PLOT_SIZE[1]}" preserveAspectRatio="none" '
        f'role="img" aria-label="{escape(f"{title} at the end: {ends}")}">{grid}{"".join(paths)}</svg></div>'
        f'<div class="steps"><span>step {int(first)}</span><span>{int(last)}</span></div></figure>'
    )


def legend(names: Sequence[str]) -> str:
    """Which line of `overlaid_curves` is whose."""
    items = "".join(
        f'<li><svg viewBox="0 0 28 4" aria-hidden="true"><path d="M0 2H28" style="{_stroke(place)}"/></svg>'
        f"{escape(name)}</li>"
        for place, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def _stroke(place: int) -> str:
    """Style of a line: a colour, and dashes where there are more lines than colours."""
    round_number = place // len(LINE_COLORS)
    dashes = f";stroke-dasharray:{6 * round_number} 4" if round_number else ""
    return f"stroke:var({LINE_COLORS[place % len(LINE_COLORS)]}){dashes}"


def histogram_chart(distribution: Distribution) -> str:
    """Bars of how many frames or sequences have which value."""
    bars = histogram(distribution)
    counted, values = distribution.counted, distribution.values
    start, end, top = float(bars.edges[0]), float(bars.edges[-1]), max(int(bars.counts.max()), 1)
    heights = {tick: 1 - tick / top for tick in _ticks(0, top) if tick <= top and tick == int(tick)}
    grid = "".join(f'<path class="grid" d="M0 {PLOT_SIZE[1] * at:.1f}H{PLOT_SIZE[0]}"/>' for at in heights.values())
    labels = "".join(f'<span style="top:{100 * at:.1f}%">{_short(int(tick))}</span>' for tick, at in heights.items())
    places = {
        tick: (tick - start) / (end - start)
        for tick in _inner_ticks(start, end, is_turn=distribution.limits is not None)
    }
    across = "".join(f'<span style="left:{100 * at:.1f}%">{tick:g}</span>' for tick, at in places.items())
    digits = max(0, -math.floor(math.log10(distribution.resolution)))
    low, middle, high = (f"{value:z.{digits}f}" for value in (values.min(), np.median(values), values.max()))
    outside = [(bars.num_below, "below"), (bars.num_above, "above")]
    beyond = ", ".join(f"{count:,} {side} this axis" for count, side in outside if count)
    extent = f"{format_count(len(values), counted)}, " + (f"{low} to {high}" if low != high else f"all {low}")
    extent += f" ({beyond})" if beyond else ""
    description = f"{distribution.name}, {distribution.unit}: {extent}, median {middle}"
    return (
        f'<figure class="curve histogram"><figcaption>{escape(distribution.name)}<span>median {middle}</span>'
        f'</figcaption><div class="plot">{labels}'
        f'<svg viewBox="0 0 {PLOT_SIZE[0]} {PLOT_SIZE[1]}" preserveAspectRatio="none" '
        f'role="img" aria-label="{escape(description)}">{grid}{_bars(bars, top, counted)}</svg></div>'
        f'<div class="across" aria-hidden="true">{across}</div><p class="unit">{escape(distribution.unit)}</p>'
        f'<p class="extent">{escape(extent)}</p></figure>'
    )


def _bars(bars: Histogram, top: int, counted: str) -> str:
    """A bar for every count that is not zero; pointed at, it says what it is."""
    width = PLOT_SIZE[0] / len(bars.counts)
    shapes = []
    for number, count in enumerate(bars.counts.tolist()):
        if count:
            height = max(PLOT_SIZE[1] * count / top, LEAST_BAR)
            title = f"{bars.edges[number]:g} to {bars.edges[number + 1]:g}: {format_count(count, counted)}"
            shapes.append(
                f'<rect x="{(number + BAR_GAP / 2) * width:.2f}" y="{PLOT_SIZE[1] - height:.2f}" '
                f'width="{(1 - BAR_GAP) * width:.2f}" height="{height:.2f}"><title>{title}</title></rect>'
            )
    return "".join(shapes)


def _short(count: int) -> str:
    """A count in few letters: 1500 is 1.5k."""
    for size, letter in ((10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:g}{letter}"
    return str(count)


def _path(x: np.ndarray, heights: np.ndarray, *, extent: tuple[float, float] | None = None) -> str:
    """SVG path through points, heights in [0, 1] from the bottom; what lies outside is drawn at the border. `extent` is
    the range of x that the plot is wide, that of the points if it is not given.
    """
    first, last = extent or (x[0], x[-1])
    across = (x - first) / max(last - first, 1e-9) * PLOT_SIZE[0]
    down = (1 - np.clip(heights, 0, 1)) * PLOT_SIZE[1]
    return "M" + "L".join(f"{u:.1f} {v:.1f}" for u, v in zip(across, down, strict=True))


def _smooth(values: np.ndarray) -> np.ndarray:
    """Gaussian-weighted mean over neighbours."""
    deviation = max(SMOOTHING * len(values), 1e-3)
    reach = min(math.ceil(3 * deviation), len(values) - 1)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * deviation**2))
    total = np.convolve(values, weights)[reach : reach + len(values)]
    return total / np.convolve(np.ones_like(values), weights)[reach : reach + len(values)]


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that enclose a range."""
    span = max(high - low, abs(high) * 1e-3, 1e-9)
    magnitude = 10 ** math.floor(math.log10(span / 3))
    step = next(magnitude * factor for factor in (1, 2, 5, 10) if span / (magnitude * factor) <= 4)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)  # a constant needs a height too
    return [round(number * step, 12) for number in range(first, last + 1)]


def _inner_ticks(low: float, high: float, *, is_turn: bool) -> list[float]:
    """Three to seven round numbers within a range; of parts of a turn, those that people divide it into."""
    magnitude = 10 ** math.floor(math.log10((high - low) / 6))
    factors = (1, 2, 3, 5, 6, 10) if is_turn else (1, 2, 5, 10)
    step = next(magnitude * factor for factor in factors if (high - low) / (magnitude * factor) <= 6 + 1e-9)
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [round(number * step, 12) for number in numbers]


def _log_ticks(values: np.ndarray) -> list[float]:
    """Powers of ten that enclose positive values, or their halves and doubles when one decade is enough."""
    low, high = float(values.min()), float(np.quantile(values, 0.99))
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if last - first >= 2:
        stride = math.ceil((last - first) / MAX_TICKS)
        return [10.0**power for power in range(first, last + stride, stride)]
    candidates = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
    below = max((value for value in candidates if value <= low), default=candidates[0])
    above = min((value for value in candidates if value >= high), default=candidates[-1])
    return [value for value in candidates if below <= value <= max(above, below * 2)]
