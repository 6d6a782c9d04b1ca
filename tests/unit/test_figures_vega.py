"""Charts as Vega-Lite: every specification compiles, and its inline rows are those that it was given."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import vl_convert

from ndt_ray.errors import SpecError
from ndt_ray.figures import charts
from ndt_ray.figures.charts import draw
from ndt_ray.figures.charts.maps import binned, limits
from ndt_ray.figures.charts.theme import DARK, LIGHT
from ndt_ray.figures.heatmap import edges

LAYERS = ["network.0", 'a "quoted", name', "fc"]
STEPS = np.array([0, 1, 2, 10, 20, 30])


def cells(steps: Any = STEPS, layers: int = 3) -> pd.DataFrame:
    """Value = layer × step / 30."""
    parts = [
        pd.DataFrame({"row": i, "step": steps, "value": i * np.asarray(steps) / 30, "n": 4}) for i in range(layers)
    ]
    return pd.concat(parts, ignore_index=True)


EVENTS = pd.DataFrame(
    {"row": [0, 2], "at": [5.0, 25.0], "direction": ["increase", "decrease"], "seeds": [4, 1], "text": ["a", "b"]}
)
RASTER = pd.DataFrame(
    {
        "row": [0, 2],
        "seed": ["0", "1"],
        "from": [5, 25],
        "to": [10, 30],
        "direction": ["increase", "decrease"],
        "text": "x",
    }
)
BARS = pd.DataFrame({"name": ["cnn", "mlp"], "observed": [12, 3], "null": [4.5, np.nan], "null_lo": [2.0, np.nan],
                     "null_hi": [7.0, np.nan]})  # fmt: skip
CURVES = pd.DataFrame(
    {"name": ["cnn"] * 2 + ["mlp"] * 2, "step": [0, 30] * 2, "mean": [0.1, 0.9, 0.1, 0.8],
     "low": [0.05, 0.8, np.nan, 0.7], "high": [0.15, 1.0, np.nan, 0.9], "n": 4}
)  # fmt: skip
EFFECTS = pd.DataFrame(
    {"name": ["a - b", "a - c"], "estimate": [0.5, -0.1], "low": [0.1, -0.4], "high": [0.9, 0.2],
     "clear": [True, False], "text": ["q", "q"]}
)  # fmt: skip
SETTLED = pd.DataFrame({"row": [0, 1, 1], "value": [10.0, 20.0, 30.0], "seed": ["0", "0", "1"]})
SPECIFICATIONS = pd.DataFrame(
    {
        "estimate": [0.3, -0.1, 0.2],
        "significant": [True, False, False],
        "primary": [False, False, True],
        "text": list("abc"),
    }
)

SPECS: dict[str, Callable[[], charts.Spec]] = {
    "map": lambda: charts.layer_map(
        cells(), LAYERS, 30, events=EVENTS, settled=EVENTS, periods=RASTER, trials=4, title="t", legend=True
    ),
    "speed": lambda: charts.layer_map(
        cells().assign(value=lambda r: 10.0 ** -(r["row"] + 1)), LAYERS, 30, scale="value"
    ),
    "raster": lambda: charts.event_raster(RASTER, LAYERS, ["0", "1"], 30),
    "null": lambda: charts.beside_null(BARS, "events"),
    "p": lambda: charts.p_values(pd.Series([0.01, 0.5, np.nan, 0.99])),
    "phases": lambda: charts.phases(pd.DataFrame({"name": ["cnn", "mlp"], "phase": [0.05, 1.0]}), ["cnn", "mlp"]),
    "curves": lambda: charts.curves(CURVES, ["cnn", "mlp"], 30, "accuracy"),
    "log": lambda: charts.curves(CURVES, ["cnn", "mlp"], 30, "loss", log=True),
    "forest": lambda: charts.forest(EFFECTS, "g"),
    "layers": lambda: charts.by_layer(SETTLED, LAYERS, "step", last=30),
    "multiverse": lambda: charts.specification_curve(SPECIFICATIONS, "estimate"),
}


def layers(spec: charts.Spec) -> list[pd.DataFrame]:
    """The inline rows of every layer."""
    found = [layer["data"]["values"] for layer in spec["layer"] if isinstance(layer.get("data", {}).get("values"), str)]
    if isinstance(spec.get("data", {}).get("values"), str):
        found.append(spec["data"]["values"])
    return [pd.read_csv(io.StringIO(text), keep_default_na=False, na_values=[""]) for text in found]


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_every_chart_compiles_draws_and_asks_no_address(name: str) -> None:
    spec = SPECS[name]()
    json.dumps(spec, allow_nan=False)
    compiled = vl_convert.vegalite_to_vega(draw._sized(spec, 400), show_warnings=True)
    assert compiled["marks"]
    assert "http" not in json.dumps(spec)
    for dark in (False, True):
        drawn = charts.svg(spec, width=400, dark=dark)
        assert (DARK if dark else LIGHT)["ground"] in drawn
        assert "NaN" not in drawn and "undefined" not in drawn
    assert spec["width"] == "container", "drawing must not alter the chart"


def test_a_png_is_drawn_without_a_browser(tmp_path: Path) -> None:
    made = charts.png(SPECS["map"](), tmp_path / "map.png", width=300)
    assert (tmp_path / "map.png").read_bytes() == made
    assert made.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "made",
    [
        lambda none: charts.layer_map(none, LAYERS, 30),
        lambda none: charts.layer_map(cells().assign(value=np.nan), LAYERS, 30),
        lambda none: charts.event_raster(RASTER[:0], LAYERS, ["0"], 30),
        lambda none: charts.beside_null(BARS[:0], "events"),
        lambda none: charts.p_values(pd.Series([np.nan])),
        lambda none: charts.phases(none, []),
        lambda none: charts.curves(CURVES[:0], [], 30, "x"),
        lambda none: charts.forest(EFFECTS.assign(estimate=np.nan), "g"),
        lambda none: charts.by_layer(SETTLED[:0], LAYERS, "step"),
        lambda none: charts.specification_curve(SPECIFICATIONS.drop(columns="primary"), "x"),
    ],
)
def test_rows_that_cannot_be_drawn_are_refused(made: Callable[[pd.DataFrame], Any]) -> None:
    with pytest.raises(SpecError):
        made(pd.DataFrame())


# -- maps ----------------------------------------------------------------------------------------------------------


def test_a_map_draws_every_value_between_the_midpoints_of_its_steps() -> None:
    found = binned(cells(), most=100)
    borders = edges(STEPS)
    borders[-1] = 30.5  # the last column ends at its measurement
    own = found[found["row"] == 2]
    np.testing.assert_allclose(own["value"], 2 * STEPS / 30)
    np.testing.assert_allclose(own["x"], np.maximum(borders[:-1], 0))
    overlap = own["x2"].to_numpy() - borders[1:]
    assert (overlap >= 0).all() and (overlap < 0.002 * 30).all()
    assert (own["first"] == STEPS).all() and (own["last"] == STEPS).all()


def test_many_steps_are_pooled_into_columns_that_cover_the_run_and_keep_the_mean() -> None:
    steps = np.arange(0, 1001)
    found = binned(cells(steps, layers=1).assign(value=steps.astype(float)), most=40)
    assert len(found) <= 40
    np.testing.assert_array_equal(found["first"].to_numpy()[1:], found["last"].to_numpy()[:-1] + 1)
    np.testing.assert_allclose(found["value"], (found["first"] + found["last"]) / 2)
    assert found["first"].iloc[0] == 0 and found["last"].iloc[-1] == 1000


def test_the_map_carries_its_cells_its_events_and_where_layers_settled() -> None:
    spec = charts.layer_map(cells(), LAYERS, 30, events=EVENTS, settled=EVENTS, trials=4)
    ground, values, settled, marks = layers(spec)
    assert len(ground) == 3 and len(values) == 18
    np.testing.assert_allclose(values["value"], cells().sort_values(["row", "step"])["value"], rtol=1e-4)
    assert settled["at"].tolist() == marks["at"].tolist() == [5.0, 25.0]
    assert marks["seeds"].tolist() == [4, 1] and marks["direction"].tolist() == ["increase", "decrease"]


def test_critical_periods_are_lines_at_the_foot_of_their_layer() -> None:
    spec = charts.layer_map(cells(), LAYERS, 30, periods=RASTER)
    assert layers(spec)[2][["row", "from", "to"]].to_numpy().tolist() == [[0, 5, 10], [2, 25, 30]]
    mark, row = spec["layer"][2]["mark"], spec["height"] / len(LAYERS)
    assert 0 < mark["yOffset"] - mark["size"] / 2 and mark["yOffset"] + mark["size"] / 2 < row / 2


def test_a_value_that_is_missing_stays_ground() -> None:
    rows = cells()
    rows.loc[rows["row"] == 1, "value"] = np.nan
    _, values = layers(charts.layer_map(rows, LAYERS, 30))
    assert set(values["row"]) == {0, 2}


def test_colours_are_symmetric_about_no_change_and_robust_to_one_cell() -> None:
    assert limits(pd.Series([-1.0, 0.5, np.nan]), "ratio") == pytest.approx((-0.995, 0.995), abs=0.01)
    assert limits(pd.Series([0.0, 0.0]), "ratio") == (-0.05, 0.05)
    low, high = limits(pd.Series([*np.ones(1000), 500.0]), "value")
    assert (low, high) == (1.0, 2.0)


# -- others --------------------------------------------------------------------------------------------------------


def test_the_raster_gives_every_seed_its_own_line_in_its_layer() -> None:
    _, rises, falls = layers(charts.event_raster(RASTER, LAYERS, ["0", "1"], 30))
    assert rises["from"].tolist() == [5] and falls["to"].tolist() == [30]
    assert -0.5 < rises["y"][0] < rises["y2"][0] < 0.5, "first seed of the first layer"
    assert 4.5 < falls["y"][0] < falls["y2"][0] < 5.5, "second seed of the third layer"


def test_no_bar_for_a_null_that_no_series_has() -> None:
    (rows,) = layers(charts.beside_null(BARS, "events"))
    assert rows[["name", "kind", "value"]].to_numpy().tolist() == [
        ["cnn", "observed", 12.0], ["cnn", "null", 4.5], ["mlp", "observed", 3.0],
    ]  # fmt: skip


def test_p_values_stand_beside_the_even_spread() -> None:
    bars, even = layers(charts.p_values(pd.Series(np.linspace(0, 1, 101))))
    assert bars["series"].sum() == 101
    assert even["series"].tolist() == [pytest.approx(101 / 20, rel=1e-3)]


def test_phases_are_stacked_and_none_is_lost() -> None:
    rows = pd.DataFrame({"name": ["a", "a", "b", "b"], "phase": [0.0, 0.02, 0.01, 1.0]})
    bars, *_ = layers(charts.phases(rows, ["a", "b"]))
    assert bars["events"].sum() == 4
    first = bars[bars["from"] == 0].set_index("name")
    assert first.loc["a", ["low", "high"]].tolist() == [0, 2] and first.loc["b", ["low", "high"]].tolist() == [2, 3]


def test_a_band_is_drawn_only_where_there_is_an_interval() -> None:
    area, line = layers(charts.curves(CURVES, ["cnn", "mlp"], 30, "accuracy"))
    assert len(area) == 3 and len(line) == 4


def test_numbers_keep_five_digits_and_text_survives() -> None:
    rows = pd.DataFrame(
        {"x": [1.23456789, np.nan, 1e-9, 12345678.0], "s": ['a,"b"', None, "c\nd", "é"], "i": [1, 2, 3, 4]}
    )
    made = draw.data(rows)
    back = pd.read_csv(io.StringIO(made["values"]), keep_default_na=False, na_values=[""])
    assert back["x"].tolist()[::2] == [1.2346, 1e-9] and np.isnan(back["x"][1]) and back["x"][3] == 12345678
    assert back["s"].tolist()[::2] == ['a,"b"', "c\nd"] and back["i"].tolist() == [1, 2, 3, 4]
    assert made["format"]["parse"] == {"x": "number", "s": "string", "i": "number"}


def test_text_in_charts_and_on_pages_has_contrast() -> None:
    """WCAG AA: 4.5 : 1 for text, 3 : 1 for marks."""
    for theme in (LIGHT, DARK):
        ground = luminance(theme["ground"])
        for name in ("ink", "muted", "rise", "observed"):
            assert contrast(luminance(theme[name]), ground) >= 4.5, name
        for colour in theme["category"]:
            assert contrast(luminance(colour), ground) >= 3.0, colour


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: float, b: float) -> float:
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)
