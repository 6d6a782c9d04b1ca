"""The summary of planted stores: numbers known beforehand, verdicts that claim no more than the counts allow."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_catalogue import FakeCatalogue
from store_rows import local

from ndt_ray.analysis.events.tables import EVENT_FAMILIES
from ndt_ray.analysis.tables import JUMP_COUNTS, JUMPS
from ndt_ray.errors import StoreError
from ndt_ray.plan import Plan, make_plan
from ndt_ray.plan.file import plan_lines
from ndt_ray.spec.axes import Sweep
from ndt_ray.store.outputs import write_output
from ndt_ray.store.reader import Store
from ndt_ray.store.schema import register_table
from ndt_ray.store.sweep import Sweep as SweepFolder
from ndt_ray.store.writer import PackWriter
from ndt_ray.summary import cell_labels, in_plan_order, planned_lanes, sweep_summary
from ndt_ray.verdicts import Jumps, Null, jump_verdicts, t_interval

SEEDS = 3


@pytest.fixture(scope="module", autouse=True)
def _tables() -> None:
    register_table(JUMPS)
    register_table(JUMP_COUNTS)
    register_table(EVENT_FAMILIES)


def plan(models: Sequence[str] = ("vit", "mlp"), seeds: int = SEEDS, data: Sequence[str] = ("digits",)) -> Plan:
    axes = [
        {"path": "model", "role": "compare", "values": list(models)},
        {"path": "data", "role": "compare", "values": list(data)},
        {"path": "seed", "role": "replicate", "range": seeds},
    ]
    spec = {"name": "planted", "about": "Is it there?", "base": {"train": {"steps": 20}}, "axes": axes}
    return make_plan(Sweep.model_validate(spec), FakeCatalogue(), workers=1)


def planted(root: Path, made: Plan, status: dict[int, str] | None = None, with_plan: bool = True) -> Store:
    """A store whose trials score 0.9, 0.8, 0.7, ... by seed; `status` says which seeds did not finish."""
    store = local(root)
    folder = SweepFolder(store.location, "planted")
    folder.write_spec("about: Is it there?\n")
    if with_plan:
        store.location.write(f"{folder.folder}/plan.json", "".join(plan_lines(made)).encode())
    for pack in made.packs:
        with PackWriter(store, "planted", pack.pack_id, trials=tuple(pack.trial_ids)) as writer:
            for lane, trial in zip(pack.lanes, pack.trials, strict=True):
                of = {"cell": lane.cell, "model": trial.model.name, "data": trial.data.name, "seed": lane.seed[0]}
                size = {"steps": 20, "probe_size": 128, "data_completeness": "complete", "control": lane.control}
                writer.rows("trials", {"trial_id": [lane.trial_id], **of, **size})
                for step in (0, 20):
                    layers = {"layer": ["a.0", "a.1"], "layer_index": [0, 1], "view": "units"}
                    value = {"participation_ratio": [8.0, 4.0 if step else 8.0]}
                    writer.rows("measurements", {"trial_id": lane.trial_id, "step": step, **layers, **value})
                how = (status or {}).get(lane.seed[0], "finished")
                if how != "running":
                    error = "RuntimeError: planted" if how == "failed" else None
                    end = {"last_step": 20, "final_accuracy": 0.9 - 0.1 * lane.seed[0], "error": error}
                    writer.rows("outcomes", {"trial_id": [lane.trial_id], "status": how, **end})
            writer.commit(20, None, finished=True)
    return store


def counts(observed: Sequence[int], expected: float, sd: float = 1.0, series: int = 4, **more: Any) -> pd.DataFrame:
    """Rows of `jump_counts`: one trial per number observed, which is spread over its series."""
    rows = []
    for trial, total in enumerate(observed):
        for i, n in enumerate(np.bincount(np.arange(total) % series, minlength=series)):
            row = {"trial_id": f"t{trial}", "name": "mlp", "layer": f"a.{i}", "layer_index": i, "view": "units"}
            row |= {"measure": "participation_ratio", "mode": "default", "detector": "difference_z", "observed": n}
            row |= {"merged": n, "p_ar1": 0.04 if n > 3 else 0.5}
            for family in ("white", "ar1"):
                row |= {f"null_{family}_mean": expected / series, f"null_{family}_sd": sd}
            rows.append(row | more)
    return pd.DataFrame(rows)


def write_counts(store: Store, by_trial: dict[str, pd.DataFrame], events: int = 0) -> None:
    for trial, rows in by_trial.items():
        table = {c.name: None for c in JUMP_COUNTS.columns}
        table |= {c: list(rows[c]) for c in rows if c in table} | {"trial_id": [trial] * len(rows)}
        table |= {"parameters": "{}", "grid_every": 10, "n": 2, "n_missing": 0, "shown": 0, "n_surrogates": 200}
        event = {"trial_id": trial, "layer": "a.1", "layer_index": 1, "view": "units", "mode": "default"}
        event |= {"measure": "participation_ratio", "detector": "difference_z", "index": np.arange(events)}
        event |= {"step_before": 0, "step_after": 20, "direction": "decrease", "counted": True}
        jumps = {c.name: None for c in JUMPS.columns} | event
        write_output(store, "planted", "jumps", trial, {"jump_counts": table, "jumps": jumps}, cache_key="1")


# -- what was trained ----------------------------------------------------------------------------------------------


def test_cells_are_counted_scored_and_in_the_order_of_the_plan(tmp_path: Path) -> None:
    summary = sweep_summary(planted(tmp_path, plan()), "planted")
    assert [cell.name for cell in summary.cells] == ["vit", "mlp"]
    for cell in summary.cells:
        assert (cell.planned, cell.finished, cell.failed, cell.diverged, cell.unfinished) == (3, 3, 0, 0, 0)
        assert cell.accuracy == pytest.approx(0.8) and cell.accuracy_sd == pytest.approx(0.1)
        assert (cell.layers, cell.rows) == (2, 12)
    text = summary.text()
    assert "Is it there?" in text and "digits (complete) · 20 steps · 128 probe stimuli" in text
    assert "0.800 ± 0.100" in text and "unfinished" not in text and "diverged" not in text


def test_only_finished_trials_are_scored(tmp_path: Path) -> None:
    store = planted(tmp_path, plan(("mlp",), seeds=5), {1: "failed", 2: "diverged", 3: "running"})
    summary = sweep_summary(store, "planted")
    (cell,) = summary.cells
    assert (cell.planned, cell.finished, cell.failed, cell.diverged, cell.unfinished) == (5, 2, 1, 1, 1)
    assert cell.accuracy == pytest.approx((0.9 + 0.5) / 2)
    text = summary.text()
    assert "diverged" in text and "unfinished" in text
    answer = store.sql(next(sql for sql, answers in summary.queries if answers == "what failed"))
    assert sorted(answer["status"]) == ["diverged", "failed"]
    assert "RuntimeError: planted" in set(answer["error"])


def test_one_seed_has_no_sd(tmp_path: Path) -> None:
    (cell,) = sweep_summary(planted(tmp_path, plan(("mlp",), seeds=1)), "planted").cells
    assert cell.accuracy == pytest.approx(0.9) and cell.accuracy_sd is None


def test_planned_trials_that_never_started_are_unfinished(tmp_path: Path) -> None:
    store = planted(tmp_path, plan(("mlp",), seeds=2))
    folder = SweepFolder(store.location, "planted").folder
    store.location.write(f"{folder}/plan.json", "".join(plan_lines(plan(seeds=4))).encode())
    cells = {cell.name: cell for cell in sweep_summary(store, "planted").cells}
    assert (cells["mlp"].planned, cells["mlp"].finished, cells["mlp"].unfinished) == (4, 2, 2)
    assert (cells["vit"].planned, cells["vit"].finished, cells["vit"].accuracy) == (4, 0, None)
    assert (cells["vit"].layers, cells["vit"].rows) == (0, 0)


def test_without_a_plan_the_tables_speak_alone(tmp_path: Path) -> None:
    store = planted(tmp_path, plan(), with_plan=False)
    assert planned_lanes(store, "planted") == []
    assert [(c.name, c.planned) for c in sweep_summary(store, "planted").cells] == [("mlp", 3), ("vit", 3)]


def test_a_planned_sweep_of_which_nothing_is_committed(tmp_path: Path) -> None:
    store = local(tmp_path)
    folder = SweepFolder(store.location, "planted")
    store.location.write(f"{folder.folder}/plan.json", "".join(plan_lines(plan())).encode())
    summary = sweep_summary(store, "planted")
    assert [(c.name, c.unfinished) for c in summary.cells] == [("vit", 3), ("mlp", 3)]
    assert "nothing is committed yet" in summary.text() and summary.jumps == ()


def test_an_unknown_sweep_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    store = planted(tmp_path, plan(("mlp",), seeds=1))
    with pytest.raises(StoreError, match="did you mean 'planted'"):
        sweep_summary(store, "plantd")


def test_cells_lose_their_data_set_only_where_it_says_nothing() -> None:
    assert cell_labels([("vit/digits lr=0.1", "digits"), ("mlp/digits", "digits")]) == {
        "vit/digits lr=0.1": "vit lr=0.1",
        "mlp/digits": "mlp",
    }
    assert cell_labels([("vit/digits(n=3)", "digits")]) == {"vit/digits(n=3)": "vit/digits(n=3)"}
    both = {"mlp/digits": "mlp/digits", "mlp/mnist": "mlp/mnist"}
    assert cell_labels([("mlp/digits", "digits"), ("mlp/mnist", "mnist")]) == both


def test_rows_follow_the_plan_and_strangers_come_last() -> None:
    rows = pd.DataFrame({"cell": ["mlp/digits", "other", "vit/digits", "mlp/digits"], "n": range(4)})
    lanes = [lane for pack in plan().packs for lane in pack.lanes]
    assert list(in_plan_order(rows, lanes)["n"]) == [2, 0, 3, 1]
    assert list(in_plan_order(rows, [])["n"]) == [0, 1, 2, 3]


# -- jumps beside noise --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("observed", "expected", "words"),
    [
        ([20, 21, 22, 19], 6.0, "more than noise gives"),
        ([6, 5, 7, 6], 6.0, "what noise gives"),
        ([0, 1, 0, 1], 12.0, "fewer than noise gives"),
        ([20, 22], 6.0, "descriptive only: 2 seeds"),
        ([20], 6.0, "descriptive only: 1 seed"),
    ],
)
def test_the_verdict_follows_the_counts(observed: list[int], expected: float, words: str) -> None:
    (verdict,) = jump_verdicts(counts(observed, expected))
    assert verdict.words == words and verdict.observed == sum(observed)
    assert verdict.trials == len(observed) and verdict.series == 4 * len(observed)
    assert verdict.white is not None and verdict.white.expected == pytest.approx(expected * len(observed))
    assert verdict.series_above_ar1 == sum(n > 3 for t in observed for n in np.bincount(np.arange(t) % 4, minlength=4))


def test_a_count_that_one_seed_carries_is_no_verdict() -> None:
    """The sum lies far above the null, but over seeds nothing can be said: layers of one trial jump together."""
    (verdict,) = jump_verdicts(counts([60, 5, 6, 5], 6.0))
    assert verdict.white is not None and verdict.observed > verdict.white.high
    assert verdict.words == "what noise gives"


def test_nulls_that_disagree_are_told_apart() -> None:
    rows = counts([20, 21, 22], 6.0)
    rows["null_ar1_mean"] = 21 / 4
    (verdict,) = jump_verdicts(rows)
    assert verdict.words == "more than white noise gives, what AR(1) gives"


def test_series_without_a_null_give_none() -> None:
    rows = counts([0, 0, 0], 0.0)
    rows[[c for c in rows if c.startswith("null") or c == "p_ar1"]] = np.nan
    (verdict,) = jump_verdicts(rows)
    assert verdict.white is None and verdict.words == "no null: series constant or too short"


@pytest.mark.slow
def test_verdicts_on_noise_are_rarely_above() -> None:
    """Counts drawn from the null itself, layers of a trial in lockstep: at most 5 % of sweeps above."""
    rng = np.random.default_rng(0)
    frames = [counts(list(4 * rng.poisson(2.0, 6)), 8.0, sd=2.0**0.5, name=f"c{i:03d}") for i in range(200)]
    made = jump_verdicts(pd.concat(frames))
    assert sum(j.white is not None and j.white.verdict == "above" for j in made) <= 10


def test_no_phrase_outruns_its_verdicts() -> None:
    """Every pair of verdicts: 'more' is said only of a null that the count is above, 'fewer' only below."""
    for white in ("above", "within", "below"):
        for ar1 in ("above", "within", "below"):
            nulls = [Null(1.0, 0.0, 2.0, v) for v in (white, ar1)]  # type: ignore[arg-type]
            words = Jumps("m", "p", "d", 3, 9, 5, *nulls, 0).words
            assert ("more" in words) == ("above" in (white, ar1))
            assert ("fewer" in words) == ("below" in (white, ar1))
            assert ("white" in words) == (white != ar1)


def test_t_interval_equals_the_textbook() -> None:
    low, high = t_interval(np.array([1.0, 2.0, 3.0]))
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert np.isnan(t_interval(np.array([1.0]))).all()


def test_jumps_stand_beside_their_nulls_in_one_line_a_cell(tmp_path: Path) -> None:
    made = plan()
    store = planted(tmp_path, made)
    for pack in made.packs:
        per_seed = [20, 22, 24] if pack.first.model.name == "vit" else [6, 5, 7]
        found = counts(per_seed, 6.0)
        other = found.assign(detector="rolling_level", observed=0)
        both = pd.concat([found, other])
        split = {t: both[both["trial_id"] == f"t{i}"] for i, t in enumerate(pack.trial_ids)}
        write_counts(store, split, events=2)
    summary = sweep_summary(store, "planted")
    assert [(j.name, j.observed, j.detector) for j in summary.jumps] == [
        ("vit", 66, "difference_z"),
        ("mlp", 18, "difference_z"),
    ]
    assert [(j.name, j.detector) for j in summary.others] == [("vit", "rolling_level"), ("mlp", "rolling_level")]
    lines = summary.text().splitlines()
    vit, mlp = (next(line for line in lines if line.startswith(name) and "[" in line) for name in ("vit", "mlp"))
    assert vit.split()[:2] == ["vit", "66"] and vit.endswith("more than noise gives")
    assert mlp.split()[:2] == ["mlp", "18"] and mlp.endswith("what noise gives")
    assert "18 [11, 25]" in vit  # 3 x 6 ± 1.96 sqrt(12)
    assert any("0 above, 0 within, 2 below, of 2" in line for line in lines)
    assert any("no proof of jumps" in line for line in lines)
    (answer,) = (store.sql(sql) for sql, answers in summary.queries if "agree" in answers)
    assert answer[["layer", "step_before", "direction", "seeds"]].values.tolist() == [["a.1", 0, "decrease", 3]] * 2


# -- what is printed -----------------------------------------------------------------------------------------------


def test_every_printed_query_runs_and_answers(tmp_path: Path) -> None:
    made = plan()
    store = planted(tmp_path, made, {2: "failed"})
    rows = counts([6], 6.0)
    write_counts(store, {t: rows for pack in made.packs for t in pack.trial_ids}, events=1)
    summary = sweep_summary(store, "planted")
    assert len(summary.queries) == 3
    for sql, _ in summary.queries:
        assert len(store.sql(sql)) > 0
        assert not set(sql) & set('"$`\\!'), "it is printed in double quotes for a shell"
    text = " ".join(summary.text(80).split())
    assert all(f'ndt query "{sql}"' in text for sql, _ in summary.queries)


def test_no_query_names_a_table_that_the_store_has_not(tmp_path: Path) -> None:
    store = planted(tmp_path, plan())
    assert [answers for _, answers in sweep_summary(store, "planted").queries] == [
        "dimensionality before and after training"
    ]


def test_commands_name_the_store_they_are_for(tmp_path: Path) -> None:
    text = sweep_summary(planted(tmp_path, plan()), "planted", where="my stores/a").text()
    assert "ndt query --store 'my stores/a' \"SELECT" in text


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_number_is_cut_at_any_width(tmp_path: Path, width: int) -> None:
    made = plan()
    store = planted(tmp_path, made)
    write_counts(store, {t: counts([20], 6.0) for pack in made.packs for t in pack.trial_ids})
    text = sweep_summary(store, "planted").text(width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("0.800 ± 0.100") == 2 and text.count("18 [11, 25]") == 4 and "…" not in text


def test_the_summary_for_programs_is_json(tmp_path: Path) -> None:
    made = plan(("mlp",))
    store = planted(tmp_path, made)
    write_counts(store, {t: counts([6], 6.0) for pack in made.packs for t in pack.trial_ids})
    value = json.loads(json.dumps(sweep_summary(store, "planted").value(), allow_nan=False))
    assert value["cells"][0]["unfinished"] == 0 and value["jumps"][0]["words"] == "what noise gives"


def test_calibrated_events_stand_beside_what_the_null_gives(tmp_path: Path) -> None:
    store = planted(tmp_path, plan())
    assert sweep_summary(store, "planted").events is None
    known = {"measure": "stable_rank", "view": "*", "detector": "profile", "null": "ar_sieve", "alpha": 0.05}
    known |= {"n_series": 20, "n_calibrated": 18, "n_selected": 3, "n_candidates": 7, "null_candidates": 4.83}
    known |= {"n_events": 2, "null_events": 0.1, "q_attainable": 1e-3}
    rows = {"family": ["primary", "velocity"], "primary": [True, False]} | {k: [v, 1] for k, v in known.items()}
    rows |= {k: [known[k], "x"] for k in ("measure", "view", "detector", "null")}
    write_output(store, "planted", "events", "sweep", {"event_families": rows}, cache_key="1")
    text = sweep_summary(store, "planted").events
    assert text == (
        "calibrated events of stable_rank: 2 in 3 of 18 testable series (false discovery rate 5%); "
        "before correction 7 candidates, where the null gives 4.8"
    )
