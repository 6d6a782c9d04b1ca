"""What the report says of dictionaries, grokking, mechanisms, interventions and hypotheses: it turns with their q."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import report_store as planted
from report_store import SEEDS, SWEEP, csv, onset, progress, put

from ndt_ray.figures.charts import svg
from ndt_ray.report.dictionaries import dictionaries
from ndt_ray.report.grokking import chosen, grokking
from ndt_ray.report.interventions import interventions
from ndt_ray.report.mechanisms import mechanisms
from ndt_ray.report.order import order
from ndt_ray.report.page import collect, render
from ndt_ray.report.parts import Section
from ndt_ray.report.source import Source
from ndt_ray.report.why import why
from ndt_ray.store.reader import Store

MAKE: dict[str, Callable[[Source], Section]] = {
    "mechanisms": mechanisms, "dictionaries": dictionaries, "grokking": grokking, "recovery": interventions, "why": why,
    "order": order,
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Shared: every test writes the tables that it reads, over those of the test before."""
    return planted.planted(tmp_path_factory.mktemp("mechanisms"))


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = planted.planted(tmp_path_factory.mktemp("lesions"))
    planted.lesioned(made)
    return made


def section(store: Store, name: str) -> Section:
    return MAKE[name](Source(store, SWEEP))


def of_kind(part: Section, kind: str) -> str:
    return "\n".join(c.text for c in part.claims if c.kind == kind)


def drawn(part: Section) -> list[dict[str, Any]]:
    """Charts of a section's first figures, once Vega has taken them."""
    specs = [spec for plate in part.plates for figure in plate.figures[:2] for spec in figure.specs]
    for spec in specs:
        assert svg(spec).startswith("<svg")
    return specs


# -- mechanisms ----------------------------------------------------------------------------------------------------


def changed_by(q: float | None, **more: Any) -> dict[str, Any]:
    row = {"cell": "mlp", "metric": "class_selectivity", "exploratory": False, "n_trials": 4, "n_events": 7}
    row |= {"difference": 1.5, "lo": 0.5, "hi": 2.5, "effect": 1.1, "p": q, "p_sign": 0.125, "q": q}
    row |= {"unmatched_difference": 2.5, "unmatched_p": 0.01, "flag": "few_trials" if q is None else None}
    return row | more


def change(q: float | None = None) -> dict[str, Any]:
    row = {
        "trial_id": planted.trial_id("mlp", 0),
        "layer": "network.0",
        "layer_index": 0,
        "step_before": 20,
        "step_after": 30,
    }
    row["metric_layer"] = "network.0"
    return (
        row
        | {"metric": "class_selectivity", "change": 1.0, "n_controls": 5 if q else 0, "p": q, "q": q}
        | {"flag": None if q else "no_controls", "lacking": None if q else "phase"}
    )


@pytest.mark.parametrize(
    ("q", "kind", "words"),
    [
        (0.01, "finding", "Events change 1 metric of a cell more than matched windows do: class selectivity in mlp "
                          "+1.5 [0.5, 2.5], 7 events of 4 trials, without matching 2.5, q = 0.01"),
        (0.3, "nothing", "It is not shown that events change anything more than matched windows do: smallest q = 0.3"),
        (None, "caution", "could not be tested, by reason: few trials 1"),
    ],
)  # fmt: skip
def test_what_events_change_turns_with_its_q(store: Store, q: float | None, kind: str, words: str) -> None:
    put(store, "mechanisms", {"mechanism_tests": [changed_by(q)], "mechanism_changes": [change(q)]})
    found = section(store, "mechanisms")
    (claim, *rest) = found.claims
    assert claim.kind == kind and words in claim.text and claim.headline
    assert [c.kind for c in rest] == [{0.01: "finding", 0.3: "nothing", None: "caution"}[q]]
    assert "Taken one by one, 1 event gives 1 change of a metric" in rest[0].text and "have none" in rest[0].text
    assert ("that fewer windows meet: within 5 % of the run of it (1)." in rest[0].text) == (q is None)


