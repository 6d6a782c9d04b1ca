"""The scorecard: detectors of known behaviour get the marks they deserve, whatever process judges them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ndt_ray.analysis.events.families import judged as declared
from ndt_ray.analysis.events.tables import KEY
from ndt_ray.analysis.validity import battery, families, page
from ndt_ray.analysis.validity.scorecard import (
    FALSE_DISCOVERY,
    _discoveries,
    _Judged,
    exact,
    proportion,
    scorecard,
)
from ndt_ray.analysis.validity.subject import Found, Subject, subject
from ndt_ray.analysis.validity.tasks import FULL, QUICK, Size, Task, compute, plan, run
from ndt_ray.analysis.validity.validate import missed, validate
from ndt_ray.errors import NdtError, SpecError

TINY = Size(nulls=50, marked=20, others=2, planted=4, bars=20, families=10, needles=5)

ALL_KNOWING = '''
"""Looks the truth up: what a perfect detector would say."""
from ndt_ray.analysis.validity.tasks import Task
TRUTH = {}
for name in ("step", "sigmoid_20"):
    for phi in (0.0, 0.5):
        p = Task("planted", name, 8.0, phi, 0, 20).planted()
        TRUTH |= {v.tobytes(): t for v, t in zip(p.values, p.truths.location, strict=True)}

def detect(steps, values):
    return TRUTH.get(values.tobytes(), [])

def silent(steps, values):
    return []

def broken(steps, values):
    raise ValueError("no")

def wrong(steps, values):
    return [[1, 2]]

def deadly(steps, values):
    import os
    os._exit(3)
'''


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(ALL_KNOWING)
    return path


def oracle(p_of_null: Any, detects: bool = True) -> Subject:
    """A detector with p-values made to order: by series of a null family from `p_of_null(i)`, 1e-9 for events."""

    def judge(values: Any, keys: list[str]) -> list[Found]:
        said = []
        for key in keys:
            kind, name, number = key.split(" ")
            if kind == "null":
                p = float(p_of_null(int(number)))
                said.append(Found(np.array([200.0]), p, np.array([p])))
            else:
                where = TRUTHS[kind, name][int(number)] if detects and (kind, name) in TRUTHS else np.zeros(0)
                said.append(Found(where, 1e-9 if len(where) else 0.5, np.full(len(where), 1e-9)))
        return said

    return Subject("oracle", {}, "", judge, gives_p=True)


TRUTHS = {("in_nulls", ""): families.in_nulls(200).truths.location}


def judged(who: Subject, size: Size = TINY) -> dict[str, Any]:
    return scorecard(who, size, {task: compute(task, who) for task in plan(size)})


def bars(card: dict[str, Any]) -> dict[str, bool | None]:
    return {bar["what"]: bar["met"] for bar in card["bars"]}


@pytest.mark.slow
def test_a_calibrated_detector_passes_and_an_eager_one_does_not() -> None:
    uniform = judged(oracle(lambda i: ((i * 37) % 50 + 1) / 51))
    met = bars(uniform)
    assert met["iid: P(p <= 0.01)"] and met["iid: P(p <= 0.05)"]
    assert met["false-discovery proportion of events, 10% true"]
    eager = bars(judged(oracle(lambda i: ((i * 37) % 50 + 1) / 255)))
    assert eager["iid: P(p <= 0.05)"] is False
    assert eager["random_walk: P(p <= 0.05)"] is False


def test_null_counts_are_exact() -> None:
    card = judged(oracle(lambda i: 0.004 if i < 3 else 0.03 if i < 7 else 0.6))
    row = card["nulls"][0]
    assert (row["p_0.01"]["k"], row["p_0.05"]["k"], row["p_0.05"]["n"]) == (3, 7, 50)
    assert row["any_event"]["k"] == 3  # events count at 0.01
    assert row["false_per_1000"] == pytest.approx(1000 * 3 / (50 * 400))
    assert row["p_0.05"]["lo"] < 7 / 50 < row["p_0.05"]["hi"]


def test_marked_series_are_no_p_values_but_count_where_a_family_may_not_be_declined() -> None:
    def judge(values: Any, keys: list[str]) -> list[Found]:
        walks = [key.split(" ")[1] in ("random_walk", "drift") for key in keys]
        return [Found(np.zeros(0), math.nan if w else 0.5, np.zeros(0), "unit_root" if w else "") for w in walks]

    card = judged(Subject("declines", {}, "", judge, gives_p=True))
    rows = {row["family"]: row for row in card["nulls"]}
    assert rows["random_walk"]["why"] == {"unit_root": 20}
    assert rows["random_walk"]["p_0.05"]["share"] is None
    met = bars(card)
    assert met["drift: share of series declined"] is False
    assert met["drift: P(p <= 0.05)"] is None
    assert met["random_walk: P(p <= 0.05)"] is True  # declined: no false alarm


@pytest.mark.slow
def test_false_discovery_proportions_of_a_detector_that_is_always_wrong_or_always_right() -> None:
    right = judged(oracle(lambda i: 0.7))
    shares = {row["share"]: row for row in right["fdr"]}
    assert shares[0.0]["discoveries"] == 0
    assert shares[0.1]["mean_fdp_events"] == shares[0.5]["mean_fdp_series"] == 0.0
    assert shares[0.1]["power"] == shares[0.5]["power"] == 1.0
    assert shares[0.5]["discoveries"] == 10 * 20
    wrong = judged(oracle(lambda i: 1e-6, detects=False))
    shares = {row["share"]: row for row in wrong["fdr"]}
    assert shares[0.0]["mean_fdp_events"] == shares[0.1]["mean_fdp_series"] == 1.0
    assert bars(wrong)["false-discovery proportion of series, 0% true"] is False


def test_discoveries_are_those_that_the_analysis_events_declares() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = np.where(rng.random(40) < 0.4, 10.0 ** rng.uniform(-6, -2, 40), rng.random(40))
        p[rng.random(40) < 0.1] = math.nan
        said = [Found(np.arange(3.0), x, x * np.array([1.0, 3.0, 50.0]), "unit_root" if x != x else "") for x in p]
        key = {name: "x" for name in KEY if name != "trial_id"}
        tests = pd.DataFrame(
            [
                {**key, "trial_id": i, "p": f.p, "calibrated": not f.marked, "tail": "counted"}
                for i, f in enumerate(said)
            ]
        ).assign(n_surrogates=500, p_attainable=1e-9, null_candidates=0.0)
        candidates = pd.DataFrame(
            [{**key, "trial_id": i, "p_event": e} for i, f in enumerate(said) for e in f.p_event if not f.marked]
        )
        rows, family = declared(tests, candidates, FALSE_DISCOVERY)
        found, _, selected, _ = _discoveries([_Judged(f, np.zeros(0), np.zeros(0)) for f in said], gives_p=True)
        assert (found, selected) == (int(rows["significant"].sum()), family["n_selected"])
        assert selected > 0


@pytest.mark.slow
def test_the_needle_is_judged_among_2400_series() -> None:
    def with_needle(p: float) -> dict[str, Any]:
        base = oracle(lambda i: (i + 0.5) / 50)

        def judge(values: Any, keys: list[str]) -> list[Found]:
            said = base.judge(values, keys)
            step = [key.startswith("planted step ") for key in keys]
            return [Found(np.zeros(0), p, np.zeros(0)) if s else f for s, f in zip(step, said, strict=True)]

        return judged(Subject("needle", {}, "", judge, gives_p=True))["needle"]

    assert with_needle(1e-5)["found"]["share"] == 1.0  # 2400 · 1e-5 = 0.024
    assert with_needle(1e-4)["found"]["share"] == 0.0
    assert with_needle(1e-5)["median_q"] == pytest.approx(0.024)


def test_a_users_function_with_the_truth_scores_1_and_silence_0(user_file: Path) -> None:
    perfect = judged(subject(f"{user_file}:detect"))
    rows = {(r["shape"], r["phi"], r["snr"]): r["all"] for r in perfect["power"]}
    assert rows["step", 0.0, 8.0]["recall"] == rows["sigmoid_20", 0.5, 8.0]["f1"] == 1.0
    assert rows["step", 0.0, 8.0]["median_error"] == 0.0
    assert rows["step", 0.0, 8.0]["covering"] == 1.0
    assert all(row["events_per_series"] == 0 for row in perfect["nulls"])
    silent = judged(subject(f"{user_file}:silent"))
    assert bars(silent)["step, φ 0, 8 SD: recall"] is False
    assert bars(silent)["step, φ 0, 8 SD: median location error"] is None
    assert bars(silent)["iid: P(any event)"] is True


def test_a_users_function_that_cannot_be_used_is_named(user_file: Path, tmp_path: Path) -> None:
    series = np.zeros((1, 400))
    for name, message in (("broken", "raises on series 0: ValueError: no"), ("wrong", "must return the steps")):
        with pytest.raises(SpecError, match=message):
            subject(f"{user_file}:{name}").judge(series, ["x"])
    for target, message in (
        (f"{user_file}:nothing", "no function 'nothing'"),
        (f"{tmp_path}/none.py:f", "no file"),
        (f"{user_file}:1", "not of the form"),
    ):
        with pytest.raises(SpecError, match=message):
            subject(target)
    with pytest.raises(SpecError, match="steps and values only"):
        subject(f"{user_file}:detect", {"a": 1})
    with pytest.raises(SpecError, match="unknown detector"):
        subject("proflie")
    user_file.write_text("import nothing_of_that_name\n")
    with pytest.raises(SpecError, match="raises on import"):
        subject(f"{user_file}:detect")


def test_another_function_in_the_file_is_another_detector(user_file: Path) -> None:
    before = subject(f"{user_file}:silent")
    user_file.write_text(ALL_KNOWING + "\n")
    assert subject(f"{user_file}:silent").label != before.label
    assert subject("difference_z").label != subject("difference_z", {"threshold": 3.0}).label


@pytest.mark.slow
def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    who = subject("rolling_level")
    tasks = plan(TINY)
    run(who, tasks[:7], tmp_path)
    files = sorted(tmp_path.rglob("*.jsonl"))
    assert len(files) == 7
    stamps = [f.stat().st_mtime_ns for f in files]
    seen: list[tuple[int, int]] = []
    whole, _ = run(who, tasks, tmp_path, progress=lambda p: seen.append((p.skipped, p.done)))
    assert [f.stat().st_mtime_ns for f in files] == stamps
    assert seen[0] == (7, 7) and seen[-1] == (7, len(tasks))
    fresh = {task: compute(task, who) for task in tasks}
    assert scorecard(who, TINY, whole) == scorecard(who, TINY, fresh)


@pytest.mark.slow
def test_two_processes_say_what_one_says(tmp_path: Path, user_file: Path) -> None:
    who = subject(f"{user_file}:detect")
    tasks = [t for t in plan(TINY) if t.kind in ("planted", "battery")]
    one, _ = run(who, tasks, tmp_path / "one")
    two, _ = run(who, tasks, tmp_path / "two", workers=2)
    assert {t: [f.location.tolist() for f in said] for t, said in one.items()} == {
        t: [f.location.tolist() for f in said] for t, said in two.items()
    }


@pytest.mark.slow
def test_a_worker_that_dies_is_named(tmp_path: Path, user_file: Path) -> None:
    tasks = [Task("null", "iid", first=i, count=1) for i in range(3)]
    with pytest.raises(NdtError, match="a worker died"):
        run(subject(f"{user_file}:deadly"), tasks, tmp_path, workers=2)
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.slow
def test_pages_are_whole_and_the_same_twice(tmp_path: Path) -> None:
    size = Size(nulls=10, marked=5, others=2, planted=2, bars=2, families=2, needles=2)
    for name in ("a", "b"):
        card = validate("rolling_level", {"threshold": 3.0}, size=size, out=tmp_path / name, baselines=False)
    files = ["scorecard.json", "validity.md", "validity.html", "validity_power.png"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    assert json.loads((tmp_path / "a" / "scorecard.json").read_text()) == json.loads(json.dumps(card))
    document = (tmp_path / "a" / "validity.html").read_text()
    assert 'src="data:image/png;base64,' in document
    assert "http://" not in document and "https://" not in document
    text = (tmp_path / "a" / "validity.md").read_text()
    for family in (*families.NULLS, *families.OTHERS):
        assert f"| {family}: " in text
    assert "| rolling z > 3 | 1.00 | 5 | 14 | 2 | 4 | fails |" in text
    assert any("battery" in bar["what"] for bar in missed(card))


def test_pages_escape_names() -> None:
    block = page.Grid(("a|b",), [("<script>",)])
    assert "&lt;script&gt;" in page._html([page.Text("x", 1), block])
    assert "a\\|b" in page._markdown(block)


def test_the_battery_is_ndtrackers() -> None:
    """Its own detector fails there with the counts that its authors publish; ours is judged on the same series."""
    rule = subject("rolling_level", {"threshold": 3.0})
    verdict = battery.run(lambda values, name: rule.judge(values[None], [name])[0].location)
    assert tuple(s.false_positives for s in verdict.scores.values()) == battery.OWN_FALSE
    assert verdict.recall == 1.0 and not verdict.passed
    silent = battery.run(lambda values, name: [])
    assert silent.false_per_1000 == 0.0 and not silent.passed


def test_the_battery_is_that_of_the_installed_package() -> None:
    ndt = pytest.importorskip("ndt", reason="ndtracker is not installed (extra: bench)")
    for ours, theirs in zip(battery.fixtures(), ndt.standard_battery(), strict=True):
        assert np.array_equal(ours.values, theirs.values)
        assert (ours.name, ours.changes) == (theirs.name, theirs.ground_truth)
    report = ndt.validate_detector(ndt.jump_detector_as_callable(ndt.JumpDetector()))
    assert tuple(r.false_positives for r in report.results) == battery.OWN_FALSE


def test_exact_intervals() -> None:
    assert exact(0, 100) == (0.0, pytest.approx(0.0362167, abs=1e-6))
    assert exact(100, 100)[1] == 1.0
    assert exact(5, 100) == pytest.approx((0.0164319, 0.1128349), abs=1e-6)
    assert proportion(0, 0) == {"k": 0, "n": 0, "share": None, "lo": None, "hi": None}


def test_sizes() -> None:
    assert QUICK.nulls == FULL.nulls // 10
    assert sum(t.count for t in plan(FULL)) == pytest.approx(52_000, rel=0.1)
    with pytest.raises(SpecError, match="need 250 series"):
        Size(nulls=249, marked=1, others=2, planted=1, bars=1, families=50, needles=1)
    assert Task("null", "iid", first=50, count=50).id != Task("null", "iid", first=0, count=50).id
