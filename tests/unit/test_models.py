"""Architectures: exact parameter counts and names, the functions they compute, and forwards blind to leading dims."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ndt_ray.errors import SpecError
from ndt_ray.inputs import InputSpec
from ndt_ray.models import Dropout, PositionalEmbedding, build, describe, sketch
from ndt_ray.models import cnn as cnns
from ndt_ray.models import mlp as mlps
from ndt_ray.models import transformer as transformers
from ndt_ray.models.layers import Model, SelfAttention, masked_mean, number_dropouts
from ndt_ray.models.modular import modular_transformer
from ndt_ray.models.resnet import resnet18
from ndt_ray.models.transformer import EncoderLayer, token_count
from ndt_ray.models.vit import default_patch, vit

MNIST = InputSpec("image", (1, 28, 28), 10)
DIGITS = InputSpec("image", (1, 8, 8), 10)
COLOUR = InputSpec("image", (3, 32, 32), 10)
NEWS = InputSpec("text", (100,), 4, vocab=5002, padding=0)
MODULAR = InputSpec("modular", (3,), 113, vocab=114)

# ORIGINAL_STUDY §1.1: trained weights for 784 inputs and 10 classes.
STUDY = {
    mlps.mlp_shallow_2: 109_386,
    mlps.mlp_medium_5: 65_130,
    mlps.mlp_deep_10: 34_954,
    mlps.mlp_verydeep_15: 27_490,
    mlps.mlp_narrow: 28_618,
    mlps.mlp_medium: 130_058,
    mlps.mlp_wide: 317_450,
    mlps.mlp_verywide: 864_266,
    cnns.cnn_shallow: 50_186,
    cnns.cnn_medium: 104_202,
    cnns.cnn_deep: 390_410,
    transformers.transformer_shallow: 406_282,
    transformers.transformer_medium: 802_826,
    transformers.transformer_deep: 1_199_370,
    transformers.transformer_narrow: 204_810,
    transformers.transformer_wide: 3_178_506,
}
# Modules with hooks in the founding study: 400 series over its 55 runs.
FOUNDING_SERIES = {
    **{f"mlp_{name}": n for name, n in [("shallow_2", 3), ("medium_5", 6), ("deep_10", 11), ("verydeep_15", 16)]},
    **{f"mlp_{name}": 5 for name in ("narrow", "medium", "wide", "verywide")},
    "cnn_shallow": 3,
    "cnn_medium": 4,
    "cnn_deep": 5,
    "transformer_shallow": 6,
    "transformer_medium": 10,
    "transformer_deep": 14,
    "transformer_narrow": 10,
    "transformer_wide": 10,
}
# One small model for each architecture and kind of input.
SMALL: list[tuple[Callable[..., nn.Module], InputSpec, dict[str, object]]] = [
    (mlps.mlp_narrow, MNIST, {}),
    (mlps.mlp, COLOUR, {"hidden": (8,), "activation": "tanh"}),
    (mlps.mlp, NEWS, {"hidden": (8,)}),
    (mlps.mlp, MODULAR, {"hidden": (8,)}),
    (cnns.cnn, DIGITS, {"channels": (4, 8)}),
    (transformers.transformer, DIGITS, {"width": 16, "heads": 2}),
    (transformers.transformer, NEWS, {"width": 16, "heads": 2, "depth": 1}),
    (transformers.transformer, MODULAR, {"width": 16, "heads": 2, "depth": 1}),
    (vit, DIGITS, {"width": 16, "heads": 2, "depth": 2}),
    (resnet18, DIGITS, {"width": 4, "groups": 2}),
    (modular_transformer, MODULAR, {}),
    (modular_transformer, MODULAR, {"width": 16, "heads": 2, "depth": 2}),
]
small = pytest.mark.parametrize(
    ("factory", "inputs", "params"), SMALL, ids=[f"{f.__name__}-{i.kind}-{n}" for n, (f, i, _) in enumerate(SMALL)]
)


def batch(inputs: InputSpec, n: int = 4) -> Tensor:
    """Random samples; text is padded to a different length in each row."""
    generator = torch.Generator().manual_seed(0)
    if inputs.kind == "image":
        return torch.randn(n, *inputs.shape, generator=generator)
    ids = torch.randint(1, inputs.vocab, (n, *inputs.shape), generator=generator)
    if inputs.kind == "text":
        lengths = torch.randint(1, inputs.shape[0], (n, 1), generator=generator)
        ids = ids.masked_fill(torch.arange(inputs.shape[0]) >= lengths, 0)
    return ids


def leaves(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if any(True for _ in m.parameters(recurse=False))]


@pytest.mark.slow
@pytest.mark.parametrize("factory", STUDY, ids=lambda f: f.__name__)
def test_the_founding_architectures_have_their_parameter_counts_and_layer_names(
    factory: Callable[..., nn.Module],
) -> None:
    said = describe(sketch(factory, MNIST, {}), MNIST)
    assert said.n_parameters == STUDY[factory]
    assert said.output == (10,)
    founding = [name for name in said.tracked if not name.endswith("out_proj")]
    assert len(founding) == FOUNDING_SERIES[factory.__name__]
    if factory.__name__.startswith("mlp"):
        assert founding == [f"network.{2 * i}" for i in range(len(founding))]
    elif factory.__name__.startswith("cnn"):
        assert founding == [f"conv_layers.{3 * i}" for i in range(len(founding) - 1)] + ["fc"]
    else:
        layers = [f"transformer.layers.{i}.linear{n}" for i in range(len(founding) // 2 - 1) for n in (1, 2)]
        assert founding == ["input_proj", *layers, "fc"]


@pytest.mark.slow
def test_the_other_architectures_have_the_parameter_counts_of_their_sources() -> None:
    def count(factory: Callable[..., nn.Module], inputs: InputSpec, **params: object) -> int:
        return describe(sketch(factory, inputs, params), inputs).n_parameters

    assert count(modular_transformer, MODULAR) == 226_048
    assert count(resnet18, COLOUR) == 11_173_962  # the CIFAR ResNet-18: GroupNorm has as many weights as BatchNorm
    imagenet = InputSpec("image", (3, 224, 224), 1000)
    assert count(resnet18, imagenet) == 11_689_512  # torchvision's
    assert count(vit, MNIST, depth=2) == 406_282 + 256  # PERFORMANCE.md's, and a final norm
    assert count(mlps.mlp_narrow, NEWS) == 5002 * 64 + (64 * 32 + 32) + 3 * (32 * 32 + 32) + (32 * 4 + 4)


@pytest.mark.slow
@small
def test_what_is_tracked_is_called_in_that_order_and_has_the_shape_of_its_kind(
    factory: Callable[..., nn.Module], inputs: InputSpec, params: dict[str, object]
) -> None:
    model = build(factory, inputs, params, seed=0).eval()
    assert isinstance(model, Model)
    called: list[str] = []
    dims: dict[str, int] = {}

    def hook(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def note(_m: nn.Module, _i: object, out: Tensor) -> None:
            called.append(name)
            dims[name] = out.dim()

        return note

    for name in model.tracked:
        model.get_submodule(name).register_forward_hook(hook(name))
    logits = model(batch(inputs))
    assert logits.shape == (4, inputs.classes)
    assert called == list(model.tracked)
    assert dims == {name: {"units": 2, "tokens": 3, "positions": 4}[kind] for name, kind in model.tracked.items()}


@small
def test_every_parameter_lies_in_a_known_leaf_and_is_not_shared(
    factory: Callable[..., nn.Module], inputs: InputSpec, params: dict[str, object]
) -> None:
    model = build(factory, inputs, params, seed=0)
    known = (nn.Linear, nn.Conv2d, nn.Embedding, nn.LayerNorm, nn.GroupNorm, PositionalEmbedding)
    assert all(isinstance(leaf, known) and not list(leaf.children()) for leaf in leaves(model))
    assert len(list(model.named_parameters(remove_duplicate=False))) == len(list(model.parameters()))
    assert not list(model.buffers())
    sites = [m.site for m in model.modules() if isinstance(m, Dropout)]
    assert sites == list(range(len(sites)))


class PerLane(nn.Module):
    """A leaf that PyTorch limits to one batch dimension, one lane at a time, as the engine does it."""

    def __init__(self, leaf: nn.Module) -> None:
        super().__init__()
        self.leaf = leaf

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.leaf(lane) for lane in x])


@pytest.mark.slow
@small
def test_a_leading_dimension_of_lanes_changes_nothing(
    factory: Callable[..., nn.Module], inputs: InputSpec, params: dict[str, object]
) -> None:
    model = build(factory, inputs, params, seed=0).eval()
    x = batch(inputs, 3 * 4).unflatten(0, (3, 4))
    alone = torch.stack([model(lane) for lane in x])
    for path, leaf in list(model.named_modules()):
        if isinstance(leaf, nn.Conv2d | nn.GroupNorm):
            model.set_submodule(path, PerLane(leaf))
    torch.testing.assert_close(model(x), alone, rtol=1e-5, atol=1e-5)


@small
def test_vmap_over_stacked_weights_agrees(
    factory: Callable[..., nn.Module], inputs: InputSpec, params: dict[str, object]
) -> None:
    """Which it can only where no control flow depends on the data and nothing is written in place."""
    models = [build(factory, inputs, params, seed).eval() for seed in range(2)]
    weights, buffers = torch.func.stack_module_state(models)
    x = batch(inputs)
    stacked = torch.func.vmap(lambda w: torch.func.functional_call(models[0], (w, buffers), (x,)))(weights)
    torch.testing.assert_close(stacked, torch.stack([m(x) for m in models]), rtol=1e-4, atol=1e-4)


@small
def test_every_parameter_learns(
    factory: Callable[..., nn.Module], inputs: InputSpec, params: dict[str, object]
) -> None:
    model = build(factory, inputs, params, seed=0).train()
    nn.functional.cross_entropy(model(batch(inputs, 32)), torch.arange(32) % inputs.classes).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        # A constant added to every key moves no softmax.
        assert name.endswith("k_proj.bias") or parameter.grad.abs().max() > 0, name


def torch_weights(reference: nn.TransformerEncoderLayer) -> dict[str, Tensor]:
    """The state of PyTorch's layer under the names of ours."""
    state = dict(reference.state_dict())
    for part in ("weight", "bias"):
        packed = state.pop(f"self_attn.in_proj_{part}").chunk(3)
        state |= {f"self_attn.{name}_proj.{part}": chunk for name, chunk in zip("qkv", packed, strict=True)}
    return state


