"""A small sweep with planted tables: what its report has to say is known beforehand."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from store_rows import local

from ndt_ray.analysis.convergence import CONVERGENCE
from ndt_ray.analysis.convergence_tests import CONVERGENCE_ARCHITECTURES, CONVERGENCE_CELLS
from ndt_ray.analysis.critical.tables import COORDINATION_CELLS, CRITICAL_PERIODS, CRITICAL_RANKING, CRITICAL_SERIES
from ndt_ray.analysis.events.layers import EVENT_KINDS
from ndt_ray.analysis.events.tables import EVENT_FAMILIES, EVENTS, SERIES_TESTS, TRANSIENTS
from ndt_ray.analysis.events.timing import TIMING_MODELS
from ndt_ray.analysis.hypotheses.tables import HYPOTHESES, PATTERNS
from ndt_ray.analysis.inference.architecture_claims import ARCHITECTURE_CLAIMS
from ndt_ray.analysis.inference.tables import (
    CELL_STATUS,
    COMPARISONS,
    CONCORDANCE,
    REPLICATED_EVENTS,
    ROBUSTNESS,
    SPECIFICATION_CURVE,
)
from ndt_ray.analysis.mechanisms.escape import ESCAPE
from ndt_ray.analysis.mechanisms.grokking.tables import ANSWERS, COMPARISON, LAGS, MEASURES, ONSETS, QUESTIONS
from ndt_ray.analysis.mechanisms.sae.tables import SAE, TRANSFER
from ndt_ray.analysis.mechanisms.tables import CHANGES, TESTS
from ndt_ray.analysis.recovery import CONTRASTS, RECOVERY
from ndt_ray.analysis.taxonomy.tables import TAXONOMY_FITS, TAXONOMY_TYPES
from ndt_ray.store.outputs import write_output
from ndt_ray.store.reader import Store
from ndt_ray.store.schema import Table, register_table
from ndt_ray.store.sweep import Sweep as SweepFolder
from ndt_ray.store.writer import PackWriter

SWEEP = "planted"
STEPS, SEEDS = 200, 4
GRID = np.arange(0, STEPS + 1, 10)
LAYERS = {"mlp": ("network.0", "network.2"), "cnn": ("conv_layers.0", "conv_layers.3", "fc")}
FAMILY: dict[str, Any] = {
    "family": "primary", "measure": "participation_ratio", "detector": "likelihood", "null": "ar_sieve",
}  # fmt: skip
TABLES = (
    CELL_STATUS, COMPARISONS, CONCORDANCE, CONVERGENCE, CONVERGENCE_ARCHITECTURES, CONVERGENCE_CELLS, EVENT_FAMILIES,
    EVENTS, HYPOTHESES, REPLICATED_EVENTS, ROBUSTNESS, SERIES_TESTS, SPECIFICATION_CURVE, TIMING_MODELS, TRANSIENTS,
    COORDINATION_CELLS, CRITICAL_SERIES, TAXONOMY_FITS, TAXONOMY_TYPES, CHANGES, TESTS, PATTERNS, SAE, TRANSFER,
    RECOVERY, CONTRASTS, ONSETS, MEASURES, QUESTIONS, LAGS, COMPARISON, ANSWERS,
    EVENT_KINDS,
    CRITICAL_PERIODS, CRITICAL_RANKING, ARCHITECTURE_CLAIMS, ESCAPE,
)  # fmt: skip


def trial_id(model: str, seed: int) -> str:
    return f"{model}{seed:013x}"[:16]


def planted(
    root: Path,
    status: Mapping[tuple[str, int], str] | None = None,
    completeness: str = "complete",
    accuracy: Mapping[str, float | Mapping[int, float]] | None = None,
    seeds: int = SEEDS,
    models: Mapping[str, Sequence[str]] = LAYERS,
    grid: Any = GRID,
    data: str = "digits",
) -> Store:
    """Participation ratio 8 × 2^(layer × step / 200), held-out accuracy of `accuracy` ± 0.01 by seed, or as given."""
    for table in TABLES:
        register_table(table)
    store = local(root)
    folder = SweepFolder(store.location, SWEEP)
    folder.write_spec("name: planted\nabout: Is it <there>?\nanalyses:\n- {name: events, params: {alpha: 0.05}}\n")
    folder.write_env({"command": ["ndt", "sweep", "planted"], "versions": {"torch": "2.13.0"}, "python": "3.11"})
    for model, layers in models.items():
        ids = [trial_id(model, seed) for seed in range(seeds)]
        with PackWriter(store, SWEEP, f"pack-{model}", trials=tuple(ids)) as writer:
            for seed, trial in enumerate(ids):
                _trial(writer, trial, model, seed, layers, completeness, grid, data)
                how = (status or {}).get((model, seed), "finished")
                given = (accuracy or {}).get(model, 0.9)
                final = given + 0.01 * (seed - (seeds - 1) / 2) if isinstance(given, float) else given[seed]
                for step, value in ((0, 0.1), (int(grid[-1]), final)):
                    per_class = {"class_accuracy": [np.full(10, value)], "n": 100}
                    writer.rows("evaluations", {"trial_id": [trial], "step": step, "accuracy": value, "loss": 1 - value}
                                | per_class)  # fmt: skip
                if how != "running":
                    error = "RuntimeError: planted" if how == "failed" else None
                    end = {"last_step": int(grid[-1]), "final_accuracy": final, "final_loss": 1 - final, "error": error}
                    writer.rows("outcomes", {"trial_id": [trial], "status": how, **end})
            writer.commit(int(grid[-1]), None, finished=True)
    return store


def _trial(
    writer: PackWriter,
    trial: str,
    model: str,
    seed: int,
    layers: Sequence[str],
    completeness: str,
    grid: Any,
    data: str,
) -> None:
    of = {"cell": f"{model}/{data}", "model": model, "data": data, "seed": seed, "control": "none"}
    size = {"steps": int(grid[-1]), "probe_size": 64, "n_train": 1000, "data_completeness": completeness}
    writer.rows("trials", {"trial_id": [trial], "data_hash": "d0", "fingerprint": "f0", "engine": "loop", **of, **size})
    n = len(layers)
    steps = np.repeat(grid, n)
    index = np.tile(np.arange(n), len(grid))
    where = {"step": steps, "layer": np.tile(np.array(layers), len(grid)), "layer_index": index}
    value = 8 * 2.0 ** (index * steps / STEPS)
    writer.rows("measurements", {"trial_id": trial, **where, "view": "units", "participation_ratio": value})
    before = np.where(steps > 0, steps - 10, 0)
    speed = np.where(steps > 0, 0.1 / (1 + steps), np.nan)
    writer.rows("velocity", {"trial_id": trial, **where, "previous_step": before, "velocity": speed})


def lesioned(store: Store, at: int = 100, deficit: float = 0.2, compared: bool = True) -> None:
    """A lane a seed of the MLP with a lesion of its first layer, and (if `compared`) their rows of `recovery`."""
    control = f"ablate:network.0@{at}"
    ids = [f"cut{seed:013x}"[:16] for seed in range(SEEDS)]
    rows = []
    with PackWriter(store, SWEEP, "pack-cut", trials=tuple(ids)) as writer:
        for seed, trial in enumerate(ids):
            of = {"cell": "mlp/digits", "model": "mlp", "data": "digits", "seed": seed, "control": control}
            writer.rows("trials", {"trial_id": [trial], "steps": STEPS, "engine": "loop", **of})
            for step in (0, at, STEPS):
                value = 0.1 if step == 0 else 0.9 - deficit * (step == at)
                writer.rows(
                    "evaluations", {"trial_id": [trial], "step": step, "accuracy": value, "loss": 1.0, "n": 100}
                )
            arm = {"cell": "mlp/digits", "kind": "ablate", "target": "network.0", "at": at, "until": at, "dose": 1.0}
            rows.append({"trial_id": trial, "untouched": trial_id("mlp", seed), "impact": deficit, "area": deficit / 2}
                        | arm | {"final": 0.0, "horizon": STEPS - at, "n": 2, "near_event": True})  # fmt: skip
        writer.commit(STEPS, None, finished=True)
    if compared:
        put(store, "recovery", {"recovery": rows, "recovery_contrasts": []})


def put(store: Store, analysis: str, tables: Mapping[str, list[dict[str, Any]]], key: str = "sweep") -> None:
    """Rows as an analysis would have written them; columns that are not given are null."""
    known = {t.name: t for t in TABLES}
    frames = {name: _columns(known[name], rows) for name, rows in tables.items()}
    write_output(store, SWEEP, analysis, key, frames, cache_key="planted")


def _columns(table: Table, rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    unknown = {c for row in rows for c in row} - {c.name for c in table.columns}
    assert not unknown, unknown
    return {c.name: [row.get(c.name) for row in rows] for c in table.columns}


def event(model: str, seed: int, layer: int, step: int, **more: Any) -> dict[str, Any]:
    """A significant event out of a measured step."""
    made = {"trial_id": trial_id(model, seed), "layer": LAYERS[model][layer], "layer_index": layer, "view": "units"}
    made |= FAMILY | {"step_before": step, "step_after": step + 10, "step_location": step + 5.0, "width": 10.0}
    made |= {"kind": "step", "scale": 3, "direction": "increase", "size": 2.0, "relative_size": 0.2, "statistic": 9.0}
    phase = step / STEPS
    made |= {
        "p_event": 0.001,
        "phase": phase,
        "phase_bin": "early" if phase < 0.1 else "mid" if phase < 0.5 else "late",
    }
    made |= {"near_lr_change": False, "near_epoch_boundary": False, "p_series": 0.001, "q": 0.01, "q_attainable": 0.002}
    return made | {"level": 0.01, "significant": True} | more


def tests(p: float = 0.5, calibrated: bool = True, seeds: int = SEEDS) -> list[dict[str, Any]]:
    """One row of `series_tests` a layer and seed: 1.5 candidates' worth of null in each, two candidates found."""
    rows = []
    for model, layers in LAYERS.items():
        for seed in range(seeds):
            for i, layer in enumerate(layers):
                row = {"trial_id": trial_id(model, seed), "layer": layer, "layer_index": i, "view": "units"}
                row |= {k: v for k, v in FAMILY.items() if k != "family"}
                row |= {"grid_start": 0, "grid_every": 10, "n": 21, "n_missing": 0, "kind": "calibrated"}
                row |= {"calibrated": calibrated, "p": p, "n_surrogates": 500, "candidates": 2, "null_candidates": 1.5}
                row |= {"p_attainable": 1e-9}
                rows.append(row if calibrated else row | {"kind": "unit_root", "p": None})
    return rows


