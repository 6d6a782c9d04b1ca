"""Figures and sentences of the mechanistic analyses: what is drawn follows the rows, and bad requests say so."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ndt_ray.analysis.mechanisms.grokking import observations
from ndt_ray.cli import main
from ndt_ray.errors import SpecError
from ndt_ray.figures import grokking as figures
from ndt_ray.figures.album import Album
from ndt_ray.figures.bundle import archive
from ndt_ray.figures.canvas import save
from ndt_ray.store.reader import open_store
from ndt_ray.store.sweep import create_sweep

STEPS = np.arange(0, 1001, 100)
MEASURES = pd.DataFrame(
    {
        "step": STEPS, "train_loss": np.exp(-STEPS / 100), "test_loss": 5 + 0.0 * STEPS, "train_accuracy": 1.0,
        "test_accuracy": 0.5, "restricted_loss": np.exp(-STEPS / 200), "excluded_loss": 1 + STEPS / 100,
        "gini_embedding": STEPS / 1100, "specialised_neurons": STEPS / 1000, "explained": STEPS / 1000,
        "key_frequencies": [[3, 7]] * 11,
    }
)  # fmt: skip
ONSET = pd.Series(
    {
        "status": "grokked", "memorised_step": 100, "peak_step": 200, "peak_loss": 9.0, "inflection_step": 500,
        "onset_step": 600, "delay": 500, "confidence": 0.9, "final_loss": 1e-7, "excluded_step": 400,
    }
)  # fmt: skip
QUESTIONS = pd.DataFrame(
    [
        {
            "question": "order",
            "kind": "neuron",
            "statistic": "a",
            "value": -0.5,
            "p": 0.01,
            "n": 40,
            "answer": "low first",
        },
        {
            "question": "role",
            "kind": "head_to_a",
            "statistic": "b",
            "value": 1.0,
            "p": None,
            "n": 2,
            "answer": "too few",
        },
    ]
)


def scales(n: int = 6) -> pd.DataFrame:
    rows = [
        {"step": s, "kind": "neuron", "unit": u, "fraction": u / n, "fft_no_dc": u / n, "coarseness": u / n,
         "structure": "mixed", "label": "Mixed", "relative_gradient": 0.1}
        for s in (0, 1000) for u in range(n)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def timeline(n: int = 6) -> pd.DataFrame:
    units = {"unit": range(n), "frequency": [3, 7] * (n // 2), "fraction": np.linspace(0, 1, n), "switches": [0, 1] * 3}
    return pd.DataFrame(units).assign(kind="neuron", specialised_step=[None] * 3 + [500] * 3, commitment_step=400)


def test_observations_say_what_was_found_and_only_that() -> None:
    lines = observations.observations(ONSET, MEASURES, timeline(), QUESTIONS)
    text = "\n".join(lines)
    assert "Grokking detected: memorised at step 100" in text and "at step 500" in text and "delay 500" in text
    assert "Key frequencies at step 1000: 3, 7; they explain 100%" in text and "0.00 at step 0, 0.91" in text
    assert "half-way at step 400, before the" in text and "50% of 6 neurons end specialised" in text
    assert "low first; -0.50, p = 0.01, n = 40" in text and "too few" not in text
    none = pd.Series({**ONSET, "status": "no_second_descent", "onset_step": None})
    lines = observations.observations(none, MEASURES.iloc[:0], timeline().iloc[:0], QUESTIONS.iloc[:0])
    assert lines == ["Memorised at step 100; no second descent until the end of the run."]


def test_summary_statistics_are_told_for_every_checkpoint() -> None:
    found = observations.summary(MEASURES, scales()).set_index("step")
    assert len(found) == 11 and found.loc[1000, "fft_no_dc_median"] == pytest.approx(2.5 / 6)
    assert found.loc[0, "blobs"] == 1 and found.loc[0, "plaids"] == 3 and np.isnan(found.loc[100, "blobs"])


@pytest.mark.slow
def test_the_transition_stands_beside_dimensionality_and_events(tmp_path: Path) -> None:
    rows = pd.DataFrame({"step": STEPS, "layer": "linear1", "participation_ratio": 20 - STEPS / 100})
    events = pd.DataFrame({"step_before": [400], "step_after": [600]})
    made = figures.transition(MEASURES, MEASURES.iloc[:0], rows, events=events, onset=ONSET)
    bottom = made.axes[3]
    assert len(bottom.patches) == 1 and len(made.axes[0].lines) == 2 + 3  # two losses, three dashed steps
    assert bottom.get_ylabel() == "participation ratio" and save(made, tmp_path / "t.png").stat().st_size > 5000
    with pytest.raises(SpecError, match="no rows to draw"):
        figures.transition(MEASURES.iloc[:0], MEASURES.iloc[:0], rows)


def test_units_are_shown_a_page_at_a_time() -> None:
    maps = np.random.default_rng(0).random((40, 5, 5))
    maps[3] = 1.0
    sheet = figures.small_multiples(maps, grid=(2, 8)).axes[0].images[0].get_array()
    assert sheet.shape == (2 * 7, 8 * 7)
    last = figures.small_multiples(maps, units=range(20), page=1, grid=(2, 8), badges={17: "mixed"})
    assert last.axes[0].images[0].get_array().shape == (7, 4 * 7) and len(last.axes[0].lines) == 1
    with pytest.raises(SpecError, match="no page 3 of 40 units: there are 3 pages of 16, from 0"):
        figures.small_multiples(maps, page=3, grid=(2, 8))
    with pytest.warns(UserWarning, match="1025 maps on one page"):
        figures.small_multiples(np.random.default_rng(0).random((1025, 2, 2)), grid=(33, 32))


def test_neurons_by_frequency_and_heads_by_scale() -> None:
    made = figures.neuron_frequencies(timeline(), scales())
    assert [t.get_text() for t in made.axes[0].get_yticklabels()] == ["3", "7"]
    heads = scales(2).iloc[:2].assign(structure=["high_frequency", "low_frequency"])
    cards = figures.head_cards(np.random.default_rng(0).random((2, 5, 5)), heads)
    assert [a.get_title() for a in cards.axes] == ["0: Mixed", "1: Mixed"]


@pytest.mark.slow
def test_the_files_of_a_sweep_are_written_and_packed(tmp_path: Path) -> None:
    tables = {
        "grokking_measures": MEASURES, "grokking_onsets": pd.DataFrame([ONSET]), "scale_metrics": scales(),
        "specialisation_timeline": timeline(), "scale_questions": QUESTIONS, "evaluations": MEASURES.iloc[:0],
        "measurements": pd.DataFrame({"step": STEPS, "layer": "linear1", "participation_ratio": 5.0}),
    }  # fmt: skip
    tables = {name: rows.assign(trial_id="abcdef0123") for name, rows in tables.items()}
    figures.write(tables | {"events": pd.DataFrame()}, album := Album(tmp_path))
    written = album.files
    assert [p.name for p in written] == [
        f"grokking_abcdef{end}" for end in (".png", "_neurons.png", "_summary.csv", ".md")
    ]
    assert (tmp_path / "grokking_abcdef.md").read_text().startswith("# Trial abcdef0123\n\n- Grokking detected")
    packed = [archive(written, tmp_path / name) for name in ("a.zip", "more/b.zip")]
    assert packed[0].read_bytes() == packed[1].read_bytes()
    with zipfile.ZipFile(packed[0]) as opened:
        manifest = json.loads(opened.read("manifest.json"))
        for name, note in manifest.items():
            data = opened.read(name)
            assert note == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert set(manifest) == {p.name for p in written}


def test_the_command_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_store(str(tmp_path / "store"), create=True) as store:
        create_sweep(store, "empty", "name: empty\n", {})
    for arguments, code in ((["mechanisms", "empty"], 0), (["mechanisms", "other"], 2)):
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")])
        shown = capsys.readouterr()
        if not code:
            assert end.value.code == 0 and "nothing yet: ndt analyze empty sae" in shown.err
        else:
            assert end.value.code not in (0, None) and "other" in shown.err
