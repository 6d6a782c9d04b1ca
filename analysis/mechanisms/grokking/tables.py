"""Tables of the analyses of modular networks."""

from ndt_ray.store.schema import Column, Table

_TRIAL = Column("trial_id", "string", "content hash of the trial")
_STEP = Column("step", "int32", "optimizer updates done; 0 is the initialisation", "steps")

MEASURES = Table(
    "grokking_measures",
    "Progress measures of one checkpoint of a modular network, over all pairs.",
    (
        _TRIAL,
        _STEP,
        Column("p", "int32", "modulus"),
        Column("train_loss", "float64", "mean over the pairs trained on", "nats"),
        Column("test_loss", "float64", "mean over the other pairs", "nats"),
        Column("train_accuracy", "float64", ""),
        Column("test_accuracy", "float64", ""),
        Column("margin", "float64", "mean over all pairs of the correct logit - the next best"),
        Column("restricted_loss", "float64", "all pairs, with only the final checkpoint's key frequencies", "nats"),
        Column("excluded_loss", "float64", "pairs trained on, without these frequencies", "nats"),
        Column("explained", "float64", "share of the logits' energy in cos and sin of w(a + b - c), these frequencies"),
        Column("explained_any", "float64", "the same of all frequencies: any function of a + b - c"),
        Column("squared_weights", "float64", "sum of squares of all weights"),
        Column("gini_embedding", "float64", "Gini coefficient of W_E's energy over frequencies 1..p//2"),
        Column("gini_logits", "float64", "the same of the logits' energy in a + b - c"),
        Column("specialised_neurons", "float64", "share of neurons with 85 % or more of their energy in one frequency"),
        Column("highly_specialised_neurons", "float64", "the same at 90 %"),
        Column("dead_neurons", "float64", "share of neurons that are the same for all pairs"),
        Column("phase_agreement", "float64", "|mean exp i(output - 2 input phase)| of specialised neurons; 1: clock"),
        Column("head_specialisation", "float64", "mean over heads of the largest share of one frequency"),
        Column("key_frequencies", "list:int32", "with over 2 % of this checkpoint's logit energy"),
        Column("learned_frequencies", "list:int32", "held by 10 % of the neurons at a share of 70 %"),
        Column("dominant_embedding_rows", "list:int32", "rows of the Fourier basis with a norm over 1 in W_E"),
        Column(
            "flag", "string", "why columns are null: no_block (another architecture), no_key_frequencies; else null"
        ),
    ),
    ("trial_id", "step"),
)

SPECTRA = Table(
    "fourier_spectra",
    "Share of energy by modular frequency, of the parts of one checkpoint of a modular network.",
    (
        _TRIAL,
        _STEP,
        Column(
            "part",
            "string",
            "embedding, logits, neurons (mean), unembedding, neuron_logit, attention:HEAD, query_key:HEAD",
        ),
        Column("frequency", "int32", "1..p//2", "cycles in p"),
        Column("share", "float64", "of the part's energy without its constant; of logits, in w(a + b - c)"),
    ),
    ("trial_id", "step", "part", "frequency"),
)

SCALES = Table(
    "scale_metrics",
    "Structure of one unit's map over all pairs at several scales: neurons, and heads' attention from = to a and to b.",
    (
        _TRIAL,
        _STEP,
        Column("kind", "string", "neuron, head_to_a or head_to_b"),
        Column("unit", "int32", "index of the neuron or head"),
        Column("fft_no_dc", "float32", "share of the map's power at low frequencies, its constant left out"),
        Column("fft_dc", "float32", "the same with it: an offset pushes it to 1"),
        Column("variance_preservation", "float32", "share of variance left by a reduction to 14 x 14 and back"),
        Column("gradient", "float32", "mean absolute difference of neighbours, in units of the map"),
        Column("relative_gradient", "float32", "the same / (max - min)"),
        Column("coarseness", "float32", "share of energy in modular frequencies 1 to 3"),
        Column("frequency", "int32", "modular frequency with most energy; 0 for a flat map"),
        Column("fraction", "float32", "its share of the map's energy; null for a flat map"),
        Column("structure", "string", "low_frequency, mixed, high_frequency or flat"),
        Column("label", "string", "the same in words; of a network's heads, the one with most edges is named"),
        Column("blobs", "int32", "regions above half range at 28 x 28, on the torus, of 4 cells or more"),
        Column("blob_area", "float32", "share of the map that they cover"),
        Column("largest_blob", "float32", "share that the largest covers"),
        Column(
            "ablation_zero", "float64", "loss on test pairs gained by a head's output set to 0; null of neurons", "nats"
        ),
        Column("ablation_mean", "float64", "the same, set to its mean", "nats"),
    ),
    ("trial_id", "kind", "unit", "step"),
)

