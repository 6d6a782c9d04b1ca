"""Curvature against dense Hessians, noise against planted noise, and a model that does not notice."""

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ndt_ray.measurement.coarse import (
    adam_preconditioner,
    curvature,
    gradient_noise_scale,
    hessian_product,
    largest_eigenvalue,
    weight_spectra,
)
from ndt_ray.spec import Train
from ndt_ray.store.schema import TABLES

TRAIN = Train(steps=100)
CPU = torch.device("cpu")


def small(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)).to(dtype)


def probe(n=64, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 6, generator=generator).to(dtype), torch.randint(0, 3, (n,), generator=generator)


def dense_hessian(model, inputs, labels):
    """Row by row, in float64, of the eval-mode loss."""
    model = model.double().eval()
    parameters = list(model.parameters())
    loss = F.cross_entropy(model(inputs.double()), labels)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    found = [torch.cat([h.flatten() for h in torch.autograd.grad(g, parameters, retain_graph=True)]) for g in gradient]
    return torch.stack(found)


def test_weight_spectra_are_singular_values():
    model = nn.ModuleDict({"a": nn.Linear(5, 9), "conv": nn.Conv2d(3, 4, 3), "norm": nn.LayerNorm(4)})
    found = weight_spectra(model)
    assert found["parameter"] == ["a.weight", "conv.weight"]
    for i, weight in enumerate((model["a"].weight, model["conv"].weight.flatten(1))):
        values = np.linalg.svd(weight.detach().double().numpy(), compute_uv=False)
        np.testing.assert_allclose(found["singular_values"][i], values, rtol=1e-6)
        assert found["spectral_norm"][i] == pytest.approx(values[0], rel=1e-9)
        assert found["stable_rank"][i] == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-9)
        assert found["participation_ratio"][i] == pytest.approx((values**2).sum() ** 2 / (values**4).sum(), rel=1e-9)
    schema = TABLES["weight_spectra"].arrow()
    assert {"trial_id", "step", *found} == set(schema.names)
    for name, values in found.items():
        assert len(pa.array(values, type=schema.field(name).type, from_pandas=True)) == 2


def test_weights_that_are_zero_or_not_finite_are_null():
    model = nn.ModuleDict({"zero": nn.Linear(3, 3), "nan": nn.Linear(3, 3)})
    nn.init.zeros_(model["zero"].weight)
    nn.init.constant_(model["nan"].weight, torch.nan)
    found = weight_spectra(model)
    assert np.isnan(found["stable_rank"]).all()
    assert found["spectral_norm"][0] == 0 and np.isnan(found["spectral_norm"][1])


@pytest.mark.parametrize("spectrum", [[5.0, 1, 0, -9], list(range(200)), [2.0] * 5, [-1.0, -3], [4.0]])
def test_largest_eigenvalue_of_a_known_operator(spectrum):
    values = torch.tensor(spectrum, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), dtype=torch.float64)).Q
    operator = turn * values @ turn.T
    found = largest_eigenvalue(lambda v: operator @ v, len(spectrum), CPU)
    assert found == pytest.approx(max(spectrum), rel=2e-3)


def test_an_operator_that_is_not_finite_has_none():
    assert np.isnan(largest_eigenvalue(lambda v: v * torch.nan, 4, CPU))


def test_sharpness_is_the_dense_hessians():
    inputs, labels = probe()
    expected = torch.linalg.eigvalsh(dense_hessian(small(), inputs, labels))[-1].item()
    found = curvature(small(), inputs, labels, step=5, train=TRAIN)
    assert found["sharpness"] == pytest.approx(expected, rel=2e-3)
    assert np.isnan(found["sharpness_preconditioned"])
    assert {"trial_id", "step", *found} == set(TABLES["curvature"].arrow().names)


def test_preconditioned_sharpness_is_the_dense_hessians():
    inputs, labels = probe()
    model = small()
    generator = torch.Generator().manual_seed(2)
    moments = {n: torch.rand(p.shape, generator=generator).numpy() * 1e-3 for n, p in model.named_parameters()}
    moments["0.weight"][2] = 0
    scale = torch.cat([p.rsqrt().flatten() for p in adam_preconditioner(moments, 5, TRAIN).values()])
    assert (scale.view(-1)[12:18] == 0).all()
    expected = torch.linalg.eigvalsh(scale[:, None] * dense_hessian(small(), inputs, labels) * scale)[-1].item()
    found = curvature(model, inputs, labels, second_moments=moments, step=5, train=TRAIN)
    assert found["sharpness_preconditioned"] == pytest.approx(expected, rel=2e-3)
    start = curvature(model, inputs, labels, second_moments=moments, step=0, train=TRAIN)
    assert np.isnan(start["sharpness_preconditioned"])


