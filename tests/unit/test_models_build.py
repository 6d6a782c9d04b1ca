"""Initial weights as a function of (seed, name), models of the user's own, and what is known before training."""

import hashlib
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from ndt_ray.catalogue import model_facts
from ndt_ray.errors import SpecError
from ndt_ray.inputs import InputSpec
from ndt_ray.models import build, describe, init_parameters, load_user_factory, outline, sketch, source_hash
from ndt_ray.models.cnn import cnn_shallow
from ndt_ray.models.init import Constant, Normal, Uniform, _log, draw
from ndt_ray.models.mlp import mlp, mlp_narrow
from ndt_ray.models.modular import modular_transformer
from ndt_ray.models.resnet import resnet18
from ndt_ray.models.transformer import transformer_shallow
from ndt_ray.models.vit import vit

MNIST = InputSpec("image", (1, 28, 28), 10)
DIGITS = InputSpec("image", (1, 8, 8), 10)
NEWS = InputSpec("text", (100,), 4, vocab=5002, padding=0)
MODULAR = InputSpec("modular", (3,), 113, vocab=114)


def state_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def test_initial_weights_are_the_same_bits_everywhere() -> None:
    """Recorded once; only correctly rounded operations are used, so no machine and no version may differ."""
    assert state_hash(build(mlp_narrow, MNIST, {}, seed=0)) == "9da5569ae8db895d"
    assert state_hash(build(modular_transformer, MODULAR, {}, seed=999)) == "bd65fc7bbb09eef1"


def test_a_tensor_depends_on_seed_and_name_alone() -> None:
    one, again, other = (build(mlp, MNIST, {"hidden": (8, 8)}, seed) for seed in (3, 3, 4))
    deeper = build(mlp, MNIST, {"hidden": (8, 8, 8)}, seed=3)
    assert state_hash(one) == state_hash(again) != state_hash(other)
    for name, tensor in one.state_dict().items():
        assert not torch.equal(tensor, other.state_dict()[name]), name
    for name in ("network.0.weight", "network.0.bias", "network.2.weight"):
        assert torch.equal(one.state_dict()[name], deeper.state_dict()[name])
    assert not torch.equal(one.state_dict()["network.2.bias"], one.state_dict()["network.0.bias"])


def test_building_moves_no_global_generator() -> None:
    torch.manual_seed(0), random.seed(0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    build(transformer_shallow, MNIST, {}, seed=1)
    describe(sketch(cnn_shallow, MNIST, {}), MNIST)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]  # noqa: NPY002


def test_draws_follow_their_distributions() -> None:
    normal = draw(Normal(2.0), (200, 1000), seed=0, name="a")
    uniform = draw(Uniform(0.5), (200, 1000), seed=0, name="b")
    assert stats.kstest(normal.ravel(), stats.norm(scale=2).cdf).pvalue > 0.01
    assert stats.kstest(uniform.ravel(), stats.uniform(-0.5, 1).cdf).pvalue > 0.01
    assert abs(np.corrcoef(normal.ravel()[::2], normal.ravel()[1::2])[0, 1]) < 0.01
    assert abs(np.corrcoef(draw(Normal(1), (10_000,), 0, "a"), draw(Normal(1), (10_000,), 1, "a"))[0, 1]) < 0.04
    assert np.array_equal(draw(Normal(2.0), (50,), 0, "a"), normal.ravel()[:50])
    assert draw(Constant(3.0), (2,), 0, "c").tolist() == [3.0, 3.0]
    assert draw(Normal(1.0), (0, 4), 0, "d").shape == (0, 4)


def test_the_logarithm_is_right_to_2_ulp() -> None:
    x = np.concatenate(
        [np.random.default_rng(0).random(100_000), 1 - 2.0 ** -np.arange(1, 53), 2.0 ** -np.arange(1, 104)]
    )
    np.testing.assert_array_max_ulp(_log(x), np.log(x), maxulp=2)


def bounds(tensor: torch.Tensor) -> float:
    return tensor.detach().abs().max().item()