TIMELINE = Table(
    "specialisation_timeline",
    "When each neuron and head came to the frequency and scale that it ends with.",
    (
        _TRIAL,
        Column("kind", "string", "neuron, head_to_a or head_to_b"),
        Column("unit", "int32", "index of the neuron or head"),
        Column("frequency", "int32", "dominant frequency at the last checkpoint; 0: flat map"),
        Column("fraction", "float64", "its share there"),
        Column("first_frequency", "int32", "dominant frequency at the first checkpoint"),
        Column("switches", "int32", "changes between committed states (share of 3 / number of frequencies or more)"),
        Column(
            "commitment_step", "int32", "first checkpoint from which the last frequency is held; null: never", "steps"
        ),
        Column(
            "specialised_step", "int32", "first checkpoint from which its share stays at 85 %; null: never", "steps"
        ),
        Column("scale", "float64", "fft_no_dc at the last checkpoint"),
        Column("scale_first", "float64", "the same at the first"),
        Column("scale_step", "int32", "first checkpoint from which fft_no_dc stays within .05 of its last", "steps"),
        Column("variance_preservation", "float64", "as in scale_metrics, at the last checkpoint"),
        Column("relative_gradient", "float64", "the same"),
        Column("ablation", "float64", "the last checkpoint's ablation_mean; null of neurons", "nats"),
        Column(
            "cluster", "int32", "cluster of similar scale profiles at the last checkpoint; null where not clustered"
        ),
        Column("representative", "bool", "whether it is the unit nearest to the centre of its cluster"),
    ),
    ("trial_id", "kind", "unit"),
)

ONSETS = Table(
    "grokking_onsets",
    "When a trial memorised, when its second descent began and how it ended.",
    (
        _TRIAL,
        Column("status", "string", "no_memorisation, no_second_descent, immediate, grokked, partial or rebound"),
        Column(
            "memorised_step", "int32", "first update with a training loss below .01 x uniform; null: never", "steps"
        ),
        Column("peak_step", "int32", "where the held-out loss is largest", "steps"),
        Column("peak_loss", "float64", "the held-out loss there", "nats"),
        Column("turn_step", "int32", "where its descent begins: 10 % of the steepest rate before it", "steps"),
        Column("inflection_step", "int32", "grokking step: steepest descent of the smoothed held-out loss", "steps"),
        Column("onset_step", "int32", "first step after the peak at which 80 % of the peak is gone", "steps"),
        Column("accuracy_step", "int32", "first step from which held-out accuracy stays above one half", "steps"),
        Column("perfect_step", "int32", "first step from which it stays at 99 %", "steps"),
        Column("delay", "int32", "onset - memorised", "steps"),
        Column("final_loss", "float64", "last held-out loss", "nats"),
        Column("rebound", "float64", "last - smallest held-out loss", "nats"),
        Column("confidence", "float64", "share of the peak that the descent removes x share of it that is downhill"),
        Column(
            "restricted_step",
            "int32",
            "first checkpoint at which the restricted loss has lost half of its range",
            "steps",
        ),
        Column(
            "excluded_step",
            "int32",
            "first checkpoint at which the excluded loss has gained half of its range",
            "steps",
        ),
        Column(
            "gini_step", "int32", "first checkpoint at which the embedding's Gini has gained half of its range", "steps"
        ),
        Column("frequencies", "list:int32", "key frequencies at the last checkpoint"),
        Column("learned", "list:int32", "frequencies held by 10 % of the neurons there"),
    ),
    ("trial_id",),
)

QUESTIONS = Table(
    "scale_questions",
    "Open questions of the founding document on scales, each a number with its null; per trial and kind of unit.",
    (
        _TRIAL,
        Column("question", "string", "emergence, order, role, clusters or redundancy"),
        Column("kind", "string", "neuron or head_to_a"),
        Column("statistic", "string", "what the value is"),
        Column("value", "float64", ""),
        Column("null_mean", "float64", "mean of the same under permutations"),
        Column("null_hi", "float64", "95 % quantile of the same under permutations"),
        Column("p", "float64", "two-sided permutation p; null where units are too few (under 5) or constant"),
        Column("n", "int32", "units"),
        Column("answer", "string", "computed from the above"),
    ),
    ("trial_id", "question", "kind", "statistic"),
)

COMPARISON = Table(
    "grokking_comparison",
    "What is consistent and what depends on the seed, by modulus: one row per cell and quantity.",
    (
        Column("cell", "string", "everything but seeds"),
        Column("p", "int32", "modulus"),
        Column("quantity", "string", "column of grokking_onsets or final grokking_measures, or an answer's value"),
        Column("n", "int32", "trials with a value"),
        Column("n_missing", "int32", "trials without"),
        Column("mean", "float64", ""),
        Column("sd", "float64", "over seeds"),
        Column("lo", "float64", "95 % t interval of the mean over seeds; null under 2"),
        Column("hi", "float64", "upper end of it"),
        Column("consistent", "bool", "sd / |mean| below .25; null under 3 trials"),
        Column("other_p", "string", "means of other cells with the same settings but another modulus, as JSON"),
    ),
    ("cell", "quantity"),
)

