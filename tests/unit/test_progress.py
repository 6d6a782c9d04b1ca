"""The same events as a tally, as plain lines, as JSON and as a table that is drawn."""

import io
import json
from typing import Any

import pytest
from rich.console import Console

from ndt_ray.analysis.running.runner import Progress
from ndt_ray.progress import AnalysisLines, Event, JsonView, LiveView, PlainView, Tally, clock, replayed

PACKS = [
    {"pack": "a", "cell": "mlp/digits", "trials": 2, "steps": 100},
    {"pack": "b", "cell": "mlp/digits", "trials": 2, "steps": 100},
    {"pack": "c", "cell": "cnn/digits", "trials": 1, "steps": 400},
]


def at(time: float, event: str, **fields: Any) -> Event:
    return {"event": event, "time": time, **fields}


EVENTS = [
    at(100, "plan", sweep="s", packs=PACKS, finished_trials=3),
    at(110, "start", pack="a"),
    at(110, "start", pack="c"),
    at(112, "progress", pack="a", step=0, steps=100, seed_steps_s=50.0),
    at(114, "progress", pack="a", step=50, steps=100, seed_steps_s=60.0),
    at(116, "finish", pack="a", step=100, lanes_failed=[]),
    at(116, "start", pack="b"),
    at(118, "retry", pack="c", cell="cnn/digits", error="the worker died\nand more"),
    at(120, "stop", pack="b", step=50),
    at(122, "fail", pack="c", cell="cnn/digits", error="no use", reproduce="ndt …"),
    at(123, "analysis", analysis="jumps", total=4, done=1, skipped=3, dead=0, retries=0, last=True),
    at(124, "unheard_of", pack="a"),
    at(125, "done", finished=1, failed=1, stopped=1),
]


def test_a_tally_follows_the_events() -> None:
    tally = replayed(EVENTS[:5])
    assert (tally.sweep, tally.already, tally.rate) == ("s", 3, 60.0)
    assert tally.share == 100 / 800
    assert tally.eta == pytest.approx(2.0 * 700 / 100)  # from the first progress on, not from the plan
    tally = replayed(EVENTS)
    assert [p.status for p in tally.packs.values()] == ["done", "stopped", "failed"]
    assert tally.share == (200 + 100 + 400) / 800 and tally.eta is None
    assert tally.analyses["jumps"].done == 4
    assert {c: len(p) for c, p in tally.cells().items()} == {"mlp/digits": 2, "cnn/digits": 1}


def test_a_relaunch_in_the_same_log_starts_the_tally_anew() -> None:
    tally = replayed([*EVENTS, at(200, "plan", sweep="s", packs=[], finished_trials=7)])
    assert tally.packs == {} and tally.already == 7 and tally.failed == [] and tally.share == 1.0


def test_no_eta_before_anything_is_known() -> None:
    assert Tally().eta is None and replayed(EVENTS[:4]).eta is None
    assert (clock(None), clock(3725.9)) == ("-:--:--", "1:02:05")


def test_plain_lines() -> None:
    out = io.StringIO()
    view = PlainView(out)
    for e in EVENTS:
        view.show(e)
    view.close()
    assert out.getvalue().splitlines() == [
        "s: 5 trials in 3 packs to run, 3 already done",
        "s: 10 % after 0:00:14, left 0:00:14",
        "s: 25 % after 0:00:16, left 0:00:12",
        "cnn/digits (pack c) tried again: the worker died",
        "s: 35 % after 0:00:20, left 0:00:13",
        "cnn/digits (pack c) failed: no use",
        "s: 85 % after 0:00:22",
        "s: jumps 4 of 4",
    ]


def test_nothing_to_run_is_said_in_no_line_of_progress() -> None:
    out = io.StringIO()
    view = PlainView(out)
    view.show(at(100, "plan", sweep="s", packs=[], finished_trials=7))
    view.show(at(100, "analysis", analysis="jumps", total=4, done=0, skipped=4, dead=0, retries=0, last=True))
    view.show(at(100, "done", finished=0, failed=0, stopped=0))
    assert out.getvalue() == ""


def test_a_long_analysis_says_how_far_it_is() -> None:
    out = io.StringIO()
    say = AnalysisLines(out, every=0.0)
    for done in range(4):
        say(Progress("events", total=3, done=done, skipped=0, dead=0, retries=0, partition=None))
    say(Progress("jumps", total=3, done=0, skipped=1, dead=1, retries=0, partition=None))
    assert [line.partition(" after ")[0] for line in out.getvalue().splitlines()] == [
        "events 0 of 3",
        "events 1 of 3",
        "events 2 of 3",
        "jumps 2 of 3 (1 failed)",
    ]
    quiet = AnalysisLines(out := io.StringIO(), every=1e9)
    quiet(Progress("events", total=3, done=1, skipped=0, dead=0, retries=0, partition=None))
    assert out.getvalue() == ""


def test_json_lines_read_back() -> None:
    out = io.StringIO()
    view = JsonView(out)
    for e in EVENTS:
        view.show(e)
    assert [json.loads(line) for line in out.getvalue().splitlines()] == EVENTS


def drawn(events: list[Event], height: int = 40) -> str:
    """The last picture of a terminal of so many lines."""

    def terminal() -> Console:
        return Console(file=io.StringIO(), force_terminal=True, width=90, height=height, color_system=None)

    view, page = LiveView(terminal()), terminal()
    for e in events:
        view.show(e)
    with page.capture() as captured:  # another terminal: the view's own thread draws in the first
        page.print(view._picture())
    view.close()
    return captured.get()


def test_a_table_with_a_line_for_each_cell() -> None:
    text = drawn(EVENTS)
    assert "mlp/digits       4  75/100" in text and "1 stopped, 1 done" in text
    assert "cnn/digits" in text and "failed" in text and "jumps 4/4" in text and "88%" in text


def test_many_cells_on_a_small_terminal_show_those_at_work() -> None:
    packs = [{"pack": f"p{i}", "cell": f"cell-{i:02d}", "trials": 1, "steps": 10} for i in range(57)]
    events = [at(1, "plan", sweep="s", packs=packs, finished_trials=0)]
    events += [at(2, "finish", pack=f"p{i}", step=10, lanes_failed=[]) for i in range(30)]
    text = drawn([*events, at(3, "start", pack="p44")], height=15)
    lines = text.splitlines()
    assert len(lines) <= 14 and any("cell-44" in line and "running" in line for line in lines)
    assert any("and 50 cells more" in line and "30 done" in line for line in lines)
