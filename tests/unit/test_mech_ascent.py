"""Made images beat every image of a data set on trained networks, and the probe passes through a network once."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from mech_store import SWEEP, folder, looked_at, trial_of
from torch import Tensor, nn

from ndt_ray import registry
from ndt_ray.analysis.api import Partition
from ndt_ray.analysis.mechanisms.context import Contexts
from ndt_ray.analysis.mechanisms.seeing.ascent import made_images, responses_of
from ndt_ray.analysis.mechanisms.seeing.maximise import Examples, maximise, responses
from ndt_ray.analysis.running.runner import run_together
from ndt_ray.analysis.running.stored import StoredSweep, analyze, analyze_all
from ndt_ray.data import load
from ndt_ray.errors import SpecError
from ndt_ray.models import build, describe
from ndt_ray.models.describe import EXAMPLE_BATCH
from ndt_ray.store.reader import Store, open_store

DEFAULT = {"steps": 128, "jitter": 1}
"""As `features` has it."""


@dataclass(frozen=True)
class Trained:
    """A network after some steps of training, with every image of its data set."""

    model: nn.Module
    images: Tensor
    layers: list[str]

    @property
    def limits(self) -> tuple[float, float]:
        return float(self.images.min()), float(self.images.max())


@cache
def trained(name: str, steps: int) -> Trained:
    data = load("digits", {})
    model = build(registry.resolve("model", name), data.inputs, {}, 0).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(len(data.train_x), (64,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.train_x[batch]), data.train_y[batch]).backward()
        optimizer.step()
    images = torch.cat([data.train_x, data.test_x])
    assert len(images) == 1797
    return Trained(model.eval(), images, list(describe(model, data.inputs).tracked))


@pytest.mark.parametrize(
    ("name", "steps", "how"),
    [
        ("cnn_shallow", 50, DEFAULT),
        ("cnn_shallow", 200, DEFAULT),
        ("cnn_shallow", 200, {"steps": 128, "jitter": 2, "rotate": 5.0, "scale": 0.05}),
        ("mlp_narrow", 200, DEFAULT),
        ("mlp_narrow", 200, {**DEFAULT, "basis": "pixels"}),
    ],
)
def test_all_units_of_a_trained_network_are_driven_further_than_by_any_image_of_its_data(name, steps, how):
    it = trained(name, steps)
    for layer in it.layers:
        found = responses(it.model, layer, it.images)
        units = range(min(10, found.shape[1]))
        best, which = found.max(0)[units], torch.from_numpy(found.argmax(0)[units])
        made = maximise(it.model, layer, units, (1, 8, 8), it.limits, examples=Examples(it.images[which], best), **how)
        assert (made.activations > best).all(), (layer, np.flatnonzero(made.activations <= best))
        assert (made.activations > made.starts).all()
        again = responses(it.model, layer, torch.from_numpy(made.images))[np.arange(len(best)), units]
        np.testing.assert_allclose(made.activations, again, rtol=1e-4, atol=1e-5)  # of the images as they are
        assert made.images.min() >= it.limits[0] and made.images.max() <= it.limits[1]


def test_most_units_need_no_example_and_those_that_do_are_told():
    it = trained("cnn_shallow", 200)
    found = responses(it.model, "fc", it.images)
    best, images = found.max(0), it.images[torch.from_numpy(found.argmax(0))]
    given = (it.model, "fc", range(10), (1, 8, 8), it.limits)
    alone = maximise(*given, **DEFAULT)
    assert not alone.from_example.any() and (alone.activations > best).mean() >= 0.7  # 0.5 under shifts to the end
    helped, twice = (maximise(*given, examples=Examples(images, best), **DEFAULT) for _ in range(2))
    assert np.array_equal(helped.from_example, alone.activations <= best) and helped.from_example.any()
    assert np.array_equal(helped.images, twice.images)
    kept = ~helped.from_example
    assert np.array_equal(helped.images[kept], alone.images[kept])
    assert np.array_equal(helped.starts[kept], alone.starts[kept])
    begun = helped.starts[helped.from_example] / best[helped.from_example]
    assert (begun > 0.95).all()  # an image of the data, drawn in a little
    unbeatable = maximise(*given, examples=Examples(images, np.full(10, np.inf)), **DEFAULT)
    assert unbeatable.from_example.any() and (unbeatable.activations >= alone.activations).all()
    assert np.array_equal(unbeatable.from_example, unbeatable.activations > alone.activations)  # only where it helps


def test_nothing_behind_the_layer_is_computed():
    def never(*_):
        raise AssertionError

    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten())
    model[2].register_forward_pre_hook(never)
    made = maximise(model, "0", range(3), (1, 8, 8), (0.0, 1.0), steps=9)
    assert (made.activations > made.starts).all()


def test_responses_come_from_the_pass_that_all_analyses_share():
    with looked_at() as store:
        for model in ("mlp", "cnn", "transformer"):
            context = Contexts(StoredSweep(store, SWEEP))(trial_of(store, model), 40)
            for layer in context.layers:
                found = responses_of(context, layer.path)
                assert np.array_equal(found, responses(context.model, layer.path, context.inputs))
                assert found == pytest.approx(context.stimuli(layer.path), rel=1e-5, abs=1e-6)
            assert context.passes == 1


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Store]:
    with open_store(shutil.copytree(folder(), tmp_path / "store")) as store:
        yield store


def test_features_and_the_battery_send_the_probe_through_a_network_once(own, monkeypatch):
    passes: list[int] = []
    plain = nn.Module.__call__
    trial = trial_of(own, "cnn")

    def counted(module, *args, **kwargs):
        if type(module).__name__ == "CNN" and len(args[0]) > EXAMPLE_BATCH:
            passes.append(len(args[0]))
        return plain(module, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "__call__", counted)
    jobs = [("features", {"units": 3, "steps": 4}), ("units", None), ("collapse", None)]
    assert all(report.ok for report in run_together(jobs, StoredSweep(own, SWEEP), partitions=[Partition(trial, 40)]))
    assert passes.count(128) == 1  # the confirm probe
    monkeypatch.undo()
    assert len(own.table("features")) == 3 * own.table("features")["layer"].nunique() > 3


def test_cells_without_a_layer_are_left_out_with_the_reason_and_an_unknown_one_is_refused(own):
    at = [Partition(trial_of(own, m), 40) for m in ("cnn", "mlp", "transformer")]
    quick = {"units": 2, "steps": 2, "again": 0, "layers": ["conv_layers.0", "network.2"]}
    (report,) = analyze_all(own, SWEEP, [("features", quick)], partitions=at)
    assert report.ok and report.done == 3
    rows = own.table("features").set_index("trial_id")
    assert rows.loc[at[0].trial_id, "layer"].tolist() == ["conv_layers.0"] * 2
    assert rows.loc[at[1].trial_id, "layer"].tolist() == ["network.2"] * 2
    assert rows.loc[at[2].trial_id, ["layer", "flag"]].tolist() == ["*", "no_layer"]
    assert len(report.notes) == 3 and "has no layer conv_layers.0 - there are: network.0" in " ".join(report.notes)
    metrics = own.table("feature_metrics").set_index("trial_id")
    assert metrics.loc[at[2].trial_id, "flag"] == "no_layer"
    for name, wrong in (
        ("features", {"layers": ["conv_layers.0", "conv_layer.0"]}),
        ("dependencies", {"pairs": [["conv_layer.0", "fc"]]}),
        ("sae", {"layers": "conv_layer.0,1"}),
        ("sae_transfer", {"layers": ["conv_layer.0"]}),
    ):
        with pytest.raises(SpecError, match=rf"{name}: no network of 'looked-at' has a layer 'conv_layer.0' - did you"):
            analyze(own, SWEEP, name, parameters=wrong)
    with pytest.raises(SpecError, match="no network of"):
        analyze_all(own, SWEEP, [("convergence", None), ("features", {"layers": ["nowhere"]})])
    assert not StoredSweep(own, SWEEP).committed("convergence")  # nothing was computed
    report = analyze(own, SWEEP, "dependencies", parameters={"pairs": [["network.0", "network.2"]]}, partitions=at)
    assert report.ok and set(own.table("dependency_layers")["trial_id"]) == {at[1].trial_id}
    assert "no layer network.0, network.2 - there are: conv_layers.0" in " ".join(report.notes)


def test_a_second_seed_of_the_ascent_makes_other_images():
    with looked_at() as store:
        context = Contexts(StoredSweep(store, SWEEP))(trial_of(store, "cnn"), 40)
    path = context.layers[0].path
    found = responses_of(context, path)
    how = {"steps": 8, "jitter": 1}
    both, same = (made_images(context, path, [0, 1], found, again=[1], **how).images for _ in range(2))
    assert np.array_equal(both, same) and len(both) == 3 and not np.allclose(both[1], both[2], atol=0.05)
    alone = made_images(context, path, [0, 1], found, **how).images
    np.testing.assert_allclose(both[:2], alone, atol=1e-3)  # in company of a second seed as without
    np.testing.assert_allclose(both[2], made_images(context, path, [], found, again=[1], **how).images[0], atol=1e-3)
