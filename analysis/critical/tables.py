"""Tables of critical periods, cross-layer coordination and loss coupling."""

from ndt_ray.store.schema import Column, Table

_SERIES = (
    Column("trial_id", "string", "content hash of the trial"),
    Column("layer", "string", "module path"),
    Column("layer_index", "int16", "place in the order of the forward pass"),
    Column("view", "string", "how activations became a matrix"),
    Column("measure", "string", "column of the table that was read"),
)
_MODE = Column("mode", "string", "default, or original: as published")

CRITICAL_SERIES = Table(
    "critical_series",
    "How fast one layer's dimensionality moves, and whether it ever moves faster than its own slow-down allows.",
    (
        *_SERIES,
        _MODE,
        Column("n", "int32", "changes between measurements judged"),
        Column("threshold", "float64", "90th percentile of |velocity|, in units of the measure a measurement"),
        Column("n_critical", "int32", "changes above it: a tenth of all by construction, less where many are equal"),
        Column("n_runs", "int32", "the same with neighbours taken as one"),
        Column("n_transitions", "int32", "accelerations above their own 90th percentile: a tenth by construction"),
        Column("half_path_phase", "float64", "phase by which half of all movement had happened"),
        Column("velocity_ratio", "float64", "mean |velocity| in the first tenth of the run / in the rest"),
        Column("statistic", "float64", "largest window mean of log |velocity| above its smooth course, in null SDs"),
        Column("p", "float64", "share of AR-sieve series with the same slow-down that reach it"),
        Column("q", "float64", "Benjamini-Hochberg over the layers of the trial and measure"),
        Column("q_attainable", "float64", "smallest q it could have had, alone among them"),
        Column("n_periods", "int32", "calibrated critical periods: windows above the 5 % critical value"),
        Column("null_periods", "float64", "mean number of the same on the surrogates"),
        Column("flag", "string", "constant or short: nothing was tested; null otherwise"),
    ),
    ("trial_id", "mode", "measure", "layer_index", "view"),
)

CRITICAL_CHANGES = Table(
    "critical_changes",
    "The founding plan's critical changes and transitions, one by one: a tenth of every series by construction.",
    (
        *_SERIES,
        _MODE,
        Column("kind", "string", "velocity: a critical change; acceleration: a transition"),
        Column("step_first", "int32", "first measurement that it is a difference of", "steps"),
        Column(
            "step_last", "int32", "last one: the next for a velocity, the one after it for an acceleration", "steps"
        ),
        Column("value", "float64", "first or second difference between measurements, in units of the measure"),
    ),
    ("trial_id", "mode", "measure", "layer_index", "view", "kind", "step_first"),
)

CRITICAL_PERIODS = Table(
    "critical_periods",
    "Stretches in which a layer moves faster than its slow-down and its noise explain.",
    (
        *_SERIES,
        Column("step_first", "int32", "measurement at which the stretch begins", "steps"),
        Column("step_last", "int32", "measurement at which it ends", "steps"),
        Column("phase", "float64", "step_first / planned steps"),
        Column("scale", "int32", "length of the window that was most extreme", "measurements"),
        Column("ratio", "float64", "geometric mean speed in the stretch / that of as many changes before and after it"),
        Column("statistic", "float64", "window mean of log |velocity| above its smooth course, in null SDs"),
        Column("p", "float64", "against the largest of every surrogate (max-T)"),
        Column("loss_change", "float64", "probe loss after - before the stretch; null without one", "nats"),
    ),
    ("trial_id", "measure", "layer_index", "view", "step_first"),
)

COORDINATION = Table(
    "coordination",
    "Do the layers of a trial move together, and do they move when the loss does?",
    (
        Column("trial_id", "string", "content hash of the trial"),
        Column("measure", "string", "column of the table that was read"),
        _MODE,
        Column("n_layers", "int32", "layers compared"),
        Column("n", "int32", "changes compared"),
        Column("critical", "int32", "critical changes of all layers (see critical_series)"),
        Column("transitions", "int32", "critical accelerations of all layers"),
        Column("share_mean", "float64", "mean share of layers that are critical at once: a tenth by construction"),
        Column("share_max", "float64", "largest share of layers that were critical at once"),
        Column("coordinated", "float64", "share of measurements with at least half of the layers critical"),
        Column("coordinated_shifted", "float64", "the same with every layer shifted at random (keeps no slow-down)"),
        Column("correlation", "float64", "mean over pairs of layers of the correlation of prewhitened activity"),
        Column("p", "float64", "upper tail, each layer's prewhitened activity with random phases; null: original mode"),
        Column("loss_drops", "float64", "share of critical changes at which the loss fell, mean over layers"),
        Column("loss_drops_base", "float64", "share of all changes at which the loss fell"),
        Column("loss_p", "float64", "smallest p over layers x number of layers (see loss_coupling)"),
        Column("strong", "bool", "the published verdict: share_max > .3 and loss_drops > .3, nearly always true"),
    ),
    ("trial_id", "mode", "measure"),
)

