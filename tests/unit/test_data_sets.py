"""Each data set by name, from small planted files where it has files."""

import dataclasses
import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from ndt_ray import data, registry
from ndt_ray.data import files
from ndt_ray.data.text import encode, tokens, vocabulary
from ndt_ray.errors import DataError, SpecError
from ndt_ray.inputs import InputSpec

_CODES = {"uint8": 0x08, "int32": 0x0C}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NDT_OFFLINE", "1")
    monkeypatch.delenv("NDT_DATA", raising=False)
    data._load.cache_clear()


def write_idx(path: Path, array: np.ndarray) -> None:
    head = bytes([0, 0, _CODES[str(array.dtype)], array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(head + array.astype(array.dtype.newbyteorder(">")).tobytes()))


def plant(root: Path, monkeypatch: pytest.MonkeyPatch, name: str, contents: dict[str, np.ndarray]) -> None:
    """Write idx files and make their checksums the canonical ones."""
    group = dict(files.FILES[name])
    for file_name, array in contents.items():
        path = root / group[file_name].folder / file_name
        write_idx(path, array)
        group[file_name] = dataclasses.replace(group[file_name], md5=hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setitem(files.FILES, name, group)


def digits_of(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), (np.arange(n) % 10).astype(np.uint8)


def plant_mnist(root: Path, monkeypatch: pytest.MonkeyPatch, name: str = "mnist") -> None:
    (x, y), (test_x, test_y) = digits_of(30, 0), digits_of(20, 1)
    plant(
        root,
        monkeypatch,
        name,
        {
            "train-images-idx3-ubyte.gz": x,
            "train-labels-idx1-ubyte.gz": y,
            "t10k-images-idx3-ubyte.gz": test_x,
            "t10k-labels-idx1-ubyte.gz": test_y,
        },
    )


def extended(classes: np.ndarray) -> np.ndarray:
    labels = np.zeros((len(classes), 8), np.int32)
    labels[:, 0], labels[:, 2] = classes, np.arange(len(classes))
    return labels


def test_digits_are_real_complete_and_split_once() -> None:
    found = data.load("digits")
    assert found.inputs == InputSpec("image", (1, 8, 8), 10) and found.completeness == "complete"
    assert (len(found.train_y), len(found.test_y)) == (1197, 600) and "1,197 training and 600 test" in found.note
    assert torch.bincount(found.test_y).tolist() == [60] * 10
    together = torch.cat([found.train_x, found.test_x]).squeeze(1)
    assert abs(float(together.mean())) < 1e-3 and abs(float(together.std()) - 1) < 2e-3
    # Every image of scikit-learn's is there once, with its own label.
    pixels = (together * 0.3760 + 0.3053).mul(16).round().to(torch.int64).flatten(1)
    labels = torch.cat([found.train_y, found.test_y]).unsqueeze(1)
    ours = sorted(map(tuple, torch.cat([pixels, labels], 1).tolist()))
    bunch = load_digits()
    assert ours == sorted(map(tuple, np.column_stack([bunch.data, bunch.target]).astype(int).tolist()))
    assert found.hash == "afebec0b787099209d2f1ca46d3a1207b5dbfe7a967e794521b1c98c03eb5ff8"


def test_digits_leave_room_for_the_default_probes() -> None:
    found = data.probes(data.load("digits"), 256)
    assert (len(found.detect), len(found.confirm), len(found.evaluation)) == (256, 256, 88)


def test_modular_addition_is_the_founding_split() -> None:
    state = torch.get_rng_state()
    found = data.load("modular_addition")
    assert torch.equal(torch.get_rng_state(), state)
    assert found.inputs == InputSpec("modular", (3,), classes=113, vocab=114) and found.completeness == "generated"
    assert (len(found.train_y), len(found.test_y)) == (3830, 8939)
    every = torch.cat([found.train_x, found.test_x])
    assert len({tuple(row) for row in every.tolist()}) == 12769
    assert bool((every[:, 2] == 113).all())
    assert torch.equal((every[:, 0] + every[:, 1]) % 113, torch.cat([found.train_y, found.test_y]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(598)
        order = torch.randperm(113 * 113)
    assert torch.equal(found.train_x[:, 0] * 113 + found.train_x[:, 1], order[:3830])
    assert torch.equal(found.test_x[:, 0] * 113 + found.test_x[:, 1], order[3830:])


def test_modular_addition_takes_its_parameters() -> None:
    found = data.load("modular_addition", {"p": 7, "train_fraction": 0.5, "split_seed": 1})
    assert (len(found.train_y), len(found.test_y), found.inputs.vocab) == (24, 25, 8)
    assert found.hash != data.load("modular_addition", {"p": 7, "train_fraction": 0.5, "split_seed": 2}).hash


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("mnst", {}, "unknown data 'mnst' - did you mean 'mnist'"),
        ("modular_addition", {"P": 7}, "data 'modular_addition': unknown parameter 'P' - did you mean 'p'|known: p"),
        ("modular_addition", {"p": 1}, "data 'modular_addition': p: must be greater than.* got 1"),
        ("modular_addition", {"p": "113"}, "p: must be an integer, but got '113'"),
        ("modular_addition", {"p": True}, "p: must be an integer"),
        ("modular_addition", {"train_fraction": 1}, "train_fraction: must be less than 1"),
        ("modular_addition", {"p": 2, "train_fraction": 0.1}, "no pair is left to train on .*p=2, train_fraction=0.1"),
        ("mnist", {"root": "/data"}, "'root' is no parameter; set NDT_DATA"),
        ("digits", {"size": 3}, "unknown parameter 'size' - it has none"),
        ("arrays", {}, "parameter 'path' is missing"),
    ],
)
def test_a_wrong_name_or_parameter_is_a_spec_error(name: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        data.load(name, params)


def test_a_data_set_is_loaded_once_whatever_the_spelling_of_its_defaults() -> None:
    assert data.load("modular_addition") is data.load("modular_addition", {"p": 113})


@pytest.mark.parametrize(("name", "mean", "std"), [("mnist", 0.1307, 0.3081), ("fashion_mnist", 0.2860, 0.3530)])
def test_images_are_scaled_and_paired_with_their_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, mean: float, std: float
) -> None:
    plant_mnist(tmp_path, monkeypatch, name)
    found = data.load(name, {}, tmp_path)
    assert found.inputs == InputSpec("image", (1, 28, 28), 10) and found.completeness == "complete"
    assert found.train_x.shape == (30, 1, 28, 28) and found.test_x.dtype == torch.float32
    pixels, labels = digits_of(20, 1)
    np.testing.assert_allclose(found.test_x[:, 0].numpy(), (pixels / 255 - mean) / std, rtol=2e-6, atol=2e-6)
    assert found.test_y.tolist() == labels.tolist() and len(found.class_names) == 10
    assert "30 training and 20 test" in found.note


def test_images_are_read_from_ndt_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_mnist(tmp_path, monkeypatch)
    monkeypatch.setenv("NDT_DATA", str(tmp_path))
    assert len(data.load("mnist").test_y) == 20


def test_without_its_files_a_data_set_says_what_is_missing(tmp_path: Path) -> None:
    for name, file in (
        ("mnist", "train-images-idx3"),
        ("qmnist", "qmnist-train-images-idx3"),
        ("ag_news", "train.csv"),
    ):
        with pytest.raises(DataError, match=rf"{file}.* is missing(.|\n)*NDT_OFFLINE(.|\n)*Set NDT_DATA"):
            data.load(name, {}, tmp_path)


def test_damaged_images_are_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_mnist(tmp_path, monkeypatch)
    path = tmp_path / "MNIST/raw/t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="expected MD5"):
        data.load("mnist", {}, tmp_path)
    cut = dataclasses.replace(files.FILES["mnist"][path.name], md5=hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setitem(files.FILES["mnist"], path.name, cut)
    with pytest.raises(DataError, match="truncated or damaged gzip"):
        data.load("mnist", {}, tmp_path)


def test_more_labels_than_images_and_labels_out_of_range_are_data_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_mnist(tmp_path, monkeypatch)
    plant(tmp_path, monkeypatch, "mnist", {"t10k-labels-idx1-ubyte.gz": np.zeros(21, np.uint8)})
    with pytest.raises(DataError, match="20 images, but their label file has 21"):
        data.load("mnist", {}, tmp_path)
    plant(tmp_path, monkeypatch, "mnist", {"t10k-labels-idx1-ubyte.gz": np.full(20, 10, np.uint8)})
    with pytest.raises(DataError, match=r"test split: labels must lie in 0\.\.9, but reach from 10 to 10"):
        data.load("mnist", {}, tmp_path)


def plant_qmnist_labels(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {
        "qmnist-train-labels-idx2-int.gz": extended(np.arange(30) % 10),
        "qmnist-test-labels-idx2-int.gz": extended(np.arange(60) % 10),
    }
    plant(root, monkeypatch, "qmnist", contents)


def test_qmnist_labels_alone_make_a_surrogate_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_qmnist_labels(tmp_path, monkeypatch)
    with pytest.raises(DataError, match="qmnist-train-images"):
        data.load("qmnist", {}, tmp_path)
    plant_mnist(tmp_path, monkeypatch)
    found = data.load("qmnist", {}, tmp_path)
    assert found.completeness == "surrogate" and "MNIST pixels" in found.note
    mnist = data.load("mnist", {}, tmp_path)
    # The founding study read the training split twice; here the test split is the test split.
    assert torch.equal(found.test_x, mnist.test_x) and torch.equal(found.train_x, mnist.train_x)
    plant(tmp_path, monkeypatch, "qmnist", {"qmnist-test-labels-idx2-int.gz": extended(np.zeros(60, int))})
    data._load.cache_clear()
    with pytest.raises(DataError, match="test labels are not those of MNIST"):
        data.load("qmnist", {}, tmp_path)


def test_qmnist_images_make_it_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_mnist(tmp_path, monkeypatch)
    plant_qmnist_labels(tmp_path, monkeypatch)
    plant(tmp_path, monkeypatch, "qmnist", {"qmnist-train-images-idx3-ubyte.gz": digits_of(30, 5)[0]})
    with pytest.raises(DataError, match="qmnist-test-images"):  # half of it is no reason to fall back
        data.load("qmnist", {}, tmp_path)
    pixels = digits_of(60, 6)[0]
    plant(tmp_path, monkeypatch, "qmnist", {"qmnist-test-images-idx3-ubyte.gz": pixels})
    found = data.load("qmnist", {}, tmp_path)
    assert found.completeness == "complete" and (len(found.train_y), len(found.test_y)) == (30, 60)
    np.testing.assert_allclose(found.test_x[:, 0].numpy(), (pixels / 255 - 0.1307) / 0.3081, rtol=2e-6, atol=2e-6)
    assert found.test_y.tolist() == [n % 10 for n in range(60)]


def test_text_is_cut_into_words_as_the_founding_study_did() -> None:
    assert tokens("Oil #36;50 -- it's UP!\tU.S.\\re-signed é") == ["oil", "3650", "its", "up", "usresigned"]
    texts = [["b", "a", "b"], ["c", "a", "d"]]
    assert vocabulary(texts, 3) == {"b": 2, "a": 3, "c": 4}  # b and a twice, c and d once: the first seen first
    assert encode([["b", "d", "a", "c"], []], vocabulary(texts, 3), 3).tolist() == [[2, 1, 3], [0, 0, 0]]


def plant_news(root: Path, monkeypatch: pytest.MonkeyPatch, train: str, test: str) -> None:
    folder = root / "AG_NEWS"
    folder.mkdir()
    (folder / "train.csv").write_text(train)
    (folder / "test.csv").write_text(test)
    file = files.FILES["ag_news"]["test.csv"]
    monkeypatch.setitem(
        files.FILES["ag_news"], "test.csv", dataclasses.replace(file, md5=hashlib.md5(test.encode()).hexdigest())
    )


def test_ag_news_of_fewer_rows_is_a_subset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_news(tmp_path, monkeypatch, '"3","Oil up","oil."\n"1","","War over"\n', '"4","Chips over oil","new"\n')
    found = data.load("ag_news", {"words": 4, "length": 5}, tmp_path)
    assert found.inputs == InputSpec("text", (5,), classes=4, vocab=6, padding=0)
    assert found.completeness == "subset" and "a subset of 2 of 120,000 rows" in found.note
    assert found.train_x.tolist() == [[2, 3, 2, 0, 0], [4, 5, 0, 0, 0]] and found.train_y.tolist() == [2, 0]
    assert found.test_x.tolist() == [[1, 5, 2, 1, 0]] and found.test_y.tolist() == [3]
    assert found.class_names == ("World", "Sports", "Business", "Sci/Tech")


@pytest.mark.slow
def test_ag_news_of_all_rows_must_be_canonical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_news(tmp_path, monkeypatch, '"3","a","b"\n' * 120_000, '"4","a","b"\n')
    with pytest.raises(DataError, match="expected MD5 b1a00f826fdfbd249f79597b59e1dc12.* though it has all 120,000"):
        data.load("ag_news", {}, tmp_path)


@pytest.mark.parametrize("row", ['"0","a","b"\n', '"5","a","b"\n', '"Class Index","Title","Description"\n'])
def test_ag_news_of_another_class_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str) -> None:
    plant_news(tmp_path, monkeypatch, '"3","a","b"\n' + row, '"4","a","b"\n')
    with pytest.raises(DataError, match=r"train\.csv, row 2: the class must be 1, 2, 3 or 4"):
        data.load("ag_news", {}, tmp_path)


def save(path: Path, x_train: np.ndarray, x_test: np.ndarray, classes: int = 3) -> Path:
    y_train, y_test = np.arange(len(x_train)) % classes, np.arange(len(x_test)) % classes
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


@pytest.mark.parametrize(
    ("shape", "expected"), [((5,), (1, 1, 5)), ((4, 6), (1, 4, 6)), ((3, 4, 6), (3, 4, 6))], ids=str
)
def test_floats_of_a_user_are_images_as_they_are(
    weird_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    x = np.random.default_rng(0).normal(size=(9, *shape))
    found = data.load("arrays", {"path": str(save(weird_path / "mine.npz", x, x[:6]))})
    assert found.inputs == InputSpec("image", expected, 3) and "9 training and 6 test" in found.note
    np.testing.assert_array_equal(found.train_x.numpy().reshape(x.shape), x.astype(np.float32))


def test_bytes_of_a_user_are_scaled_and_integers_are_tokens(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 1, 6, 6), dtype=np.uint8)
    found = data.load("arrays", {"path": "a.npz"}, save(tmp_path / "a.npz", pixels, pixels[:9]).parent)
    assert abs(float(found.train_x.mean())) < 1e-5 and abs(float(found.train_x.std(correction=0)) - 1) < 1e-5
    ids = np.arange(60, dtype=np.int32).reshape(10, 6)
    path = save(tmp_path / "b.npz", ids, ids[:6])
    assert data.load("arrays", {"path": str(path)}).inputs == InputSpec("text", (6,), 3, vocab=60, padding=0)
    assert data.load("arrays", {"path": str(path), "vocab": 100, "classes": 5}).inputs.vocab == 100
    with pytest.raises(DataError, match=r"token ids must lie in 0\.\.9, but reach from 0 to 59"):
        data.load("arrays", {"path": str(path), "vocab": 10})


def test_a_changed_file_of_a_user_is_read_again(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", np.zeros((4, 2)), np.zeros((4, 2)))
    first = data.load("arrays", {"path": str(path)})
    assert data.load("arrays", {"path": str(path)}) is first
    save(path, np.ones((5, 2)), np.zeros((4, 2)))
    assert len(data.load("arrays", {"path": str(path)}).train_y) == 5


def test_arrays_that_do_not_fit_are_data_errors(tmp_path: Path) -> None:
    good = {"x_train": np.zeros((4, 2)), "y_train": np.arange(4), "x_test": np.zeros((4, 2)), "y_test": np.arange(4)}
    changes: list[tuple[dict[str, np.ndarray], str]] = [
        ({"y_train": np.arange(4.0)}, r"y_train must be integers \[N\], but is float64"),
        ({"y_test": np.arange(3)}, "4 samples need as many int64 labels"),
        ({"y_test": np.arange(4) - 1}, "labels must lie in"),
        ({"x_test": np.zeros((4, 3))}, "x_train and x_test must be alike"),
        ({"x_train": np.zeros((4, 2, 2, 2, 2)), "x_test": np.zeros((4, 2, 2, 2, 2))}, "images must be"),
        ({"x_train": np.full((4, 2), np.nan)}, "NaN"),
        ({"x_train": np.zeros((4, 2), bool), "x_test": np.zeros((4, 2), bool)}, "integers .*token ids"),
        (
            {"x_train": np.zeros((4, 2), np.uint8), "x_test": np.zeros((4, 2), np.uint8)},
            "all training pixels are equal",
        ),
    ]
    for number, (change, message) in enumerate(changes):
        path = tmp_path / f"{number}.npz"
        np.savez(path, **{**good, **change})
        with pytest.raises(DataError, match=message):
            data.load("arrays", {"path": str(path)})


def test_files_that_are_no_npz_are_data_errors(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    with pytest.raises(DataError, match=r"mine\.npz is missing: there is neither"):
        data.load("arrays", {"path": str(path)})
    np.savez(path, x_train=np.zeros(3))
    with pytest.raises(DataError, match="lacks y_train, x_test, y_test; it holds x_train"):
        data.load("arrays", {"path": str(path)})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="not a readable"):
        data.load("arrays", {"path": str(path)})
    np.savez(path, x_train=np.array([{}]), y_train=[0], x_test=np.array([{}]), y_test=[0])
    with pytest.raises(DataError, match="not a readable .npz file of plain arrays"):
        data.load("arrays", {"path": str(path)})
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(DataError, match="holds one array"):
        data.load("arrays", {"path": str(path)})


def test_a_function_in_a_users_file_is_a_data_set(weird_path: Path) -> None:
    path = weird_path / "mine.py"
    path.write_text(
        "import numpy as np\n"
        "def make(*, n: int = 6):\n"
        "    x = np.ones((n, 2)); y = np.arange(n) % 2\n"
        "    return x, y, x, y\n"
        "def bad():\n    return 3\n"
    )
    found = data.load(f"{path}:make", {"n": 8})
    assert len(found.train_y) == 8 and found.inputs.kind == "image"
    assert data.load(f"{path}:make", {"n": 8}) is found
    with pytest.raises(SpecError, match="unknown parameter 'm'"):
        data.load(f"{path}:make", {"m": 8})
    with pytest.raises(DataError, match="has no function 'other'"):
        data.load(f"{path}:other")
    with pytest.raises(DataError, match="gives a int"):
        data.load(f"{path}:bad")
    path.write_text("import nothing_of_this_name\n")
    with pytest.raises(DataError, match="cannot be imported: ModuleNotFoundError"):
        data.load(f"{path}:make")


def test_every_registered_data_set_has_a_summary() -> None:
    for name in registry.names("data"):
        assert registry.summary("data", name).endswith(".")
