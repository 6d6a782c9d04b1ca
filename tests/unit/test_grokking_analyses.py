"""A planted grokking run: a network that moves from its initialisation to a solution with known frequencies."""

import dataclasses
import json
from functools import cache

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from ndt_ray import registry
from ndt_ray.analysis.api import AnalysisInput, Partition
from ndt_ray.analysis.mechanisms.context import ProbeContext
from ndt_ray.analysis.mechanisms.grokking import fourier, progress
from ndt_ray.analysis.mechanisms.grokking.analyses import grokking, grokking_comparison, grokking_timeline
from ndt_ray.analysis.mechanisms.grokking.lags import LANDMARKS, grokking_lags
from ndt_ray.analysis.mechanisms.grokking.maps import (
    DownsampledActivationsAnalyzer,
    NeuronActivationsAnalyzer,
    bundle,
    head_ablation,
)
from ndt_ray.analysis.mechanisms.grokking.planted import plant
from ndt_ray.data import load
from ndt_ray.errors import SpecError
from ndt_ray.models import build
from ndt_ray.models.modular import ModularTransformer
from ndt_ray.spec import Trial

P, KEYS, STEPS = 23, (3, 7, 11), (0, 100, 200, 300, 400, 500)
MODEL = {"name": "modular_transformer", "width": 32, "heads": 2, "hidden": 48}
DATA = {"name": "modular_addition", "p": P}


def trial(**changes: object) -> Trial:
    spec = {"model": MODEL, "data": DATA, "train": {"steps": 500}, "seed": 0, "measure": {"probe": 46}} | changes
    return Trial.model_validate(spec)


@cache
def network(share: float, model: str = "modular_transformer") -> torch.nn.Module:
    """A mix of the initialisation and the planted solution."""
    inputs = load("modular_addition", {"p": P}).inputs
    parameters = {k: v for k, v in MODEL.items() if k != "name"} if model == "modular_transformer" else {}
    made = build(registry.resolve("model", model), inputs, parameters, 0)
    if share:
        assert isinstance(made, ModularTransformer)
        start = [w.detach().clone() for w in made.parameters()]
        plant(made, KEYS)
        with torch.no_grad():
            for weight, first in zip(made.parameters(), start, strict=True):
                weight.mul_(share).add_((1 - share) * first)
    return made


def given(analysis_reads: tuple[str, ...], tables: dict[str, pd.DataFrame], spec: Trial | None = None) -> AnalysisInput:
    """A trial whose network at step s is s / 500 of the way to the solution."""
    spec = spec or trial()
    data = load(spec.data.name, spec.data.params)

    def contexts(trial_id: str, step: int) -> ProbeContext:
        model = network(step / 500) if spec.model.name == "modular_transformer" else network(0, spec.model.name)
        return ProbeContext(spec, step, model, data.test_x[:46], data.test_y[:46], data)

    rows = pd.DataFrame([{"trial_id": spec.trial_id, "spec": spec.model_dump_json(), "cell": "m", "control": "none"}])
    saved = pd.DataFrame({"trial_id": spec.trial_id, "step": list(STEPS[1:])})
    held = {"trials": rows, "checkpoints": saved} | tables
    arrow = {n: pa.Table.from_pandas(held[n]) if n in held else pa.table({}) for n in analysis_reads}
    return AnalysisInput("planted", Partition(spec.trial_id), arrow, contexts)


@cache
def found() -> dict[str, pd.DataFrame]:
    return {name: table.to_pandas() for name, table in grokking(given(grokking.reads, {})).items()}