def test_candidates_are_not_called_events_and_claim_nothing_at_the_top(store: Store) -> None:
    put(store, "mechanisms", {"mechanism_tests": [changed_by(0.01, exploratory=True)], "mechanism_changes": []})
    found = section(store, "mechanisms")
    assert "No event of the declared family is significant" in of_kind(found, "caution")
    assert "candidates of events, none of them significant, change 1 metric" in of_kind(found, "finding").lower()
    assert not any(c.headline for c in found.claims)


def test_metrics_over_cells_and_claims_over_families_are_told_apart(store: Store) -> None:
    put(store, "mechanisms", {"mechanism_tests": [changed_by(0.01)], "mechanism_changes": []})
    row = {"up": 3, "down": 0, "architectures": "cnn,mlp,transformer", "heterogeneity_p": 0.5, "pattern": "universal"}
    patterns = [
        row | {"metric": "nc1", "n_cells": 4, "pattern": "specific"},
        row | {"metric": "composition", "n_cells": 3},
    ]
    judged = {"hypothesis": "composition", "scope": "*", "statement": "…", "verdict": "no_data", "n": 0, "why": "…"}
    put(store, "hypotheses", {"mechanism_patterns": patterns, "hypotheses": [judged]})
    text = of_kind(section(store, "mechanisms"), "described")
    assert "Of 1 metric" in text and "of 4 cells" in text
    assert "composition (universal, 3 up and 0 down of 3 families)" in text


def test_the_other_seeds_are_a_control_of_their_own(store: Store) -> None:
    more = {"n_seeds": 6, "seed_difference": 0.75, "seed_p": 0.01}
    put(store, "mechanisms", {"mechanism_tests": [changed_by(0.3, seed_q=0.02, **more)], "mechanism_changes": []})
    text = of_kind(section(store, "mechanisms"), "finding")
    assert "More than in the other seeds over the very same windows: class selectivity in mlp 0.75 SDs" in text
    put(store, "mechanisms", {"mechanism_tests": [changed_by(0.3, seed_q=0.2, **more)], "mechanism_changes": []})
    assert of_kind(section(store, "mechanisms"), "finding") == ""


@pytest.mark.slow
def test_the_figure_of_changes_holds_estimate_interval_and_the_unmatched_one(store: Store) -> None:
    put(store, "mechanisms", {"mechanism_tests": [changed_by(0.01)], "mechanism_changes": []})
    (spec,) = drawn(section(store, "mechanisms"))
    lines = [csv(layer) for layer in spec["layer"][1:]]
    assert lines[0][["low", "high", "estimate", "beside"]].to_numpy().tolist() == [[0.5, 2.5, 1.5, 2.5]]
    assert spec["layer"][-1]["mark"]["style"] == "observed", "filled: it survives"


# -- dictionaries --------------------------------------------------------------------------------------------------


def pair(source: int, target: int, score: float | None, quality: float = 0.95, **more: Any) -> dict[str, Any]:
    layers = planted.LAYERS["cnn"]
    row: dict[str, Any] = {"relation": "layers", "status": "ok", "alignment": "procrustes"}
    for side, place in (("source", source), ("target", target)):
        row |= {f"{side}_trial": planted.trial_id("cnn", 0), f"{side}_cell": "cnn/digits", f"{side}_step": 200}
        row |= {f"{side}_layer": layers[place], f"{side}_layer_index": place, f"{side}_d": 16}
    row |= {"aligned": 0.5, "control": 0.4, "ceiling": 0.9, "score": score, "quality": quality, "correlation": 0.3}
    return row | {"correlation_null_hi": 0.2, "configuration": "default", "config": "{}"} | more


