"""The pieces of the page: axes, curves, bars with intervals, and how numbers are written."""

import math
import re

import pytest

from dreamset.report import charts, markup, planes


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-8.8, 25.4), (54.1, 54.1), (0.0, 0.0), (1e-7, 3e-7)])
def test_ticks_are_few_and_hold_the_ends(low: float, high: float) -> None:
    ticks = charts.round_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low + 1e-12
    assert ticks[-1] >= high - 1e-12


def test_a_curve_that_diverged_is_drawn_as_far_as_it_goes() -> None:
    made = charts.curves([[(1, 2.0), (2, float("nan")), (3, 1.0)]], "step", "loss", "x", "c0")
    assert "nan" not in made
    assert made.count("polyline") == 2
    assert charts.curves([[(1, float("inf"))]], "step", "loss", "x", "c0") == ""


def test_numbers_are_written_for_people() -> None:
    assert markup.points(-0.0004) == "0.0"
    assert markup.points(-0.0312) == "−3.1"
    assert markup.number(12345.6, 1) == "12\u202f345.6"
    assert markup.percent(None) == "–"
    assert markup.text("\ud800<") == "?&lt;"
    assert markup.tag("a", None, ["<", markup.Html("<b>")], title='"', id=None) == '<a title="&quot;">&lt;<b></a>'


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
    shown = charts.steps([charts.Line(kind, values, ends) for kind in ("c0", "c1")], "%", "times", "accuracy", "CAS")
    first, second = re.findall(r'points="([^"]+)"', shown)
    assert first != second
    assert shown.count("dashes-0") == shown.count("dashes-1") == 1
    assert shown.count('class="ends"') == 4
    assert "accuracy<" in shown
    # Of many series on few places none reaches into the next place.
    many = charts.steps([charts.Line("c0", values, ends)] * 40, "%", "times", "accuracy", "CAS")
    places = [float(x) for x in re.findall(r'<circle cx="([^"]+)"', many)]
    assert max(places[::2]) < min(places[1::2])
