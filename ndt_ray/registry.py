"""Names to `module:function`: what a sweep file, the command line and the report may call by name.

Strings, not functions, so that listing names imports neither torch nor pandas.
"""

import ast
import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from ndt_ray.errors import SpecError, did_you_mean

Kind = Literal["model", "data", "measure", "analysis"]

_M = "ndt_ray.models"
_TABLE: dict[str, dict[str, str]] = {
    "model": {
        **{
            name: f"{_M}.mlp:{name}"
            for name in (
                "mlp",
                "mlp_shallow_2",
                "mlp_medium_5",
                "mlp_deep_10",
                "mlp_verydeep_15",
                "mlp_narrow",
                "mlp_medium",
                "mlp_wide",
                "mlp_verywide",
            )
        },
        **{name: f"{_M}.cnn:{name}" for name in ("cnn", "cnn_shallow", "cnn_medium", "cnn_deep")},
        **{
            name: f"{_M}.transformer:{name}"
            for name in (
                "transformer",
                "transformer_shallow",
                "transformer_medium",
                "transformer_deep",
                "transformer_narrow",
                "transformer_wide",
            )
        },
        "modular_transformer": f"{_M}.modular:modular_transformer",
        "vit": f"{_M}.vit:vit",
        "resnet18": f"{_M}.resnet:resnet18",
    },
    "data": {
        "digits": "ndt_ray.data.digits:digits",
        "modular_addition": "ndt_ray.data.modular:modular_addition",
        "mnist": "ndt_ray.data.images:mnist",
        "fashion_mnist": "ndt_ray.data.images:fashion_mnist",
        "qmnist": "ndt_ray.data.images:qmnist",
        "ag_news": "ndt_ray.data.text:ag_news",
        "arrays": "ndt_ray.data.arrays:arrays",
    },
    "measure": {
        name: f"ndt_ray.measurement.measures:{name}"
        for name in (
            "stable_rank",
            "participation_ratio",
            "participation_ratio_sv",
            "energy_90",
            "nuclear_norm_ratio",
            "rankme",
            "power_law_alpha",
            "participation_ratio_corrected",
        )
    },
    "analysis": {
        "jumps": "ndt_ray.analysis.jumps:jumps",
        "growth": "ndt_ray.analysis.growth.logistic:growth",
        "grokking": "ndt_ray.analysis.mechanisms.grokking.analyses:grokking",
        "sae": "ndt_ray.analysis.mechanisms.sae.analyses:sae",
        "sae_transfer": "ndt_ray.analysis.mechanisms.sae.analyses:sae_transfer",
        "grokking_timeline": "ndt_ray.analysis.mechanisms.grokking.analyses:grokking_timeline",
        "grokking_comparison": "ndt_ray.analysis.mechanisms.grokking.analyses:grokking_comparison",
        "grokking_lags": "ndt_ray.analysis.mechanisms.grokking.lags:grokking_lags",
        "grokking_verdicts": "ndt_ray.analysis.mechanisms.grokking.verdicts:grokking_verdicts",
        "event_layers": "ndt_ray.analysis.events.layers:event_layers",
        "capabilities": "ndt_ray.analysis.capabilities:capabilities",
        "discreteness": "ndt_ray.analysis.discreteness:discreteness",
        "discreteness_tests": "ndt_ray.analysis.discreteness:discreteness_tests",
        "late_change": "ndt_ray.analysis.late_change:late_change",
        "taxonomy_phases": "ndt_ray.analysis.taxonomy.phases:taxonomy_phases",
        "hypothesis_status": "ndt_ray.analysis.hypotheses.status:hypothesis_status",
        "symmetry": "ndt_ray.analysis.mechanisms.symmetry:symmetry",
        "specialisation": "ndt_ray.analysis.mechanisms.specialisation:specialisation",
        "thresholds": "ndt_ray.analysis.thresholds:thresholds",
        "investigation": "ndt_ray.analysis.events.investigation:investigation",
        "timing": "ndt_ray.analysis.events.timing:timing",
        "event_windows": "ndt_ray.analysis.events.windows:event_windows",
        "event_phases": "ndt_ray.analysis.events.phases:event_phases",
        "series_tests": "ndt_ray.analysis.events.series_tests:series_tests",
        "events": "ndt_ray.analysis.events.families:events",
        "growth_regression": "ndt_ray.analysis.growth.regression:growth_regression",
        "recovery": "ndt_ray.analysis.recovery:recovery",
        "taxonomy": "ndt_ray.analysis.taxonomy.types:taxonomy",
        "hypotheses": "ndt_ray.analysis.hypotheses.verdicts:hypotheses",
        "critical_periods": "ndt_ray.analysis.critical.periods:critical_periods",
        "coordination_tests": "ndt_ray.analysis.critical.coordination:coordination_tests",
        "attention": "ndt_ray.analysis.mechanisms.battery:attention",
        "head_ablation": "ndt_ray.analysis.mechanisms.battery:head_ablation",
        "filters": "ndt_ray.analysis.mechanisms.battery:filters",
        "units": "ndt_ray.analysis.mechanisms.battery:unit_responses",
        "unit_ablation": "ndt_ray.analysis.mechanisms.unit_ablation:unit_ablation",
        "collapse": "ndt_ray.analysis.mechanisms.battery:collapse",
        "linear_probes": "ndt_ray.analysis.mechanisms.battery:linear_probes",
        "intrinsic_dimension": "ndt_ray.analysis.mechanisms.battery:intrinsic_dimension",
        "llc": "ndt_ray.analysis.mechanisms.degeneracy:llc",
        "similarity": "ndt_ray.analysis.mechanisms.over_time:similarity",
        "seed_similarity": "ndt_ray.analysis.mechanisms.over_time:seed_similarity",
        "weights": "ndt_ray.analysis.mechanisms.over_time:weights",
        "mechanisms": "ndt_ray.analysis.mechanisms.before_after:mechanisms",
        "escape": "ndt_ray.analysis.mechanisms.escape:escape",
        "composition": "ndt_ray.analysis.mechanisms.composition:composition",
        "dependencies": "ndt_ray.analysis.mechanisms.dependencies:dependencies",
        "features": "ndt_ray.analysis.mechanisms.seeing.analyses:features",
        "feature_groups": "ndt_ray.analysis.mechanisms.seeing.groups:feature_groups",
        "feature_changes": "ndt_ray.analysis.mechanisms.seeing.analyses:feature_changes",
        "convergence": "ndt_ray.analysis.convergence:convergence",
        "convergence_tests": "ndt_ray.analysis.convergence_tests:convergence_tests",
        "concordance": "ndt_ray.analysis.inference.concordance:concordance",
        "layer_models": "ndt_ray.analysis.inference.layer_models:layer_models",
        "compare": "ndt_ray.analysis.inference.compare:compare",
        "architecture_claims": "ndt_ray.analysis.inference.architecture_claims:architecture_claims",
        "variance_sources": "ndt_ray.analysis.inference.variance_sources:variance_sources",
        "multiverse": "ndt_ray.analysis.inference.multiverse:multiverse",
    },
}


