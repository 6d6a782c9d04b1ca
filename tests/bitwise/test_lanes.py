"""A lane is the same bits alone and in any pack, slot or size, for every architecture of the founding study."""

import functools

import pytest
import torch

from ndt_ray import registry
from ndt_ray.inputs import InputSpec
from ndt_ray.lanes import ENGINES, Engine
from ndt_ray.lanes.stack import only_linear
from ndt_ray.models import build
from ndt_ray.schedule import lr_factor
from ndt_ray.spec import Trial

pytestmark = pytest.mark.bitwise

IMAGE = InputSpec("image", (1, 28, 28), 10)
NEWS = InputSpec("text", (100,), 4, vocab=5002, padding=0)
CPU = torch.device("cpu")
SMALL = [
    "mlp_shallow_2",
    "mlp_medium_5",
    "mlp_deep_10",
    "mlp_verydeep_15",
    "mlp_narrow",
    "mlp_medium",
    "mlp_wide",
    "mlp_verywide",
]
LARGE = [
    "cnn_shallow",
    "cnn_medium",
    "cnn_deep",
    "transformer_shallow",
    "transformer_medium",
    "transformer_deep",
    "transformer_narrow",
]


def make(trial: Trial) -> torch.nn.Module:
    inputs = NEWS if trial.data.name == "ag_news" else IMAGE
    return build(registry.resolve("model", trial.model.name), inputs, trial.model.params, trial.seed.init)


@functools.cache
def images() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(1024, 1, 28, 28, generator=g), torch.randint(0, 10, (1024,), generator=g)


