"""Sparse autoencoders in lanes: dictionaries of equal width are trained at once, each from its own seed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ndt_ray.analysis.nulls import generator
from ndt_ray.errors import SpecError, did_you_mean

Kind = Literal["topk", "relu"]
Schedule = Literal["constant", "founding", "thirds"]


@dataclass(frozen=True)
class Config:
    """How sparse autoencoders are trained; see `FOUNDING` for the founding document's."""

    kind: Kind = "topk"
    expansion: float = 4.0
    """Features per dimension."""
    max_features: int = 1024
    k: int = 16
    """Active features a row (topk); at most a quarter of the dimensions."""
    l1: float = 0.0
    """Weight of the mean absolute activation (relu)."""
    l1_schedule: Schedule = "constant"
    """How `l1` depends on the layer: founding, by its number (`founding_l1`); thirds: 1.5, 1 and 0.5 times `l1` in the
    first, middle and last third of the network's depth."""
    decorrelation: float = 0.0
    """Weight of the mean squared cosine between different atoms."""
    lr: float = 2e-3
    batch: int = 256
    epochs: int = 40
    max_steps: int = 600
    clip: float = 1.0
    """Largest L2 norm of a lane's gradient."""
    auxiliary: float = 1 / 32
    """Weight of the part of the error that silent features are taught (Gao et al. 2024); topk only."""
    normalise: Literal["scale", "zscore"] = "scale"
    """scale: mean removed, one scale for all dimensions; zscore: each dimension by its own."""
    tied: bool = True
    """Whether the encoder starts as the decoder's transpose; else both are drawn as in the founding study."""

    def __post_init__(self) -> None:
        if self.kind not in ("topk", "relu") or self.normalise not in ("scale", "zscore"):
            raise SpecError(f"sae: kind is topk or relu, normalise scale or zscore, but got {self.kind!r},"
                            f" {self.normalise!r}")  # fmt: skip
        if self.l1_schedule not in ("constant", "founding", "thirds"):
            raise SpecError(f"sae: l1_schedule is constant, founding or thirds, but got {self.l1_schedule!r}")
        if self.l1_schedule != "constant" and self.kind != "relu":
            raise SpecError(f"sae: l1_schedule {self.l1_schedule!r} is of kind relu; topk has no l1 - set kind=relu")
        sizes = (self.expansion, self.max_features, self.k, self.lr, self.batch, self.epochs, self.max_steps, self.clip)
        if min(sizes) <= 0 or min(self.l1, self.decorrelation, self.auxiliary) < 0:
            raise SpecError(f"sae: sizes must be positive and weights at least 0, but got {asdict(self)}")

    def features(self, d: int) -> int:
        """Atoms for activations of `d` dimensions."""
        return max(2, min(self.max_features, round(self.expansion * d)))

    def active(self, d: int) -> int:
        """Active features a row (topk)."""
        return max(1, min(self.k, d // 4))

    def at(self, layer: int, depth: float) -> "Config":
        """As it is for a layer: its number, and its depth from 0 (first) to 1 (last)."""
        if self.l1_schedule == "founding":
            return replace(self, l1=founding_l1(layer))
        if self.l1_schedule == "thirds":
            return replace(self, l1=self.l1 * (1.5 if depth < 1 / 3 else 1.0 if depth < 2 / 3 else 0.5))
        return self


FOUNDING = Config(
    kind="relu", expansion=8.0, max_features=1 << 20, l1=1e-4, decorrelation=0.01, lr=1e-4, batch=64, epochs=10,
    max_steps=1 << 30, clip=1.0, auxiliary=0.0, normalise="zscore", tied=False,
)  # fmt: skip
"""Founding document S3, with its own corrections: ReLU on, atoms of unit norm."""

PRESETS = {"default": Config(), "founding": FOUNDING}


def preset(name: str, **changes: Any) -> Config:
    """A named configuration with some values replaced; SpecError for an unknown name or value."""
    if name not in PRESETS:
        raise SpecError(f"no SAE configuration '{name}'{did_you_mean(name, PRESETS)}")
    known = {f.name for f in fields(Config)}
    for key in changes:
        if key not in known:
            raise SpecError(f"SAE configurations have no '{key}'{did_you_mean(key, known)}")
    return replace(PRESETS[name], **changes)


def configurations(
    config: str, changes: Mapping[str, Any] | None, configs: Sequence[str | Mapping[str, Any]] | None = None
) -> dict[str, Config]:
    """Configurations by name: `config` with `changes`, or each of `configs` with them.

    Of `configs` an entry is a named configuration, or its own changes with a `name` and the `config` that they change
    (default: default): `[default, founding, {name: wide, expansion: 8}]`. SpecError for two of one name.
    """
    common = dict(changes or {})
    if configs is None:
        return {config: preset(config, **common)}
    if config != "default" or not configs:
        raise SpecError(f"sae: give either config or a list of configs, one or more, but got ({config=}, {configs=})")
    found: dict[str, Config] = {}
    for entry in configs:
        own = {"config": entry} if isinstance(entry, str) else dict(entry)
        base = str(own.pop("config", "default"))
        name = str(own.pop("name", base))
        if name in found:
            raise SpecError(f"sae: two configurations are called '{name}': give one another name")
        found[name] = preset(base, **{**common, **own})
    return found


def founding_l1(layer: int) -> float:
    """The founding study's weight by layer number: 1.5e-4 at 4 and 6, 0.5e-4 at 16, 20, 24 and 30, else 1e-4."""
    return 1.5e-4 if layer in (4, 6) else 0.5e-4 if layer in (16, 20, 24, 30) else 1e-4


@dataclass(frozen=True)
class Saes:
    """S dictionaries of F atoms in d dimensions."""

    config: Config
    encoder: Tensor
    """[S, d, F]"""
    encoder_bias: Tensor
    """[S, F]"""
    atoms: Tensor
    """[S, F, d], of unit norm."""
    bias: Tensor
    """[S, d]"""
    mean: Tensor
    """[S, 1, d]: taken off before encoding."""
    scale: Tensor
    """[S, 1, 1 or d]: divided by before encoding."""
    losses: NDArray[np.float64]
    """[epochs, S]: mean training loss."""

    def __len__(self) -> int:
        return len(self.atoms)

    def lanes(self, chosen: Sequence[int]) -> "Saes":
        """Some of them, in this order."""
        i = torch.tensor(list(chosen), dtype=torch.int64)
        return Saes(
            self.config,
            self.encoder[i],
            self.encoder_bias[i],
            self.atoms[i],
            self.bias[i],
            self.mean[i],
            self.scale[i],
            self.losses[:, list(chosen)],
        )

    def normalised(self, rows: Tensor) -> Tensor:
        """Activations [S, N, d] as the dictionaries see them."""
        return (rows - self.mean) / self.scale

    def encode(self, x: Tensor) -> Tensor:
        """Normalised [S, N, d] -> feature activations [S, N, F], none negative."""
        return _active(torch.baddbmm(self.encoder_bias[:, None], x, self.encoder), self.config, x.shape[-1])

    def decode(self, features: Tensor) -> Tensor:
        """[S, N, F] -> normalised [S, N, d]."""
        return torch.baddbmm(self.bias[:, None], features, self.atoms)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Normalised [S, N, d] -> what the dictionaries make of it."""
        with torch.no_grad():
            return self.decode(self.encode(x))


def scaling(rows: Tensor, how: str) -> tuple[Tensor, Tensor]:
    """(mean [S, 1, d], scale) of activations [S, N, d]; the founding study's floor of 1e-6 under a scale."""
    mean = rows.double().mean(1, keepdim=True)
    squares = ((rows.double() - mean) ** 2).mean(1, keepdim=True)
    scale = (squares if how == "zscore" else squares.mean(2, keepdim=True)).sqrt().clamp_min(1e-6)
    return mean.float(), scale.float()


def train(rows: Tensor, seeds: Sequence[str], config: Config, *, frozen: Sequence[bool] | None = None) -> Saes:
    """Train one dictionary a lane on activations [S, N, d], float32; `seeds` name the lanes' random numbers.

    A lane that is `frozen` keeps its random atoms and learns its encoder alone: the control of arXiv:2602.14111.
    The same rows, seeds and lanes give the same bits. SpecError for rows that are not finite or under two.
    """
    lanes, n, d = rows.shape
    if len(seeds) != lanes or n < 2 or not bool(torch.isfinite(rows).all()):
        raise SpecError(
            f"dictionaries need finite rows [lanes, 2 or more, d] and a seed a lane, but got {list(rows.shape)} and"
            f" {len(seeds)} seeds"
        )
    generators = [generator("sae", seed) for seed in seeds]
    free = torch.tensor([not f for f in (frozen or [False] * lanes)])[:, None, None]
    found = _start(rows, generators, config)
    x = found.normalised(rows)
    parameters = [found.encoder, found.encoder_bias, found.atoms, found.bias]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, lr=config.lr, foreach=True)
    silent = torch.zeros(lanes, found.atoms.shape[1])
    batch, losses, step = min(config.batch, n), [], 0
    lane = torch.arange(lanes)[:, None]
    for _ in range(config.epochs):
        order = torch.from_numpy(np.stack([g.permutation(n) for g in generators]))
        sums = torch.zeros(lanes)
        starts = range(0, n - batch + 1, batch)
        for start in starts:
            chosen = x[lane, order[:, start : start + batch]]
            loss = _loss(found, chosen, silent)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss.sum())
            _hold(found, parameters, free, config.clip)
            optimizer.step()
            with torch.no_grad():
                found.atoms.copy_(_unit(found.atoms))
            sums += loss.detach()
            step += 1
            if step >= config.max_steps:
                break
        losses.append((sums / max(1, min(len(starts), step))).double().numpy())
        if step >= config.max_steps:
            losses[-1] = losses[-1] * min(len(starts), step) / max(1, (step - 1) % len(starts) + 1)
            break
    for parameter in parameters:
        parameter.requires_grad_(False)
    return replace(found, losses=np.stack(losses))