def dictionary(step: int, explained: float, **more: Any) -> dict[str, Any]:
    row = {"trial_id": planted.trial_id("cnn", 0), "step": step, "layer": "fc", "layer_index": 2, "dictionary": 0}
    row |= {"explained_variance": explained, "explained_frozen": 0.5, "explained_random": 0.1, "explained_pca": 0.6}
    row |= {"pw_mcc": 0.7, "pw_mcc_chance": 0.3, "l0": 4.0, "dead": 0.25, "configuration": "default", "config": "{}"}
    return row | more


def test_transfer_is_told_beside_its_controls_and_skipped_pairs_are_named(store: Store) -> None:
    rows = [pair(i, j, 0.25 if j else None) for i in range(3) for j in range(3) if i != j]
    rows[0] |= {"status": "skipped", "reason": "over the limit of 24 networks"}
    put(store, "sae", {"sae": [dictionary(0, 0.4), dictionary(200, 0.8)]}, key="t")
    put(store, "sae_transfer", {"sae_transfer": rows})
    found = section(store, "dictionaries")
    text = of_kind(found, "described")
    assert "of trained networks: 0.8 of the variance" in text and "beside 0.6 by the best of three" in text
    assert "untrained networks (step 0): 0.4" in of_kind(found, "caution"), "worse than a control: a caution"
    assert "dictionaries explain 0.5 of the target's variance, beside 0.4 by the best control and 0.9" in text
    assert "(medians over 5 pairs; above the control in 5)" in text and "in 5 of 5 pairs, where 0.25 would by" in text
    assert "1 of 6 pairs were skipped, by reason: over the limit of … networks (1)." in of_kind(found, "caution")
    assert of_kind(found, "finding") == "", "no test, no finding"


def test_configurations_stand_beside_each_other(store: Store) -> None:
    relu = {"configuration": "relu"}
    pairs = [pair(i, j, 0.25) for i in range(3) for j in range(3) if i != j]
    put(store, "sae", {"sae": [dictionary(200, 0.8), dictionary(200, 0.7, **relu)]}, key="t")
    put(store, "sae_transfer", {"sae_transfer": pairs + [p | relu | {"aligned": 0.3} for p in pairs]})
    found = section(store, "dictionaries")
    text = of_kind(found, "described")
    assert "of trained networks, configuration relu: 0.7 of the variance" in text
    assert "Configuration default. Between layers: after alignment dictionaries explain 0.5" in text
    assert "Configuration relu. Between layers: after alignment dictionaries explain 0.3" in text
    assert "(medians over 6 pairs; above the control in 6)" in text, "never pooled"
    titles = [p.title for p in found.plates]
    assert len(titles) == 4 and sum(t.endswith("(relu dictionaries)") for t in titles) == 2


def test_the_founding_questions_are_asked_between_networks_too(store: Store) -> None:
    other = {"target_trial": planted.trial_id("cnn", 1), "relation": "seeds", "quality_random": 0.97}
    rows = [pair(i, i, None, quality=0.65 if i == 1 else 0.95, **other) for i in range(3)]
    put(store, "sae_transfer", {"sae_transfer": rows})
    (claim,) = [c for c in section(store, "dictionaries").claims if "As founded, between seeds" in c.text]
    assert "universal, all above 0.9 at the same depth, in 0 of 1 pair of networks (mean quality 0.8)" in claim.text
    assert "of all layers 0.95, and 0.97 with dictionaries that were not trained (medians of 3 pairs" in claim.text


@pytest.mark.slow
def test_the_transfer_map_has_a_number_a_pair_and_the_founding_bands(store: Store) -> None:
    rows = [pair(i, j, 0.25, quality=0.5 + 0.2 * (i + j)) for i in range(3) for j in range(3) if i != j]
    put(store, "sae_transfer", {"sae_transfer": rows})
    found = section(store, "dictionaries")
    ramp, bands = drawn(found)
    cells = pd.concat([csv(x) for x in ramp["layer"] if "color" in x["encoding"]])
    assert len(cells) == 6 and set(cells["value"]) == {0.25}
    by = {x["mark"]["style"]: len(csv(x)) for x in bands["layer"] if x["mark"]["type"] == "rect"}
    assert "conv_layers.3 Getting specific and fc Still universal" in found.plates[1].figures[0].alt
    assert by == {"high": 7, "middle": 2}, "0.9, 1.1 and the diagonal are green, 0.7 yellow"
    assert "as founded" in found.plates[1].title.lower()