def test_preconditioner_is_adams():
    """One real step of Adam divides the gradient by it."""
    p = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = torch.optim.Adam([p], lr=0.1, betas=TRAIN.betas, eps=TRAIN.eps)
    for _ in range(3):
        p.grad = p.detach() ** 3
        before = p.detach().clone()
        optimizer.step()
    state = optimizer.state[p]
    divisor = adam_preconditioner({"p": state["exp_avg_sq"].numpy()}, 3, TRAIN)["p"]
    torch.testing.assert_close(p.detach(), before - 0.1 * state["exp_avg"] / divisor)


def test_parts_of_the_loss_that_are_flat():
    """A parameter that the loss does not see, and one that it is linear in."""
    a, b, c = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(3))
    product = hessian_product((a**2).sum() * 3 + b.sum(), {"a": a, "b": b, "c": c})
    torch.testing.assert_close(product(torch.ones(6, dtype=torch.float64)), torch.tensor([6.0, 6, 0, 0, 0, 0]).double())


def test_noise_scale_of_planted_noise():
    """Sample gradients with mean g and covariance s^2 I: tr / |g|^2 = 50 s^2 / |g|^2."""
    generator = torch.Generator().manual_seed(0)
    mean, spread = torch.full((50,), 0.2, dtype=torch.float64), 1.5
    found = []
    for _ in range(60):
        noise = spread * torch.randn(512, 50, generator=generator, dtype=torch.float64)
        weight = torch.zeros(50, dtype=torch.float64, requires_grad=True)
        targets = mean + noise
        found.append(gradient_noise_scale(lambda i, t=targets, w=weight: (t[i] @ w).mean(), {"w": weight}, 512))
    assert np.median(found) == pytest.approx(50 * spread**2 / (50 * 0.04), rel=0.1)


def test_noise_scale_without_signal_or_samples_is_null():
    weight = torch.zeros(3, requires_grad=True)
    targets = torch.tensor([[1.0, 0, 0], [-1, 0, 0]]).repeat_interleave(1, 0).repeat(16, 1)
    assert np.isnan(gradient_noise_scale(lambda i: (targets[[i.start % 2]] @ weight).mean(), {"w": weight}, 32))
    assert np.isnan(gradient_noise_scale(lambda i: weight.sum(), {"w": weight}, 3))


def test_noise_scale_is_that_of_sample_gradients():
    inputs, labels = probe(2048)
    model = small().eval()
    gradients = []
    for x, y in zip(inputs, labels, strict=True):
        loss = F.cross_entropy(model(x[None]), y[None])
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).double())
    gradients = torch.stack(gradients)
    covariance = gradients.var(0).sum().item()
    signal = gradients.mean(0).square().sum().item() - covariance / 2048
    found = curvature(model, inputs, labels, step=0, train=TRAIN)["gradient_noise_scale"]
    assert found == pytest.approx(covariance / signal, rel=0.5)


def test_training_does_not_notice():
    inputs, labels = probe()
    model = small().train()
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    generator = torch.get_rng_state()
    first = curvature(model, inputs, labels, step=1, train=TRAIN)
    weight_spectra(model)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(m.training for m in model.modules())
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) and (p.grad == 3).all()
    assert first.keys() == curvature(model, inputs, labels, step=1, train=TRAIN).keys()
    np.testing.assert_equal(first, curvature(model, inputs, labels, step=1, train=TRAIN))


def test_other_models_and_losses_in_float64():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    inputs, labels = torch.randn(32, 1, 8, 8), torch.arange(32) % 3
    exact = curvature(model, inputs, labels, step=1, train=Train(steps=1, loss_dtype="float64"))
    assert curvature(model, inputs, labels, step=1, train=TRAIN)["sharpness"] == pytest.approx(
        exact["sharpness"], rel=0.01
    )
    frozen = curvature(model[:4].requires_grad_(False) and model, inputs, labels, step=1, train=TRAIN)
    assert 0 < frozen["sharpness"] <= exact["sharpness"] * 1.01


def test_a_diverged_model_is_null():
    model = small()
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    inputs, labels = probe()
    assert all(np.isnan(v) for v in curvature(model, inputs, labels, step=1, train=TRAIN).values())
