"""The stacked engine: one forward and backward for all lanes, through layers that know the lane dimension.

Model forwards look only at trailing dimensions, so the same forward runs on [S, B, ...] once the leaves that own
parameters are swapped for those below.
"""

import copy
import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from ndt_ray.lanes.arena import Arena
from ndt_ray.lanes.engine import Build, Engine, cross_entropy, dropouts, lane_masks
from ndt_ray.models.layers import PositionalEmbedding
from ndt_ray.spec import Trial


class StackEngine(Engine):
    """Kernels batched over lanes. On the CPU batched and single products are bit-equal (checked at the start for the
    shapes at hand, else lane by lane); on a GPU the lane width belongs to the trial's identity."""

    name = "stack"

    def __init__(self, trials: Sequence[Trial], build: Build, device: torch.device) -> None:
        super().__init__(trials, build, device)
        self.loss_dtype = getattr(torch, self.trials[0].train.loss_dtype)
        self.stacked = copy.deepcopy(self.models[0])
        self.accumulating = _swap(self.stacked, self.arena)
        self.stacked.train()
        self.masked = dropouts(self.stacked)
        self.masks = [lane_masks(t, device) for t in self.trials]
        self.logits: Tensor | None = None

    def backward(self, inputs: Tensor, targets: Tensor, update: int) -> Tensor:
        dummies = self.arena.lanes - len(inputs)
        if dummies:
            inputs = torch.cat([inputs, inputs[:1].expand(dummies, *inputs.shape[1:])])
            targets = torch.cat([targets, targets[:1].expand(dummies, *targets.shape[1:])])
        if self.accumulating:
            self.arena.grads.zero_()
        for layer in self.masked:
            layer.masks = functools.partial(self._masks, update)
        logits = self.stacked(inputs)
        each = cross_entropy(logits, targets, self.loss_dtype)
        (each.sum() / each.shape[1]).backward()  # type: ignore[no-untyped-call]
        # By numpy, along the contiguous axis: torch orders a batched reduction by the number of lanes.
        host = each.detach()[: len(self.trials)].double().cpu().contiguous()
        return torch.from_numpy(host.numpy().mean(1))

    def _masks(self, update: int, site: int, shape: Sequence[int], p: float) -> Tensor:
        each = [masks(site, update, tuple(shape[1:]), p) for masks in self.masks]
        return torch.stack(each + each[:1] * (self.arena.lanes - len(each)))


def supports(model: nn.Module) -> bool:
    """Whether every parameter of a model sits in a leaf that the stacked engine knows, and none is used twice."""
    seen = [p for m in model.modules() for p in m.parameters(recurse=False)]
    owners = [m for m in model.modules() if any(True for _ in m.parameters(recurse=False))]
    buffers = any(True for _ in model.buffers())
    return not buffers and len(seen) == len({id(p) for p in seen}) and all(type(m) in _LEAVES for m in owners)


def only_linear(model: nn.Module) -> bool:
    """Whether stacking pays on the CPU: models of Linear layers alone (attention and convolutions do not gain)."""
    owners = {type(m) for m in model.modules() if any(True for _ in m.parameters(recurse=False))}
    return owners <= {nn.Linear, nn.Embedding}


def _swap(model: nn.Module, arena: Arena) -> bool:
    """Replaces the leaves in place; True if any of them accumulates gradients (so that they need zeroing)."""
    accumulating = False
    for path, leaf in list(model.named_modules()):
        make = _LEAVES.get(type(leaf))
        if make is None:
            continue
        slots = {s.name.rpartition(".")[2]: s for s in arena.layout if s.name.rpartition(".")[0] == path}
        weights = {name: slot.view(arena.weights) for name, slot in slots.items()}
        grads = {name: slot.view(arena.grads) for name, slot in slots.items()}
        stacked = make(leaf, weights, grads)
        accumulating |= not isinstance(stacked, StackLinear)
        if path:
            model.set_submodule(path, stacked)
    return accumulating


def _leaves(weight: Tensor, grad: Tensor) -> list[Tensor]:
    """One tensor per lane that autograd adds gradients to in place, inside the arena."""
    leaves = []
    for w, g in zip(weight, grad, strict=True):
        leaf = w.detach().requires_grad_()
        leaf.grad = g
        leaves.append(leaf)
    return leaves


# Batched products in torch take a different route for some shapes and batch sizes; where one is not bit-equal to
# the single product, lanes are multiplied one by one.
@functools.lru_cache(maxsize=1024)
def batched_equals_single(lanes: int, rows: int, inputs: int, outputs: int) -> bool:
    """Whether forward, input and weight gradient of a Linear are the same bits batched as one lane at a time."""
    g = torch.Generator().manual_seed(rows * 7919 + inputs)
    x, y = torch.randn(lanes, rows, inputs, generator=g), torch.randn(lanes, rows, outputs, generator=g)
    w, b = torch.randn(lanes, outputs, inputs, generator=g), torch.randn(lanes, outputs, generator=g)
    pairs = [
        (torch.baddbmm(b[:, None], x, w.mT), [torch.addmm(b[s], x[s], w[s].T) for s in range(lanes)]),
        (y @ w, [y[s] @ w[s] for s in range(lanes)]),
        (torch.bmm(y.mT, x), [y[s].T @ x[s] for s in range(lanes)]),
        (y.sum(1), [y[s].sum(0) for s in range(lanes)]),
    ]
    return all(torch.equal(one, torch.stack(many)) for one, many in pairs)


