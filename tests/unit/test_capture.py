"""Hooks on any module: what they record, what they refuse, and that nothing of them stays."""

from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from ndt_ray.errors import NdtError, SpecError
from ndt_ray.measurement.capture import AUTO, Capture, discover, evaluating, first_tensor, forward_order


def mlp(inplace=False):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.ReLU(inplace=inplace), nn.Linear(8, 4), nn.ReLU(inplace=inplace), nn.Linear(4, 3)]
    return nn.Sequential(OrderedDict((f"layer{i}", m) for i, m in enumerate(layers)))


class Odd(nn.Module):
    """Modules whose outputs are a tuple, a mapping and a dataclass, called in another order than they are declared."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(5, 2)
        self.recurrent = nn.LSTM(6, 5, batch_first=True)
        self.mapping = Wrapped(lambda h: OrderedDict(loss=None, hidden=h, extra=h + 1))
        self.record = Wrapped(lambda h: Output(None, h))
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        h, _ = self.recurrent(x)
        return self.last(self.record(self.mapping(h)["hidden"]).hidden[:, -1])


class Wrapped(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, h):
        return self.form(h)


@dataclass
class Output:
    loss: object
    hidden: torch.Tensor


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_outputs_and_inputs_by_path():
    model, x = mlp(), torch.randn(7, 6)
    with Capture(model, ["layer0", "layer4"], inputs=["layer4"]) as capture:
        out = model(x)
        outputs, inputs = capture.take()
    assert list(outputs) == ["layer0", "layer4"]
    assert torch.equal(outputs["layer0"], model.layer0(x)) and torch.equal(outputs["layer4"], out)
    assert torch.equal(model.layer4(inputs["layer4"]), out)
    assert not any(t.requires_grad for t in (*outputs.values(), *inputs.values()))


def test_nothing_is_left_behind():
    model = mlp()
    with Capture(model):
        assert hooks(model) == 3
        model(torch.randn(2, 6))
    assert hooks(model) == 0
    with pytest.raises(RuntimeError), Capture(model):
        model(torch.randn(2, 5))
    assert hooks(model) == 0
    forward_order(model, torch.randn(2, 6))
    with pytest.raises(RuntimeError):
        forward_order(model, torch.randn(2, 5))
    assert hooks(model) == 0


def test_tuples_mappings_and_dataclasses():
    model, x = Odd(), torch.randn(4, 3, 6)
    kinds = {"recurrent": "tokens", "mapping": "tokens", "record": "tokens", "last": "units"}
    with Capture(model, kinds) as capture:
        model(x)
        outputs, _ = capture.take()
    hidden = model.recurrent(x)[0]
    assert all(torch.equal(outputs[path], hidden) for path in ("recurrent", "mapping", "record"))
    assert torch.equal(first_tensor([None, {"a": (3, hidden)}]), hidden)
    with pytest.raises(SpecError, match="layer 'x' gives no tensor but dict"):
        first_tensor({"a": 1}, "x")


@pytest.mark.parametrize("grad", [True, False])
def test_an_operation_in_place_does_not_reach_what_was_recorded(grad):
    plain, overwriting = mlp(), mlp(inplace=True)
    paths = ["layer0", "layer2", "layer4"]
    with torch.set_grad_enabled(grad), Capture(overwriting, paths, inputs=["layer2"]) as capture:
        # The first pass copies everything, later ones what was overwritten.
        for i in range(4):
            x = torch.randn(5, 6, generator=torch.Generator().manual_seed(i))
            overwriting(x)
            outputs, inputs = capture.take()
            assert torch.equal(outputs["layer0"], plain.layer0(x)) and outputs["layer0"].min() < 0
            assert torch.equal(outputs["layer2"], plain.layer2(inputs["layer2"]))
            assert not capture.lost


def test_later_passes_copy_only_what_is_overwritten():
    model = mlp(inplace=True)
    seen = {}
    model.layer4.register_forward_hook(lambda m, i, o: seen.update(last=o))
    model.layer0.register_forward_hook(lambda m, i, o: seen.update(first=o))
    with torch.no_grad(), Capture(model, ["layer0", "layer4"]) as capture:
        for share in (False, True, True):
            model(torch.randn(2, 6))
            outputs, _ = capture.take()
            assert (outputs["layer4"].data_ptr() == seen["last"].data_ptr()) is share
            assert outputs["layer0"].data_ptr() != seen["first"].data_ptr()


def test_a_layer_that_starts_to_be_overwritten_is_lost_once():
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.overwrite = nn.Linear(3, 3), False

        def forward(self, x):
            h = self.linear(x)
            return h.relu_() if self.overwrite else h.relu()

    model, x = Moody(), torch.randn(4, 3)
    with torch.no_grad(), Capture(model) as capture:
        for overwrite, lost in ((False, set()), (True, {"linear"}), (True, set()), (True, set())):
            model.overwrite = overwrite
            model(x)
            outputs, _ = capture.take()
            assert capture.lost == lost
            assert set(outputs) == {"linear"} - lost
            assert lost or torch.equal(outputs["linear"], model.linear(x))


def test_inference_mode():
    model = mlp(inplace=True)
    with torch.inference_mode(), Capture(model) as capture:
        for _ in range(3):
            model(torch.randn(2, 6))
            outputs, _ = capture.take()
            assert outputs["layer0"].min() < 0


def test_unknown_layers_are_refused_with_a_suggestion():
    model = mlp()
    with pytest.raises(SpecError, match="no module 'layr0' - did you mean 'layer0'"):
        Capture(model, ["layr0"])
    with pytest.raises(SpecError, match="no module 'layer9'"):
        Capture(model, {"layer9": "units"})
    with pytest.raises(SpecError, match=r"no layer matches 'conv\*'"):
        Capture(model, ["conv*"])
    with pytest.raises(SpecError, match="no module 'nope'"):
        Capture(model, ["layer0"], inputs=["nope"])
    with pytest.raises(SpecError, match="nothing to measure in ReLU"):
        Capture(nn.ReLU())
    assert hooks(model) == 0


def test_a_layer_that_does_not_run_is_named():
    model = Odd()
    with Capture(model, ["last", "unused"]) as capture, pytest.raises(NdtError, match="no output of 'unused'"):
        model(torch.randn(2, 3, 6))
        capture.take()


def test_a_module_called_twice_is_recorded_at_its_last_call():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.Tanh(), shared)
    x = torch.randn(2, 3)
    with Capture(model, ["0"]) as capture:
        out = model(x)
        assert torch.equal(capture.take()[0]["0"], out)


def test_patterns_choose_among_the_measurable_and_paths_among_all():
    model = mlp()
    assert list(Capture(model, ["layer[02]"]).layers) == ["layer0", "layer2"]
    assert Capture(model, ["layer4", "layer1"]).layers == {"layer4": AUTO, "layer1": AUTO}
    assert list(Capture(model, ["*"]).layers) == ["layer0", "layer2", "layer4"]
    assert Capture(model, {"layer1": "units"}).layers == {"layer1": "units"}


def test_discover():
    assert discover(mlp()) == {"layer0": AUTO, "layer2": AUTO, "layer4": AUTO}
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(1, 2, 3),
            "attention": nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            "norm": nn.LayerNorm(8),
        }
    )
    assert discover(model) == {
        "conv": "positions",
        "attention.self_attn": "tokens",
        "attention.linear1": AUTO,
        "attention.linear2": AUTO,
    }
    declared = mlp()
    declared.tracked = {"layer2": "units"}
    assert discover(declared) == {"layer2": "units"}


@pytest.mark.parametrize("training", [True, False])
def test_attention_in_an_encoder_layer_is_captured(training):
    """PyTorch's fused path would call no submodule; hooks keep it off."""
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).train(training)
    x = torch.randn(3, 5, 8)
    with torch.no_grad(), Capture(model) as capture:
        model(x)
        outputs, _ = capture.take()
    assert {path: tuple(t.shape) for path, t in outputs.items()} == {
        "self_attn": (3, 5, 8),
        "linear1": (3, 5, 16),
        "linear2": (3, 5, 8),
    }


def test_forward_order_is_that_of_execution():
    model = Odd()
    order = forward_order(model, torch.randn(2, 3, 6), {"last": "units", "recurrent": "tokens", "record": "tokens"})
    assert order == {"recurrent": 0, "record": 1, "last": 2}
    assert "unused" not in forward_order(model, (torch.randn(2, 3, 6),))
    assert forward_order(mlp(), {"input": torch.randn(2, 6)}) == {"layer0": 0, "layer2": 1, "layer4": 2}


def test_looking_changes_neither_mode_nor_buffers_nor_the_generator():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[1].eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    generator = torch.get_rng_state()
    forward_order(model, torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    with evaluating(model):
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model] == [True, False, True, True] and model.training
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