@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_encoder_layer_computes_what_pytorchs_does(pre_norm: bool) -> None:
    torch.manual_seed(0)
    reference = nn.TransformerEncoderLayer(32, 4, 128, batch_first=True, norm_first=pre_norm)
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours = EncoderLayer(32, 4, dropout=0.1, pre_norm=pre_norm)
    ours.load_state_dict(torch_weights(reference))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in reference.parameters())
    x = torch.randn(3, 10, 32)
    padding = torch.arange(10) >= torch.tensor([[10], [4], [1]])
    ours.eval(), reference.eval()
    torch.testing.assert_close(ours(x), reference(x), rtol=1e-5, atol=1e-5)
    kept = ~padding
    masked = ours(x, padding[:, None, None, :])
    torch.testing.assert_close(masked[kept], reference(x, src_key_padding_mask=padding)[kept], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", ["dropout", "dropout1", "dropout2", "self_attn"])
def test_the_encoder_layer_drops_out_where_pytorchs_does(place: str) -> None:
    """A dropout of everything is the same whatever the generator: one place at a time, in training."""
    torch.manual_seed(0)
    reference = nn.TransformerEncoderLayer(32, 4, 128, dropout=0.0, batch_first=True).train()
    ours = EncoderLayer(32, 4, dropout=0.0).train()
    ours.load_state_dict(torch_weights(reference))
    x = torch.randn(3, 10, 32)
    kept = ours(x)
    torch.testing.assert_close(kept, reference(x), rtol=1e-5, atol=1e-5)
    if place == "self_attn":
        reference.self_attn.dropout = ours.self_attn.dropout.p = 1.0
    else:
        reference.get_submodule(place).p = ours.get_submodule(place).p = 1.0
    torch.testing.assert_close(ours(x), reference(x), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours(x), kept)


def test_the_whole_transformer_computes_the_founding_one() -> None:
    model = build(transformers.transformer_shallow, MNIST, {}, seed=0).eval()
    encoder = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True).eval()
    x = batch(MNIST)
    tokens = nn.functional.linear(x.reshape(4, 16, 49), model.input_proj.weight, model.input_proj.bias)
    tokens = tokens + model.pos_encoder.weight
    for layer in model.transformer.layers:
        ours = layer.state_dict()
        state = {k: v for k, v in ours.items() if "_proj" not in k or "out_proj" in k}
        for part in ("weight", "bias"):
            state[f"self_attn.in_proj_{part}"] = torch.cat([ours[f"self_attn.{n}_proj.{part}"] for n in "qkv"])
        encoder.load_state_dict(state)
        tokens = encoder(tokens)
    expected = nn.functional.linear(tokens.mean(1), model.fc.weight, model.fc.bias)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_attention_weights_are_seen_by_a_hook_on_pattern() -> None:
    attention = SelfAttention(8, 2)
    seen: list[Tensor] = []
    attention.pattern.register_forward_hook(lambda _m, _i, out: seen.append(out))
    x = torch.randn(3, 5, 8)
    attention(x, x, torch.ones(5, 5, dtype=torch.bool).triu(1))
    assert seen[0].shape == (3, 2, 5, 5)
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(3, 2, 5))
    assert (seen[0].triu(1) == 0).all()