def random_saes(rows: Tensor, seeds: Sequence[str], config: Config, active: Tensor | None = None) -> Saes:
    """Dictionaries as they are before training, with one gain a lane fitted to the rows: the random control.

    `active` [S]: mean number of active features a row that a threshold gives them (relu; topk has its k).
    """
    found = _start(rows, [generator("random sae", seed) for seed in seeds], replace(config, tied=True))
    x = found.normalised(rows)
    if config.kind == "relu" and active is not None:
        pre = (x[:, :512] @ found.encoder).flatten(1).sort(dim=1, descending=True).values
        place = (active / found.atoms.shape[1] * pre.shape[1]).long().clamp(0, pre.shape[1] - 1)
        found = replace(found, encoder_bias=-pre.gather(1, place[:, None]).expand_as(found.encoder_bias).clone())
    made = found.reconstruct(x)
    gain = ((x * made).sum((1, 2)) / (made**2).sum((1, 2)).clamp_min(1e-12))[:, None]
    return replace(found, encoder=found.encoder * gain[:, None], encoder_bias=found.encoder_bias * gain)


def _start(rows: Tensor, generators: Sequence[np.random.Generator], config: Config) -> Saes:
    lanes, _, d = rows.shape
    f = config.features(d)
    mean, scale = scaling(rows, config.normalise)
    drawn = torch.from_numpy(np.stack([g.standard_normal((f, d)) for g in generators])).float()
    atoms = _unit(drawn)
    if config.tied:
        encoder = atoms.transpose(1, 2).clone()
    else:
        encoder = torch.from_numpy(np.stack([g.standard_normal((d, f)) for g in generators])).float() / d**0.5
    biases = torch.zeros(lanes, f), torch.zeros(lanes, d)
    return Saes(config, encoder, biases[0], atoms, biases[1], mean, scale, np.zeros((0, lanes)))