# -- grokking ------------------------------------------------------------------------------------------------------


def grokked(store: Store, *rows: dict[str, Any]) -> Section:
    put(store, "grokking", {"grokking_measures": [progress(s, step) for s in range(SEEDS) for step in (0, 100, 200)]})
    put(store, "grokking_timeline", {"grokking_onsets": list(rows), "scale_questions": []})
    return section(store, "grokking")


def test_grokking_is_detected_at_a_step_with_its_interval_over_seeds(store: Store) -> None:
    found = grokked(store, *(onset(s) for s in range(3)), onset(3, "no_second_descent"))
    text = of_kind(found, "described")
    assert "mlp: grokking detected in 3 of 4 trials (of 200 planned steps, 200 are there). Memorised at step 20" in text
    assert "steepest descent of the held-out loss at step 101 [99, 103]" in text
    assert "111 [109, 113], 91 [89, 93] steps after memorising (1 no second descent)" in text
    assert "before 80 % of the held-out peak is gone in 3 of 3 trials" in text
    assert "Gini coefficient of the embedding's spectrum 0 to 0.5" in text
    assert of_kind(found, "finding") == "", "a rule on a curve is no test"
    (trials,) = [s for s in found.sheets if s.title == "Trial by trial"]
    assert trials.rows["inflection step"].tolist()[:3] == [100, 101, 102]


def test_without_a_second_descent_nothing_is_detected(store: Store) -> None:
    found = grokked(store, *(onset(s, "no_second_descent") for s in range(4)))
    assert "no grokking in 4 trials (of 200 planned steps, 200 are there): no second descent in 4." in of_kind(
        found, "nothing"
    )
    assert "detected" not in of_kind(found, "described")


@pytest.mark.slow
def test_each_run_has_its_panels_on_one_axis_with_landmarks_and_events(tmp_path: Path) -> None:
    store = planted.planted(tmp_path)
    planted.put_events(store, [planted.event("mlp", 0, 1, 100)])
    found = grokked(store, *(onset(s) for s in range(4)))
    (plate,) = found.plates
    assert len(plate.figures) == SEEDS and all(len(f.specs) == 4 for f in plate.figures)
    axes = {spec["layer"][-1]["encoding"]["x"]["scale"]["domain"][1] for f in plate.figures for spec in f.specs}
    assert axes == {200.0}
    first = plate.figures[0]
    assert "steepest at step 100" in first.alt and "1 event marked" in first.alt
    marks = [csv(x) for x in first.spec["layer"] if x["mark"]["type"] == "rule"]
    assert marks[0]["at"].tolist() == [20, 100, 110]
    bands = [csv(x) for x in first.specs[1]["layer"] if x["mark"]["type"] == "rect"]
    assert bands[0]["from"].tolist() == [100]
    drawn(found)
    page = render(collect(store, SWEEP))
    assert page.count('class="stack"') == SEEDS


def test_runs_are_drawn_from_every_cell_before_a_second_seed_is() -> None:
    rows = pd.DataFrame({"name": ["a"] * 5 + ["b"] * 5, "seed": [*range(5), *range(5)]})
    assert chosen(rows, ["b", "a"], 3)[["name", "seed"]].to_numpy().tolist() == [["b", 0], ["b", 1], ["a", 0]]


