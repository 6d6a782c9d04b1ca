"""Tables that the analyses write: columns with type, unit and meaning, as in ndt_ray.store.schema."""

from ndt_ray.store.schema import Column, Table

_SERIES = (
    Column("trial_id", "string", "content hash of the trial"),
    Column("layer", "string", "module path; * for the mean over layers"),
    Column("layer_index", "int16", "place in the order of the forward pass; -1 for the mean over layers"),
    Column("view", "string", "how activations became a matrix; * for the mean over layers"),
    Column("measure", "string", "column of the table that was read"),
    Column("mode", "string", "default: correct units; original: as published, mistakes included"),
    Column("detector", "string", "name of the rule"),
    Column("parameters", "string", "of the rule, as JSON"),
    Column("grid_every", "int32", "distance of the measurements used", "steps"),
)
_KEY = ("trial_id", "mode", "measure", "detector", "layer_index", "view")


def _null(family: str, name: str) -> tuple[Column, ...]:
    doc = f"under {name} of this length and spread"
    return (
        Column(f"null_{family}_mean", "float64", f"expected count {doc}; null for a constant series", "events"),
        Column(f"null_{family}_sd", "float64", f"standard deviation of the count {doc}", "events"),
        Column(f"null_{family}_lo", "float64", f"2.5 % quantile of the count {doc}", "events"),
        Column(f"null_{family}_hi", "float64", f"97.5 % quantile of the count {doc}", "events"),
        Column(f"p_{family}", "float64", f"(1 + surrogates with as many or more) / (1 + surrogates) {doc}"),
    )


JUMPS = Table(
    "jumps",
    "Changes flagged by an uncalibrated rule; what the rule flags on noise stands in `jump_counts`.",
    (
        *_SERIES,
        Column(
            "index", "int32", "place on the grid, 0 for its first measurement (what the founding study called step)"
        ),
        Column("step_before", "int32", "measurement before the change: its onset", "steps"),
        Column("step_after", "int32", "measurement after the change", "steps"),
        Column("magnitude", "float64", "size of the change, in units of the measure"),
        Column("relative_magnitude", "float64", "the same / |value at the index|; null where that is 0"),
        Column("z", "float64", "signed score of the rule"),
        Column("speed", "float64", "|change over two measurements either side| a step; original: a measurement (/ 5)"),
        Column("window_change", "float64", "value one measurement after - one before the index (the founding plan)"),
        Column("window_speed", "float64", "the same a step"),
        Column("direction", "string", "increase or decrease"),
        Column("phase", "float64", "onset / planned steps; original: index / planned steps, as published"),
        Column(
            "phase_bin", "string", "early [0, .1), mid [.1, .5), late [.5, 1]; original drops phase 0, as published"
        ),
        Column("counted", "bool", "false for the change out of step 0: shown, not counted"),
    ),
    (*_KEY, "index"),
)

JUMP_COUNTS = Table(
    "jump_counts",
    "How many jumps a rule counts in one series, beside what it counts on matched noise.",
    (
        *_SERIES,
        Column("n", "int32", "measurements judged"),
        Column("n_missing", "int32", "grid points left out: missing, null, or cut off by such"),
        Column("observed", "int32", "counted events", "events"),
        Column("merged", "int32", "the same with neighbouring indices taken as one", "events"),
        Column("shown", "int32", "flagged but not counted", "events"),
        Column("phi", "float64", "lag-1 dependence of the detrended series, from differences"),
        *_null("white", "white noise"),
        *_null("ar1", "AR(1) noise"),
        Column("n_surrogates", "int32", "surrogate series of each null"),
        Column("flag", "string", "why there is no null: constant, or short (under 4 points); null when all is well"),
    ),
    _KEY,
)

GROWTH = Table(
    "growth",
    "Logistic growth D_max / (1 + exp(-alpha (t - t0))) fitted to the mean dimensionality over layers.",
    (
        Column("trial_id", "string", "content hash of the trial"),
        Column("measure", "string", "column of the table that was read, meaned over layers"),
        Column("mode", "string", "default: true steps; original: the published series and its clock"),
        Column("n", "int32", "measurements fitted"),
        Column("r2", "float64", "1 - residual / total sum of squares; negative: worse than a constant"),
        Column("alpha", "float64", "growth rate", "1/step"),
        Column("alpha_run", "float64", "growth rate on t = step / last step, as fitted"),
        Column("d_max", "float64", "fitted ceiling", "dimensions"),
        Column("t0", "float64", "fitted midpoint as a fraction of the run"),
        Column("t0_step", "float64", "the same in steps", "steps"),
        Column("at_bound", "string", "parameters that ended at a bound of the fit, comma-separated; empty: none"),
        Column("verdict", "string", "excellent (R² > .8), moderate (> .5) or poor"),
        Column("d_first", "float64", "mean dimensionality at the first measurement", "dimensions"),
        Column("d_last", "float64", "mean dimensionality at the last measurement", "dimensions"),
        Column(
            "flag", "string", "why there is no fit: constant, short, no_level, not_converged; null when all is well"
        ),
    ),
    ("trial_id", "mode", "measure"),
)