@functools.cache
def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, padded at the end to lengths of their own."""
    g = torch.Generator().manual_seed(0)
    ids, lengths = torch.randint(1, 5002, (1024, 100), generator=g), torch.randint(5, 101, (1024, 1), generator=g)
    return ids * (torch.arange(100) < lengths), torch.randint(0, 4, (1024,), generator=g)


def trial(
    model: str,
    engine: str,
    seed: int,
    steps: int,
    batch: int = 64,
    control: str = "none",
    data: str = "mnist",
    **train: object,
) -> Trial:
    schedule = {"name": "cosine", "warmup": 5}
    spec = {"steps": steps, "batch": batch, "schedule": schedule, **train}
    return Trial(model=model, data=data, train=spec, seed=seed, control=control, engine=engine)  # type: ignore[arg-type]


def run(trials: list[Trial]) -> tuple[Engine, torch.Tensor]:
    x, y = texts() if trials[0].data.name == "ag_news" else images()
    engine = ENGINES[trials[0].engine](trials, make, CPU)
    train = trials[0].train
    batch = train.batch if isinstance(train.batch, int) else len(y)
    losses = []
    for update in range(train.steps):
        picks = [torch.arange(batch) * 7 + update * 31 + t.seed.order * 101 for t in trials]
        index = torch.stack(picks) % len(y)
        losses.append(engine.step(x[index], y[index], update, lr_factor(train.schedule, update, train.steps)))
    return engine, torch.stack(losses)


def assert_same_lane(alone: tuple[Engine, torch.Tensor], pack: tuple[Engine, torch.Tensor], slot: int) -> None:
    assert torch.equal(alone[1][:, 0], pack[1][:, slot])
    assert torch.equal(alone[0].arena.weights[0], pack[0].arena.weights[slot])
    for name, rows in alone[0].arena.moments.items():
        assert torch.equal(rows[0], pack[0].arena.moments[name][slot])


@pytest.mark.parametrize("model", SMALL + LARGE)
def test_lane_is_the_same_bits_in_any_pack_and_slot(model: str) -> None:
    engine = "stack" if only_linear(make(trial(model, "loop", 0, 1))) else "loop"
    steps = 40 if model in SMALL else 3
    lane = functools.partial(trial, model, engine, steps=steps)
    alone = run([lane(3)])
    assert alone[1].isfinite().all() and alone[1][-1, 0] != alone[1][0, 0]
    assert_same_lane(alone, run([lane(1, lr=3e-3), lane(2, control="lr0"), lane(3)]), slot=2)
    assert_same_lane(alone, run([lane(3), lane(5, weight_decay=0.1)]), slot=0)


@pytest.mark.parametrize("engine", ["loop", "stack"])
def test_sixteen_lanes_are_each_what_they_are_alone(engine: str) -> None:
    """16: what slices are padded to, and more lanes than any other test has."""
    lane = functools.partial(trial, "mlp_narrow", engine, steps=40)
    pack = run([lane(seed) for seed in range(16)])
    assert pack[1].shape == (40, 16)
    for seed in (0, 7, 15):
        assert_same_lane(run([lane(seed)]), pack, slot=seed)


@pytest.mark.parametrize("engine", ["loop", "stack"])
@pytest.mark.parametrize(("model", "steps"), [("mlp_narrow", 50), ("transformer_narrow", 2)])
def test_text_is_the_same_bits_in_any_pack_and_slot(model: str, steps: int, engine: str) -> None:
    lane = functools.partial(trial, model, engine, steps=steps, batch=16, data="ag_news")
    alone = run([lane(3)])
    assert alone[1].isfinite().all() and alone[1][-1, 0] != alone[1][0, 0]
    assert_same_lane(alone, run([lane(1, lr=3e-3), lane(2, control="lr0"), lane(3)]), slot=2)
    assert_same_lane(alone, run([lane(seed) for seed in (3, 4, 5, 6)]), slot=0)


@pytest.mark.parametrize("engine", ["loop", "stack"])
@pytest.mark.parametrize(
    ("optimizer", "batch", "extra"),
    [
        ("adamw", 50, {"weight_decay": 0.3, "betas": (0.9, 0.98)}),
        ("sgd", 33, {"momentum": 0.9, "lr": 0.05}),
        ("sgd", 64, {"lr": 0.05}),
        ("adam", "full", {"loss_dtype": "float64"}),
    ],
)
def test_optimizers_batches_and_losses(engine: str, optimizer: str, batch: int, extra: dict[str, object]) -> None:
    lane = functools.partial(trial, "mlp_narrow", engine, steps=30, batch=batch, optimizer=optimizer, **extra)
    alone = run([lane(3)])
    pack = run([lane(s, control="frozen:network.2") for s in (4, 5)] + [lane(s) for s in (6, 3, 7)])
    assert_same_lane(alone, pack, slot=3)


@pytest.mark.parametrize("engine", ["loop", "stack"])
@pytest.mark.parametrize("model", ["transformer_narrow", "cnn_shallow", "mlp_narrow"])
def test_both_engines_learn_the_same_thing(engine: str, model: str) -> None:
    """Not the same bits (another order of sums), but the same gradients: against autograd on one plain module."""
    t = trial(model, engine, 3, 1, batch=32)
    x, y = images()
    x, y = x[:32], y[:32]
    engine_ = ENGINES[engine]([trial(model, engine, 9, 1, batch=32), t], make, CPU)
    masks = {}
    if model.startswith("transformer"):
        from ndt_ray.lanes.engine import dropouts, lane_masks

        masks = {"make": lane_masks(t, CPU), "of": dropouts}
    engine_.backward(torch.stack([x, x]), torch.stack([y, y]), 0)
    plain = make(t).train()
    for layer in masks["of"](plain) if masks else []:
        layer.masks = lambda site, shape, p: masks["make"](site, 0, tuple(shape), p)
    torch.nn.functional.cross_entropy(plain(x), y).backward()
    for slot in engine_.arena.layout:
        got = slot.view(engine_.arena.grads[1])
        want = plain.get_parameter(slot.name).grad
        assert torch.allclose(got, want, rtol=1e-3, atol=1e-6), slot.name


def test_control_lanes() -> None:
    lane = functools.partial(trial, "mlp_narrow", "stack", steps=20, weight_decay=0.1)
    start = ENGINES["stack"]([lane(3)], make, CPU)
    engine, _ = run([lane(3, control="lr0"), lane(3, control="frozen:network.2"), lane(3)])
    assert torch.equal(engine.arena.weights[0], start.arena.weights[0])
    for slot in engine.arena.layout:
        same = torch.equal(slot.view(engine.arena.weights[1]), slot.view(start.arena.weights[0]))
        assert same == slot.name.startswith("network.2.")


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_optimizer_is_torchs(optimizer: str) -> None:
    """40 steps of one lane against torch.optim on the plain module."""
    extra: dict[str, object] = {"momentum": 0.9} if optimizer == "sgd" else {}
    t = trial("mlp_narrow", "loop", 3, 40, optimizer=optimizer, weight_decay=0.05, **extra)
    engine, _ = run([t])
    plain = make(t)
    cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
    opt = cls(plain.parameters(), lr=t.train.lr, weight_decay=t.train.weight_decay, **extra)
    x, y = images()
    for update in range(40):
        index = (torch.arange(64) * 7 + update * 31 + 3 * 101) % len(y)
        opt.param_groups[0]["lr"] = t.train.lr * lr_factor(t.train.schedule, update, 40)
        opt.zero_grad()
        torch.nn.functional.cross_entropy(plain(x[index]), y[index]).backward()
        opt.step()
    for slot in engine.arena.layout:
        assert torch.allclose(slot.view(engine.arena.weights[0]), plain.get_parameter(slot.name), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("model", ["mlp_narrow", "transformer_narrow", "cnn_shallow"])
def test_dummy_lanes_fill_the_canonical_width(model: str) -> None:
    """What a GPU pack does: fewer trials than the width give the bits of a full pack."""
    steps = 30 if model == "mlp_narrow" else 3

    def lane(seed: int) -> Trial:
        return trial(model, "stack", seed, steps).model_copy(update={"width": 4})

    few, full = run([lane(1), lane(3)]), run([lane(s) for s in (3, 5, 6, 7)])
    assert few[0].arena.lanes == full[0].arena.lanes == 4 and few[1].shape[1] == 2
    assert torch.equal(few[1][:, 1], full[1][:, 0])
    assert torch.equal(few[0].arena.weights[1], full[0].arena.weights[0])
    state = few[0].lane_state(1)
    few[0].load_lane_state(0, state)
    assert torch.equal(few[0].arena.weights[0], few[0].arena.weights[1])