COORDINATION_PAIRS = Table(
    "coordination_pairs",
    "Pairs of layers: together, or one after the other?",
    (
        Column("trial_id", "string", "content hash of the trial"),
        Column("measure", "string", "column of the table that was read"),
        Column("layer_a", "string", "module path of the earlier layer"),
        Column("layer_b", "string", "module path of the later layer"),
        Column("index_a", "int16", "place of the earlier layer in the order of the forward pass"),
        Column("index_b", "int16", "place of the later layer"),
        Column("r0", "float64", "correlation of prewhitened activity at the same measurement"),
        Column("lag", "int32", "measurements by which the earlier layer leads where the correlation is largest"),
        Column("r", "float64", "correlation at that lag"),
        Column("p", "float64", "of the largest |correlation| over all lags, activity with random phases"),
        Column("q", "float64", "Benjamini-Hochberg over the pairs of the trial and measure"),
        Column("q_attainable", "float64", "smallest q it could have had, alone among them"),
    ),
    ("trial_id", "measure", "index_a", "index_b"),
)

LOSS_COUPLING = Table(
    "loss_coupling",
    "Does a layer move when the loss on the fixed probe does?",
    (
        *_SERIES,
        Column("n", "int32", "changes compared"),
        Column("r0", "float64", "correlation of prewhitened activities of layer and loss at the same measurement"),
        Column("lag", "int32", "measurements by which the layer leads where the correlation is largest"),
        Column("r", "float64", "correlation at that lag"),
        Column("p", "float64", "of the largest |correlation| over all lags, activity with random phases"),
        Column("q", "float64", "Benjamini-Hochberg over the layers of the trial and measure"),
        Column("q_attainable", "float64", "smallest q it could have had, alone among them"),
    ),
    ("trial_id", "measure", "layer_index", "view"),
)

COORDINATION_CELLS = Table(
    "coordination_cells",
    "Over the seeds of a cell: do a trial's own layers, and its own loss, move together more than those of others?",
    (
        Column("cell", "string", "everything but seeds"),
        Column("model", "string", "architecture"),
        Column("data", "string", "data set"),
        Column("measure", "string", "column of the table that was read"),
        Column("what", "string", "layers (pairs of layers) or loss (layer and probe loss)"),
        Column("n_trials", "int32", "seeds compared"),
        Column("n_layers", "int32", "layers compared"),
        Column("n", "int32", "changes compared"),
        Column("statistic", "float64", "mean correlation of activities within a trial"),
        Column("across", "float64", "the same with partners from other seeds: what the cell's common course explains"),
        Column("p", "float64", "upper tail, partners exchanged between seeds (keeps the common course exactly)"),
        Column("p_attainable", "float64", "smallest p any outcome could have had"),
        Column("q", "float64", "Benjamini-Hochberg over the cells of a measure and question"),
        Column("q_attainable", "float64", "smallest q it could have had, alone among them"),
        Column(
            "flag",
            "string",
            "one_seed, one_layer, no_layers (constant or short), no_loss, or untrained: not tested; else null",
        ),
    ),
    ("measure", "what", "cell"),
)

CRITICAL_RANKING = Table(
    "critical_ranking",
    "The trials with the best defined critical periods: most layers with one at q < .05, then smallest p.",
    (
        Column("measure", "string", "column of the table that was read"),
        Column("rank", "int32", "1 is the best defined"),
        Column("trial_id", "string", "content hash of the trial"),
        Column("cell", "string", "everything but seeds"),
        Column("n_layers", "int32", "layers tested"),
        Column("n_significant", "int32", "of these, layers that move faster than their slow-down allows (q < .05)"),
        Column("smallest_p", "float64", "of its layers"),
        Column("n_tried", "int32", "trials it was picked from"),
    ),
    ("measure", "rank"),
)