@pytest.mark.slow
@pytest.mark.parametrize(("p", "keys"), [(23, (3, 7, 11)), (113, (14, 35, 41, 52, 56))])
def test_the_frequencies_of_a_planted_network_are_recovered_exactly(p: int, keys: tuple[int, ...]) -> None:
    data = load("modular_addition", {"p": p})
    model = build(registry.resolve("model", "modular_transformer"), data.inputs, {}, 0)
    assert isinstance(model, ModularTransformer)
    plant(model, keys)
    maps = bundle(model, data)
    assert progress.scores(maps.logits).accuracy == 1
    assert fourier.key_frequencies(fourier.sum_energy(maps.logits)) == keys
    assert fourier.learned_frequencies(maps.neuron_fractions) == keys
    frequency, share = fourier.dominant(maps.neuron_fractions)
    assert set(frequency[~np.isnan(share)].tolist()) == set(keys) and np.nanmin(share) > 0.9
    lost = head_ablation(model, data)
    assert lost[0]["zero"] > 1 and lost[0]["mean"] > 1  # all of it goes through the first head
    assert [head["zero"] for head in lost[1:]] == pytest.approx([0.0] * (len(lost) - 1), abs=1e-9)


def test_progress_measures_follow_the_solution() -> None:
    measures = found()["grokking_measures"]
    assert measures["step"].tolist() == list(STEPS)
    first, last = measures.iloc[0], measures.iloc[-1]
    assert first["test_accuracy"] < 0.2 and last["test_accuracy"] == 1
    assert list(last["key_frequencies"]) == list(KEYS) == list(last["learned_frequencies"])
    assert last["restricted_loss"] < 0.2 < 3 < last["excluded_loss"]
    assert first["gini_embedding"] < 0.2 and last["gini_embedding"] == pytest.approx(1 - 3 / 11)
    assert last["specialised_neurons"] == 1 and last["phase_agreement"] == pytest.approx(1.0, abs=1e-6)
    assert measures["flag"].isna().all()


@pytest.mark.slow
def test_a_checkpoint_takes_one_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    forward = ModularTransformer.forward

    def counted(self: ModularTransformer, x: torch.Tensor) -> torch.Tensor:
        passes.append(len(x) if len(x) > 2 else 0)  # two samples say what the layers are like
        return forward(self, x)

    monkeypatch.setattr(ModularTransformer, "forward", counted)
    grokking(given(grokking.reads, {}), ablate=False)
    assert sum(passes) == len(STEPS) * P * P  # every pair once a checkpoint, the last one too
    passes.clear()
    grokking(given(grokking.reads, {}))
    assert sum(passes) == len(STEPS) * P * P * (1 + 2 * 2)  # and once for each of the two interventions on two heads


def test_spectra_are_shares_of_every_frequency() -> None:
    spectra = found()["fourier_spectra"]
    parts = {
        "logits",
        "embedding",
        "unembedding",
        "neurons",
        "neuron_logit",
        *(f"{w}:{h}" for w in ("attention", "query_key") for h in (0, 1)),
    }
    last = spectra[spectra["step"] == 500]
    assert set(spectra["part"]) == parts and set(last["frequency"]) == set(range(1, 12))
    embedding = last[last["part"] == "embedding"].set_index("frequency")["share"]
    assert embedding[list(KEYS)].tolist() == pytest.approx([1 / 3] * 3)


def test_scales_are_told_for_every_unit_and_heads_are_ablated() -> None:
    scales = found()["scale_metrics"]
    counts = scales[scales["step"] == 500].groupby("kind").size()
    assert counts.to_dict() == {"neuron": 48, "head_to_a": 2, "head_to_b": 2}
    heads = scales[scales["kind"] == "head_to_a"]
    assert heads["ablation_mean"].notna().all() and scales[scales["kind"] == "neuron"]["ablation_mean"].isna().all()
    last = scales[(scales["step"] == 500) & (scales["kind"] == "neuron")]
    assert (last[last["frequency"] == 11]["structure"] != "low_frequency").all()


