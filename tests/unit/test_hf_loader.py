"""The loader of Hugging Face models by models with their interface and known hidden states: no package is needed.

A real (tiny, randomly initialised) one goes the same way in test_activation_files, where the extra hf is installed.
"""

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from ndt_ray.analysis.mechanisms.sae import huggingface
from ndt_ray.analysis.mechanisms.sae.activation_files import read_folder
from ndt_ray.cli import app
from ndt_ray.errors import NdtError, SpecError
from ndt_ray.store.reader import open_store

WORDS = 40
TEXTS = [" ".join(f"w{(7 * i + j) % WORDS}" for j in range(2 + i % 5)) for i in range(30)]


class Tokenizer:
    """A word is a token. As of GPT-2, there is no padding token and padding is on the left until told otherwise."""

    def __init__(self) -> None:
        self.pad_token: str | None = None
        self.eos_token = "<end>"
        self.padding_side = "left"
        self.calls: list[dict[str, Any]] = []

    def __call__(self, texts: list[str], **options: Any) -> dict[str, Tensor]:
        self.calls.append(options)
        assert options["return_tensors"] == "pt" and options["padding"] and self.pad_token == self.eos_token
        rows = [[int(w[1:]) for w in t.split() if w.startswith("w")][: options["max_length"]] for t in texts]
        ids = torch.full((len(rows), max(map(len, rows))), WORDS)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            place = slice(0, len(row)) if self.padding_side == "right" else slice(ids.shape[1] - len(row), None)
            ids[i, place], mask[i, place] = torch.tensor(row, dtype=torch.int64), 1
        return {"input_ids": ids, "attention_mask": mask}


class Model(nn.Module):
    """Three blocks; behind block n a token's state is its embedding × (1 + n) + the mean of its text's tokens × n."""

    def __init__(self, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS + 1, width)
        rows = torch.from_numpy(np.random.default_rng(width).integers(-4, 5, (WORDS + 1, width)))
        self.embedding.weight.data.copy_(rows).mul_(1.0)
        self.dropout, self.dtype, self.sizes = nn.Dropout(0.5), dtype, []

    def forward(self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool) -> types.SimpleNamespace:
        assert output_hidden_states and not torch.is_grad_enabled()
        self.sizes.append(len(input_ids))
        x = self.dropout(self.embedding(input_ids))
        kept = attention_mask[..., None]
        mean = (x * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True)
        states = tuple((x * (1 + n) + mean * n).to(self.dtype) for n in range(4))
        return types.SimpleNamespace(last_hidden_state=states[-1], hidden_states=states)


def expected(model: Model, text: str, layer: int, length: int = 128) -> np.ndarray:
    ids = [int(w[1:]) for w in text.split()][:length]
    rows = model.embedding.weight.detach().numpy()[ids]
    return rows * (1 + layer) + rows.mean(0) * layer


def test_states_are_those_of_the_model_text_after_text_without_padding() -> None:
    model, tokenizer = Model(6).train(), Tokenizer()
    ids, mask = huggingface.tokenized(tokenizer, TEXTS)
    assert tokenizer.padding_side == "right" and ids.shape == mask.shape == (30, 6)
    assert tokenizer.calls[0]["truncation"] and tokenizer.calls[0]["max_length"] == 128
    found = huggingface.hidden_states(model, ids, mask)
    assert list(found) == [0, 1, 2, 3] and model.training and model.sizes == [8, 8, 8, 6]
    for layer, rows in found.items():
        assert rows.dtype == np.float32 and rows.shape == (int(mask.sum()), 6)
        np.testing.assert_allclose(rows, np.concatenate([expected(model, t, layer) for t in TEXTS]), atol=1e-4)
    some = huggingface.hidden_states(model, ids, mask, [3, 1])
    assert set(some) == {1, 3} and np.array_equal(some[3], found[3])
    half = huggingface.hidden_states(Model(6, torch.bfloat16), ids, mask, [0])
    assert half[0].dtype == np.float32 and np.array_equal(half[0], found[0])  # whole numbers: exact in bfloat16
    for wrong in (4, -1):
        with pytest.raises(SpecError, match=f"layers 0 to 3, but got .layer={wrong}"):
            huggingface.hidden_states(model, ids, mask, [wrong])
    whole = huggingface.hidden_states(model, ids[:1, :2])
    assert whole[0].shape == (2, 6)  # without a mask every token counts