@pytest.mark.slow
@pytest.mark.parametrize(("p", "kind"), [((0.001, 0.001), "finding"), ((0.6, 0.9), "nothing")])
def test_questions_on_scales_turn_with_their_corrected_p(store: Store, p: tuple[float, float], kind: str) -> None:
    rows = [
        {"trial_id": planted.trial_id("mlp", i), "question": "emergence", "kind": "neuron", "statistic": "mean_change",
         "value": 0.2, "p": v, "n": 48, "answer": "emerged in training"} for i, v in enumerate(p)
    ]  # fmt: skip
    put(store, "grokking_timeline", {"grokking_onsets": [onset(0)], "scale_questions": rows})
    (claim,) = [c for c in section(store, "grokking").claims if "emergence" in c.text]
    assert claim.kind == kind and "Benjamini–Hochberg over 2 answers of all trials" in claim.text
    assert ("emerged in training in 2 of 2 trials" in claim.text) == (kind == "finding")
    rows[0]["value"] = -0.2
    put(store, "grokking_timeline", {"grokking_onsets": [onset(0)], "scale_questions": rows})
    (claim,) = [c for c in section(store, "grokking").claims if "emergence" in c.text]
    assert claim.kind == ("described" if kind == "finding" else "nothing"), "trials that disagree are no finding"


@pytest.mark.parametrize(("p", "kind"), [(0.001, "finding"), (0.6, "nothing"), (None, "nothing")])
def test_questions_of_a_cells_networks_together_turn_with_their_p(store: Store, p: float | None, kind: str) -> None:
    row = {"cell": "mlp/digits", "modulus": 23, "question": "role", "kind": "head_to_a", "value": 0.7, "p": p}
    row |= {
        "statistic": "ablation_by_scale",
        "n": 24,
        "n_trials": 6,
        "n_agree": 5,
        "answer": "coarse heads matter more",
    }
    put(store, "grokking_timeline", {"grokking_onsets": [onset(0)], "scale_questions": []})
    put(store, "grokking_comparison", {"scale_answers": [row], "grokking_comparison": []})
    (claim,) = [c for c in section(store, "grokking").claims if "together" in c.text]
    assert claim.kind == kind
    if p is None:
        assert "could not be asked" in claim.text
    else:
        assert "over 1 answer of all cells" in claim.text and "24 units of 6 networks" in claim.text
        assert ("of heads: coarse heads matter more (0.7, q " in claim.text) == (kind == "finding")


def test_lags_are_described_with_their_interval_and_never_a_finding(store: Store) -> None:
    planted.put_events(store, [planted.event("mlp", 0, 1, 100)])
    lag = {
        "cell": "mlp/digits",
        "family": "primary",
        "detector": "likelihood",
        "null": "ar_sieve",
        "layer": "network.2",
    }
    lag |= {"measure": "participation_ratio", "view": "units", "layer_index": 1, "landmark": "inflection", "n": 4}
    lag |= {"lag": -40.0, "lo": -60.0, "hi": -20.0, "answer": "before", "share_before": 1.0}
    put(store, "grokking_timeline", {"grokking_onsets": [onset(0)], "scale_questions": []})
    put(store, "grokking_lags", {"grokking_lags": [lag]})
    (claim,) = [c for c in section(store, "grokking").claims if "network.2" in c.text]
    assert claim.kind == "described" and "network.2 40 steps before, 95 % [-60, -20], 4 trials: before" in claim.text


# -- interventions -------------------------------------------------------------------------------------------------


def contrast(measure: str, mean: float, q: float, against: str = "untouched", reach: float = 0.03) -> dict[str, Any]:
    row = {"cell": "mlp/digits", "kind": "ablate", "target": "network.0", "at": 100, "until": 100, "dose": 1.0}
    row |= {
        "lr_from": None,
        "against": against,
        "measure": measure,
        "n": 6,
        "mean": mean,
        "lo": mean - 0.1,
        "hi": mean + 0.1,
        "p": q,
    }
    return row | {"p_attainable": reach, "q": q, "q_attainable": reach, "finding": "not_shown"}