ANSWERS = Table(
    "scale_answers",
    "Open questions of the founding document on scales, asked of all networks of a cell together.",
    (
        Column("cell", "string", "everything but seeds"),
        Column("modulus", "int32", ""),
        Column("question", "string", "emergence, order, role or redundancy"),
        Column("kind", "string", "neuron or head_to_a"),
        Column(
            "statistic",
            "string",
            "what the value is: mean_change over networks, or a rank correlation within networks, pooled",
        ),
        Column("value", "float64", ""),
        Column("null_mean", "float64", "mean of the same with units exchanged within their network alone"),
        Column("null_hi", "float64", "95 % quantile of its size under the same"),
        Column("p", "float64", "two-sided; null under 2 networks, or where p_attainable is over .05"),
        Column("p_attainable", "float64", "smallest p that so many units and networks can give"),
        Column("n", "int32", "units"),
        Column("n_trials", "int32", "networks that they belong to"),
        Column("n_agree", "int32", "networks whose own value has the sign of all of them together"),
        Column("answer", "string", "computed from the above"),
    ),
    ("cell", "question", "kind", "statistic"),
)

VERDICTS = Table(
    "grokking_verdicts",
    "Whether the events of one named measure tell when a run generalised: one near that step, none in the plateau.",
    (
        _TRIAL,
        Column("cell", "string", "everything but seeds"),
        Column("measure", "string", "the named measure"),
        Column("detector", "string", "name of the detector"),
        Column("null", "string", "what the surrogates are"),
        Column("layers", "string", "pattern of the layers whose series are asked"),
        Column("n_series", "int32", "their series"),
        Column("n_calibrated", "int32", "of these, those that can be tested"),
        Column("memorised_step", "int32", "first update with a training loss below .01 x uniform", "steps"),
        Column("half_step", "int32", "first step from which held-out accuracy stays above one half", "steps"),
        Column("n_events", "int32", "significant events of these series", "events"),
        Column("null_events", "float64", "number expected among them under the null: alpha x events", "events"),
        Column("event_step", "float64", "location of the event nearest to half_step; null without events", "steps"),
        Column("event_layer", "string", "its layer"),
        Column("distance", "float64", "(event_step - half_step) / planned steps"),
        Column("q", "float64", "q of its series over the family"),
        Column("n_near", "int32", "events within the tolerance of half_step", "events"),
        Column("n_early", "int32", "events located after memorisation and before half of half_step", "events"),
        Column("early_step", "float64", "location of the first of these", "steps"),
        Column(
            "verdict",
            "string",
            "passed, missed (none near), early (some in the plateau), missed_and_early; without one why: unfinished,"
            " not_memorised, not_generalised, not_tested",
        ),
    ),
    ("trial_id", "measure", "layers"),
)

ACCEPTANCE = Table(
    "grokking_acceptance",
    "The verdicts of a cell's runs together.",
    (
        Column("cell", "string", "everything but seeds"),
        Column("measure", "string", "the named measure"),
        Column("layers", "string", "pattern of the layers whose series are asked"),
        Column("n", "int32", "runs"),
        Column("n_judged", "int32", "runs with a verdict: finished, memorised, generalised and tested"),
        Column("n_passed", "int32", "of these, those that passed"),
        Column("n_missed", "int32", "those without an event near the step"),
        Column("n_early", "int32", "those with an event in the plateau"),
        Column("accepted", "bool", "every run passed; null while any has no verdict"),
    ),
    ("cell", "measure", "layers"),
)

LAGS = Table(
    "grokking_lags",
    "Lag of each layer's largest dimensionality event to a landmark of grokking, over the seeds of a cell.",
    (
        Column("cell", "string", "everything but seeds"),
        Column("family", "string", "name of the family of series over which errors are controlled"),
        Column("detector", "string", "name of the detector"),
        Column("null", "string", "what the surrogates are"),
        Column("measure", "string", "column of the table that was read"),
        Column("view", "string", "how activations became a matrix"),
        Column("layer_index", "int16", "place in the order of the forward pass"),
        Column("layer", "string", "module path"),
        Column("landmark", "string", "memorised, turn, inflection, onset, restricted, excluded or gini"),
        Column("n", "int32", "trials with both"),
        Column("n_missing", "int32", "trials with an event but without the landmark"),
        Column("lag", "float64", "mean of the event's step - the landmark's: negative is before", "steps"),
        Column("lo", "float64", "95 % t interval over seeds; null under 2", "steps"),
        Column("hi", "float64", "upper end of it", "steps"),
        Column("share_before", "float64", "share of trials whose event lies before"),
        Column("answer", "string", "before, with, after, undecided, one trial, or no trial has both"),
    ),
    ("cell", "family", "detector", "null", "measure", "view", "layer_index", "landmark"),
)
