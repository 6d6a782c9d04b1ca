"""The comparison with matched windows in the folder of `ndt mechanisms`: numbers as CSV, the tests as a figure."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ndt_ray.errors import SpecError
from ndt_ray.figures import at_events
from ndt_ray.figures.album import Album
from ndt_ray.figures.at_events import tests_figure as drawn_tests


def row(metric: str, q: float | None = None, flag: str | None = None, **more: Any) -> dict[str, Any]:
    """A test of mechanism_tests: 1.5 [0.5, 2.5] unless it says otherwise, without numbers where it has a flag."""
    made: dict[str, Any] = {"cell": "mlp/digits", "metric": metric, "exploratory": False, "flag": flag}
    made |= {"q": q, "p": None if q is None else q / 2, "n_events": 0 if flag else 7, "n_trials": 0 if flag else 4}
    known = {"difference": 1.5, "lo": 0.5, "hi": 2.5, "unmatched_difference": 2.0}
    return made | (dict.fromkeys(known) if flag else known) | more


def tables(rows: list[dict[str, Any]], **more: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return dict.fromkeys(at_events.TABLES, pd.DataFrame()) | {"mechanism_tests": pd.DataFrame(rows)} | more


ROWS = [
    row("weak", 0.4, difference=-0.5, lo=-1.0, hi=0.1),
    row("class_selectivity", 0.01),
    row("lonely", flag="no_controls"),
    row("rare", flag="few_trials", difference=0.7, n_events=2, n_trials=2),
    row("wide", 0.2, lo=-40.0, hi=43.0),
]


def test_the_figure_has_each_test_with_interval_q_and_n_and_the_untested_with_their_reason() -> None:
    (axes,) = drawn_tests(pd.DataFrame(ROWS), "mlp/digits").axes
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "class selectivity", "wide", "weak", "rare", "lonely",
    ]  # fmt: skip
    assert [t.get_text() for t in axes.texts] == [
        "1.5 [0.5, 2.5], q = 0.01, 7 events of 4 trials",
        "1.5 [-40, 43], q = 0.2, 7 events of 4 trials",
        "-0.5 [-1, 0.1], q = 0.4, 7 events of 4 trials",
        "not tested: few trials, 2 events of 2 trials",
        "not tested: no controls",
    ]
    points = {int(y): (x, line) for line in axes.lines if line.get_marker() == "o"
              for x, y in [(float(line.get_xdata()[0]), float(line.get_ydata()[0]))]}  # type: ignore[index]  # fmt: skip
    assert [points[y][0] for y in range(4)] == [1.5, 1.5, -0.5, 0.7] and np.isnan(points[4][0])
    filled = [points[y][1].get_markerfacecolor() != "white" for y in range(5)]
    assert filled == [True, False, False, False, False]
    spans = {int(line.get_ydata()[0]): list(line.get_xdata()) for line in axes.lines  # type: ignore[index]
             if len(line.get_xdata()) == 2 and line.get_ydata()[0] == line.get_ydata()[1]  # type: ignore[arg-type,index]
             and float(line.get_ydata()[0]).is_integer()}  # type: ignore[index]  # fmt: skip
    low, high = axes.get_xlim()
    assert spans[0] == [0.5, 2.5] and spans[2] == [-1.0, 0.1] and 3 not in spans
    assert spans[1] == [low, high] and high < 10  # one wide interval leaves the others to be seen
    bars = [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "|"]  # type: ignore[index]
    assert bars[:4] == [2.0, 2.0, 2.0] + [bars[3]] and np.isnan(bars[3])


def test_numbers_are_written_whole_and_what_has_none_says_how_to_get_them(tmp_path: Path) -> None:
    changes = pd.DataFrame({"trial_id": ["a"], "metric": ["nc1"], "change": [0.1234567890123]})
    album = Album(tmp_path, sweep="s")
    at_events.write(album, tables([*ROWS, row("nc1", 0.02, cell="cnn/digits")], mechanism_changes=changes), set())
    names = [p.name for p in album.files]
    assert names == ["mechanism_tests.csv", "mechanism_changes.csv", "tests_cnn_digits.png", "tests_mlp_digits.png"]
    back = pd.read_csv(tmp_path / "mechanism_tests.csv")
    assert back["metric"].tolist() == [*(r["metric"] for r in ROWS), "nc1"] and back["q"].isna().sum() == 2
    assert pd.read_csv(tmp_path / "mechanism_changes.csv")["change"].item() == 0.1234567890123
    said = {s.what: s.reason for s in album.skips}
    assert "`ndt analyze s hypotheses`" in said["hypotheses"] and "`ndt mechanisms s --run`" in said["hypotheses"]
    assert "enough windows like it" in said["mlp/digits, not tested: lonely"]
    assert "under three trials" in said["mlp/digits, not tested: rare"] and not any("cnn" in what for what in said)


def test_an_analysis_that_found_nothing_to_compare_is_not_asked_for_again(tmp_path: Path) -> None:
    album = Album(tmp_path, sweep="s")
    at_events.write(album, dict.fromkeys(at_events.TABLES, pd.DataFrame()), {"mechanisms", "hypotheses"})
    assert not album.entries
    assert {s.reason for s in album.skips} == {
        "it ran, and had nothing to compare: there is no event, or none between checkpoints near enough"
    }


def test_candidates_are_not_called_events_and_a_cell_without_numbers_has_no_figure(tmp_path: Path) -> None:
    guess = drawn_tests(pd.DataFrame([row("nc1", 0.01, exploratory=True)]), "c")
    assert any("none of them a significant event" in t.get_text() for t in guess.texts)
    album = Album(tmp_path)
    at_events.write(album, tables([row("lonely", flag="no_controls")]), set())
    assert [p.suffix for p in album.files] == [".csv"] and any("lonely" in s.what for s in album.skips)
    many = drawn_tests(pd.DataFrame([row(f"m{i:02}", 0.5) for i in range(30)]), "c")
    assert (
        len(many.axes[0].get_yticks()) == at_events.MOST and "6 more in mechanism_tests.csv" in many.texts[1].get_text()
    )
    with pytest.raises(SpecError, match="no rows to draw"):
        drawn_tests(pd.DataFrame(ROWS).iloc[:0], "c")
