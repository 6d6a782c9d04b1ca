"""How odd mini-batches were: the seed says which they were, and both statistics have known values."""

import json
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch

from ndt_ray.analysis.events import batches as batches_module
from ndt_ray.analysis.events.batches import batch_statistics, drawn_again
from ndt_ray.data import load
from ndt_ray.lanes.batches import Batches
from ndt_ray.spec import Trial

DIGITS = load("digits")


def trial(data="digits", model="mlp_narrow", **train) -> Trial:
    settings = {"steps": 60, "batch": 32, "optimizer": "adam", "lr": 1e-3} | train
    return Trial.model_validate({"model": model, "data": data, "seed": 3, "train": settings})


def test_both_statistics_are_what_their_definitions_say():
    steps = np.array([0, 10, 40])
    found = batch_statistics(trial(), DIGITS, steps)
    batches = Batches([trial()], DIGITS, torch.device("cpu"))
    x, y = DIGITS.train_x.flatten(1).double().numpy(), DIGITS.train_y.numpy()
    for row, (first, last) in zip(found.itertuples(), [(0, 10), (10, 40)], strict=False):
        drawn = np.concatenate([batches.indices(u)[0] for u in range(first, last)])
        counts, share = np.bincount(y[drawn], minlength=10), np.bincount(y, minlength=10) / len(y)
        chi2 = ((counts - len(drawn) * share) ** 2 / (len(drawn) * share)).sum()
        assert row.batch_classes == pytest.approx(np.sqrt(chi2 / 9))
        error = np.linalg.norm(x[drawn].mean(0) - x.mean(0)) / np.sqrt(x.var(0).sum() / len(drawn))
        assert row.batch_inputs == pytest.approx(error, rel=1e-6)
    assert found.iloc[-1].isna().all()


def test_they_are_about_one_for_small_batches_and_nothing_for_the_whole_set():
    small = batch_statistics(trial(batch=4), DIGITS, np.arange(60)).iloc[:-1]
    assert (small**2).mean().between(0.8, 1.2).all()
    whole = batch_statistics(trial(batch="full"), DIGITS, np.arange(4)).iloc[:-1]
    np.testing.assert_allclose(whole, 0, atol=1e-6)


def test_texts_are_told_by_their_length_and_pairs_of_numbers_have_none():
    modular = load("modular_addition", {"p": 11})
    found = batch_statistics(trial("modular_addition", "modular_transformer", batch=8), modular, np.arange(5)).iloc[:-1]
    assert (found["batch_inputs"] == 0).all() and (found["batch_classes"] > 0).all()


def test_only_trials_of_a_sweep_on_the_same_data_have_them():
    one = trial()
    rows = pd.DataFrame({"trial_id": [one.trial_id], "spec": [one.model_dump_json()], "data_hash": [DIGITS.hash]})
    notes: list[str] = []
    again = drawn_again(rows, notes)
    assert again is not None and not notes
    steps = np.array([0, 5, 20])
    pd.testing.assert_frame_equal(again(rows.iloc[0].to_dict(), steps), batch_statistics(one, DIGITS, steps))
    assert drawn_again(rows.assign(data_hash="another"), notes) is None and "is not the one" in notes[-1]
    assert drawn_again(rows.assign(spec=json.dumps({"measure": {"every": 5}})), notes) is None
    assert "not trained by a sweep" in notes[-1]
    gone = trial({"name": "arrays", "path": "gone.npz"}).model_dump_json()
    assert drawn_again(rows.assign(spec=gone), notes) is None and "gone.npz" in notes[-1]
    assert drawn_again(rows.drop(columns="data_hash"), notes) is None


def test_large_intervals_take_no_more_room_than_a_batch():
    """2,000 updates of 512 samples in one interval: gathered at once they were 262 MB."""
    tracemalloc.start()
    batch_statistics(trial(batch=512, steps=2000), DIGITS, np.array([0, 2000]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_each_data_set_is_read_once_for_all_trials(monkeypatch):
    made = [Trial.model_validate({**trial().model_dump(), "seed": seed}) for seed in range(4)]
    loads = []
    monkeypatch.setattr(batches_module, "load", lambda *given: loads.append(given) or DIGITS)
    rows = pd.DataFrame({"spec": [t.model_dump_json() for t in made], "data_hash": DIGITS.hash})
    again = drawn_again(rows, [])
    found = [again(row, np.array([0, 5])) for row in rows.to_dict("records")]
    assert len(loads) == 1 and len({table["batch_inputs"].iloc[0] for table in found}) == 4