def test_initial_distributions_are_pytorchs() -> None:
    """Each tensor's spread against that of the PyTorch layer it stands for."""
    torch.manual_seed(0)
    model = build(transformer_shallow, MNIST, {}, seed=0)
    ours, theirs = model.transformer.layers[0], nn.TransformerEncoderLayer(128, 4, 512)
    q, k, v = (getattr(ours.self_attn, f"{n}_proj").weight for n in "qkv")
    pairs = [
        (torch.cat([q, k, v]), theirs.self_attn.in_proj_weight),
        (ours.self_attn.out_proj.weight, theirs.self_attn.out_proj.weight),
        (ours.linear1.weight, theirs.linear1.weight),
        (ours.linear1.bias, theirs.linear1.bias),
        (ours.linear2.weight, theirs.linear2.weight),
        (build(cnn_shallow, MNIST, {}, 0).conv_layers[3].weight, nn.Conv2d(32, 64, 3).weight),
        (build(mlp_narrow, NEWS, {}, 0).embedding.weight[1:], nn.Embedding(5001, 64).weight),
        (model.pos_encoder.weight, torch.randn(16, 128)),
    ]
    for mine, reference in pairs:
        assert stats.ks_2samp(mine.detach().ravel(), reference.detach().ravel()).pvalue > 0.001
    for linear in (ours.self_attn.q_proj, ours.self_attn.k_proj, ours.self_attn.v_proj, ours.self_attn.out_proj):
        assert bounds(linear.bias) == 0
    for norm in (ours.norm1, ours.norm2):
        assert (norm.weight == 1).all() and (norm.bias == 0).all()
    first = build(mlp_narrow, MNIST, {}, 0).network[0]
    assert 0.999 / 28 < bounds(first.weight) <= 1 / 28 and bounds(first.bias) <= 1 / 28


def test_overrides_and_padding() -> None:
    assert (build(mlp_narrow, NEWS, {}, 0).embedding.weight[0] == 0).all()
    modular = build(modular_transformer, MODULAR, {}, seed=0)
    for name, tensor in modular.named_parameters():
        assert math.isclose(tensor.std().item(), 0.8 / math.sqrt(128), rel_tol=0.1), name
    assert math.isclose(build(vit, MNIST, {}, 0).pos_encoder.weight.std().item(), 0.02, rel_tol=0.05)
    conv = build(resnet18, DIGITS, {"width": 16, "groups": 4}, 0).blocks[0].conv1
    assert math.isclose(conv.weight.std().item(), math.sqrt(2 / (16 * 9)), rel_tol=0.1)


def test_an_unknown_leaf_is_refused() -> None:
    with pytest.raises(TypeError, match="no initial distribution is known for weight of a PReLU"):
        init_parameters(nn.PReLU(), seed=0)


USER = """
import numpy as np
import random
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.scale = nn.Parameter(torch.tensor(float(np.random.rand() + random.random())))
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, width), nn.ReLU(), nn.Linear(width, 10))
    def forward(self, x):
        return self.layers(self.conv(x) * self.scale)

def with_inputs(inputs, width=8): return Net(width)
def keyword(*, inputs, width=8): return Net(width)
def first_whatever_its_name(spec, width=8): return Net(width)
def without(width=8): return Net(width)
def two(inputs, width): return Net(width)
def no_module(): return 3
def raises(): raise ValueError("odd")
def five_classes(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
def wrong_input(): return nn.Linear(3, 10)
def a_tuple(): return Two()
def looks_at_numbers(): return Looks()
def misnamed():
    net = Net()
    net.tracked = {"layers.9": "units"}
    return net

def mistaken():
    net = Net()
    net.tracked = {"conv": "units"}
    return net
def uncalled():
    net = Net()
    net.spare = nn.Linear(1, 1)
    net.tracked = {"spare": "units"}
    return net
def nothing(): return nn.Sequential(nn.AdaptiveMaxPool2d((10, 1)), nn.Flatten())

class Two(Net):
    def forward(self, x):
        return super().forward(x), x

class Looks(Net):
    def forward(self, x):
        return super().forward(x if x.sum().item() == 0 else -x)

number = 3
"""