@pytest.mark.slow
def test_the_timeline_finds_when_units_settled_and_that_it_is_no_grokking_without_a_descent() -> None:
    tables = {"grokking_measures": found()["grokking_measures"], "scale_metrics": found()["scale_metrics"]}
    steps = np.arange(0, 501, 10)
    tables["losses"] = pd.DataFrame({"step": steps[1:], "loss": 3 * np.exp(-steps[1:] / 10.0)})
    loss = np.where(steps < 250, 4.0 + steps / 500, 4.5 * np.exp(-(steps - 250.0) / 12))
    tables["evaluations"] = pd.DataFrame({"step": steps, "loss": loss, "accuracy": (steps >= 280).astype(float)})
    out = {n: t.to_pandas() for n, t in grokking_timeline(given(grokking_timeline.reads, tables)).items()}
    onset = out["grokking_onsets"].iloc[0]
    assert onset["status"] == "grokked" and onset["memorised_step"] == 50 and onset["peak_step"] == 250
    assert 250 < onset["onset_step"] <= 280 and onset["delay"] == onset["onset_step"] - 50
    assert onset["accuracy_step"] == 280 and list(onset["frequencies"]) == list(KEYS)
    units = out["specialisation_timeline"]
    neurons = units[units["kind"] == "neuron"]
    assert len(neurons) == 48 and set(neurons["frequency"]) == set(KEYS)
    assert neurons["variance_preservation"].between(0, 1).all() and neurons["ablation"].isna().all()
    assert units[units["kind"] == "head_to_a"]["ablation"].notna().all()
    assert (neurons["commitment_step"] <= 500).all() and neurons["specialised_step"].notna().all()
    answers = out["scale_questions"]
    assert {"emergence", "order", "role", "clusters", "redundancy"} == set(answers["question"])
    assert answers[answers["kind"] == "head_to_a"]["answer"].str.startswith("too few").all()


def test_another_architecture_has_losses_but_no_neurons() -> None:
    data = given(grokking.reads, {}, trial(model={"name": "mlp_narrow"}))
    out = {n: t.to_pandas() for n, t in grokking(data).items()}
    assert set(out["grokking_measures"]["flag"]) == {"no_block"}
    assert out["grokking_measures"]["gini_embedding"].isna().all() and not len(out["scale_metrics"])


def test_a_network_that_diverged_has_nulls_and_stops_nothing() -> None:
    spec = trial()
    data = load("modular_addition", {"p": P})
    broken = build(registry.resolve("model", "modular_transformer"), data.inputs, {"width": 32, "hidden": 48}, 0)
    with torch.no_grad():
        next(iter(broken.parameters())).fill_(torch.nan)
    one = given(grokking.reads, {}, spec)
    context = ProbeContext(spec, 0, broken, data.test_x[:46], data.test_y[:46], data)
    out = {n: t.to_pandas() for n, t in grokking(dataclasses.replace(one, contexts=lambda *_: context)).items()}
    assert out["grokking_measures"]["test_loss"].isna().all() and out["scale_metrics"]["structure"].isna().all()
    tables = {n: out[n] for n in ("grokking_measures", "scale_metrics")}
    later = {n: t.to_pandas() for n, t in grokking_timeline(given(grokking_timeline.reads, tables)).items()}
    assert later["grokking_onsets"]["status"].tolist() == ["no_memorisation"] and len(later["scale_questions"])


def test_other_data_and_trials_without_checkpoints_have_no_rows() -> None:
    digits = trial(model={"name": "mlp_narrow"}, data={"name": "digits"})
    for analysis in (grokking, grokking_timeline):
        assert all(t.num_rows == 0 for t in analysis(given(analysis.reads, {}, digits)).values())
    empty = AnalysisInput("none", Partition("x"), {n: pa.table({}) for n in grokking.reads})
    assert all(t.num_rows == 0 for t in grokking(empty).values())
    nothing = AnalysisInput("none", Partition(), {n: pa.table({}) for n in grokking_comparison.reads})
    assert grokking_comparison(nothing)["grokking_comparison"].num_rows == 0
    with pytest.raises(SpecError, match="for modular arithmetic only"):
        bundle(network(0), load("digits", {}))


def test_analyzers_share_one_forward_pass_and_build_on_each_other() -> None:
    model, calls = network(1.0), []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    maps = bundle(model, load("modular_addition", {"p": P}))
    handle.remove()
    assert len(calls) == 1
    base = NeuronActivationsAnalyzer().analyze(maps)
    assert {n: v.shape for n, v in base.items()} == {
        "neuron_acts": (48, 23, 23),
        "attn_to_a": (2, 23, 23),
        "attn_to_b": (2, 23, 23),
    }
    small = DownsampledActivationsAnalyzer(28).analyze(base)
    assert small["neuron_acts_downsampled"].shape == (48, 28, 28) and "attn_to_b_downsampled" in small
    with pytest.raises(SpecError, match="at least 2 x 2"):
        DownsampledActivationsAnalyzer(1)


