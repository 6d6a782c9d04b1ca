"""When and where a neural network's representations change during training, and whether the change is real.

    import ndt_ray as ndt

    store = ndt.open("store")
    store.sql("SELECT model, avg(final_accuracy) FROM trials JOIN outcomes USING (trial_id) GROUP BY 1")
    store.measurements(model="mlp_narrow", layer="network.2")

Names are imported when they are first used, so that `import ndt_ray` costs nothing.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

# MKL reads this at its first call, and does not promise without it that a product is the same bits wherever its
# operands lie in memory: on an AMD EPYC, 27 of 80 layouts tried were not. It costs nothing that could be measured.
os.environ.setdefault("MKL_CBWR", "AUTO")

if TYPE_CHECKING:
    from ndt_ray.analysis.mechanisms.analyzer import ActivationAnalyzer as ActivationAnalyzer
    from ndt_ray.analysis.mechanisms.seeing.visualizer import FeatureVisualizer as FeatureVisualizer
    from ndt_ray.analysis.mechanisms.tools import MeasurementTools as MeasurementTools
    from ndt_ray.analysis.phase2 import Phase2Infrastructure as Phase2Infrastructure
    from ndt_ray.analysis.running.stored import analyze as analyze
    from ndt_ray.errors import NdtError as NdtError
    from ndt_ray.measurement.activation_capture import ActivationCapture as ActivationCapture
    from ndt_ray.measurement.capture import Capture as Capture
    from ndt_ray.run import run_sweep as run_sweep
    from ndt_ray.spec.sweepfile import load_sweep as load_sweep
    from ndt_ray.store.reader import open_store as open
    from ndt_ray.tracking.run_jumps import JumpDetector as JumpDetector
    from ndt_ray.tracking.tracker import HighFrequencyTracker as HighFrequencyTracker

_WHERE = {
    "ActivationAnalyzer": "ndt_ray.analysis.mechanisms.analyzer:ActivationAnalyzer",
    "ActivationCapture": "ndt_ray.measurement.activation_capture:ActivationCapture",
    "Capture": "ndt_ray.measurement.capture:Capture",
    "FeatureVisualizer": "ndt_ray.analysis.mechanisms.seeing.visualizer:FeatureVisualizer",
    "HighFrequencyTracker": "ndt_ray.tracking.tracker:HighFrequencyTracker",
    "JumpDetector": "ndt_ray.tracking.run_jumps:JumpDetector",
    "MeasurementTools": "ndt_ray.analysis.mechanisms.tools:MeasurementTools",
    "NdtError": "ndt_ray.errors:NdtError",
    "Phase2Infrastructure": "ndt_ray.analysis.phase2:Phase2Infrastructure",
    "analyze": "ndt_ray.analysis.running.stored:analyze",
    "load_sweep": "ndt_ray.spec.sweepfile:load_sweep",
    "open": "ndt_ray.store.reader:open_store",
    "run_sweep": "ndt_ray.run:run_sweep",
}

__all__ = [
    "ActivationAnalyzer",
    "ActivationCapture",
    "Capture",
    "FeatureVisualizer",
    "HighFrequencyTracker",
    "JumpDetector",
    "MeasurementTools",
    "NdtError",
    "Phase2Infrastructure",
    "analyze",
    "load_sweep",
    "open",
    "run_sweep",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'ndt_ray' has no attribute '{name}'")
    module, _, attribute = _WHERE[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