def test_pooling_before_relu_is_the_founding_cnn() -> None:
    model = build(cnns.cnn_deep, MNIST, {}, seed=0)
    x = batch(MNIST)
    expected = x
    for i in (0, 3, 6, 9):
        expected = nn.functional.max_pool2d(model.conv_layers[i](expected).relu(), 2)
    assert torch.equal(model(x), model.fc(expected.flatten(1)))


@pytest.mark.parametrize("factory", [mlps.mlp_narrow, transformers.transformer_narrow])
def test_text_does_not_depend_on_its_padding(factory: Callable[..., nn.Module]) -> None:
    model = build(factory, NEWS, {}, seed=0).eval()
    x = batch(NEWS)
    before = model(x)
    with torch.no_grad():
        model.embedding.weight[0] = 7.0
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(model(torch.zeros_like(x))).all()  # an empty text


def test_masked_mean_is_the_mean_of_what_is_kept() -> None:
    x = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]]])
    assert masked_mean(x, torch.tensor([[True, True, False]])).tolist() == [[2.0, 4.0]]
    assert masked_mean(x, torch.zeros(1, 3, dtype=torch.bool)).tolist() == [[0.0, 0.0]]
    torch.testing.assert_close(masked_mean(x, None), torch.tensor([[104 / 3, 36.0]]))


