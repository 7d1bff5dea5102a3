"""The minibatch estimate: what it averages, that it says so, and that its state is lawful."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import oracles
import pytest
from backend_lists import CHOSEN
from safetensors.numpy import load, save

import simkit as sk

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def layers() -> dict[str, Array]:
    x, y, _ = oracles.relu_pair()
    return {"x": x, "y": y}


def run(layers: dict[str, Array], sizes: list[int], **options: Any) -> sk.StreamingCKA:
    stream, at = sk.StreamingCKA(mode="minibatch", **options), 0
    for size in sizes:
        stream.update({name: x[at : at + size] for name, x in layers.items()})
        at += size
    return stream


def averaged(layers: dict[str, Array], sizes: list[int]) -> float:
    """CKA of the batches' debiased HSIC weighted by their numbers of pairs."""
    total, at = np.zeros((2, 2)), 0
    for size in sizes:
        part = [x[at : at + size] for x in layers.values()]
        total += size * (size - 1) / 2 * oracles.hsic_matrix(part, estimator="debiased")
        at += size
    return float(total[0, 1] / np.sqrt(total[0, 0] * total[1, 1]))


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("sizes", [[512], [64] * 8, [100, 200, 7, 5, 200], [4] * 128])
def test_it_is_the_weighted_mean_of_the_batches(
    layers: dict[str, Array], sizes: list[int], backend: str | None
) -> None:
    result = run(layers, sizes, backend=backend).compute()
    assert result["x", "y"] == pytest.approx(averaged(layers, sizes), abs=1e-6)
    assert result["x", "x"] == pytest.approx(1.0, abs=1e-6)
    assert result.samples == 512
    assert any(f"an estimate: the mean of {len(sizes)} batches" in note for note in result.plan.notes)


def test_it_is_near_the_exact_number_on_shuffled_batches(layers: dict[str, Array]) -> None:
    exact = oracles.cka(layers["x"], layers["y"], estimator="debiased")
    assert run(layers, [64] * 8).compute()["x", "y"] == pytest.approx(exact, abs=0.02)


def test_batches_too_small_to_count_join_the_next(layers: dict[str, Array]) -> None:
    joined = run(layers, [1, 2, 97, 3, 1, 408])
    assert joined.samples == 512
    assert joined.compute()["x", "y"] == pytest.approx(averaged(layers, [100, 4, 408]), abs=1e-6)
    waiting = run(layers, [100, 3])
    result = waiting.compute()
    assert waiting.samples == 103
    assert result.samples == 100
    assert "the last 3 samples were too few for a batch and do not count" in result.plan.notes


def test_too_few_samples(layers: dict[str, Array]) -> None:
    with pytest.raises(ValueError, match=r"^the debiased estimator needs at least 4 samples, not 3$"):
        run(layers, [1, 2]).compute()


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("factor", [1.0, 1e-15, 1e15])
def test_scale_and_shift_do_not_matter(layers: dict[str, Array], offset: float, factor: float) -> None:
    moved = {name: factor * (x.astype(np.float64) + offset) for name, x in layers.items()}
    assert run(moved, [128] * 4).compute()["x", "y"] == pytest.approx(averaged(layers, [128] * 4), abs=1e-9)


def test_batches_of_very_different_scale_are_weighed_by_their_hsic(layers: dict[str, Array]) -> None:
    uneven = {name: x.astype(np.float64) for name, x in layers.items()}
    for x in uneven.values():
        x[:256] *= 2.0**-20
    assert run(uneven, [256, 256]).compute()["x", "y"] == pytest.approx(averaged(uneven, [256, 256]), abs=1e-9)
    back = {name: x[::-1].copy() for name, x in uneven.items()}
    assert run(back, [256, 256]).compute()["x", "y"] == pytest.approx(averaged(uneven, [256, 256]), abs=1e-9)


def test_a_layer_that_is_dead_in_one_batch_counts_there_as_zero(layers: dict[str, Array]) -> None:
    partly = {name: x.copy() for name, x in layers.items()}
    partly["x"][:128] = 0
    assert run(partly, [128] * 4).compute()["x", "y"] == pytest.approx(averaged(partly, [128] * 4), abs=1e-6)
    dead = {"x": np.zeros_like(layers["x"]), "y": layers["y"]}
    result = run(dead, [128] * 4).compute()
    assert np.isnan(result["x", "y"])
    assert result.degenerate["row", "x"] == "every feature is constant within each batch"


def test_two_sides(layers: dict[str, Array]) -> None:
    stream = sk.StreamingCKA(mode="minibatch")
    for rows in np.array_split(np.arange(512), 4):
        stream.update({"x": layers["x"][rows]}, {"y": layers["y"][rows], "x2": 2 * layers["x"][rows]})
    result = stream.compute()
    assert result.columns == ("y", "x2")
    assert result["x", "y"] == pytest.approx(averaged(layers, [128] * 4), abs=1e-6)
    assert result["x", "x2"] == pytest.approx(1.0, abs=1e-6)


def test_merging_and_saving(layers: dict[str, Array]) -> None:
    sizes = [128, 100, 28, 200, 54, 2]
    whole = run(layers, sizes)
    one = run(layers, sizes[:3])
    rest = {name: 1.0 * x[256:] for name, x in layers.items()}
    two = run(rest, sizes[3:])
    resumed = sk.StreamingCKA(mode="minibatch")
    resumed.load_state_dict(load(save(two.state_dict())))
    assert resumed.compute().values.tolist() == two.compute().values.tolist()
    assert resumed.samples == 256
    one.merge(resumed)
    assert one.samples == whole.samples == 512
    assert np.allclose(one.compute().values, whole.compute().values, rtol=0, atol=1e-12)
    fresh = sk.StreamingCKA(mode="minibatch")
    fresh.merge(whole)
    assert fresh.compute().values.tolist() == whole.compute().values.tolist()
    exact = sk.StreamingCKA()
    exact.update(layers)
    sentence = r"a stream of \(debiased, exact\) does not merge into one of \(debiased, minibatch\)"
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        one.merge(exact)


def test_rows_that_wait_are_merged_too(layers: dict[str, Array]) -> None:
    one = run(layers, [100, 2])
    two = run({name: x[102:] for name, x in layers.items()}, [98, 2])
    one.merge(two)
    assert one.samples == 202
    result = one.compute()
    assert result["x", "y"] == pytest.approx(
        averaged(
            {name: np.concatenate([x[:100], x[102:200], x[100:102], x[200:202]]) for name, x in layers.items()},
            [100, 98, 4],
        ),
        abs=1e-6,
    )


def test_the_plan_says_what_ran(layers: dict[str, Array]) -> None:
    for backend, name in ((None, "native_cpu"), ("reference", "reference")):
        result = run(layers, [256, 256], backend=backend).compute()
        assert result.backend == name
        assert result.plan.steps[0].route == "minibatch"
        assert result.measure == "CKA(kernel=Linear(), estimator='debiased'), minibatch estimate"