@pytest.fixture
def user(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(USER)
    return str(tmp_path / "mine.py")


@pytest.mark.parametrize("name", ["with_inputs", "keyword", "first_whatever_its_name", "without", "two", "Net"])
def test_a_users_factory_may_take_the_inputs_or_not(user: str, name: str) -> None:
    factory = load_user_factory(f"{user}:{name}")
    model = build(factory, DIGITS, {"width": 6}, seed=1)
    assert model.layers[1].out_features == 6
    assert state_hash(model) == state_hash(build(factory, DIGITS, {"width": 6}, seed=1))
    assert state_hash(model) != state_hash(build(factory, DIGITS, {"width": 6}, seed=2))


def test_a_users_module_keeps_its_own_initialisation(user: str) -> None:
    model = build(load_user_factory(f"{user}:without"), DIGITS, {}, seed=7)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        assert torch.equal(model.conv.weight, nn.Conv2d(1, 4, 3).weight)


@pytest.mark.parametrize("name", ["without", "looks_at_numbers"])
def test_what_a_users_module_tracks_is_found(user: str, name: str) -> None:
    said = outline(load_user_factory(f"{user}:{name}"), DIGITS, {})
    assert said.tracked == {"conv": "positions", "layers.1": "units", "layers.3": "units"}
    assert said.shapes == {"conv": (4, 6, 6), "layers.1": (8,), "layers.3": (10,)}
    assert said.n_parameters == 40 + 1 + (144 * 8 + 8) + 90


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("without", {"depth": 2}, r"'without' with parameters .*depth.*it takes without\(width=8\)"),
        ("two", {}, r"missing a required argument: 'width'"),
        ("no_module", {}, r"returned a int: return an nn.Module"),
        ("raises", {}, r"'raises' raises for \{\}: ValueError: odd"),
        ("five_classes", {}, r"a tensor of shape \(2, 5\).*10 classes: return logits of shape \(2, 10\)"),
        (
            "wrong_input",
            {},
            r"Linear does not take the data set's samples, a torch.float32 batch of shape \(2, 1, 8, 8\)",
        ),
        ("a_tuple", {}, r"Two gives a tuple"),
        ("mistaken", {}, r"tracks 'conv' as 'units', but a sample's output has shape \(4, 6, 6\)"),
        ("uncalled", {}, r"gets no tensor from \['spare'\]"),
        ("nothing", {}, r"has nothing to measure: give it an attribute tracked"),
        ("misnamed", {}, r"tracked names \['layers.9'\]"),
    ],
)
def test_a_users_factory_that_does_not_fit(user: str, name: str, params: dict[str, object], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        outline(load_user_factory(f"{user}:{name}"), DIGITS, params)


def test_a_users_file_is_named_exactly(user: str, tmp_path: Path) -> None:
    for target, says in [
        (f"{user}:withuot", "did you mean 'without'"),
        (f"{user}:number", "'number' is a int, not a function"),
        (user.replace("mine", "mien") + ":without", r"no file .*mien.py .*did you mean 'mine.py'"),
        (str(tmp_path / "nowhere" / "x.py") + ":f", "no file"),
        ("mine:f", "path/file.py:name"),
        (user, "path/file.py:name"),
    ]:
        with pytest.raises(SpecError, match=says):
            load_user_factory(target)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\nx / 0\n", r"bad.py:2 raises on import: ZeroDivisionError"),
        ("def f(:\n", r"bad.py:1 raises on import: SyntaxError"),
        ("import sys\nsys.exit(3)\n", r"bad.py:2 raises on import: SystemExit"),
        ("import no_such_module_here\n", r"bad.py:1 raises on import: ModuleNotFoundError"),
    ],
)
def test_a_users_file_that_raises(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(SpecError, match=says):
        load_user_factory(f"{tmp_path / 'bad.py'}:f")


def test_a_changed_file_is_read_again_and_its_neighbours_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "ndt_test_neighbour.py").write_text("width = 5\n")
    path = tmp_path / "mine.py"
    path.write_text("from ndt_test_neighbour import width\ndef f(): return width\n")
    first = source_hash(path)
    assert load_user_factory(f"{path}:f")() == 5
    assert load_user_factory(f"{path}:f") is load_user_factory(f"{path}:f")
    path.write_text("def f(): return 6\n")
    assert source_hash(path) != first
    assert load_user_factory(f"{path}:f")() == 6


def test_a_path_that_is_hard_to_quote(weird_path: Path) -> None:
    (weird_path / "m.py").write_text("def f(): return 1\n")
    assert load_user_factory(f"{weird_path / 'm.py'}:f")() == 1


LOOKS_AT_ITS_WEIGHTS = """
import torch
from torch import nn

class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.open = nn.Parameter(torch.ones(()))
        self.narrow, self.wide, self.last = nn.Linear(64, 3), nn.Linear(64, 20), nn.Linear(20, 10)
    def forward(self, x):
        x = x.flatten(1)
        if self.open > 0:  # with zeros for weights the other way would be taken, and its layer measured
            return self.last(self.wide(x))
        return self.narrow(x).new_zeros(len(x), 10)

def gated():
    return Gated()
"""


def test_a_users_module_that_looks_at_its_weights_is_described_with_them(tmp_path: Path) -> None:
    (tmp_path / "gated.py").write_text(LOOKS_AT_ITS_WEIGHTS)
    factory = load_user_factory(f"{tmp_path / 'gated.py'}:gated")
    assert list(outline(factory, DIGITS, {}).tracked) == ["wide", "last"]
    facts, module = model_facts(factory, DIGITS, {})
    assert [layer.path for layer in facts.layers] == ["wide", "last"] and module.wide.weight.abs().sum() > 0


def test_describe_allocates_nothing_and_leaves_the_module_as_it_was() -> None:
    huge = InputSpec("image", (3, 512, 512), 1000)
    module = sketch(mlp, huge, {"hidden": (100_000,)})
    said = describe(module, huge)  # 300 GB of weights
    assert said.n_parameters == 3 * 512 * 512 * 100_000 + 100_000 + 100_000 * 1000 + 1000
    assert all(p.is_meta for p in module.parameters())
    real = build(transformer_shallow, DIGITS, {}, seed=0).train()
    before = state_hash(real)
    assert describe(real, DIGITS).shapes["transformer.layers.0.linear1"] == (16, 512)
    assert real.training and real.transformer.layers[0].training and state_hash(real) == before
    assert not any(m._forward_hooks for m in real.modules())
