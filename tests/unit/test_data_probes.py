"""Probes, training subsets and label noise: disjoint, balanced, the same everywhere."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ndt_ray.data import BLOCKS, Dataset, noisy_labels, probes, shuffled_labels, training_subset
from ndt_ray.data.dataset import build
from ndt_ray.errors import SpecError
from ndt_ray.inputs import InputSpec


def labelled(labels: list[int] | np.ndarray, classes: int) -> Dataset:
    y = torch.as_tensor(np.asarray(labels, dtype=np.int64))
    x = torch.arange(len(y), dtype=torch.float32).reshape(-1, 1, 1, 1)
    names = [str(c) for c in range(classes)]
    return build("planted", InputSpec("image", (1, 1, 1), classes), (x, y), (x, y), names, "generated", "Planted.")


def counts(dataset: Dataset, chosen: torch.Tensor) -> np.ndarray:
    return np.bincount(dataset.test_y[chosen].numpy(), minlength=dataset.inputs.classes)


@settings(max_examples=60, deadline=None)
@given(
    classes=st.integers(2, 12),
    sizes=st.data(),
    detect=st.integers(2, 60),
    confirm=st.integers(2, 60),
    seed=st.integers(-5, 2**40),
)
def test_probes_are_disjoint_sized_and_as_equal_as_possible(
    classes: int, sizes: st.DataObject, detect: int, confirm: int, seed: int
) -> None:
    per_class = sizes.draw(st.lists(st.integers(0, 60), min_size=classes, max_size=classes))
    dataset = labelled(np.repeat(np.arange(classes), per_class) if sum(per_class) else [0], classes)
    total = len(dataset.test_y)
    if detect + confirm + 1 > total:
        with pytest.raises(SpecError, match=f"{detect} . {confirm} and evaluation at least 1: {detect + confirm + 1}"):
            probes(dataset, detect, confirm, seed)
        return
    found = probes(dataset, detect, confirm, seed)
    assert [len(found.detect), len(found.confirm)] == [detect, confirm]
    everything = torch.cat([found.detect, found.confirm, found.evaluation])
    assert sorted(everything.tolist()) == list(range(total))
    n = counts(dataset, found.detect)
    share = -(-np.array(per_class) * detect // (detect + confirm)) if sum(per_class) else n
    below = n < share  # classes that could have given more: none of them lags by more than 1
    assert not below.any() or n[below].min() >= n.max() - 1
    if min(per_class) * classes >= 2 * (detect + confirm) + 2 * classes:
        assert np.ptp(n) <= 1 and np.ptp(counts(dataset, found.confirm)) <= 1


@pytest.mark.parametrize(("classes", "size"), [(10, 256), (4, 256), (10, 250), (3, 100), (113, 256), (2, 16)])
def test_blocks_and_runs_of_stimuli_are_balanced(classes: int, size: int) -> None:
    dataset = labelled(np.arange(classes * 700) % classes, classes)
    labels = dataset.test_y[probes(dataset, size, size, 3).detect].numpy()
    for block in range(BLOCKS):
        assert np.ptp(np.bincount(labels[block::BLOCKS], minlength=classes)) <= 1
    for start in range(0, size - BLOCKS + 1, BLOCKS):
        run = np.bincount(labels[start : start + BLOCKS], minlength=classes)
        assert run.max() <= BLOCKS / classes + 2.5 and np.count_nonzero(run) >= min(classes, BLOCKS) * 0.6


def test_probes_depend_on_data_and_seed_and_nothing_else() -> None:
    dataset = labelled(np.arange(1000) % 10, 10)
    first = probes(dataset, 64, 32, 5)
    torch.manual_seed(123)
    np.random.seed(7)  # noqa: NPY002
    state = torch.get_rng_state()
    again = probes(labelled(np.arange(1000) % 10, 10), 64, 32, 5)
    assert torch.equal(state, torch.get_rng_state())
    for a, b in ((first.detect, again.detect), (first.confirm, again.confirm), (first.evaluation, again.evaluation)):
        assert torch.equal(a, b)
    assert (first.detect_hash, first.confirm_hash) == (again.detect_hash, again.confirm_hash)
    other_seed = probes(dataset, 64, 32, 6)
    other_data = probes(labelled(np.arange(1000) // 100, 10), 64, 32, 5)
    hashes = {h for p in (first, other_seed, other_data) for h in (p.detect_hash, p.confirm_hash)}
    assert len(hashes) == 6


def test_probes_are_the_same_on_every_machine_and_release() -> None:
    """Golden: a change here changes what every stored measurement was made on."""
    found = probes(labelled(np.arange(200) % 10, 10), 20, 20, 0)
    expected = [
        60,
        20,
        181,
        81,
        72,
        152,
        133,
        23,
        134,
        164,
        35,
        55,
        36,
        86,
        107,
        7,
        18,
        48,
        79,
        199,
    ]
    assert found.detect.tolist() == expected
    assert training_subset(100, 5, 7).tolist() == [41, 98, 32, 89, 54]


def test_a_rare_class_is_shared_by_the_probes() -> None:
    dataset = labelled([0] * 500 + [1] * 4, 2)
    found = probes(dataset, 50, 50, 0)
    assert counts(dataset, found.detect).tolist() == [48, 2] and counts(dataset, found.confirm).tolist() == [48, 2]


def test_a_class_without_samples_and_fewer_stimuli_than_classes_are_allowed() -> None:
    dataset = labelled(np.arange(400) % 40 + 1, 60)
    found = probes(dataset, 3, 7, 0)
    assert counts(dataset, found.detect).max() == 1 and counts(dataset, found.confirm).max() == 1


def test_confirm_is_as_large_as_detect_by_default() -> None:
    assert len(probes(labelled(np.arange(100) % 2, 2), 20).confirm) == 20


def test_an_evaluation_of_a_given_size_keeps_the_proportions() -> None:
    dataset = labelled([0] * 600 + [1] * 300 + [2] * 100, 3)
    found = probes(dataset, 3, 3, 0, evaluation=100)
    assert len(found.evaluation) == 100 and torch.equal(found.evaluation, found.evaluation.sort().values)
    assert np.abs(counts(dataset, found.evaluation) - [60, 30, 10]).max() <= 1
    assert not set(found.evaluation.tolist()) & set(torch.cat([found.detect, found.confirm]).tolist())
    with pytest.raises(SpecError, match="1,000 samples.* 3 . 3 and evaluation 995: 1,001 in all"):
        probes(dataset, 3, 3, 0, evaluation=995)
    assert len(probes(dataset, 3, 3, 0, evaluation=994).evaluation) == 994


@pytest.mark.parametrize(("detect", "confirm", "evaluation"), [(1, 5, None), (5, 0, None), (5, 5, 0)])
def test_sizes_that_make_no_sense_are_spec_errors(detect: int, confirm: int, evaluation: int | None) -> None:
    with pytest.raises(SpecError, match="needs"):
        probes(labelled(np.arange(100) % 2, 2), detect, confirm, 0, evaluation)


def test_a_training_subset_is_distinct_nested_and_seeded() -> None:
    large, small = training_subset(1000, 300, 1), training_subset(1000, 100, 1)
    assert len(set(large.tolist())) == 300 and torch.equal(large[:100], small)
    assert not torch.equal(small, training_subset(1000, 100, 2))
    assert torch.equal(training_subset(7, None, 1), torch.arange(7))
    assert sorted(training_subset(7, 7, 1).tolist()) == list(range(7))
    for subset in (0, 8):
        with pytest.raises(SpecError, match=rf"1\.\.7, .*subset={subset}"):
            training_subset(7, subset, 1)


def test_label_noise_replaces_the_said_share_and_is_nested() -> None:
    labels = torch.arange(10_000) % 10
    untouched = labels.clone()
    tenth, half, all_ = (noisy_labels(labels, 10, f, 3) for f in (0.1, 0.5, 1.0))
    assert torch.equal(labels, untouched) and torch.equal(noisy_labels(labels, 10, 0.0, 3), labels)
    for noisy, fraction in ((tenth, 0.1), (half, 0.5), (all_, 1.0)):
        wrong = float((noisy != labels).double().mean())
        assert abs(wrong - fraction * 0.9) < 0.015  # 4 standard deviations at most
        assert noisy.dtype == torch.int64 and 0 <= int(noisy.min()) and int(noisy.max()) <= 9
    changed = tenth != labels
    assert torch.equal(tenth[changed], half[changed])
    assert not torch.equal(all_, noisy_labels(labels, 10, 1.0, 4))
    counted = torch.bincount(all_, minlength=10)
    assert (counted - 1000).abs().max() < 130
    with pytest.raises(SpecError, match=r"fraction=1\.5"):
        noisy_labels(labels, 10, 1.5, 3)


def test_shuffled_labels_are_a_permutation_that_says_nothing_of_the_inputs() -> None:
    labels = torch.arange(5000) % 10
    shuffled = shuffled_labels(labels, 0)
    assert torch.equal(torch.bincount(shuffled), torch.bincount(labels))
    assert abs(float((shuffled == labels).double().mean()) - 0.1) < 0.02
    assert torch.equal(shuffled, shuffled_labels(labels, 0)) and not torch.equal(shuffled, shuffled_labels(labels, 1))


def test_the_probe_hash_covers_indices_and_data() -> None:
    dataset = labelled(np.arange(100) % 2, 2)
    found = probes(dataset, 10, 10, 0)
    body = dataset.hash.encode() + found.detect.numpy().astype("<i8").tobytes()
    assert found.detect_hash == hashlib.sha256(body).hexdigest()