def test_the_number_of_tokens_is_the_divisor_closest_to_16() -> None:
    assert [token_count(n) for n in (784, 100, 64, 3072, 126, 7)] == [16, 20, 16, 16, 14, 7]


def test_modular_transformer_reads_out_at_the_last_position_as_a_full_causal_one() -> None:
    model = build(modular_transformer, MODULAR, {}, seed=0)
    ids = batch(MODULAR, 6)
    x = model.embedding.weight[ids] + model.pos_encoder.weight
    attention = model.blocks[0].self_attn
    q, k, v = (
        (x @ getattr(attention, f"{n}_proj").weight.T).unflatten(-1, (4, 32)).transpose(1, 2).double() for n in "qkv"
    )
    scores = (q @ k.transpose(-1, -2) / 32**0.5).masked_fill(torch.ones(3, 3).triu(1).bool(), float("-inf"))
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2).float()
    x = x + mixed @ attention.out_proj.weight.T
    x = x + (x @ model.blocks[0].linear1.weight.T).relu() @ model.blocks[0].linear2.weight.T
    torch.testing.assert_close(model(ids), (x @ model.unembed.weight.T)[:, -1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lanes", [(), (2,)])
def test_attention_by_tables_is_attention_by_rows(monkeypatch: pytest.MonkeyPatch, lanes: tuple[int, ...]) -> None:
    model = build(modular_transformer, MODULAR, {"width": 16, "heads": 2, "hidden": 24}, seed=0)
    ids = torch.stack([batch(MODULAR, 6) for _ in range(2)])[: math.prod(lanes)].view(*lanes, 6, -1)
    found = []
    for largest in (512, 0):
        monkeypatch.setattr("ndt_ray.models.modular.LARGEST_TABLE", largest)
        patterns: list[torch.Tensor] = []
        hook = model.blocks[0].self_attn.pattern.register_forward_hook(lambda _m, _i, out, to=patterns: to.append(out))
        model.zero_grad()
        logits = model(ids)
        logits.square().sum().backward()
        hook.remove()
        found.append([logits, *patterns, *(p.grad for p in model.parameters())])
    for table, row in zip(*found, strict=True):
        assert row.abs().max() > 0
        torch.testing.assert_close(table, row, rtol=1e-4, atol=1e-6)


def test_vit_cuts_squares_row_by_row() -> None:
    model = vit(InputSpec("image", (2, 4, 6), 3), patch=2, width=8, heads=2, depth=1)
    x = torch.arange(48.0).reshape(1, 2, 4, 6)
    patches = model._patches(x)
    assert patches.shape == (1, 6, 8)
    for row in range(2):
        for column in range(3):
            square = x[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(patches[0, 3 * row + column], square.flatten())
    assert [default_patch(n, n) for n in (28, 8, 32, 64, 7)] == [4, 2, 4, 4, 1]


def test_dropout_multiplies_by_the_mask_of_its_site() -> None:
    model = nn.Sequential(Dropout(0.5), nn.Identity(), Dropout(0.25))
    assert number_dropouts(model) == 2
    asked: list[tuple[int, tuple[int, ...], float]] = []

    def masks(site: int, shape: tuple[int, ...], p: float) -> Tensor:
        asked.append((site, tuple(shape), p))
        return torch.full(tuple(shape), float(site + 2))

    for dropout in (model[0], model[2]):
        dropout.masks = masks
    assert model(torch.ones(2, 3)).unique().tolist() == [6.0]
    assert asked == [(0, (2, 3), 0.5), (1, (2, 3), 0.25)]
    assert model.eval()(torch.ones(2, 3)).unique().tolist() == [1.0]
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("factory", "inputs", "params", "says"),
    [
        (cnns.cnn_deep, DIGITS, {}, r"halves the image 4 times.*8x8.*at most 3 stages fit.*cnn_shallow"),
        (cnns.cnn, DIGITS, {"channels": ()}, r"at least one stage"),
        (cnns.cnn, DIGITS, {"channels": (4, 0)}, r"channels must be at least 1"),
        (cnns.cnn_shallow, NEWS, {}, r"takes images.*text.*mlp_\*.*transformer_\*"),
        (cnns.cnn_shallow, MODULAR, {}, r"takes images.*modular_transformer"),
        (vit, NEWS, {}, r"vit takes images"),
        (vit, DIGITS, {"patch": 3}, r"patch=3 do not tile a 8x8"),
        (resnet18, DIGITS, {"groups": 7}, r"groups must divide the width"),
        (modular_transformer, DIGITS, {}, r"takes the ids of modular arithmetic"),
        (transformers.transformer, DIGITS, {"width": 10, "heads": 4}, r"heads must divide the width.*width=10 heads=4"),
        (transformers.transformer, DIGITS, {"depth": 0}, r"depth must be at least 1.*depth=0"),
        (transformers.transformer_deep, DIGITS, {"dropout": 1.0}, r"dropout must be at least 0 and below 1"),
        (mlps.mlp, DIGITS, {"hidden": (-1,)}, r"hidden must be at least 1"),
    ],
)
def test_what_cannot_be_built_says_why_and_what_to_do(
    factory: Callable[..., nn.Module], inputs: InputSpec, params: dict[str, object], says: str
) -> None:
    with pytest.raises(SpecError, match=says):
        build(factory, inputs, params, seed=0)


def test_three_poolings_of_an_8x8_image_fit() -> None:
    assert cnns.cnn_medium(DIGITS)(batch(DIGITS)).shape == (4, 10)