@pytest.mark.parametrize(
    ("impact", "final", "reach", "kind", "words"),
    [
        (0.03, 0.9, 0.03, "finding", "It costs accuracy at first; what is left at the end is not shown."),
        (0.03, 0.03, 0.03, "finding", "It costs accuracy at first and at the end; it lasts."),
        (0.5, 0.9, 0.03, "nothing", "That it costs anything is not shown."),
        (0.5, 0.9, 0.25, "caution", "No cost could have been shown: smallest q attainable 0.25."),
    ],
)
def test_an_intervention_costs_what_its_q_stands_behind(
    lesions: Store, impact: float, final: float, reach: float, kind: str, words: str
) -> None:
    rows = [contrast("impact", 0.4, impact, reach=reach), contrast("final", 0.1, final, reach=reach)]
    put(lesions, "recovery", {"recovery": _arms(lesions), "recovery_contrasts": rows})
    (claim,) = section(lesions, "recovery").claims
    assert claim.kind == kind and words in claim.text and "6 seeds" in claim.text
    assert f"at first 0.4 [0.3, 0.5] (q {'= ' + str(impact)})" in claim.text


def _arms(lesions: Store) -> list[dict[str, Any]]:
    rows = lesions.sql("SELECT * EXCLUDE (sweep) FROM recovery")
    found: list[dict[str, Any]] = rows.astype(object).where(rows.notna(), None).to_dict("records")
    return found


@pytest.mark.parametrize(("q", "kind"), [(0.03, "finding"), (0.4, "nothing")])
def test_whether_it_matters_when_turns_with_its_q(lesions: Store, q: float, kind: str) -> None:
    rows = [contrast("impact", 0.4, 0.9), contrast("area", 0.2, q, against="@50")]
    put(lesions, "recovery", {"recovery": _arms(lesions), "recovery_contrasts": rows})
    claim = section(lesions, "recovery").claims[-1]
    assert claim.kind == kind and "costs 0.2 more than at step 50 (difference [0.1, 0.3], 6 seeds" in claim.text


@pytest.mark.slow
def test_recovery_curves_stand_beside_their_untouched_lane(lesions: Store) -> None:
    found = section(lesions, "recovery")
    (spec,) = drawn(found)
    line = pd.concat([csv(x) for x in spec["layer"] if isinstance(x["mark"], dict) and x["mark"]["type"] == "line"])
    cut = line[line["name"] == "at 100"].set_index("step")["mean"]
    assert cut[100] == pytest.approx(0.7) and cut[200] == pytest.approx(0.9)
    assert set(line["name"]) == {"untouched", "at 100"} and (line["n"] == SEEDS).all()
    assert csv(spec["layer"][-1])["at"].tolist() == [100]


def test_interventions_that_nobody_compared_name_the_command(tmp_path: Path) -> None:
    store = planted.planted(tmp_path)
    assert not any(section(store, name) for name in ("recovery", "grokking", "dictionaries")), "nothing to say"
    ((what, todo),) = section(store, "mechanisms").missing
    assert what.startswith("No checkpoint is stored") and todo.startswith("set checkpoint in the sweep file")
    planted.lesioned(store, compared=False)
    ((what, command),) = section(store, "recovery").missing
    assert "in 4 trials" in what and command == "ndt analyze planted recovery"


