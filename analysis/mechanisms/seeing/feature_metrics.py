"""What a layer's units answer to as numbers of the layer, a row a metric: what `mechanisms` compares at events."""

from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.mechanisms.tables import WHOLE, Metrics

COMMON = ("edge", "stripes", "grid", "corner", "curve", "blob", "dots", "noise")
"""Words that have a share of their own, 0 where no unit has it; the others are told too rarely."""
BY_SEED, SHARE = "feature_type_by_seed", "feature_share_"


def add_metrics(out: Metrics, rows: pd.DataFrame) -> None:
    """Of one layer at one checkpoint; `rows`: its rows of `features`."""
    layer, index, n = str(rows["layer"].iloc[0]), int(rows["layer_index"].iloc[0]), len(rows)

    def add(metric: str, value: float, **more: Any) -> None:
        out.add(layer, index, metric, value, **{"n": n, "part": WHOLE, **more})

    words = rows["feature_type"]
    add("feature_types", float(words.nunique()))
    for word in COMMON:
        add(SHARE + word, float((words == word).mean()))
    made, found = (rows[name].to_numpy(np.float64) for name in ("activation", "best_found"))
    for metric, value in (("feature_log_response", _logs(made)), ("feature_log_margin", _logs(made) - _logs(found))):
        known = value[np.isfinite(value)]
        mean = float(known.mean()) if len(known) else np.nan
        add(metric, mean, n=len(known), flag=None if len(known) else "not_positive")
    beats, from_example = (rows[name].to_numpy(bool) for name in ("beats_data", "from_example"))
    add("feature_beats_data", float(beats.mean()))
    add("feature_beats_data_from_noise", float((beats & ~from_example).mean()))
    twice = rows[rows["again_type"].notna()]
    differs = float((twice["again_type"] != twice["feature_type"]).mean()) if len(twice) else np.nan
    add(BY_SEED, differs, n=len(twice), flag=None if len(twice) else "not_repeated")


def _logs(values: "np.ndarray[Any, np.dtype[np.float64]]") -> "np.ndarray[Any, np.dtype[np.float64]]":
    return np.log(np.where(values > 0, values, np.nan))
