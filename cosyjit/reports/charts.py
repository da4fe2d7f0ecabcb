"""Line charts as SVG, for places that show images and run nothing."""

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from cosyjit.text import xml

_WIDTH: Final = 240
_HEIGHT: Final = 130
_LEFT: Final = 46
_TOP: Final = 26
_BOTTOM: Final = 22
_ROW: Final = 16
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d00", "#666666")
"""Eight that can be told apart by people who see few colours (after Okabe and Ito, on white)."""


class Chart(NamedTuple):
    """One chart.

    Attributes:
        title: with the unit of its values.
        lines: values, none below 0, by names of lines; None where there is none.
        logarithmic: whether values are shown by their magnitudes; 0 then stands at the bottom.
    """

    title: str
    lines: Mapping[str, Sequence[float | None]]
    logarithmic: bool = False


def svg(charts: Sequence[Chart], positions: Sequence[str]) -> str:
    """Charts side by side, with one legend.

    Args:
        charts: all with as many values a line as there are positions.
        positions: what stands below the values.
    """
    names = list(dict.fromkeys(name for chart in charts for name in chart.lines))
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}
    width, height = len(charts) * (_LEFT + _WIDTH + 14), _TOP + _HEIGHT + _BOTTOM
    parts = [
        _chart(chart, positions, colours, number * (_LEFT + _WIDTH + 14) + _LEFT) for number, chart in enumerate(charts)
    ]
    columns = 3
    for number, name in enumerate(names):
        x, y = 12 + number % columns * width / columns, height + 14 + number // columns * _ROW
        parts.append(f'<rect x="{x:.0f}" y="{y - 9}" width="10" height="10" fill="{colours[name]}"/>')
        parts.append(f'<text x="{x + 15:.0f}" y="{y}">{xml(name)}</text>')
    height += 8 + math.ceil(len(names) / columns) * _ROW
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="11" fill="#222"><rect width="{width}" height="{height}" rx="6" fill="#fff"/>{"".join(parts)}</svg>'
    )


def as_image(picture: str, words: str) -> str:
    """An SVG as an image in Markdown; `words` for those who do not see it."""
    return f"![{words}](data:image/svg+xml;base64,{base64.b64encode(picture.encode()).decode()})"


def _chart(chart: Chart, positions: Sequence[str], colours: Mapping[str, str], left: int) -> str:
    values = [value for line in chart.lines.values() for value in line if value is not None]
    bottom, top = _range(values, chart.logarithmic)

    def y(value: float) -> float:
        place = _scale(value, bottom, top, logarithmic=chart.logarithmic)
        return round(_TOP + _HEIGHT * (1 - place), 1)

    def x(number: int) -> float:
        return round(left + _WIDTH * (number + 0.5) / len(positions), 1)

    parts = [f'<text x="{left}" y="15" font-weight="bold">{xml(chart.title)}</text>']
    for value in (bottom, top):
        parts.append(f'<path d="M{left} {y(value)}h{_WIDTH}" stroke="#ccc"/>')
        parts.append(f'<text x="{left - 4}" y="{y(value) + 4}" text-anchor="end">{_label(value)}</text>')
    for number, position in enumerate(positions):
        parts.append(f'<text x="{x(number)}" y="{_TOP + _HEIGHT + 15}" text-anchor="middle">{xml(position)}</text>')
    for name, line in chart.lines.items():
        points = [(x(number), y(value)) for number, value in enumerate(line) if value is not None]
        path = " ".join(f"{across},{down}" for across, down in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colours[name]}" stroke-width="1.5"/>')
        parts += [f'<circle cx="{across}" cy="{down}" r="2.5" fill="{colours[name]}"/>' for across, down in points]
    return "".join(parts)


def _range(values: Sequence[float], logarithmic: bool) -> tuple[float, float]:
    """What the axis begins and ends with."""
    above = [value for value in values if value > 0]
    if not above:
        return 0.0, 1.0
    if not logarithmic:
        return 0.0, max(above)
    # A magnitude of room below the least, where the zeros stand.
    return 10.0 ** (math.floor(math.log10(min(above))) - 1), 10.0 ** math.ceil(math.log10(max(above)))


def _scale(value: float, bottom: float, top: float, *, logarithmic: bool) -> float:
    """From 0 at the bottom to 1 at the top."""
    if not logarithmic:
        return (value - bottom) / (top - bottom)
    if value <= bottom or not bottom:
        return 0.0
    return (math.log(value) - math.log(bottom)) / (math.log(top) - math.log(bottom))


def _label(value: float) -> str:
    return f"{value:.3g}"
