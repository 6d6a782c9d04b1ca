"""Tables of sparse autoencoders and their transfer."""

from ndt_ray.store.schema import Column, Table

_EV = "1 - squared error / variance, on held-out stimuli"

SAE = Table(
    "sae",
    "One sparse autoencoder of one layer at one checkpoint, with what dictionaries without learned features reach.",
    (
        Column("trial_id", "string", "content hash of the trial"),
        Column("step", "int32", "optimizer updates done; 0: the random network, a control for all others", "steps"),
        Column("layer", "string", "module path"),
        Column("layer_index", "int16", "place in the order of the forward pass"),
        Column("configuration", "string", "name of how it was trained: default, founding, or one given with configs"),
        Column("dictionary", "int16", "number of the dictionary's seed"),
        Column("d", "int32", "width of the layer", "dimensions"),
        Column("features", "int32", "atoms"),
        Column("n_fit", "int32", "rows trained on"),
        Column("n_held_out", "int32", "stimuli judged on"),
        Column("explained_variance", "float64", _EV),
        Column("l0", "float64", "mean active features a row"),
        Column("sparsity", "float64", "share of activations that are zero"),
        Column("dead", "float64", "share of features that no held-out row activates"),
        Column("shrinkage", "float64", "mean norm of the reconstruction / of the row"),
        Column("loss_recovered", "float64", "(L_zero - L_sae) / (L_zero - L); null where L_zero - L < .001 nats"),
        Column("explained_frozen", "float64", "explained variance with random atoms and a trained encoder"),
        Column("explained_random", "float64", "the same of an untrained dictionary with one fitted gain"),
        Column("explained_pca", "float64", "the same of as many principal directions as are active"),
        Column("pw_mcc", "float64", "mean |cosine| of matched atoms over pairs of dictionary seeds; null under 2"),
        Column("pw_mcc_chance", "float64", "the same of random atoms"),
        Column("final_loss", "float64", "training loss of the last epoch"),
        Column("min_loss", "float64", "smallest training loss of an epoch"),
        Column("late_change", "float64", "change of that loss over the last epoch / before it; null after one epoch"),
        Column("config", "string", "how it was trained, as JSON"),
        Column("artifact", "string", "file that holds the layer's dictionaries, below the store's root"),
        Column("flag", "string", "why values are null: narrow, constant, nonfinite or no_layer; null when all is well"),
    ),
    ("trial_id", "layer_index", "step", "configuration", "dictionary"),
)


def _side(name: str) -> tuple[Column, ...]:
    return (
        Column(f"{name}_trial", "string", f"trial of the {name}"),
        Column(f"{name}_cell", "string", f"cell of the {name}"),
        Column(f"{name}_step", "int32", f"checkpoint of the {name}", "steps"),
        Column(f"{name}_layer", "string", f"layer of the {name}"),
        Column(f"{name}_layer_index", "int16", f"its place in the forward pass of the {name}"),
        Column(f"{name}_d", "int32", "its width", "dimensions"),
        Column(f"{name}_artifact", "string", f"file that holds the dictionaries of the {name}; null without any"),
    )


TRANSFER = Table(
    "sae_transfer",
    "How well the dictionaries of one layer serve another: raw, aligned, controls, ceiling; and as founded.",
    (
        Column("relation", "string", "layers, seeds, architectures, data or checkpoints: what differs"),
        *_side("source"),
        *_side("target"),
        Column("configuration", "string", "name of how the dictionaries were trained, as in sae"),
        Column("status", "string", "ok or skipped"),
        Column("reason", "string", "why it was skipped, or why there are no raw and founding numbers; else null"),
        Column("alignment", "string", "procrustes for equal widths, else ridge"),
        Column("raw", "float64", f"source dictionaries on the target as it is: {_EV}; null for unequal widths"),
        Column("aligned", "float64", "the same after the map, fitted on other stimuli"),
        Column("affine", "float64", "the same after ridge maps there and back"),
        Column("control_random", "float64", "the same map, an untrained dictionary"),
        Column("control_frozen", "float64", "the same map, random atoms and a trained encoder"),
        Column("control_pca", "float64", "the same map, as many principal directions as are active"),
        Column("control", "float64", "the best of the three"),
        Column("ceiling", "float64", "the target's own dictionaries"),
        Column("se", "float64", "standard error of ceiling - control, over stimuli and seeds"),
        Column("score", "float64", "(aligned - control) / (ceiling - control); null where that is under 2 se"),
        Column("score_random", "float64", "the same against the untrained dictionary alone; null where under 2 se"),
        Column("correlation", "float64", "mean correlation of matched features' activations on held-out stimuli"),
        Column("correlation_null", "float64", "the same with the stimuli permuted"),
        Column("correlation_null_hi", "float64", "95 % quantile of the same"),
        Column("mcc", "float64", "mean |cosine| of matched atoms after the rotation; null for unequal widths"),
        Column("mcc_chance", "float64", "the same of random atoms"),
        Column("source_loss", "float64", "mean squared error of the source's first dictionary on its own rows"),
        Column("target_loss", "float64", "the same on the target's, each side by its own normalisation"),
        Column("quality", "float64", "founding convention: source loss / target loss, at most 1"),
        Column(
            "quality_random", "float64", "the same of an untrained dictionary: what the two layers alone make of it"
        ),
        Column("ratio", "float64", "founding tables: target loss / source loss"),
        Column("spearman", "float64", "of feature variances on source and target over the source's top 50"),
        Column("spearman_random", "float64", "the same of an untrained dictionary"),
        Column("spearman_null_hi", "float64", "95 % quantile of spearman with the features of one side permuted"),
        Column("variance_ratio", "float64", "mean target variance of these / of all features; by chance 1"),
        Column("cosine", "float64", "mean cosine of these atoms to the nearest target atom"),
        Column("cosine_chance", "float64", "the same of random directions"),
        Column("cosine_over_7", "float64", "share of these above .7"),
        Column("cosine_over_7_chance", "float64", "the same of random directions"),
        Column("cosine_over_5", "float64", "share of these above .5"),
        Column("cosine_over_5_chance", "float64", "the same of random directions"),
        Column("config", "string", "how the dictionaries were trained, as JSON"),
    ),
    (
        "relation",
        "source_trial",
        "source_step",
        "source_layer_index",
        "target_trial",
        "target_step",
        "target_layer_index",
        "configuration",
    ),
)
