"""Tables of the taxonomy of events."""

from ndt_ray.store.schema import Column, Table

_MODE = Column("mode", "string", "default: significant events; original: the published jumps and features")
_TYPE = Column("type", "int32", "cluster, numbered by median phase from 1; original: published cluster id + 1")

TAXONOMY_FITS = Table(
    "taxonomy_fits",
    "How well k types describe the events, and how well they describe events found in noise.",
    (
        _MODE,
        Column("source", "string", "events, or null: the largest contrasts of AR(1) noise on the same series"),
        Column("k", "int32", "number of clusters"),
        Column("n", "int32", "events clustered"),
        Column("n_left_out", "int32", "events without a relative size"),
        Column("features", "string", "what was standardised and clustered, comma-separated"),
        Column("inertia", "float64", "sum of squared distances to the cluster centres"),
        Column("silhouette", "float64", "mean silhouette; null for one cluster"),
        Column("gap", "float64", "gap statistic against uniform points in the box of the principal axes"),
        Column("gap_se", "float64", "its standard error"),
        Column("bic", "float64", "of a diagonal Gaussian mixture with k components, for comparison"),
        Column("by_silhouette", "bool", "largest silhouette"),
        Column("by_gap", "bool", "smallest k that the gap statistic accepts"),
        Column("chosen", "bool", "used: 1 where the gap sees no clusters, else the silhouette's k; original: 5"),
        Column("p_silhouette", "float64", "share of null draws clustered as well at this k; only for the chosen k"),
    ),
    ("mode", "source", "k"),
)

TAXONOMY_TYPES = Table(
    "taxonomy_types",
    "The types of events: what they are like, and whether they come back when runs are resampled.",
    (
        _MODE,
        Column("source", "string", "events, or null"),
        _TYPE,
        Column("n", "int32", "events of the type"),
        Column("n_trials", "int32", "trials that have one"),
        Column("jaccard", "float64", "mean over resamples of runs of its best overlap; under .6 it is no cluster"),
        Column("stable", "bool", "jaccard of at least .6"),
        Column(
            "label",
            "string",
            "name by rule from the medians below; null where not stable, or where noise has such clusters too",
        ),
        Column("phase", "float64", "median onset / planned steps; original: as published"),
        Column("size", "float64", "median |relative size|; original: median magnitude as published"),
        Column("depth", "float64", "median layer depth, 0 first to 1 last"),
        Column("width", "float64", "median width / planned steps; null in original mode"),
        Column("increasing", "float64", "share of events that increase"),
    ),
    ("mode", "source", "type"),
)

EVENT_TYPES = Table(
    "event_types",
    "The type of each event.",
    (
        _MODE,
        Column("trial_id", "string", "content hash of the trial"),
        Column("layer", "string", "module path"),
        Column("layer_index", "int16", "place in the order of the forward pass"),
        Column("view", "string", "how activations became a matrix"),
        Column("measure", "string", "column of the table that was read"),
        Column("step_before", "int32", "measurement before the change: its onset", "steps"),
        _TYPE,
        Column("label", "string", "name of the type; null where it has none"),
        Column("distance", "float64", "to the centre of its type, in standard deviations of the features"),
        Column("representative", "int32", "1, 2, 3: nearest to the centre, one a trial; null for the others"),
    ),
    ("mode", "trial_id", "measure", "layer_index", "view", "step_before"),
)

TAXONOMY_ASSOCIATION = Table(
    "taxonomy_association",
    "Does the type of an event go with the architecture, or with the data set?",
    (
        _MODE,
        Column("factor", "string", "model, family (mlp, cnn, transformer, other) or data"),
        Column("n_events", "int32", "events compared"),
        Column("n_trials", "int32", "trials that have them: what is exchanged"),
        Column("n_groups", "int32", "levels of the factor"),
        Column("cramers_v", "float64", "0 none to 1 complete"),
        Column("p", "float64", "trials exchanged within seed and the other factor"),
        Column("p_attainable", "float64", "smallest p any outcome could have had"),
    ),
    ("mode", "factor"),
)
