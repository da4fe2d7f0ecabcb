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
_DASHES: Final = ("", "8 6", "3 4", "12 4 3 4", "5 9", "1 5")
"""How lines are broken, so that one shows through another that lies on it."""
_MARKS: Final = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0",
    "M-3.3-3.3h6.6v6.6h-6.6z",
    "M0-4L4 0L0 4L-4 0z",
    "M0-3L3 2.5h-6z",
    "M0 2.5L2.3-1.5h-4.6z",
    "M-1.2 0a1.2 1.2 0 1 0 2.4 0a1.2 1.2 0 1 0-2.4 0",
)
"""What stands for a value, around it: circle, square, diamond, triangles, dot; each can be seen on those before it."""
_ZERO: Final = 0.14
"""Where the least magnitude stands above zero, in heights of a logarithmic chart."""
_SMALLEST: Final = -300
"""The least magnitude; ten to the power of less is 0 to a computer."""


class _Style(NamedTuple):
    """How a line is drawn."""

    colour: str
    dash: str
    mark: str

    @classmethod
    def of(cls, number: int) -> "_Style":
        return cls(
            _COLOURS[number % len(_COLOURS)],
            f' stroke-dasharray="{_DASHES[number % len(_DASHES)]}"' if number % len(_DASHES) else "",
            _MARKS[number % len(_MARKS)],
        )

    def drawn(self, points: Sequence[tuple[float, float]]) -> str:
        """A line through points, and a mark at each."""
        path = " ".join(f"{across},{down}" for across, down in points)
        line = f'<polyline points="{path}" fill="none" stroke="{self.colour}" stroke-width="1.8"{self.dash}/>'
        return line + "".join(
            f'<path d="{self.mark}" transform="translate({across} {down})" fill="{self.colour}"/>'
            for across, down in points
        )


class Chart(NamedTuple):
    """One chart.

    Attributes:
        title: with the unit of its values.
        lines: values, none below 0, by names of lines; None where there is none.
        logarithmic: whether values are shown by their magnitudes; 0 then stands below all of these.
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
    styles = {name: _Style.of(number) for number, name in enumerate(names)}
    width, height = len(charts) * (_LEFT + _WIDTH + 14), _TOP + _HEIGHT + _BOTTOM
    parts = [
        _chart(chart, positions, styles, number * (_LEFT + _WIDTH + 14) + _LEFT) for number, chart in enumerate(charts)
    ]
    columns = 3
    for number, name in enumerate(names):
        x, y = 12 + number % columns * width / columns, height + 14 + number // columns * _ROW
        parts.append(styles[name].drawn([(round(x), y - 4), (round(x) + 30, y - 4)]))
        parts.append(f'<text x="{x + 38:.0f}" y="{y}">{xml(name)}</text>')
    height += 8 + math.ceil(len(names) / columns) * _ROW
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="11" fill="#222"><rect width="{width}" height="{height}" rx="6" fill="#fff"/>{"".join(parts)}</svg>'
    )


def as_image(picture: str, words: str) -> str:
    """An SVG as an image in Markdown; `words` for those who do not see it."""
    return f"![{words}](data:image/svg+xml;base64,{base64.b64encode(picture.encode()).decode()})"


def _chart(chart: Chart, positions: Sequence[str], styles: Mapping[str, _Style], left: int) -> str:
    scale = _scale([value for line in chart.lines.values() for value in line if value is not None], chart.logarithmic)

    def y(value: float) -> float:
        return round(_TOP + _HEIGHT * (1 - scale(value)), 1)

    def x(number: int) -> float:
        return round(left + _WIDTH * (number + 0.5) / len(positions), 1)

    parts = [f'<text x="{left}" y="15" font-weight="bold">{xml(chart.title)}</text>']
    for value in scale.shown:
        parts.append(f'<path d="M{left} {y(value)}h{_WIDTH}" stroke="#ccc"/>')
        parts.append(f'<text x="{left - 4}" y="{y(value) + 4}" text-anchor="end">{_label(value)}</text>')
    for number, position in enumerate(positions):
        parts.append(f'<text x="{x(number)}" y="{_TOP + _HEIGHT + 15}" text-anchor="middle">{xml(position)}</text>')
    for name, line in chart.lines.items():
        parts.append(styles[name].drawn([(x(number), y(each)) for number, each in enumerate(line) if each is not None]))
    return "".join(parts)


class _Scale(NamedTuple):
    """Where values stand, from 0 at the bottom to 1 at the top.

    Attributes:
        shown: the values with a line and a label, from the bottom up.
        logarithmic: whether the last two of these are powers of ten, between which magnitudes stand; a 0 may be below.
    """

    shown: tuple[float, ...]
    logarithmic: bool

    def __call__(self, value: float) -> float:
        if not self.logarithmic:
            return value / self.shown[-1]
        if value <= 0:
            return 0.0
        bottom, top = map(math.log10, self.shown[-2:])
        least = _ZERO if len(self.shown) > 2 else 0.0  # noqa: PLR2004  (a zero, and the two powers)
        return least + (1 - least) * max(0.0, math.log10(value) - bottom) / (top - bottom)


def _scale(values: Sequence[float], logarithmic: bool) -> _Scale:
    above = [value for value in values if value > 0]
    if not above or not logarithmic:
        return _Scale((0.0, max(above, default=1.0)), logarithmic=False)
    bottom = max(_SMALLEST, math.floor(math.log10(min(above))))
    top = max(bottom + 1, math.ceil(math.log10(max(above))))
    zero = (0.0,) if len(above) < len(values) else ()
    return _Scale((*zero, 10.0**bottom, 10.0**top), logarithmic=True)


def _label(value: float) -> str:
    return f"{value:.3g}"
