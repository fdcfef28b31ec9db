"""The pieces of the page: axes, curves, bars with intervals, and how numbers are written."""

import math

import pytest
from markupsafe import Markup

from dreamset.report import charts, figures, markup, planes
from reported import Page


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-8.8, 25.4), (54.1, 54.1), (0.0, 0.0), (1e-7, 3e-7)])
def test_ticks_are_few_and_hold_the_ends(low: float, high: float) -> None:
    ticks = charts.round_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low + 1e-12
    assert ticks[-1] >= high - 1e-12


def test_a_curve_that_diverged_is_drawn_as_far_as_it_goes() -> None:
    drawn = Page(charts.curves([[(1, 2.0), (2, float("nan")), (3, 1.0)]], "step", "loss", "x", "c0")).root
    assert [len(line.attributes["points"].split()) for line in drawn.all("polyline")] == [2]
    assert drawn.one("svg").one("title").text == "x: loss by step"
    assert drawn.texts("text", "axis-name") == ["step →", "↑ loss"]
    assert charts.curves([[(1, float("inf"))]], "step", "loss", "x", "c0") == ""


def test_numbers_are_written_for_people() -> None:
    assert figures.points(-0.0004) == "0.0"
    assert figures.points(-0.0312) == "−3.1"
    assert figures.number(12345.6, 1) == "12\u202f345.6"
    assert figures.percent(None) == "–"


def test_what_is_no_markup_is_escaped() -> None:
    assert markup.code("a `<b>` c") == "a <code>&lt;b&gt;</code> c"
    assert markup.joined("&", ["<", Markup("<b>")]) == "&lt;&amp;<b>"
    table = markup.Table(["<i>", "b"], [["<i>", Markup("<b>1</b>")]], columns={"b": '"'}, chosen=0)
    drawn = Page(markup.fill("parts.table", table=table)).root
    assert drawn.rows == [["<i>", "b"], ["<i>", "1"]]
    assert drawn.all("tr")[1].fits("tr", "chosen")
    assert [cell.attributes["class"] for cell in drawn.all("td")] == ['"']
    assert drawn.texts("b") == ["1"] and not drawn.all("i")


@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, 7), (3, 46), (0, 999)])
def test_whole_numbers_on_an_axis_are_few(low: int, high: int) -> None:
    axis = planes.whole("trial", [low, high])
    assert 1 <= len(axis.ticks) <= 9
    assert all(low <= value <= high for value, _ in axis.ticks)
    assert 0 <= axis.at(low) <= axis.at(high) <= 1


def test_a_range_keeps_its_ends() -> None:
    axis = planes.ranged("lr", 2e-4, 1e-2, log=True)
    assert [label for _, label in axis.ticks] == ["0.0002", "0.0005", "0.001", "0.002", "0.005", "0.01"]
    assert (axis.at(2e-4), axis.at(1e-2)) == (0, pytest.approx(1))
    assert axis.at(math.sqrt(2e-6)) == pytest.approx(0.5)
    linear = planes.ranged("guidance", 1.0, 7.5, log=False)
    assert [value for value, _ in linear.ticks] == [2, 4, 6]
    assert (linear.at(1.0), linear.at(7.5)) == (0, 1)


def test_equal_series_with_intervals_do_not_hide_each_other() -> None:
    values, ends = {1: 70.0, 2: 80.0}, {1: (60.0, 75.0), 2: (70.0, 90.0)}
    drawn = Page(
        charts.steps([charts.Line(kind, values, ends) for kind in ("c0", "c1")], "%", "times", "y", "CAS")
    ).root
    series = drawn.all("g")
    first, second = (group.one("polyline").attributes["points"] for group in series)
    assert first != second
    assert [group.fits("g", f"dashes-{place}") for place, group in enumerate(series)] == [True, True]
    assert [len(group.all("polyline", "ends")) for group in series] == [2, 2]
    assert drawn.texts("text", "axis-name") == ["times →", "↑ y"]
    # Of many series on few places none reaches into the next place.
    many = Page(charts.steps([charts.Line("c0", values, ends)] * 40, "%", "times", "accuracy", "CAS")).root
    places = [float(dot.attributes["cx"]) for dot in many.all("circle")]
    assert max(places[::2]) < min(places[1::2])