class _LaneLinear(torch.autograd.Function):
    """y = x W' + b for every lane; the gradients of W and b are written where the optimizer reads them."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, grads: tuple[Tensor, Tensor | None], _: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.grads = grads  # type: ignore[attr-defined]
        ctx.batched = batched = not x.device.type == "cpu" or batched_equals_single(*x.shape, weight.shape[1])  # type: ignore[attr-defined]
        if batched:
            return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)
        if bias is None:
            return torch.stack([a @ w.T for a, w in zip(x, weight, strict=True)])
        return torch.stack([torch.addmm(c, a, w.T) for a, w, c in zip(x, weight, bias, strict=True)])

    @staticmethod
    def backward(ctx: FunctionCtx, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = outputs
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        to_weight, to_bias = ctx.grads  # type: ignore[attr-defined]
        grad = grad.contiguous()
        if ctx.batched:  # type: ignore[attr-defined]
            torch.bmm(grad.mT, x, out=to_weight)
            if to_bias is not None:
                torch.sum(grad, 1, out=to_bias)
            back = torch.bmm(grad, weight) if ctx.needs_input_grad[0] else None  # type: ignore[attr-defined]
        else:
            for s in range(len(grad)):
                torch.mm(grad[s].T, x[s], out=to_weight[s])
                if to_bias is not None:
                    torch.sum(grad[s], 0, out=to_bias[s])
            back = torch.stack([g @ w for g, w in zip(grad, weight, strict=True)]) if ctx.needs_input_grad[0] else None  # type: ignore[attr-defined]
        return back, None, None, None, None


class StackLinear(nn.Module):
    """x [S, ..., I] -> [S, ..., O]."""

    def __init__(self, leaf: nn.Linear, weights: dict[str, Tensor], grads: dict[str, Tensor]) -> None:
        super().__init__()
        self.lane_weight, self.lane_bias = weights["weight"], weights.get("bias")
        self.grads = (grads["weight"], grads.get("bias"))
        # Something that requires a gradient, so that autograd calls backward for the first layer too.
        self.anchor = torch.zeros((), device=self.lane_weight.device, requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
        out: Tensor = _LaneLinear.apply(rows, self.lane_weight, self.lane_bias, self.grads, self.anchor)  # type: ignore[no-untyped-call]
        return out.view(*x.shape[:-1], -1)


class StackConv2d(nn.Module):
    """x [S, B, C, H, W], one convolution per lane: grouped convolution is neither bit-equal nor faster."""

    def __init__(self, leaf: nn.Conv2d, weights: dict[str, Tensor], grads: dict[str, Tensor]) -> None:
        super().__init__()
        self.lane_weights = _leaves(weights["weight"], grads["weight"])
        self.lane_biases: list[Tensor | None] = [None] * len(self.lane_weights)
        if "bias" in weights:
            self.lane_biases = [*_leaves(weights["bias"], grads["bias"])]
        self.how = {"stride": leaf.stride, "padding": leaf.padding, "dilation": leaf.dilation, "groups": leaf.groups}

    def forward(self, x: Tensor) -> Tensor:
        lanes = zip(x, self.lane_weights, self.lane_biases, strict=True)
        return torch.stack([F.conv2d(a, w, b, **self.how) for a, w, b in lanes])  # type: ignore[arg-type]


class StackEmbedding(nn.Module):
    """ids [S, B, ...] -> [S, B, ..., D]."""

    def __init__(self, leaf: nn.Embedding, weights: dict[str, Tensor], grads: dict[str, Tensor]) -> None:
        super().__init__()
        self.tables = _leaves(weights["weight"], grads["weight"])
        self.padding = leaf.padding_idx

    def forward(self, ids: Tensor) -> Tensor:
        return torch.stack([F.embedding(i, t, self.padding) for i, t in zip(ids, self.tables, strict=True)])


class StackNorm(nn.Module):
    """LayerNorm or GroupNorm without its affine part, then each lane's own scale and shift."""

    def __init__(self, leaf: nn.Module, weights: dict[str, Tensor], grads: dict[str, Tensor]) -> None:
        super().__init__()
        self.scales, self.shifts = _leaves(weights["weight"], grads["weight"]), _leaves(weights["bias"], grads["bias"])
        self.normalise: Callable[[Tensor], Tensor]
        if isinstance(leaf, nn.GroupNorm):
            groups, eps = leaf.num_groups, leaf.eps
            self.normalise = lambda x: F.group_norm(x.flatten(0, 1), groups, eps=eps).view(x.shape)
            self.trailing = 2
        else:
            assert isinstance(leaf, nn.LayerNorm)
            shape, eps = leaf.normalized_shape, leaf.eps
            self.normalise = lambda x: F.layer_norm(x, shape, eps=eps)
            self.trailing = 0

    def forward(self, x: Tensor) -> Tensor:
        inner = self.scales[0].shape
        shape = (len(self.scales), *[1] * (x.dim() - 1 - len(inner) - self.trailing), *inner, *[1] * self.trailing)
        return self.normalise(x) * torch.stack(self.scales).view(shape) + torch.stack(self.shifts).view(shape)


class StackPositional(nn.Module):
    """x [S, B, T, D] + weight [S, T, D]."""

    def __init__(self, leaf: PositionalEmbedding, weights: dict[str, Tensor], grads: dict[str, Tensor]) -> None:
        super().__init__()
        self.tables = _leaves(weights["weight"], grads["weight"])

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.stack(self.tables).unsqueeze(-3)


_LEAVES: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.Linear: StackLinear,
    nn.Conv2d: StackConv2d,
    nn.Embedding: StackEmbedding,
    nn.LayerNorm: StackNorm,
    nn.GroupNorm: StackNorm,
    PositionalEmbedding: StackPositional,
}
