"""Captured activations: files by hand and by a tiny Hugging Face model, compared across layers, models and tasks."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ndt_ray.analysis.mechanisms.sae import activation_files, huggingface
from ndt_ray.analysis.mechanisms.sae.activation_files import read_folder, sampled_rows, write_activations
from ndt_ray.analysis.mechanisms.sae.from_files import transfer_files
from ndt_ray.analysis.mechanisms.sae.networks import Sampling
from ndt_ray.cli import app
from ndt_ray.errors import DataError, NdtError, SpecError
from ndt_ray.store.reader import open_store

SMALL = {"changes": {"max_steps": 150, "max_features": 64}, "sampling": {"seeds": 1, "per_stimulus": 4}}
TEXTS = 60
LENGTHS = [5 + i % 7 for i in range(TEXTS)]


def by_hand(folder: Path) -> None:
    """Two models that see the same latent words, one rotated and one wider, and a third on other texts.

    `other` is a rotation of `one`; `wide` has 24 dimensions; `strange` was shown other texts; `noise` has no words.
    """
    rng = np.random.default_rng(0)
    words = rng.normal(size=(12, 12))
    # Rows belong to the share of the text, not to the token: models cut texts into different numbers of tokens.
    latent = {n: np.concatenate([_text(words, t, n) for t in range(TEXTS)]) for n in (1, 2)}
    turn = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    wide = rng.normal(size=(12, 24))
    twice = [2 * n for n in LENGTHS]
    for model, rows, lengths in (
        ("one", latent[1], LENGTHS),
        ("other", latent[2] @ turn, twice),
        ("wide", latent[1] @ wide, LENGTHS),
        ("noise", rng.normal(size=latent[1].shape), LENGTHS),
    ):
        write_activations(folder, model, 4, rows.astype(np.float32), lengths, "a" * 16, task="math")
    write_activations(folder, "one", 8, latent[1].astype(np.float32), LENGTHS, "a" * 16, task="math")
    write_activations(folder, "one", 4, latent[1][::-1].astype(np.float32), LENGTHS[::-1], "c" * 16, task="code")
    write_activations(folder, "strange", 4, latent[1].astype(np.float32), LENGTHS, "b" * 16, task="math")


def _text(words: np.ndarray, text: int, copies: int) -> np.ndarray:
    rng = np.random.default_rng((1, text))
    active = rng.random((LENGTHS[text], 12)) < 0.15
    return np.repeat((active * rng.uniform(1, 2, active.shape)) @ words, copies, axis=0)


def test_rows_of_files_are_at_the_same_place_of_the_same_texts(tmp_path: Path) -> None:
    by_hand(tmp_path)
    found = {(c.network, c.layer.index): c for c in read_folder(tmp_path)}
    assert set(found) == {
        ("one:math", 4), ("one:math", 8), ("one:code", 4), ("other:math", 4), ("wide:math", 4), ("noise:math", 4),
        ("strange:math", 4),
    }  # fmt: skip
    one, other = (sampled_rows(found[f"{m}:math", 4], Sampling()) for m in ("one", "other"))
    assert one.fit.shape == (40, 4, 12) and one.held_out.shape == (20, 4, 12) and one.stimuli == other.stimuli
    # `other` has twice as many tokens and is rotated: the Gram matrix of the rows is the same.
    np.testing.assert_allclose(*(x.fit.reshape(-1, 12) @ x.fit.reshape(-1, 12).T for x in (one, other)), atol=1e-3)


@pytest.mark.slow
def test_models_are_aligned_or_skipped_with_the_reason(tmp_path: Path) -> None:
    by_hand(tmp_path / "files")
    store = open_store(tmp_path / "store", create=True)
    found = transfer_files(tmp_path / "files", store, **SMALL)
    assert not found.skipped and found.rows["sae"] == 7 and found.notes == ()
    rows = store.table("sae_transfer")
    pairs = rows.set_index(["relation", "source_trial", "target_trial"]).sort_index()
    turned = pairs.loc[("architectures", "one:math", "other:math")].iloc[0]
    assert turned["status"] == "ok" and turned["aligned"] > max(0.9 * turned["ceiling"], turned["raw"] + 0.05)
    wider = pairs.loc[("architectures", "one:math", "wide:math")].iloc[0]
    assert wider["alignment"] == "ridge" and wider["reason"] == "dimension_mismatch_12_vs_24"
    assert wider["aligned"] > 0.5 > pairs.loc[("architectures", "one:math", "noise:math")].iloc[0]["aligned"]
    strange = pairs.loc[("architectures", "one:math", "strange:math")].iloc[0]
    assert strange["status"] == "skipped" and strange["reason"].startswith("texts_differ")
    task = pairs.loc[[("data", "one:code", "one:math")]].iloc[0]
    assert task["aligned"] == pytest.approx(task["raw"], abs=0.02) and task["raw"] > 0.5  # one network: no map needed
    assert len(pairs.loc["layers"]) == 2 and store.table("sae")["artifact"].notna().all()

    assert transfer_files(tmp_path / "files", store, **SMALL).skipped
    relu = {"config": "founding", "name": "relu"}
    both = transfer_files(tmp_path / "files", store, **SMALL, configs=["default", relu], relations=["layers"])
    assert not both.skipped and both.rows == {"sae": 14, "sae_transfer": 4}
    assert store.table("sae").groupby("configuration").size().to_dict() == {"default": 7, "relu": 7}
    every = transfer_files(tmp_path / "files", store, **SMALL, across="all", relations=["data"])
    # Of the two tasks of `one`: layers 4 and 8 of math to 4 of code and back; code has no file of layer 8.
    found = store.table("sae_transfer")
    assert every.rows["sae_transfer"] == len(found) == 4
    assert found.groupby(["source_layer_index", "target_layer_index"])["status"].first().to_dict() == {
        (4, 4): "ok", (4, 8): "ok", (8, 4): "skipped",
    }  # fmt: skip
    fewer = transfer_files(tmp_path / "files", store, **SMALL, layers="8", relations=["layers"])
    assert fewer.rows == {"sae": 6, "sae_transfer": 0}  # a row for each network that lacks it; no two layers are left
    assert any("none of the layers 8 - there are: 4 layer4" in note for note in fewer.notes)


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ndt capture"):
        read_folder(tmp_path)
    rows = np.ones((6, 2), np.float32)
    with pytest.raises(SpecError, match=r"\[tokens, d\] of 5 tokens"):
        write_activations(tmp_path, "m", 1, rows, [5], "x")
    file = write_activations(tmp_path, "a/b", 1, rows, [1] * 6, "x", metadata={"source": "hub"})
    assert file.name == "a-b_layer1.safetensors"
    assert json.loads(file.with_suffix(".json").read_text())["source"] == "hub"
    few = dataclasses.replace(read_folder(tmp_path)[0], lengths=np.array([3, 3]))
    with pytest.raises(SpecError, match="6 texts or more are needed, none empty, but there are 2"):
        sampled_rows(few, Sampling())
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    with pytest.raises(DataError, match="capture"):
        read_folder(tmp_path)
    file.write_bytes(whole)
    file.with_suffix(".json").unlink()
    with pytest.raises(DataError, match="a-b_layer1"):
        read_folder(tmp_path)


def test_texts_are_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("one\n\n  two \n")
    assert huggingface.read_texts(file) == ["one", "two"]
    file.write_text("\n \n")
    with pytest.raises(SpecError, match="one a line"):
        huggingface.read_texts(file)
    with pytest.raises(SpecError, match="cannot be read"):
        huggingface.read_texts(tmp_path / "none")
    assert activation_files.texts_digest(["a", "b"]) != activation_files.texts_digest(["ab"])


def test_hugging_face_models_without_the_extra_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(NdtError, match=r"pip install -e '\.\[hf\]'"):
        huggingface.load_model("gpt2")
    with pytest.raises(SpecError, match="no texts"):
        huggingface.tokenized(None, [])


def tiny(folder: Path, width: int) -> Path:
    """A randomly initialised GPT-2 with a tokenizer of single words, as a local folder."""
    transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
    tokenizers = pytest.importorskip("tokenizers")
    words = {"<pad>": 0, **{f"w{i}": i + 1 for i in range(40)}}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<pad>")
    torch.manual_seed(width)
    config = transformers.GPT2Config(vocab_size=41, n_positions=32, n_embd=width, n_layer=3, n_head=2)
    transformers.GPT2Model(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_hugging_face_models_are_captured_and_compared_by_commands(tmp_path: Path) -> None:
    models = [tiny(tmp_path / f"tiny{width}", width) for width in (8, 16)]
    rng = np.random.default_rng(0)
    texts = tmp_path / "math.txt"
    texts.write_text("\n".join(" ".join(f"w{w}" for w in rng.integers(0, 40, 4 + i % 5)) for i in range(30)))
    out = tmp_path / "activations"
    call = ["capture", *map(str, models), "--texts", f"math={texts}", "--layers", "1,3", "-o", str(out), "--json"]
    result = CliRunner().invoke(app(), call, catch_exceptions=False)
    names = [Path(p).name for p in json.loads(result.stdout)]
    assert names == [f"tiny{w}_math_layer{n}.safetensors" for w in (8, 16) for n in (1, 3)]
    note = json.loads((out / "tiny8_math_layer3.json").read_text())
    assert note["shape"] == [sum(4 + i % 5 for i in range(30)), 8] and note["texts"] == 30 and note["layer"] == 3
    # What was written is what the model gives, row by row.
    model, tokenizer = huggingface.load_model(str(models[0]))
    with torch.no_grad():
        first = model(**tokenizer(texts.read_text().split("\n")[0], return_tensors="pt"), output_hidden_states=True)
    (captured,) = [c for c in read_folder(out) if c.model == "tiny8" and c.layer.index == 3]
    np.testing.assert_allclose(captured.rows[:4], first.hidden_states[3][0].numpy(), atol=1e-5)

    store = str(tmp_path / "store")
    call = ["transfer", str(out), "--store", store, "--set", "layers=3", "--json", "--set", "relations=[architectures]"]
    call += ["--set", "changes={max_steps: 20}", "--set", "sampling={seeds: 1, per_stimulus: 2}"]
    result = CliRunner().invoke(app(), call, catch_exceptions=False)
    assert json.loads(result.stdout)["rows"] == {"sae": 4, "sae_transfer": 4}  # layers=3: at most three of the two
    rows = open_store(store).table("sae_transfer")
    assert (rows["status"] == "ok").all() and (rows["alignment"] == "ridge").all()
    with pytest.raises(SpecError, match="layers 0 to 3"):
        huggingface.hidden_states(model, torch.ones(1, 2, dtype=torch.int64), layers=[9])
    for wrong in (["--set", "layer=3"], ["--set", "layers"]):
        with pytest.raises(SpecError, match="--set"):
            CliRunner().invoke(app(), ["transfer", str(out), "--store", store, *wrong], catch_exceptions=False)