# -- types of events, coordination ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_types_and_coordination_have_their_figures(tmp_path: Path) -> None:
    store = planted.planted(tmp_path)
    of = {"mode": "default", "source": "events"}
    fit = of | {"k": 2, "chosen": True, "n": 5, "silhouette": 0.5, "p_silhouette": 0.01}
    types = [
        of | {"type": 1, "n": 3, "label": "early burst", "stable": True},
        of | {"type": 2, "n": 2, "stable": False},
    ]
    put(store, "taxonomy", {"taxonomy_fits": [fit], "taxonomy_types": types})
    series = {"trial_id": planted.trial_id("mlp", 0), "layer": "network.0", "layer_index": 0, "view": "units"}
    series |= {"measure": "participation_ratio", "mode": "default"}
    cell = {"cell": "mlp/digits", "measure": "participation_ratio", "what": "layers", "n_trials": 4, "statistic": 0.6}
    cell |= {"across": 0.2, "p": 0.01, "p_attainable": 0.01, "q": 0.02}
    put(store, "critical_periods", {"critical_series": [series]})
    put(store, "coordination_tests", {"coordination_cells": [cell]})
    found = section(store, "order")
    together, bars = drawn(found)
    assert [p.title for p in found.plates] == ["Do layers move together?", "Events by type"]
    assert csv(bars)["value"].tolist() == [3, 2]
    points = csv(together["layer"][-1])
    assert points[["estimate", "beside"]].to_numpy().tolist() == [[0.6, 0.2]]
    assert not any(x["mark"].get("strokeWidth") == 1.4 for x in together["layer"]), "no interval, no line"


# -- hypotheses, conclusions ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_hypotheses_are_drawn_by_their_unit(store: Store) -> None:
    row = {"hypothesis": "entropy", "scope": "mlp/digits", "statement": "Entropy falls", "n": 6, "p": 0.01, "q": 0.02}
    row |= {"metric": "entropy: change at events - at matched windows, SDs", "prediction": "decrease", "estimate": -1.0}
    row |= {"lo": -1.5, "hi": -0.5, "verdict": "supported", "confidence": "medium", "why": "planted"}
    other = row | {"hypothesis": "size", "scope": "*", "metric": "correlation of a and b", "prediction": "|r| > 0.6"}
    other |= {"q": 0.5, "verdict": "not_shown", "estimate": 0.2}
    put(store, "hypotheses", {"hypotheses": [row, other]})
    found = section(store, "why")
    assert [c.kind for c in found.claims] == ["finding", "nothing"]
    assert [f.title for f in found.plates[0].figures] == ["SDs of matched windows", "correlation"]
    filled = [spec["layer"][-1]["mark"]["style"] for spec in drawn(found)]
    assert filled == ["observed", "seed"]


@pytest.mark.slow
def test_conclusions_count_what_the_sections_say_and_name_what_was_not_asked(tmp_path: Path) -> None:
    store = planted.planted(tmp_path)
    put(store, "mechanisms", {"mechanism_tests": [changed_by(0.01)], "mechanism_changes": []})
    page = collect(store, SWEEP)
    (found,) = [s for s in page.sections if s.id == "conclusions"]
    told = [c for s in page.sections if s.id != "conclusions" for c in s.claims]
    findings = sum(c.kind == "finding" for c in told)
    assert found.claims[0].text.startswith(f"{findings} statement of this report survives the correction that it names")
    rows = found.sheets[0].rows.set_index("question")
    changed = rows.loc["What changes in the networks at events?"]
    assert changed["state"] == "answered in part: 1 finding" and changed["next"] == "ndt analyze planted hypotheses"
    assert rows.loc["What drives their timing: loss, gradients, learning rate?", "state"] == "not asked"
    assert found.sheets[1].rows["finding"].tolist() == [c.text for c in told if c.kind == "finding"]


def test_arms_with_other_learning_rates_are_told_apart(lesions: Store) -> None:
    rows = [contrast("area", 0.2, 0.03, against="kept") | {"lr_from": 0}, contrast("area", 0.1, 0.03, against="lr@50")]
    put(lesions, "recovery", {"recovery": _arms(lesions), "recovery_contrasts": rows})
    text = section(lesions, "recovery").claims[-1].text
    assert "at step 100, then the learning rates from step 0 on in" in text and "than with the schedule kept" in text
    assert "than at step 50 followed by the same learning rates" in text
