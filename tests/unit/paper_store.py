"""Small sweeps whose papers are known beforehand: one without analyses, one with some; and readers of a paper."""

import re
from pathlib import Path
from typing import Any

import report_store as planted
from report_store import SEEDS, SWEEP, event, put, put_events, trial_id

from ndt_ray.analysis.tables import JUMP_COUNTS
from ndt_ray.paper import Paper
from ndt_ray.store.outputs import write_output
from ndt_ray.store.reader import Store
from ndt_ray.store.schema import register_table

EVENTS = [*(event("cnn", seed, 2, 100) for seed in range(SEEDS)), event("mlp", 0, 1, 10, direction="decrease")]
PNG = b"\x89PNG\r\n\x1a\nplanted"


def counted(
    store: Store, observed: dict[str, int], mode: str = "default", noise: float = 1.0, also: str | None = None
) -> None:
    """Rows of `jump_counts`: per layer of each model so many jumps, beside noise that gives `noise`.

    `also`: another measure, which another rule judged, with one jump more.
    """
    register_table(JUMP_COUNTS)
    for model, layers in planted.LAYERS.items():
        for seed in range(SEEDS):
            rows: list[dict[str, Any]] = []
            for i, layer in enumerate(layers):
                row: dict[str, Any] = {c.name: None for c in JUMP_COUNTS.columns}
                row |= {"trial_id": trial_id(model, seed), "layer": layer, "layer_index": i, "view": "units"}
                row |= {
                    "mode": mode,
                    "measure": "stable_rank" if also else "participation_ratio",
                    "detector": "difference_z",
                    "parameters": "{}",
                }
                row |= {"grid_every": 10, "n": 20, "n_missing": 0, "observed": observed[model], "merged": 0, "shown": 0}
                row |= {"n_surrogates": 200, "p_ar1": 0.5, "p_white": 0.5, "phi": 0.0}
                for family in ("white", "ar1"):
                    row |= {f"null_{family}_mean": noise, f"null_{family}_sd": 0.5}
                rows.append(row)
                if also:
                    more = {"measure": also, "detector": "smoothed_gradient", "observed": observed[model] + 1}
                    rows.append(row | more)
            columns = {c.name: [row[c.name] for row in rows] for c in JUMP_COUNTS.columns}
            write_output(store, SWEEP, "jumps", trial_id(model, seed), {"jump_counts": columns}, cache_key=mode)


def settled(model: str, bottom_up: float, p: float, q: float, **more: Any) -> dict[str, Any]:
    row = {"cell": f"{model}/digits", "model": model, "data": "digits", "measure": "participation_ratio"}
    row |= {"mode": "default", "n_trials": SEEDS, "n_without": 0, "n_layers": 3.0, "mean_rho": 0.9, "p": p, "q": q}
    return row | {"bottom_up": bottom_up, "null_bottom_up": 0.125, "excluded": False} | more


def judged(hypothesis: str, scope: str, verdict: str, **more: Any) -> dict[str, Any]:
    row = {"hypothesis": hypothesis, "scope": scope, "statement": "s", "metric": "m", "prediction": "increase"}
    row |= {"n": 8, "estimate": 0.31, "lo": -0.2, "hi": 0.7, "p": 0.2, "q": 0.4, "confidence": "low", "why": "w"}
    return row | {"verdict": verdict} | more


def bare_sweep(root: Path) -> Store:
    """Trained and measured, and nothing analysed."""
    return planted.planted(root, {("mlp", 3): "failed"}, completeness="subset")


def whole_sweep(root: Path) -> Store:
    """With events, jumps, an order of settling, hypotheses, interventions and a figure; the rest is not computed."""
    store = planted.planted(root)
    put_events(store, EVENTS)
    counted(store, {"mlp": 2, "cnn": 5})
    put(store, "convergence_tests", {
        "convergence_cells": [settled("mlp", 0.75, 0.2, 0.2), settled("cnn", 1.0, 0.01, 0.02),
                              settled("cnn", 1.0, 0.001, 0.001, cell="dead", excluded=True)],
        "convergence_architectures": [],
    })  # fmt: skip
    put(store, "hypotheses", {"hypotheses": [
        judged("magnitude_and_new_features", "*", "weaker_than_predicted", q=0.03),
        judged("filter_differentiation", "cnn/digits", "supported"),
        judged("filter_differentiation", "mlp/digits", "not_shown"),
        judged("filter_differentiation", "none", "no_data"),
    ], "mechanism_patterns": []})  # fmt: skip
    planted.lesioned(store, deficit=0.2, compared=False)
    arm = {"cell": "mlp/digits", "kind": "ablate", "target": "network.0", "until": 100, "dose": 1.0}
    rows = [
        arm | {"trial_id": f"r{seed}-{at}", "untouched": trial_id("mlp", seed), "at": at, "impact": cost,
               "near_event": at == 100, "event_at": 100, "role": "event" if at == 100 else "control"}
        for seed in range(SEEDS) for at, cost in ((100, 0.2), (50, 0.05))
    ]  # fmt: skip
    put(store, "recovery", {"recovery": rows, "recovery_contrasts": []})
    store.location.write(f"sweeps/{SWEEP}/layers.png", PNG)
    return store


def macros(paper: Paper) -> dict[str, Any]:
    return {name: macro.value for name, macro in paper.macros.known.items()}


def text(paper: Paper, name: str) -> str:
    return paper.files[name].decode()


def bare_code(tex: str) -> str:
    """Without comments."""
    return "\n".join(re.sub(r"(?<!\\)%.*", "", line) for line in tex.splitlines())
