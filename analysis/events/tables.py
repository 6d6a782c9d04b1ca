"""Tables of calibrated events. `series_tests`, `event_candidates`, `transients`: per trial; the rest: per sweep."""

from ndt_ray.store.schema import Column, Table

SERIES = (
    Column("trial_id", "string", "content hash of the trial"),
    Column("layer", "string", "module path; * for the mean over layers"),
    Column("layer_index", "int16", "place in the order of the forward pass; -1 for the mean over layers"),
    Column("view", "string", "how activations became a matrix; kernel for measures of representation velocity"),
    Column("measure", "string", "column of the table that was read"),
    Column("detector", "string", "name of the detector"),
    Column("null", "string", "what the surrogates are: ar_sieve, iaaft, block, siblings"),
)
"""What names one tested series; the first columns of every table here but `event_families`."""
KEY = ("trial_id", "measure", "layer_index", "view", "detector", "null")

WHAT = (
    Column("step_before", "int32", "measurement before the change: its onset", "steps"),
    Column("step_after", "int32", "measurement after the change", "steps"),
    Column("step_location", "float64", "maximum-likelihood location of the change's middle", "steps"),
    Column("width", "float64", "10-90 % rise; the measurement distance for a step", "steps"),
    Column("kind", "string", "step, sigmoid or kink; bump where the measure is a rate"),
    Column("scale", "int32", "half window of the contrast that was largest", "measurements"),
    Column("direction", "string", "increase or decrease"),
    Column(
        "size",
        "float64",
        "fitted change beyond the trend, on the detect probe, in units of the measure; of a kink, in 15 % of the run",
    ),
    Column("relative_size", "float64", "size / level before; null where that is 0"),
    Column("snr", "float64", "size in paired standard errors of a change (delete-block), on the probe of `snr_from`"),
    Column(
        "snr_from",
        "string",
        "detect (participation ratio: its bracket) or confirm (any measure: bracketing checkpoints); without snr why:"
        " no_checkpoints bracket it, no_blocks were kept of the measure, no_spread is between them",
    ),
    Column("statistic", "float64", "contrast in units of its null spread"),
    Column("p_event", "float64", "max-T: share of null series whose largest statistic is at least this"),
    Column("phase", "float64", "onset / planned steps"),
    Column("phase_bin", "string", "early [0, .1), mid [.1, .5), late [.5, 1]"),
    Column("near_lr_change", "bool", "the learning rate changed by over 1 % within the event's window"),
    Column(
        "near_epoch_boundary",
        "bool",
        "an epoch ended within the event's window; null where one ends between any two measurements",
    ),
    Column("sharpness_before", "float64", "last top Hessian eigenvalue before the onset; null without one"),
    Column("confirm_size", "float64", "the change on the confirm probe between bracketing checkpoints; null: none"),
    Column("confirm_relative", "float64", "the same / level before"),
    Column("confirm_lo", "float64", "95 % interval of confirm_size, delete-block jackknife over stimuli"),
    Column("confirm_hi", "float64", "upper end of it"),
    Column("confirm_relative_lo", "float64", "the same of confirm_relative"),
    Column("confirm_relative_hi", "float64", "upper end of it"),
)
"""What an event is, whoever judges it."""

SERIES_TESTS = Table(
    "series_tests",
    "One max-statistic test per series: is there any event beyond a smooth trend and its own noise?",
    (
        *SERIES,
        Column("grid_start", "int32", "first measurement of the grid used", "steps"),
        Column("grid_every", "int32", "distance of the measurements used; 0: even in log step", "steps"),
        Column("n", "int32", "measurements judged"),
        Column("n_missing", "int32", "grid points left out"),
        Column("phi", "float64", "lag-1 dependence of the noise, from differences"),
        Column("noise_sd", "float64", "marginal standard deviation of the noise, in units of the measure"),
        Column(
            "kind", "string", "calibrated, constant, short, unit_root, wandering, collapsing_variance or few_siblings"
        ),
        Column("calibrated", "bool", "whether the detector holds its level on such series; without: no p and no q"),
        Column("statistic", "float64", "largest contrast, in units of its null spread"),
        Column("p", "float64", "of the largest statistic under the null; null where not calibrated"),
        Column("n_surrogates", "int32", "surrogates drawn for it (sequential: more where it matters)"),
        Column("p_attainable", "float64", "smallest p that any series could have had, whatever it took to tell"),
        Column("tail", "string", "counted, or pareto where the tail of the null was fitted"),
        Column("candidates", "int32", "local maxima above the series' 5 % critical value", "events"),
        Column("null_candidates", "float64", "mean number of the same on its surrogates", "events"),
    ),
    KEY,
)

EVENT_CANDIDATES = Table(
    "event_candidates",
    "Local maxima above the series' 5 % critical value, each located; not yet judged over a family.",
    (*SERIES, *WHAT),
    (*KEY, "step_before"),
)

TRANSIENTS = Table(
    "transients",
    "The initial transient of a series: exponential relaxation from the initialisation, reported, never an event.",
    (
        *SERIES[:5],
        Column("amplitude", "float64", "value at step 0 minus what it relaxes to, in units of the measure"),
        Column("relative_amplitude", "float64", "the same / what it relaxes to"),
        Column("half_life", "float64", "steps until half of it is gone", "steps"),
        Column("ends", "int32", "step at which under 5 % of it is left: where events begin to be sought", "steps"),
        Column("r2", "float64", "of the fit over the transient's part"),
        Column("flag", "string", "why there is none: constant, short, none; null when fitted"),
    ),
    ("trial_id", "measure", "layer_index", "view"),
)

EVENTS = Table(
    "events",
    "Candidates judged over a declared family of series; `significant` ones are the sweep's events.",
    (
        *SERIES,
        Column("family", "string", "name of the family of series over which errors are controlled"),
        *WHAT,
        Column("p_series", "float64", "p of its series"),
        Column("q", "float64", "Benjamini-Hochberg q of its series over the family"),
        Column("q_attainable", "float64", "smallest q the series could have had, alone in its family"),
        Column("level", "float64", "Benjamini-Bogomolov level for events inside selected series"),
        Column("significant", "bool", "series selected at alpha and p_event <= level"),
    ),
    ("family", *KEY, "step_before"),
)

EVENT_FAMILIES = Table(
    "event_families",
    "One row per family: how many series and events, and how many the same rule gives where there is nothing.",
    (
        Column("family", "string", "name of the family"),
        Column("primary", "bool", "the sweep's declared primary family; the others are its multiverse"),
        Column("measure", "string", "column of the table that was read"),
        Column("view", "string", "view of the series; * for each layer's own"),
        Column("detector", "string", "name of the detector"),
        Column("null", "string", "what the surrogates are"),
        Column("alpha", "float64", "false discovery rate"),
        Column("n_series", "int32", "series of the family"),
        Column("n_calibrated", "int32", "of these, those that can be tested"),
        Column("n_selected", "int32", "series with q <= alpha"),
        Column("n_candidates", "int32", "candidates of all its series", "events"),
        Column("null_candidates", "float64", "expected number of these under the null", "events"),
        Column("n_events", "int32", "significant events", "events"),
        Column("null_events", "float64", "number expected among them under the null: alpha x events", "events"),
        Column("q_attainable", "float64", "smallest q a single series could have had"),
    ),
    ("family", "detector", "null"),
)