def kinds() -> tuple[str, ...]:
    """The kinds of things that have names."""
    return get_args(Kind)


def names(kind: Kind) -> list[str]:
    """Registered names of one kind, sorted."""
    return sorted(_TABLE[kind])


def register(kind: Kind, name: str, target: str) -> None:
    """Add a name; a name that is taken by another target is refused with SpecError."""
    if _TABLE[kind].get(name, target) != target:
        raise SpecError(f"{kind} '{name}' is already registered as {_TABLE[kind][name]}, not {target}")
    _TABLE[kind][name] = target


def resolve(kind: Kind, name: str) -> Callable[..., Any]:
    """The function behind a name; SpecError with the closest name where there is none."""
    target = _TABLE[kind].get(name)
    if target is None:
        raise SpecError(f"unknown {kind} '{name}'{did_you_mean(name, _TABLE[kind])}")
    module, _, attribute = target.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return found


def definitions(kind: Kind, name: str) -> list[ast.FunctionDef | ast.ClassDef]:
    """Where a name is defined, as syntax: nothing is imported. Empty where that cannot be found."""
    module, _, attribute = _TABLE[kind][name].partition(":")
    nodes = [n for n in _definitions(module) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    return [node for node in nodes if node.name == attribute]


def summary(kind: Kind, name: str) -> str:
    """First line of the docstring, read from the source: nothing is imported."""
    for node in definitions(kind, name):
        return (ast.get_docstring(node) or "").partition("\n")[0]
    return (inspect.getdoc(resolve(kind, name)) or "").partition("\n")[0]


@functools.cache
def _definitions(module: str) -> list[ast.stmt]:
    """Top-level statements of a module that is not imported for it."""
    package, _, leaf = module.rpartition(".")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return []
    source = Path(next(iter(spec.submodule_search_locations))) / f"{leaf}.py"
    return ast.parse(source.read_text()).body if source.is_file() else []
