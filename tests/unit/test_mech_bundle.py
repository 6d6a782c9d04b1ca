"""The command that draws a sweep's networks: which moments are chosen, what is in the pictures, what is left out."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mech_store import SWEEP, folder, looked_at, trial_of

from ndt_ray.analysis.mechanisms.clear import clearest
from ndt_ray.analysis.mechanisms.sae.matrix import LayerMatrix
from ndt_ray.cli import main
from ndt_ray.errors import SpecError
from ndt_ray.figures import looking, modular, side_by_side, transfer
from ndt_ray.figures.album import Album, to_json
from ndt_ray.figures.bundle import Wanted, archive, write_mechanisms
from ndt_ray.figures.canvas import canvas
from ndt_ray.figures.grokking import fractions_by_frequency
from ndt_ray.figures.moments import Moment, moments
from ndt_ray.figures.networks import class_means
from ndt_ray.report.data_sets import data_sets
from ndt_ray.store.reader import open_store

TRIALS = pd.DataFrame(
    {"trial_id": ["aa1", "aa2", "bb1"], "cell": ["x", "x", "y"], "seed": [0, 1, 0], "control": "none", "steps": 100}
)
SAVED = pd.DataFrame({"trial_id": ["aa1"] * 3 + ["aa2"] * 2 + ["bb1"], "step": [20, 30, 40, 50, 100, 80]})
EVENT = {
    "trial_id": "aa1", "layer": "fc", "layer_index": 0, "family": "f", "step_before": 22, "step_after": 38,
    "step_location": 29.0, "significant": True, "p_event": 0.01, "phase_bin": "mid", "relative_size": 0.2,
    "q": 0.02, "width": 5.0,
}  # fmt: skip
FAMILIES = pd.DataFrame({"family": ["f"], "primary": [True]})


def figure() -> Any:
    return canvas((1, 1), (1, 1), 1, ("a", "b")).figure


def test_the_index_lists_every_file_and_everything_left_out(tmp_path: Path) -> None:
    trials = pd.DataFrame(
        {"data": ["mnist", "ag_news"], "data_completeness": ["complete", "subset"], "n_train": [60000, 14788]}
    )
    album = Album(tmp_path, limit=1, data=data_sets(trials))
    album.figure("One", "deep/er/a", figure(), "what <it> shows", "trial t")
    assert not album.room("One") and not album.room("One") and album.room("Two")
    album.text("Two", "b.csv", "x\n", "numbers")
    album.skip("Two", "the rest", "no & data")
    album.skip("Two", "the rest", "no & data")
    page = album.index("T").read_text()
    for link in re.findall(r'(?:href|src)="([^"#]+)"', page):
        assert (tmp_path / link).is_file(), link
    assert "what &lt;it&gt; shows" in page and page.count("no &amp; data") == 1
    assert "2 more figures" in page and "--limit 1" in page
    assert "<p>Data: mnist (60,000 training samples) is complete.</p>" in page
    assert "<p class=d>Data: ag_news (14,788 training samples) is only a subset of what was published" in page
    said = json.loads(to_json(album))
    assert [(d["data"], d["completeness"], d["n_train"]) for d in said["data_sets"]] == [
        ("ag_news", "subset", [14788]), ("mnist", "complete", [60000]),
    ]  # fmt: skip
    assert [f["path"] for f in said["files"]] == ["deep/er/a.png", "b.csv"] and len(said["skipped"]) == 2
    names = json.loads(_manifest(archive(album.files, tmp_path / "z.zip", tmp_path)))
    assert set(names) == {"deep/er/a.png", "b.csv"}
    with pytest.raises(SpecError, match="png, pdf or svg"):
        Album(tmp_path, "jpeg")


def _manifest(path: Path) -> bytes:
    import zipfile

    with zipfile.ZipFile(path) as opened:
        return opened.read("manifest.json")


def test_a_moment_is_an_event_with_checkpoints_around_it_or_a_trial_along_training() -> None:
    far = {**EVENT, "step_before": 60, "step_after": 70, "layer": "far"}
    found, left = moments(TRIALS, SAVED, pd.DataFrame([EVENT, far]), FAMILIES)
    assert [(m.trial, dict(m.steps)) for m in found] == [
        ("aa1", {"before": 20, "during": 30, "after": 40}), ("bb1", {"first": 0, "last": 80}),
    ]  # fmt: skip
    assert found[0].layer == "fc" and not found[0].exploratory and "event of fc" in found[0].words
    assert len(left) == 1 and "far" in left[0].what and "25%" in left[0].reason
    assert left[0].what.startswith("event of ") and left[0].reason.endswith("--run brings them back")
    unsure = moments(TRIALS, SAVED, pd.DataFrame([{**far, "significant": False}]), FAMILIES)[1][0]
    assert unsure.what.startswith("candidate, not significant, of ") and "--run" not in unsure.reason
    guess, _ = moments(TRIALS, SAVED, pd.DataFrame([{**EVENT, "significant": False}]), FAMILIES)
    assert guess[0].exploratory and "not significant" in guess[0].words
    none, _ = moments(TRIALS, SAVED, pd.DataFrame(), pd.DataFrame())
    assert [(m.trial, m.cell) for m in none] == [("aa2", "x"), ("bb1", "y")]  # trained longest
    assert dict(none[0].steps) == {"first": 0, "middle": 50, "last": 100}
    mine, _ = moments(TRIALS, SAVED, pd.DataFrame([EVENT]), FAMILIES, wanted=["aa"])
    assert [m.trial for m in mine] == ["aa1", "aa2"]
    with pytest.raises(SpecError, match="begins with 'cc'"):
        moments(TRIALS, SAVED, pd.DataFrame(), pd.DataFrame(), wanted=["cc"])


def test_events_of_several_seeds_at_one_step_are_all_looked_at() -> None:
    saved = pd.concat([SAVED, pd.DataFrame({"trial_id": ["aa2"] * 3, "step": [20, 30, 40]})])
    both = pd.DataFrame([EVENT, {**EVENT, "trial_id": "aa2", "relative_size": 0.1}])
    found, _ = moments(TRIALS, saved, both, FAMILIES)
    assert [m.trial for m in found if m.cell == "x"] == ["aa1", "aa2"]


def test_clear_stimuli_are_right_and_the_most_confident() -> None:
    logits = np.array([[3.0, 0], [1.0, 0], [0, 1.0], [2.0, 0]])
    found = clearest(logits, np.array([0, 0, 0, 1]))
    assert found[0].tolist() == [0, 1] and found[1].tolist() == []
    means = class_means(np.arange(20, dtype=np.float32).reshape(4, 5), "units", found)
    assert means.shape == (2, 2, 3) and np.isnan(means[1]).all()  # no image is clear: blank
    np.testing.assert_array_equal(means[0].ravel()[:5], [2.5, 3.5, 4.5, 5.5, 6.5])


def test_what_is_drawn_beside_each_other_is_what_was_given() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((4, 2, 5, 5)), rng.random((2, 5, 5))
    made = looking.attention_over({"one": a, "two": b})
    images = [x.get_array() for axes in made.axes for x in axes.get_images()]
    np.testing.assert_allclose(images[0], a.mean(0)[0])
    np.testing.assert_allclose(images[3], b[1])
    labels = np.array([1, 0, 1])
    x = rng.normal(size=(3, 6))
    shown = looking.activations_over({"s": x}, labels).axes[0].get_images()[0]
    np.testing.assert_array_equal(shown.get_array(), x[[1, 0, 2]].T)
    assert shown.get_clim()[0] == -shown.get_clim()[1]  # both signs: white is 0
    maps = looking.class_maps({0: rng.random((2, 3, 3)), 500: rng.random((2, 3, 3))}, [4, 7], "t")
    assert [axes.get_title() for axes in maps.axes[:4]] == [f"Class {c}, Step {s}" for s in (0, 500) for c in (4, 7)]
    kernels = rng.normal(size=(5, 2, 3, 3))
    kernels[:, 1] *= 9
    sheet = looking.filters_over({"s": kernels}, {"s": np.eye(5)}).axes[0].get_images()[0].get_array()
    np.testing.assert_array_equal(sheet[:3, :3], kernels[0, 1])  # the channel of most energy
    with pytest.raises(SpecError, match="cosines of one or more"):
        looking.filters_over({}, {})
    with pytest.raises(SpecError, match="a word each"):
        looking.neuron(np.ones((1, 2, 2)), [], ["a", "b"], "t")


def test_neurons_are_chosen_by_their_scales_and_bad_rules_are_refused() -> None:
    rows = pd.DataFrame(
        {"kind": "neuron", "unit": [0, 1, 2], "fraction": [0.9, 0.5, None], "structure": ["mixed", "flat", "mixed"]}
    )
    assert modular.chosen(rows, None) == [0, 1, 2]
    assert modular.chosen(rows, "fraction>=0.85") == [0] and modular.chosen(rows, "structure = mixed") == [0, 2]
    for bad, words in (
        ("fractoin>1", "fraction"), ("structure>mixed", "by = or !="), ("fraction=x", "holds numbers"), ("?", "COLUMN"),
    ):  # fmt: skip
        with pytest.raises(SpecError, match=words):
            modular.chosen(rows, bad)
    assert modular.View(grid=(40, 40)).slow and not modular.View(most=10, grid=(40, 40)).slow


@pytest.mark.slow
def test_maps_of_a_modular_network_at_full_and_reduced_resolution(tmp_path: Path) -> None:
    from ndt_ray.data import load
    from ndt_ray.models import build
    from ndt_ray.registry import resolve

    spec = SimpleNamespace(name="modular_addition", params={"p": 7})
    data = load(spec.name, spec.params)
    sizes = {"width": 8, "heads": 2, "hidden": 12, "depth": 1}
    model = build(resolve("model", "modular_transformer"), data.inputs, sizes, 0)
    context = SimpleNamespace(model=model, trial=SimpleNamespace(data=spec))
    units = {"unit": range(12), "fraction": np.linspace(0.1, 0.9, 12), "frequency": 2, "structure": "mixed"}
    scales = pd.DataFrame(units).assign(step=5, kind="neuron", fft_no_dc=0.5, relative_gradient=0.1, label="Mixed")
    heads = scales.iloc[:2].assign(kind="head_to_a")
    timeline = pd.DataFrame(
        {"kind": "neuron", "unit": range(12), "cluster": [0, 1] * 6, "representative": [True] * 2 + [False] * 10}
    )
    album, moment = Album(tmp_path), Moment("abcdef99", "m/7", {"first": 0, "last": 5})
    view = modular.View(grid=(2, 4), where="fraction>0.15")
    modular.draw(album, moment, lambda trial, step: context, pd.concat([scales, heads]), timeline, view)  # type: ignore[arg-type,return-value]
    names = {p.relative_to(tmp_path / "maps_abcdef").as_posix() for p in album.files}
    assert names == {
        "neurons_full_step_5.png", "neurons_over_training.png", "neurons_by_frequency_step_5.png",
        "neurons_step_5_page_0.png", "neurons_step_5_page_1.png", "clusters_step_5.png", "heads_to_a_step_5.png",
    }  # fmt: skip
    assert any("head cards" in s.what for s in album.skips)  # to b: no rows
    rng = np.random.default_rng(0)
    maps = rng.random((2, 9, 9))
    shares = rng.dirichlet([0.1] * 4, 20)
    shares[3] = np.nan
    (heat, _) = fractions_by_frequency(shares, "step 5").axes
    shown = heat.get_images()[0].get_array()
    assert shown.shape == (4, 19) and (np.diff(shown.argmax(0)) >= 0).all()
    assert sorted(shown.max(0)) == pytest.approx(sorted(np.delete(shares, 3, 0).max(1)))
    with pytest.raises(SpecError, match="neurons that vary"):
        fractions_by_frequency(np.full((3, 4), np.nan), "")
    sides = modular.resolutions(maps, {28: np.ones((2, 28, 28)), 56: np.ones((2, 56, 56))}, [(1, "neuron 1: x")])
    assert [axes.get_title() for axes in sides.axes[:3]] == ["9 × 9", "56 × 56", "28 × 28"]
    np.testing.assert_array_equal(sides.axes[0].get_images()[0].get_array(), maps[1])


STEPS = {f"{name}_step": 100 * (i + 1) for i, name in enumerate(side_by_side.LANDMARKS)}
ONSETS = pd.DataFrame([{"trial_id": t, "status": "grokked", **STEPS} for t in ("aa1", "aa2")])


def test_events_stand_against_the_landmarks_and_candidates_say_so() -> None:
    events = pd.DataFrame([EVENT, {**EVENT, "trial_id": "aa2", "step_before": 250, "step_after": 350}])
    made, told = side_by_side.landmarks(ONSETS, events, TRIALS, pd.DataFrame())
    bars = [(p.get_x(), p.get_width()) for p in made.axes[0].patches if p.get_height() < 0.9]
    assert bars == [(22, 16), (250, 100)] and "not computed" in told
    guess, _ = side_by_side.landmarks(ONSETS, events.assign(significant=False), TRIALS, pd.DataFrame())
    assert any("no event is significant: candidates" in text.get_text() for text in guess.texts)
    lags = pd.DataFrame({"landmark": ["onset", "onset"], "answer": ["before", "with"]})
    assert "onset: before 1, with 1" in side_by_side.landmarks(ONSETS, events, TRIALS, lags)[1]


def test_what_is_consistent_and_what_differs_by_p_is_said_from_the_rows() -> None:
    known = ((59, "delay", 10.0, True), (113, "delay", 2.0, False), (113, "onset_step", 5.0, True))
    rows = pd.DataFrame(known, columns=["p", "quantity", "mean", "consistent"])
    rows = rows.assign(cell="m/" + rows["p"].astype(str), n=3, sd=1.0, lo=rows["mean"] - 1, hi=rows["mean"] + 1)
    text = side_by_side.sentences(rows)
    assert "Consistent (1 of 1): delay 10 ± 1 (n = 3)" in text and "Decided by the seed (1 of 2): delay 2 ± 1" in text
    assert "| delay | 10 | 2 |" in text and "| onset_step |  | 5 |" in text
    panel = side_by_side.comparison(rows).axes[1]  # the second quantity: delay
    fills = {line.get_markerfacecolor() for line in panel.lines if line.get_marker() == "o"}
    assert fills == {"#0072b2", "white"}
    few = side_by_side.sentences(rows.assign(consistent=None, n=2))
    assert "nothing is said" in few


def test_a_pair_that_was_skipped_is_marked_with_its_reason() -> None:
    values = np.array([[1.0, np.nan], [np.nan, 0.5]])
    made = LayerMatrix("a -> b", ("x", "y"), ("x", "z"), values, reasons={(0, 1): "widths_8_vs_12"})
    assert transfer.skip_codes([made]) == {"widths_…": "a"}
    drawn = transfer.layer_universality_heatmap([made])
    assert [t.get_text() for t in drawn.axes[0].texts] == ["1.00", "a", "–", "0.50"]
    assert "a: widths_…" in [t.get_text() for t in drawn.legends[0].get_texts()]


@pytest.mark.slow
def test_a_sweeps_networks_are_drawn_and_what_cannot_be_is_said(tmp_path: Path) -> None:
    store = looked_at()
    album = write_mechanisms(store, SWEEP, tmp_path / "out", Wanted(units=1, trials=[trial_of(store, "transformer")]))
    names = [p.relative_to(tmp_path / "out").as_posix() for p in album.files]
    assert "index.html" in names and "index.json" in names
    for wanted in ("filters_", "attention_", "entropy_", "activations_", "classes_"):
        assert any(f"/{wanted}" in name for name in names), wanted
    neurons = [name for name in names if re.search(r"/neuron_\d+_step_(0|30|40|20)\.png$", name)]
    assert len(neurons) == 3  # a unit at 3 checkpoints
    page = (tmp_path / "out/index.html").read_text()
    assert all((tmp_path / "out" / link).is_file() for link in re.findall(r'src="([^"]+)"', page))
    with pytest.raises(SpecError, match="no network of this sweep has a layer"):
        write_mechanisms(store, SWEEP, tmp_path / "no", Wanted(layers=["nowhere"]))


@pytest.mark.slow
def test_without_its_checkpoint_or_attention_a_network_is_left_out_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder(), tmp_path / "store")
    store = open_store(tmp_path / "store")
    trial = trial_of(store, "mlp")
    rows = store.sql("SELECT path FROM checkpoints WHERE trial_id = ? AND step = 40", [trial])
    (tmp_path / "store" / rows["path"].item()).unlink()
    arguments = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "o"), "--trial", trial, "--units", "0"]
    with pytest.raises(SystemExit) as end:
        main(["mechanisms", SWEEP, *arguments, "--format", "pdf", "--archive", str(tmp_path / "a.zip"), "--founding"])
    said = capsys.readouterr()
    assert not end.value.code and "step 40 (last)" in said.err and "no attention" in said.err
    assert "neither jumps nor events were sought" in said.err
    assert "filters_network" in said.out and ".pdf" in said.out and "a.zip" in said.out
    assert json.loads(_manifest(tmp_path / "a.zip")).keys() >= {"index.html", "index.json"}