def lags(event_steps: list[float], onset_steps: list[int | None]) -> pd.DataFrame:
    ids = [f"t{i}" for i in range(len(event_steps))]
    trials = pd.DataFrame({"trial_id": ids, "cell": "m", "steps": 10_000})
    events = pd.DataFrame({"trial_id": ids, "step_location": event_steps, "step_after": 0, "statistic": 5.0})
    small = events.assign(step_location=1.0, statistic=-2.0)  # the largest event counts, not the first
    events = pd.concat([small, events, events.assign(significant=False, statistic=99.0)]).fillna({"significant": True})
    events = events.assign(
        family="primary", detector="d", null="n", measure="pr", view="tokens", layer="linear1", layer_index=1
    )
    onsets = pd.DataFrame({"trial_id": ids, **{f"{name}_step": onset_steps for name in LANDMARKS}})
    tables = {"trials": trials, "events": events, "grokking_onsets": onsets}
    arrow = {n: pa.Table.from_pandas(t) for n, t in tables.items()}
    return grokking_lags(AnalysisInput("x", Partition(), arrow))["grokking_lags"].to_pandas()


@pytest.mark.parametrize(
    ("events", "onsets", "answer"),
    [
        ([5000, 5100, 4900, 5050], [6000, 6100, 6050, 5950], "before"),
        ([7000, 7100, 6900, 7050], [6000, 6100, 6050, 5950], "after"),
        ([6010, 6090, 6060, 5960], [6000, 6100, 6050, 5950], "with"),
        ([2000, 9000, 5000, 7000], [6000, 6100, 6050, 5950], "undecided"),
        ([5000], [6000], "one trial"),
        ([5000, 5100], [None, None], "no trial has both"),
    ],
)
def test_events_are_placed_against_the_landmarks(events: list[float], onsets: list[int | None], answer: str) -> None:
    row = lags(events, onsets).set_index("landmark").loc["onset"]
    assert row["answer"] == answer and row["n"] + row["n_missing"] == len(events)


def test_without_events_there_are_no_lags() -> None:
    nothing = AnalysisInput("none", Partition(), {n: pa.table({}) for n in grokking_lags.reads})
    assert grokking_lags(nothing)["grokking_lags"].num_rows == 0


def test_seeds_and_moduli_are_compared() -> None:
    def rows(cell: str, p: int, onsets: list[int | None]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        ids = [f"{cell}{i}" for i in range(len(onsets))]
        trials = pd.DataFrame({"trial_id": ids, "cell": cell, "control": "none"})
        onset = pd.DataFrame({"trial_id": ids, "onset_step": onsets, "delay": onsets, "confidence": 0.9})
        onset = onset.assign(final_loss=1e-6, frequencies=[[1, 2]] * len(ids), learned=[[1]] * len(ids))
        last = pd.DataFrame({"trial_id": ids, "step": 500, "p": p, "gini_embedding": 0.9})
        return trials, onset, last

    parts = [rows("a", 97, [100, 110, 105]), rows("b", 113, [100, 900, None])]
    names = ("trials", "grokking_onsets", "grokking_measures")
    tables = {n: pa.Table.from_pandas(pd.concat(t)) for n, t in zip(names, zip(*parts, strict=True), strict=True)}
    tables |= {"scale_questions": pa.table({}), "specialisation_timeline": pa.table({})}
    out = grokking_comparison(AnalysisInput("two", Partition(), tables))["grokking_comparison"].to_pandas()
    row = out.set_index(["cell", "quantity"]).loc
    assert row["a", "onset_step"]["consistent"] and row["b", "onset_step"]["n_missing"] == 1
    assert row["b", "onset_step"]["consistent"] is None and row["b", "onset_step"]["hi"] > 900
    assert json.loads(row["a", "onset_step"]["other_p"]) == {"113": 500.0}
    assert row["a", "final_gini_embedding"]["mean"] == pytest.approx(0.9)