def test_files_hold_a_row_a_token_and_long_texts_are_cut(tmp_path: Path) -> None:
    model = Model(6)
    files = huggingface.capture(
        tmp_path, "toy", model, Tokenizer(), TEXTS, layers=[2], task="sums", length=4, metadata={"source": "here"}
    )
    (captured,) = read_folder(tmp_path)
    assert [f.name for f in files] == ["toy_sums_layer2.safetensors"]
    assert captured.lengths.tolist() == [min(4, len(t.split())) for t in TEXTS] and captured.layer.index == 2
    np.testing.assert_allclose(captured.rows, np.concatenate([expected(model, t, 2, 4) for t in TEXTS]), atol=1e-4)
    note = json.loads(files[0].with_suffix(".json").read_text())
    assert note["tokens"] == len(captured.rows) and note["length"] == 4 and note["source"] == "here"
    assert note["tokenizer"] == "Tokenizer"
    with pytest.raises(SpecError, match="toy makes no token of the text '!!'"):
        huggingface.capture(tmp_path, "toy", model, Tokenizer(), ["w1 w2", "!!"])


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> dict[str, Model]:
    """A stand-in for the package, with models toy6 and toy12; the loaded ones by name."""
    loaded: dict[str, Model] = {}

    class AutoModel:
        @staticmethod
        def from_pretrained(name: str, dtype: torch.dtype) -> Model:
            if not Path(name).name.startswith("toy"):
                raise OSError(f"{name} is not a local folder\nand more")
            loaded[name] = Model(int(Path(name).name[3:]), dtype)
            return loaded[name]

    class AutoTokenizer:
        @staticmethod
        def from_pretrained(name: str) -> Tokenizer:
            return Tokenizer()

    module = types.ModuleType("transformers")
    module.AutoModel, module.AutoTokenizer = AutoModel, AutoTokenizer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", module)
    return loaded


def test_models_are_loaded_in_single_precision_and_unknown_ones_are_named(package: dict[str, Model]) -> None:
    model, tokenizer = huggingface.load_model("toy6")
    assert package["toy6"] is model and model.dtype == torch.float32 and isinstance(tokenizer, Tokenizer)
    with pytest.raises(NdtError, match="^'gpt9' cannot be loaded: gpt9 is not a local folder$"):
        huggingface.load_model("gpt9")


@pytest.mark.slow
def test_the_commands_capture_and_compare(package: dict[str, Model], tmp_path: Path) -> None:
    texts, out, store = tmp_path / "sums.txt", tmp_path / "activations", str(tmp_path / "store")
    texts.write_text("\n".join(TEXTS))
    call = ["capture", "toy6", "toy12", "--texts", f"sums={texts}", "--layers", "1,3", "-o", str(out), "--json"]
    result = CliRunner().invoke(app(), call, catch_exceptions=False)
    names = [Path(p).name for p in json.loads(result.stdout)]
    assert names == [f"toy{w}_sums_layer{n}.safetensors" for w in (6, 12) for n in (1, 3)]
    assert set(package) == {"toy6", "toy12"}
    call = ["transfer", str(out), "--store", store, "--json", "--set", "changes={max_steps: 5}"]
    call += ["--set", "sampling={seeds: 1, per_stimulus: 2}"]
    result = CliRunner().invoke(app(), call, catch_exceptions=False)
    assert json.loads(result.stdout)["rows"] == {"sae": 4, "sae_transfer": 8}
    rows = open_store(store).table("sae_transfer")
    assert (rows["status"] == "ok").all() and set(rows["relation"]) == {"layers", "architectures"}
