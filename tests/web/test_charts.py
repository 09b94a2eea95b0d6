"""The figures and the data behind them."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from coordinator.charts import TIMES
from coordinator.store.queries import Bar, CurvePoint, Staleness, WidthSpan
from web import charts

NAMES = ["curve", "timeline", "staleness", "widths", "delays"]
T0 = 1_700_000_000.0


def bar(device, begin, end, width, outcome="applied", **more):
    known = {
        "assignment": "a",
        "device": device,
        "name": device,
        "open": False,
        "version": 3,
        "staleness": 2,
        "reason": "",
        "flags": {},
        "seconds_download": 0.1,
        "seconds_train": 4.0,
        "seconds_upload": None,
    }
    return Bar(begin=T0 + begin, end=T0 + end, width=width, outcome=outcome, **{**known, **more})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("theme", charts.THEMES)
@pytest.mark.parametrize("run", ["har-night", "har-wide"])
def test_every_chart_is_drawn_for_a_run_with_and_without_updates(olga, name, theme, run):
    item = olga.get(f"/runs/{run}/charts/{name}?theme={theme}").get_json()["item"]

    assert item["doc"]["roots"][0]["name"] == "Figure"
    assert item["version"]


@pytest.mark.parametrize("name", NAMES)
def test_data_alone_names_the_sources_of_the_figure(olga, name):
    figure = olga.get(f"/runs/har-night/charts/{name}").text
    update = olga.get(f"/runs/har-night/charts/{name}?data=1").get_json()

    for source, columns in update["sources"].items():
        assert f'"name":"{source}"' in figure
        assert len({len(column) for column in columns.values()}) == 1
        assert all(f'"{column}"' in figure for column in columns)
    for model in update["properties"]:
        assert f'"name":"{model}"' in figure


@pytest.mark.parametrize("name", NAMES)
def test_references_come_after_what_they_refer_to(olga, name):
    """Bokeh reads the figure in the order of the text; sorted keys would break that."""
    made = set()
    for found in re.finditer(r'(\{)?"id":"(p\d+)"(\})?', olga.get(f"/runs/har-night/charts/{name}").text):
        refers = found[1] and found[3]
        assert not refers or found[2] in made
        made.add(found[2])
    assert len(made) > 10


def test_a_theme_has_the_colours_of_the_style_sheet():
    light, dark = charts.colours("light"), charts.colours("dark")
    tokens = re.findall(r"--([\w-]+): light-dark", (files("web") / "static" / "shoal.css").read_text())

    assert set(light) == set(dark) == set(tokens)
    assert (light["card"], dark["card"]) == ("#ffffff", "#151b23")


@pytest.mark.parametrize(
    ("axis", "across", "label"),
    [
        ("time", [0.0, 2.0], "minutes since the start"),
        ("version", [0, 7], "version"),
        ("bytes", [0.0, 1.5], "MB received from all devices"),
    ],
)
def test_the_curve_runs_over_time_versions_or_bytes(axis, across, label):
    points = [
        CurvePoint(0, 0, 0, 0.1, 2.3),
        CurvePoint(7, 240, 1_500_000, 0.8, None),
        CurvePoint(9, 250, 2_000_000, None, 1),
    ]
    chart = charts.curve(points[:2], axis, 0.9, "light")

    assert chart.sources["curve"]["x"] == ([0.0, 4.0] if axis == "time" else across)
    assert chart.sources["curve"]["accuracy"] == [0.1, 0.8]
    assert chart.properties["across"] == {"axis_label": label}
    assert charts.curve(points, axis, None, "light").sources["curve"]["version"] == [0, 7]


def test_the_timeline_has_a_lane_for_each_device_the_first_on_top():
    bars = [bar("pico", 0, 5, 1.0), bar("tre", 2, 9.5, 0.25, "refused", reason="not finite", staleness=None)]
    chart = charts.timeline(bars, ["pico", "tre"], T0, T0 + 60, "dark")

    columns = chart.sources["bars"]
    assert columns["left"] == [1000 * T0, 1000 * T0 + 2000]
    assert columns["right"] == [1000 * T0 + 5000, 1000 * T0 + 9500]
    assert columns["shade"] == ["--width-1", "--width-4"]
    assert columns["width"] == ["1", "1/4"]
    assert columns["staleness"] == ["2", "–"]
    assert chart.properties["lanes"] == {"factors": ["tre", "pico"]}
    assert chart.properties["window"] == {"start": 1000 * T0, "end": 1000 * T0 + 60_000}


def test_times_stand_apart_on_a_telephone():
    axis = charts.timeline([bar("pico", 0, 5, 1.0)], ["pico"], T0, T0 + 60, "light").figure.xaxis[0]

    assert {part.desired_num_ticks for part in (axis.ticker, *axis.ticker.tickers)} == {TIMES}


def test_staleness_is_binned_when_it_is_large():
    small = charts.staleness(Staleness({0: {"applied": 3}, 2: {"stale": 1}}), "light").sources["staleness"]
    assert small["versions"] == ["0", "1", "2"]
    assert (small["applied"], small["stale"]) == ([3, 0, 0], [0, 0, 1])

    large = charts.staleness(Staleness({0: {"applied": 1}, 1: {"applied": 1}, 79: {"applied": 2}}), "light").sources[
        "staleness"
    ]
    assert large["versions"][0] == "0 to 1"
    assert (large["applied"][0], large["applied"][-1], len(large["applied"])) == (2, 2, 40)


def test_widths_between_the_steps_are_counted_with_the_nearest():
    chart = charts.widths([WidthSpan(T0, T0 + 10, {0.5: 2, 0.45: 1, 1 / 16: 4})], "light")

    columns = chart.sources["widths"]
    assert {name: columns[name] for name in columns if name.startswith("--") and columns[name] != [0]} == {
        "--width-2": [3],
        "--width-16": [4],
    }
    assert columns["total"] == [7]


def test_only_the_window_is_sent(olga):
    def count(query):
        data = olga.get(f"/runs/har-night/charts/timeline?data=1&{query}").get_json()
        return len(data["sources"]["bars"]["left"])

    assert 0 < count("window=10") < count("window=120")
    assert count("until=1000&window=60") == 0


def test_large_answers_are_packed(olga):
    answer = olga.get("/runs/har-night/charts/timeline", headers={"Accept-Encoding": "gzip"})

    assert answer.headers["Content-Encoding"] == "gzip"
