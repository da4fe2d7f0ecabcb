"""Charts as SVG: well formed, every value in its place, nothing of a name taken for markup."""

import base64
import re
from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from cosyjit.reports.charts import _HEIGHT, _TOP, Chart, as_image, svg
from cosyjit.text import plain

SVG = "{http://www.w3.org/2000/svg}"
NAMES = st.text(st.characters(exclude_categories=()), min_size=1, max_size=20) | st.sampled_from(
    ["</text></svg><script>alert(1)</script>", '" onload="alert(1)', "<!--", "]]>", "&#60;", "\x1b[31m", "\udc80"]
)


def drawn(picture: str) -> ET.Element:
    return ET.fromstring(picture)  # noqa: S314  (our own)


def points(picture: str) -> list[list[tuple[float, float]]]:
    """The points of each line, from left to right."""
    lines = [line.get("points") or "" for line in drawn(picture).iter(f"{SVG}polyline")]
    found = [[(float(x), float(y)) for x, y in (point.split(",") for point in line.split())] for line in lines]
    return [line for line in found if all(y <= _TOP + _HEIGHT for _, y in line)]  # and none of the legend


def words(picture: str) -> list[str]:
    return [text.text or "" for text in drawn(picture).iter(f"{SVG}text")]


def test_greater_values_stand_higher_and_later_ones_further_right() -> None:
    (line,) = points(svg([Chart("size, MB", {"a": [1.0, 3.0, 2.0]})], ["1", "2", "3"]))
    (first, second, third) = line
    assert first[0] < second[0] < third[0]
    assert first[1] > third[1] > second[1]


def test_the_axis_begins_with_zero_and_ends_with_the_largest() -> None:
    assert [word for word in words(svg([Chart("t", {"a": [1.0, 2.5]})], ["1", "2"])) if word in {"0", "2.5"}] == [
        "0",
        "2.5",
    ]


def test_magnitudes_are_as_far_apart_as_each_other_and_zero_is_below_them_and_says_so() -> None:
    picture = svg([Chart("error", {"a": [1e-6, 1e-4, 1e-2, 0.0]}, logarithmic=True)], ["1", "2", "3", "4"])
    (line,) = points(picture)
    heights = [y for _, y in line]
    assert abs((heights[0] - heights[1]) - (heights[1] - heights[2])) < 0.2
    assert max(heights) == heights[3] > heights[0]
    labels = {each.text: float(each.get("y") or 0) - 4 for each in drawn(picture).iter(f"{SVG}text")}
    assert (labels["0"], labels["1e-06"], labels["0.01"]) == (heights[3], heights[0], heights[2])


def test_an_axis_of_magnitudes_without_a_zero_has_none() -> None:
    picture = svg([Chart("error", {"a": [0.002, 0.03]}, logarithmic=True)], ["1", "2"])
    assert [word for word in words(picture) if word in {"0", "0.001", "0.1"}] == ["0.001", "0.1"]
    ((low, high),) = points(picture)
    assert low[1] > high[1]


def test_lines_that_lie_on_each_other_show_through_and_are_marked_in_their_own_ways() -> None:
    picture = svg([Chart("size", {name: [1.0, 1.0] for name in "abcdef"})], ["1", "2"])
    lines = list(drawn(picture).iter(f"{SVG}polyline"))[:6]
    assert len({line.get("points") for line in lines}) == 1
    assert [line.get("stroke-dasharray") is None for line in lines] == [True] + [False] * 5
    assert len({line.get("stroke-dasharray") for line in lines}) == 6
    marks = {(each.get("d"), each.get("fill")) for each in drawn(picture).iter(f"{SVG}path") if each.get("transform")}
    assert len({mark for mark, _ in marks}) == len({colour for _, colour in marks}) == len(marks) == 6


def test_what_there_is_not_has_no_point() -> None:
    (line,) = points(svg([Chart("t", {"a": [1.0, None, 3.0]})], ["1", "2", "3"]))
    assert len(line) == 2


def test_all_zeros_and_nothing_at_all_are_drawn() -> None:
    for logarithmic in (False, True):
        (line,) = points(svg([Chart("t", {"a": [0.0, 0.0]}, logarithmic)], ["1", "2"]))
        assert len({y for _, y in line}) == 1
        assert points(svg([Chart("t", {}, logarithmic)], ["1"])) == []


def test_each_name_is_in_the_legend_once_with_a_colour_of_its_own() -> None:
    charts = [Chart("one", {"a": [1.0], "b": [2.0]}), Chart("two", {"b": [1.0], "c": [0.0]})]
    picture = svg(charts, ["1"])
    assert [word for word in words(picture) if word in {"a", "b", "c"}] == ["a", "b", "c"]
    samples = [line for line in drawn(picture).iter(f"{SVG}polyline") if line.get("points") not in {None, ""}][-3:]
    assert len({line.get("stroke") for line in samples}) == 3


@given(
    lines=st.dictionaries(NAMES, st.lists(st.none() | st.floats(0, 1e30), min_size=3, max_size=3), max_size=12),
    title=NAMES,
    logarithmic=...,
)
def test_whatever_is_drawn_is_well_formed_and_within_the_picture(
    lines: dict[str, list[float | None]], title: str, logarithmic: bool
) -> None:
    picture = svg([Chart(title, lines, logarithmic), Chart(title, lines)], ["1", "2", "3"])
    root = drawn(picture)
    width, height = float(root.get("width") or 0), float(root.get("height") or 0)
    for line in points(picture):
        assert all(0 <= x <= width and 0 <= y <= height for x, y in line)
    assert {plain(name) for name in lines} | {plain(title)} <= set(words(picture))
    assert {each.tag.removeprefix(SVG) for each in root.iter()} <= {"svg", "rect", "text", "path", "polyline", "circle"}


def test_an_image_in_markdown_holds_the_picture() -> None:
    picture = svg([Chart("t", {"a": [1.0]})], ["1"])
    found = re.fullmatch(r"!\[words\]\(data:image/svg\+xml;base64,(.*)\)", as_image(picture, "words"))
    assert found is not None
    assert base64.b64decode(found[1]).decode() == picture
