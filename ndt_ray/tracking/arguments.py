"""What a tracker may be given."""

from typing import Any, get_args

import numpy as np
from torch import nn

from ndt_ray.errors import SpecError
from ndt_ray.tracking.recording import Existing
from ndt_ray.tracking.watch import Passes


def check(
    model: Any, sampling_frequency: Any, spectra: Any, passes: Any, existing: Any, probe: Any, labels: Any
) -> None:
    """SpecError for the first argument of a tracker that is wrong."""
    if not isinstance(model, nn.Module):
        raise SpecError(f"model must be an nn.Module, but got {type(model).__name__}")
    whole = isinstance(sampling_frequency, int | np.integer) and not isinstance(sampling_frequency, bool)
    if not whole or sampling_frequency < 1:
        raise SpecError(f"sampling_frequency must be a whole number from 1, but got {sampling_frequency!r}")
    if spectra not in ("full", "none") and not (type(spectra) is int and spectra > 0):
        raise SpecError(f"spectra must be 'full', 'none' or a number of eigenvalues, but got {spectra!r}")
    for name, value, kind in (("passes", passes, Passes), ("existing", existing, Existing)):
        if value not in get_args(kind):
            raise SpecError(f"{name} must be one of {', '.join(get_args(kind))}, but got {value!r}")
    if labels is not None and probe is None:
        raise SpecError("probe_labels go with a probe")


def refuse_fullgraph(model: nn.Module) -> None:
    """SpecError for a compiled model that nothing can be hooked into."""
    context = getattr(model, "dynamo_ctx", None)
    if getattr(context, "fullgraph", False) or getattr(context, "nopython", False):
        raise SpecError(
            "a model compiled with fullgraph=True leaves no room for hooks: give the tracker a probe, which it shows "
            "to the model uncompiled"
        )
