"""What compare makes of the batches that loaders yield."""

from __future__ import annotations

from collections import UserDict, namedtuple
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset  # noqa: E402

from simkit.compare.batches import expected_samples, open_data, sample_ids  # noqa: E402
from simkit.compare.models import compare  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")
X = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)


def tensors(size: int = 10) -> list[Tensor]:
    return list(torch.from_numpy(X).split(size))


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


class Keywords(nn.Module):
    """As a transformer: several named inputs, an optional mask that matters, labels accepted only by some."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, values: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.fc(values if attention_mask is None else values * attention_mask)}


Pair = namedtuple("Pair", ["x", "y"])


@pytest.mark.parametrize(
    "batches",
    [
        lambda: [(x, torch.zeros(len(x))) for x in tensors()],
        lambda: [[x] for x in tensors()],
        lambda: [Pair(x, "label") for x in tensors()],
        lambda: [((x,), 0) for x in tensors()],
        lambda: [{"input": x, "label": 1} for x in tensors()],
        lambda: [({"input": x}, 1) for x in tensors()],
        lambda: [{"image": x, "label": 1, "id": [0] * len(x)} for x in tensors()],
        lambda: [UserDict(input=x, labels=x) for x in tensors()],
        lambda: [x.numpy() for x in tensors()],
        lambda: [(x.numpy().astype(np.float64), 0) for x in tensors()],
        lambda: iter(tensors()),
        lambda: (x for x in tensors(7)),
        lambda: DataLoader(TensorDataset(torch.from_numpy(X), torch.arange(40)), batch_size=16),
        lambda: DataLoader(TensorDataset(torch.from_numpy(X)), batch_size=7, num_workers=1),
        lambda: torch.from_numpy(X),
        lambda: X,
        lambda: X.astype(np.float64),
        lambda: {"input": torch.from_numpy(X), "text": ["a"] * 40},
    ],
)
def test_every_way_to_give_the_same_samples(model: nn.Module, batches: Any) -> None:
    want = compare(model, data=torch.from_numpy(X))
    m = compare(model, data=batches())
    assert m.samples == 40
    np.testing.assert_allclose(m.values, want.values, atol=1e-6)


def test_shuffled_and_sorted_loaders_give_the_same_number(model: nn.Module) -> None:
    want = compare(model, data=torch.from_numpy(X))
    loader = DataLoader(TensorDataset(torch.from_numpy(X)), batch_size=9, shuffle=True)
    for data in (loader, torch.from_numpy(X[np.argsort(X[:, 0])])):
        np.testing.assert_allclose(compare(model, data=data).values, want.values, atol=1e-6)


def test_masks_are_passed_and_labels_dropped_with_a_note() -> None:
    model = Keywords()
    mask = (torch.rand(40, 4) > 0.5).float()
    batch = {"values": torch.from_numpy(X), "attention_mask": mask, "labels": torch.zeros(40), "idx": torch.arange(40)}
    m = compare(model, data=[batch])
    assert "not passed to model_a, whose forward does not take them: idx, labels" in m.plan.notes


def test_the_mask_changes_the_features() -> None:
    a, b = Keywords(), nn.Linear(4, 3)
    b.load_state_dict(a.fc.state_dict())
    mask = (torch.rand(40, 4) > 0.5).float()
    x = torch.from_numpy(X)

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = b

        def forward(self, values: Tensor, attention_mask: Tensor) -> Tensor:
            return self.fc(values * attention_mask)

    same = compare(a, Masked(), data=[{"values": x, "attention_mask": mask}])
    assert same.values[0, 0] == pytest.approx(1, abs=1e-9)
    unmasked = compare(a, b, data=[{"values": x, "input": x, "attention_mask": mask}])
    assert unmasked.values[0, 0] < 0.99


def test_required_inputs_come_from_the_tuple() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
            return self.fc(a + b * scale)

    x = torch.from_numpy(X)
    m = compare(Two(), data=[(x, -x, torch.zeros(40))])
    assert m.degenerate  # x - x: constant
    assert not compare(Two(), data=[((x, x), torch.zeros(40))]).degenerate


@pytest.mark.parametrize("samples", [4, 10, 13, 39, 40])
def test_samples_stops_and_slices(model: nn.Module, samples: int) -> None:
    taken = []

    def batches() -> Iterator[Tensor]:
        for batch in tensors():
            taken.append(len(batch))
            yield batch

    m = compare(model, data=batches(), samples=samples)
    assert m.samples == samples
    assert sum(taken) < samples + 10
    np.testing.assert_allclose(m.values, compare(model, data=X[:samples]).values, atol=1e-6)


def test_more_samples_than_there_are_is_a_note(model: nn.Module) -> None:
    m = compare(model, data=X, samples=41)
    assert m.samples == 40
    assert "the data ended after 40 of samples=41" in m.plan.notes


def test_empty_batches_do_not_matter(model: nn.Module) -> None:
    m = compare(model, data=[torch.empty(0, 4), *tensors(), torch.empty(0, 4)])
    assert m.samples == 40


# --- pairs -----------------------------------------------------------------------------------------------------------


def numbered(order: list[int], size: int = 8, flip: bool = False) -> list[tuple[Tensor, Tensor]]:
    x = torch.from_numpy(-X if flip else X)
    return [(x[part], torch.tensor(part)) for part in (order[i : i + size] for i in range(0, len(order), size))]


def test_a_pair_of_loaders_with_the_same_ids(model: nn.Module) -> None:
    order = list(range(40))
    m = compare(model, model, data=(numbered(order), numbered(order, flip=True)))
    with torch.no_grad():
        want = compare(model, nn.Sequential(nn.Identity(), *model), data=X)  # same sizes; only the sign differs
    assert m.values.shape == want.values.shape
    assert m.values[0, 0] == pytest.approx(1, abs=1e-9)  # a sign is a rotation of the first layer's features
    assert m.values[1, 1] < 1 - 1e-6


@pytest.mark.parametrize(
    ("second", "text"),
    [
        (numbered([1, 0, *range(2, 40)]), "the loaders differ at sample 0 of batch 0: id 0 for model_a, 1 for model_b"),
        (numbered([*range(38), 39, 38]), "the loaders differ at sample 6 of batch 4: id 38 for model_a, 39"),
        (numbered(list(range(32))), "the loader of model_b ended first, after 4 batches"),
        (numbered(list(range(40)), size=5), "batch 0 has 8 samples and 8 ids for model_a, 5 samples and 5 ids"),
        ([x for x, _ in numbered(list(range(40)))], "batch 0 of model_b's loader has no sample ids"),
    ],
)
def test_a_pair_of_loaders_that_differ(model: nn.Module, second: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        compare(model, model, data=(numbered(list(range(40))), second))


def test_labels_are_not_ids(model: nn.Module) -> None:
    labelled = [(x, torch.arange(len(x)) % 10) for x in tensors(10)]
    with pytest.raises(ValueError, match="sample id 0 repeats in batch 1: ids must be unique, labels are not"):
        compare(model, model, data=(labelled, labelled))
    one = [(torch.from_numpy(X), torch.arange(40) % 10)]
    with pytest.raises(ValueError, match="sample id 0 repeats in batch 0"):
        compare(model, model, data=(one, one))


def test_ids_by_key_and_as_strings(model: nn.Module) -> None:
    named = [{"input": x, "sample_id": [f"img{i}-{j}" for j in range(10)]} for i, x in enumerate(tensors())]
    m = compare(model, model, data=(named, named))
    np.testing.assert_allclose(m.values, compare(model, data=X).values, atol=1e-9)
    other = [{**batch, "sample_id": batch["sample_id"][::-1]} for batch in named]
    with pytest.raises(ValueError, match="id 'img0-0' for model_a, 'img0-9' for model_b"):
        compare(model, model, data=(named, other))


def test_what_counts_as_ids() -> None:
    x = torch.zeros(3, 2)
    assert sample_ids((x, torch.tensor([4, 5, 6]))) == [4, 5, 6]
    assert sample_ids((x, 0, ["a", "b", "c"])) == ["a", "b", "c"]
    assert sample_ids({"id": np.array([1, 2, 3])}) == [1, 2, 3]
    for batch in (x, (x,), (x, torch.rand(3)), (x, torch.zeros(3, 1, dtype=torch.int64)), {"x": x}, (x, [True, False])):
        assert sample_ids(batch) is None


def test_bad_pairs(model: nn.Module) -> None:
    loaders = (numbered(list(range(40))), numbered(list(range(40))))
    with pytest.raises(ValueError, match="a pair of loaders but there is no model_b"):
        compare(model, data=loaders)
    with pytest.raises(ValueError, match="data is a pair of arrays"):
        compare(model, model, data=(X, X))
    with pytest.raises(ValueError, match="data is a tuple of 3"):
        compare(model, model, data=(*loaders, loaders[0]))


# --- bad data --------------------------------------------------------------------------------------------------------


def test_bad_data(model: nn.Module) -> None:
    with pytest.raises(TypeError, match="data must be a loader that yields batches, or a tensor"):
        compare(model, data=7)
    with pytest.raises(TypeError, match="data must be a loader"):
        compare(model, data="images/")
    with pytest.raises(TypeError, match=r"data is a TensorDataset: wrap it in torch\.utils\.data\.DataLoader"):
        compare(model, data=TensorDataset(torch.from_numpy(X)))
    with pytest.raises(ValueError, match="data yielded no batches with samples"):
        compare(model, data=[])
    with pytest.raises(TypeError, match="data yielded a str without any tensor"):
        compare(model, data=["a", "b"])
    with pytest.raises(TypeError, match="data yielded an empty tuple"):
        compare(model, data=[()])
    with pytest.raises(
        ValueError, match=r"keys \['image', 'mask'\] and model_a's forward takes \['input'\]: none match"
    ):
        compare(model, data=[{"image": torch.from_numpy(X), "mask": torch.from_numpy(X)}])
    with pytest.raises(ValueError, match=r"data holds arrays of different lengths: \[39, 40\]"):
        compare(model, data={"input": X, "mask": X[1:]})
    for samples in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="samples must be a positive integer, not"):
            compare(model, data=X, samples=samples)
    with pytest.raises(ValueError, match="needs at least 4 samples, not 3"):
        compare(model, data=X[:3])


def test_how_many_samples_a_loader_says_it_has() -> None:
    data = TensorDataset(torch.from_numpy(X))

    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            return iter(torch.from_numpy(X))

    class Sized(Dataset[Tensor]):
        def __len__(self) -> int:
            return 10**9

    assert expected_samples(DataLoader(data, batch_size=7)) == 40
    assert expected_samples(DataLoader(data, batch_size=7, drop_last=True)) == 35
    assert expected_samples(DataLoader(data, batch_size=7, sampler=range(12))) == 12
    assert expected_samples(DataLoader(Stream(), batch_size=7)) is None
    assert expected_samples(tensors()) == 40
    assert expected_samples(iter(tensors())) is None
    assert open_data(X, paired=False).samples == 40
    assert open_data((tensors(), iter(tensors())), paired=True).samples == 40


def test_an_iterable_dataset_loader(model: nn.Module) -> None:
    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            return iter(torch.from_numpy(X))

    m = compare(model, data=DataLoader(Stream(), batch_size=7))
    np.testing.assert_allclose(m.values, compare(model, data=X).values, atol=1e-6)
