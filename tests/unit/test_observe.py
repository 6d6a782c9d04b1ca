"""What a pack is seen to be at a step: lanes through the engine's hooks, scores of logits, norms of arena rows."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ndt_ray.data import load
from ndt_ray.lanes import make_engine
from ndt_ray.lanes.arena import Layout
from ndt_ray.lanes.norms import LayerNorms
from ndt_ray.lanes.observe import Observer
from ndt_ray.measurement.evaluate import lane_scores, scores
from ndt_ray.measurement.spectra import Layer
from ndt_ray.models import build
from ndt_ray.models.mlp import mlp
from ndt_ray.spec import Trial

CPU = torch.device("cpu")


class Overwriting(nn.Module):
    """Works in place on its layer's output, from the first forward pass on or only from the third."""

    def __init__(self, after):
        super().__init__()
        self.linear, self.after, self.passes = nn.Linear(64, 10), after, 0

    def forward(self, x):
        self.passes += not self.training
        h = self.linear(x.flatten(-3))
        return h.relu_() if self.passes > self.after else h.relu()


def engine_of(factory, lanes, engine="loop"):
    data = load("digits", {})
    spec = {"model": "mine", "data": "digits", "train": {"steps": 1}, "engine": engine, "source": "mine"}
    trials = [Trial.model_validate({**spec, "seed": seed}) for seed in range(lanes)]
    return make_engine(trials, lambda t: build(factory, data.inputs, {}, t.seed.init), CPU), data.test_x[:40]


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("after", [0, 2])
def test_a_layer_that_is_overwritten_is_seen_as_it_was(after):
    engine, inputs = engine_of(lambda _: Overwriting(after), 2)
    observer = Observer(engine, [Layer("linear", 0, "units", "units")])
    for _ in range(4):
        for seen in observer.observe(inputs, [0, 1]):
            model = engine.models[seen.lanes[0]]
            assert torch.equal(seen.activations["linear"][0], model.linear(inputs.flatten(-3)))
            assert seen.activations["linear"].min() < 0 and seen.logits.min() == 0
            assert hooks(model) == 0 and model.training


@pytest.mark.parametrize("engine", ["stack", "loop"])
def test_lanes_are_seen_alike_in_any_company(engine):
    engine, inputs = engine_of(lambda shape: mlp(shape, hidden=(20, 30)), 3, engine)
    # The second layer has more outputs than inputs and is measured through these.
    observer = Observer(engine, [Layer("network.0", 0, "units", "units"), Layer("network.2", 1, "units", "units")])
    together = [seen for seen in observer.observe(inputs, [0, 1, 2])]
    for lane in range(3):
        (alone,) = observer.observe(inputs, [lane])
        (theirs,) = [(seen, seen.lanes.index(lane)) for seen in together if lane in seen.lanes]
        seen, place = theirs
        assert torch.equal(alone.logits[0], seen.logits[place])
        assert torch.equal(alone.activations["network.0"][0], seen.activations["network.0"][place])
        mine, others = alone.linear["network.2"], seen.linear["network.2"]
        assert torch.equal(mine.inputs[0], others.inputs[place]) and torch.equal(mine.weight[0], others.weight[place])


def test_scores_are_those_of_the_definitions():
    logits, labels = torch.randn(3, 50, 7) * 20, torch.arange(50) % 5
    loss, accuracy, by_class = lane_scores(logits, labels, 7)
    for lane in range(3):
        assert loss[lane] == pytest.approx(F.cross_entropy(logits[lane].double(), labels).item(), rel=1e-12)
        right = (logits[lane].argmax(-1) == labels).numpy()
        assert accuracy[lane] == right.mean()
        assert [by_class[lane, c] for c in range(5)] == [right[labels == c].mean() for c in range(5)]
        one = scores(logits[lane], labels, 7)
        assert (one.loss, one.accuracy) == (loss[lane], accuracy[lane])
    assert np.isnan(by_class[:, 5:]).all()


def test_a_model_that_says_nothing_is_right_by_chance_and_one_that_broke_not_at_all():
    logits = torch.stack([torch.zeros(50, 5), torch.full((50, 5), torch.nan)])
    loss, accuracy, _ = lane_scores(logits, torch.arange(50) % 5, 5)
    assert loss[0] == pytest.approx(np.log(5)) and accuracy[0] == 0.2
    assert np.isnan(loss[1])


def test_norms_are_right_to_a_millionth():
    model = nn.Sequential(nn.Linear(300, 70), nn.ReLU(), nn.Linear(70, 3))
    norms = LayerNorms(Layout(model))
    g = torch.Generator().manual_seed(0)
    start, before, weights, grads = torch.randn(4, 3, norms._scratch.shape[1], generator=g) * 1e-3
    found = norms.squares(grads, before, weights, start, [0, 2])
    starts = [0, 21008 + 80]  # each parameter is padded to 16
    for rows, values in zip(found, (grads, weights - before, weights, weights - start), strict=True):
        for lane, row in zip((0, 2), rows, strict=True):
            np.testing.assert_allclose(row, np.add.reduceat(values[lane].double().numpy() ** 2, starts), rtol=1e-6)
    first = norms.squares(None, None, weights, start, [2])
    assert np.isnan(first[:2]).all() and (first[2:, 0] == found[2:, 1]).all()