def family(events: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    """The row of `event_families` that goes with such events and `tests`."""
    n = SEEDS * sum(map(len, LAYERS.values()))
    made = FAMILY | {"primary": True, "view": "*", "alpha": 0.05, "n_series": n, "n_calibrated": n}
    selected = len({(e["trial_id"], e["layer"]) for e in events})
    made |= {"n_selected": selected, "n_candidates": 2 * n, "null_candidates": 1.5 * n, "n_events": len(events)}
    return made | {"null_events": 0.05 * len(events), "q_attainable": 0.04} | more


def put_events(store: Store, events: list[dict[str, Any]], **of_family: Any) -> None:
    """Tested series, a family, its significant events, and (unless told how many) candidates that are not."""
    significant = events
    by_trial: dict[str, list[dict[str, Any]]] = {}
    for row in tests():
        by_trial.setdefault(row["trial_id"], []).append(row)
    for trial, rows in by_trial.items():
        transients = []
        for row in rows:
            same = {c: row[c] for c in ("trial_id", "layer", "layer_index", "view", "measure")}
            transients.append(same | {"amplitude": 3.0, "half_life": 12.0, "ends": 50, "r2": 0.9})
        put(store, "series_tests", {"series_tests": rows, "transients": transients}, key=trial)
    if "n_candidates" not in of_family:
        events = [*events, *_filler(events)]
    put(store, "events", {"events": events, "event_families": [family(significant, **of_family)]})


def _filler(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What makes the candidates of every series two, as `tests` says."""
    have = [(e["trial_id"], e["layer"]) for e in events]
    found = []
    for model, layers in LAYERS.items():
        for seed in range(SEEDS):
            for i, layer in enumerate(layers):
                for k in range(2 - have.count((trial_id(model, seed), layer))):
                    found.append(event(model, seed, i, 170 + 10 * k, q=0.5, significant=False))
    return found


def put_periods(store: Store, spans: Sequence[tuple[int, int, int]]) -> None:
    """Critical periods of the second layer of the MLP, (seed, first, last), of 20 series with 0.25 each by chance."""
    series, periods = [], []
    for model, layers in LAYERS.items():
        for seed in range(SEEDS):
            for i, layer in enumerate(layers):
                row = {"trial_id": trial_id(model, seed), "layer": layer, "layer_index": i, "view": "units"}
                row |= {"measure": "participation_ratio"}
                own = [(a, b) for s, a, b in spans if (model, i, s) == ("mlp", 1, seed)]
                periods += [row | {"step_first": a, "step_last": b, "p": 0.01} for a, b in own]
                tested = {"mode": "default", "p": 0.5, "q": 0.5, "n_periods": len(own), "null_periods": 0.25}
                series.append(row | tested)
    put(store, "critical_periods", {"critical_series": series, "critical_periods": periods})


def concordance(q: float, attainable: float = 0.002, **more: Any) -> dict[str, Any]:
    """A row of `concordance` of the second layer of the MLP."""
    made = {k: v for k, v in FAMILY.items()} | {"cell": "mlp/digits", "layer": "network.2", "layer_index": 1}
    made |= {"view": "units", "n_seeds": SEEDS, "seeds_with": 4, "n_events": 4, "tolerance": 20.0, "window": 80.0}
    made |= {"coincidences": 6, "expected_jitter": 1.25, "expected_redraw": 0.75, "p_jitter": q, "p_redraw": q, "p": q}
    return made | {"q": q, "q_attainable": attainable, "n_surrogates": 1999, "largest": 4, "p_largest": q} | more


def comparison(p: float, significant: bool, reach: float = 0.01, **more: Any) -> dict[str, Any]:
    """A row of `comparisons`: the CNN against the MLP."""
    made = {"family": "primary", "axis": "model", "stratum": "*", "level_a": "cnn", "level_b": "mlp"}
    made |= {"outcome": "events_per_series", "confirmatory": False, "unit": "seed", "n_a": 4, "n_b": 4, "mean_a": 1.5}
    made |= {"mean_b": 0.5, "difference": 1.0, "interval": "t", "lo": 0.4, "hi": 1.6, "hedges_g": 2.0, "g_lo": 0.5}
    made |= {"g_hi": 3.5, "design": "unpaired", "p": p, "adjustment": "bh", "p_adjusted": p, "n_comparisons": 3}
    return made | {"smallest_p_adjusted": reach, "significant": significant} | more


def robust(verdict: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A row of `robustness` with its specifications."""
    row = {"claim": "cnn > mlp", "kind": "more_events", "declared": "a", "estimate": 1.0, "significant": True}
    row |= {"n_specifications": 8, "same_sign": 1.0, "same_verdict": verdict, "most_divisive": "measure"}
    curve = []
    for i in range(8):
        made = {"claim": "cnn > mlp", "kind": "more_events", "specification": f"s{i}", "declared": i == 0}
        curve.append(made | {"estimate": 0.2 * i, "significant": i > 3, "sign": 1, "n": 4})
    return row, curve


def onset(seed: int, status: str = "grokked", **more: Any) -> dict[str, Any]:
    """A row of `grokking_onsets` of an MLP, as if it were a modular network."""
    row: dict[str, Any] = {"trial_id": trial_id("mlp", seed), "status": status, "memorised_step": 20}
    if status == "grokked":
        row |= {"inflection_step": 100 + seed, "onset_step": 110 + seed, "delay": 90 + seed, "peak_loss": 5.0}
        row |= {"excluded_step": 60, "confidence": 0.9}
    return row | {"frequencies": [3, 7], "learned": [3], "final_loss": 0.1} | more


def progress(seed: int, step: int) -> dict[str, Any]:
    """A row of `grokking_measures`: everything grows linearly over the 200 steps."""
    done = step / 200
    row = {
        "trial_id": trial_id("mlp", seed),
        "step": step,
        "p": 23,
        "train_loss": 0.01,
        "test_loss": 5 - 4 * done,
    }
    row |= {"train_accuracy": 1.0, "test_accuracy": done, "restricted_loss": 3 - done, "excluded_loss": 0.1 + done}
    row |= {"explained": done, "gini_embedding": 0.5 * done, "specialised_neurons": done, "key_frequencies": [3, 7]}
    return row | {"learned_frequencies": [3], "dominant_embedding_rows": []}


def spec_text(page: str) -> dict[str, Any]:
    """The charts' data of a rendered page."""
    start = page.index('<script type="application/json" id="charts">') + len(
        '<script type="application/json" id="charts">'
    )
    found: dict[str, Any] = json.loads(page[start : page.index("</script>", start)].replace("<\\/", "</"))
    return found


def csv(spec: Mapping[str, Any]) -> pd.DataFrame:
    """The inline rows of one layer of a chart."""
    import io

    return pd.read_csv(io.StringIO(spec["data"]["values"]), keep_default_na=False, na_values=[""])