def _active(pre: Tensor, config: Config, d: int) -> Tensor:
    if config.kind == "relu":
        return pre.relu()
    top = pre.topk(config.active(d), dim=-1)
    return torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())


def _loss(found: Saes, x: Tensor, silent: Tensor) -> Tensor:
    """Loss of each lane [S]; counts in `silent` for how many rows a feature has not been active."""
    config, d = found.config, x.shape[-1]
    pre = torch.baddbmm(found.encoder_bias[:, None], x, found.encoder)
    features = _active(pre, config, d)
    error = x - found.decode(features)
    loss = (error**2).mean((1, 2))
    if config.l1:
        loss = loss + config.l1 * features.abs().mean((1, 2))
    if config.decorrelation:
        cosines = torch.bmm(found.atoms, found.atoms.transpose(1, 2)) ** 2
        f = cosines.shape[1]
        loss = loss + config.decorrelation * (cosines.sum((1, 2)) - f) / (f * (f - 1))
    with torch.no_grad():
        fired = (features > 0).any(1)
        silent.add_(x.shape[1]).masked_fill_(fired, 0)
        dead = silent > 10 * x.shape[1]
    if config.kind == "topk" and config.auxiliary and bool(dead.any()):
        count = min(max(d // 2, 1), dead.shape[1])
        top = pre.masked_fill(~dead[:, None], -torch.inf).topk(count, dim=-1)
        values = torch.where(top.values.isinf(), 0.0, top.values).relu()
        taught = torch.bmm(torch.zeros_like(pre).scatter(-1, top.indices, values), found.atoms)
        rest = error.detach()
        share = ((rest - taught) ** 2).mean((1, 2)) / (rest**2).mean((1, 2)).clamp_min(1e-12)
        loss = loss + config.auxiliary * loss.detach() * share
    return loss


def _hold(found: Saes, parameters: Sequence[Tensor], free: Tensor, clip: float) -> None:
    """Gradients as the step may use them: none along an atom, none for frozen atoms, each lane's norm clipped."""
    with torch.no_grad():
        atoms, slope = found.atoms, found.atoms.grad
        assert slope is not None
        slope.sub_((slope * atoms).sum(-1, keepdim=True) * atoms).mul_(free)
        slopes = [p.grad for p in parameters if p.grad is not None]
        norm = torch.stack([(g**2).flatten(1).sum(1) for g in slopes]).sum(0).sqrt()
        factor = (clip / norm.clamp_min(1e-12)).clamp_max(1.0)
        for g in slopes:
            g.mul_(factor.reshape(-1, *[1] * (g.ndim - 1)))


def _unit(atoms: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(atoms, dim=-1, keepdim=True)
    return atoms / norm.clamp_min(1e-12)
