"""Streams whose scale changes on the way, that wake up late, that are interrupted, or that meet themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import oracles
import pytest
from backend_lists import CHOSEN

import simkit as sk

Array = npt.NDArray[Any]
N = 1500


@pytest.fixture(scope="module")
def layers() -> dict[str, Array]:
    rng = np.random.default_rng(8)
    x = rng.standard_normal((N, 6)) + 3
    return {"x": x, "y": np.maximum(x @ rng.standard_normal((6, 9)), 0)}


def run(layers: dict[str, Array], sizes: list[int], **options: Any) -> sk.StreamingCKA:
    stream, at = sk.StreamingCKA(**options), 0
    for size in sizes:
        stream.update({name: x[at : at + size] for name, x in layers.items()})
        at += size
    assert at == N
    return stream


def truth(layers: dict[str, Array]) -> float:
    scaled = [x / np.abs(x).max() for x in layers.values()]
    return oracles.cka(*scaled, estimator="debiased")


def late(layers: dict[str, Array], first: int, factor: float, offset: float = 0.0) -> dict[str, Array]:
    """x is dead in its first rows; what follows is moved and scaled."""
    x = factor * (layers["x"] + offset)
    x[:first] = 0
    return {"x": x, "y": layers["y"]}


@pytest.mark.parametrize("backend", CHOSEN)
@pytest.mark.parametrize("first", [512, 700, 1024, 1400])
@pytest.mark.parametrize("factor", [1.0, 1e90, 1e250, 1e-90, 1e-250])
def test_a_layer_that_wakes_up_late(layers: dict[str, Array], first: int, factor: float, backend: str | None) -> None:
    data = late(layers, first, factor)
    expected = truth(data)
    for sizes in ([N], [512, 512, 476], [100] * 15):
        result = run(data, sizes, backend=backend).compute()
        assert result["x", "y"] == pytest.approx(expected, abs=1e-9)
        assert result["x", "x"] == pytest.approx(1, abs=1e-12)
    estimate = run(data, [300] * 5, mode="minibatch", backend=backend).compute()
    plain = run(late(layers, first, 1.0), [300] * 5, mode="minibatch", backend=backend).compute()
    assert np.allclose(estimate.values, plain.values, rtol=0, atol=1e-6)


def test_a_dead_start_does_not_cost_the_precision_of_what_follows_at_an_offset(layers: dict[str, Array]) -> None:
    data = late(layers, 512, 1.0, offset=1e6)
    assert run(data, [N]).compute()["x", "y"] == pytest.approx(truth(data), abs=1e-9)


@pytest.mark.parametrize("factor", [1e40, 1e120, 1e200, 1e-120])
def test_rows_of_another_scale_altogether(layers: dict[str, Array], factor: float) -> None:
    data = {name: x.copy() for name, x in layers.items()}
    for x in data.values():
        x[600:] *= factor
    assert run(data, [N]).compute()["x", "y"] == pytest.approx(truth(data), abs=1e-9)


@pytest.mark.parametrize("products", ["float64", "float32"])
@pytest.mark.parametrize("times", [1e28, 1e100, 1e130, 1e165, 1e200, 1e290])
def test_one_row_beside_which_the_squares_of_all_others_vanish(
    layers: dict[str, Array], times: float, products: Any
) -> None:
    """All that decides the debiased score is that row's products with the others: right, or refused with the reason."""
    data = {name: x.copy() for name, x in layers.items()}
    data["x"][1:] /= times
    data["flat"] = np.full((N, 2), 3.0)
    found = run(data, [N], products=products).compute()
    assert found.degenerate["row", "flat"] == "every feature is constant over the samples"
    if np.isnan(found["x", "y"]):
        assert times > 1e160
        assert found.degenerate["column", "x"].endswith("that its squares vanish in float64")
    else:
        nearer = {**data, "x": np.concatenate([data["x"][:1] * 1e20 / times, data["x"][1:]])}
        assert found["x", "y"] == pytest.approx(run(nearer, [N]).compute()["x", "y"], abs=1e-6)
        assert times < 1e200


@pytest.mark.parametrize("first", ["dead", 1e-200, 1e-40, 1.0, 1e40, 1e200])
@pytest.mark.parametrize("second", ["dead", 1e-200, 1e-40, 1.0, 1e40, 1e200])
def test_streams_of_any_two_scales_merge(layers: dict[str, Array], first: float | str, second: float | str) -> None:
    if first == second == "dead":
        return
    data = {name: x.copy() for name, x in layers.items()}
    for rows, factor in ((slice(0, 700), first), (slice(700, N), second)):
        data["x"][rows] = 7.0 if isinstance(factor, str) else data["x"][rows] * factor
    one, two = sk.StreamingCKA(), sk.StreamingCKA()
    one.update({name: x[:700] for name, x in data.items()})
    two.update({name: x[700:] for name, x in data.items()})
    one.merge(two)
    assert one.samples == N
    assert one.compute()["x", "y"] == pytest.approx(truth(data), abs=1e-9)


@pytest.mark.parametrize("factor", [1e-300, 1e-100, 1e-40])
@pytest.mark.parametrize("dead", [0, 700])
def test_tiny_streams_of_one_shift_merge_in_their_units(layers: dict[str, Array], factor: float, dead: int) -> None:
    """ReLU features, mostly zero: the median of every block is zero, and both shifts are."""
    data = {"x": np.maximum(layers["x"] - 4, 0) * factor, "y": layers["y"]}
    data["x"][:dead] = 0
    assert not np.median(data["x"], axis=0).any()
    merged = sk.StreamingCKA()
    for rows in (slice(0, 700), slice(700, N)):
        part = sk.StreamingCKA()
        part.update({name: x[rows] for name, x in data.items()})
        merged.merge(part)
    assert merged.compute()["x", "y"] == pytest.approx(truth(data), abs=1e-9)


def test_more_rows_apart_than_are_kept_in_a_layer_that_is_dead_otherwise(layers: dict[str, Array]) -> None:
    data = {"x": np.zeros((N, 60)), "y": layers["y"]}
    data["x"][5::45] = np.tile(layers["x"][5::45], 10)
    for sizes in ([N], [100] * 15):
        assert run(data, sizes).compute()["x", "y"] == pytest.approx(truth(data), abs=1e-9)


@pytest.mark.parametrize("rows", [3, 300, 511, 512, 700, 1100])
@pytest.mark.parametrize("mode", ["exact", "minibatch"])
def test_a_stream_merged_into_itself_has_seen_everything_twice(layers: dict[str, Array], rows: int, mode: Any) -> None:
    stream = sk.StreamingCKA(mode=mode)
    stream.update({name: x[:rows] for name, x in layers.items()})
    twin = sk.StreamingCKA(mode=mode)
    twin.load_state_dict(stream.state_dict())
    twin.merge(stream)
    stream.merge(stream)
    assert stream.samples == twin.samples == 2 * rows
    assert np.array_equal(stream.compute().values, twin.compute().values, equal_nan=True)
    if mode == "exact":
        twice = [np.concatenate([x[:rows], x[:rows]]) for x in layers.values()]
        assert stream.compute()["x", "y"] == pytest.approx(oracles.cka(*twice, estimator="debiased"), abs=1e-9)


def test_a_side_that_is_dead_in_one_batch_does_not_take_the_other_sides_own_part_away(
    layers: dict[str, Array],
) -> None:
    dead = layers["y"].copy()
    dead[:300] = 0
    two_sides, alone = sk.StreamingCKA(mode="minibatch"), sk.StreamingCKA(mode="minibatch")
    for at in range(0, N, 300):
        rows = slice(at, at + 300)
        two_sides.update({"x": layers["x"][rows]}, {"y": dead[rows]})
        alone.update({"x": layers["x"][rows], "y": dead[rows]})
    assert two_sides.compute()["x", "y"] == pytest.approx(alone.compute()["x", "y"], abs=1e-12)


@pytest.mark.parametrize("mode", ["exact", "minibatch"])
def test_an_interrupted_stream_refuses_to_go_on(
    layers: dict[str, Array], mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = sk.StreamingCKA(mode=mode)
    stream.update(layers)
    saved = stream.state_dict()
    before = stream.compute().values
    part = "simkit.streaming.moments._flush" if mode == "exact" else "simkit.streaming.minibatch._add"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(part, interrupt)
        with pytest.raises(KeyboardInterrupt):
            stream.update(layers)
    sentence = "^this stream was interrupted in the middle of a batch and holds part of it: "
    for step in (lambda: stream.update(layers), stream.compute, stream.state_dict, lambda: stream.merge(stream)):
        with pytest.raises(RuntimeError, match=sentence):
            step()
    fresh = sk.StreamingCKA(mode=mode)
    with pytest.raises(RuntimeError, match=sentence):
        fresh.merge(stream)
    stream.load_state_dict(saved)
    assert np.array_equal(stream.compute().values, before)
    stream.reset()
    stream.update(layers)
    assert np.array_equal(stream.compute().values, before)


def test_features_too_large_to_centre_are_refused_before_anything_is_added(layers: dict[str, Array]) -> None:
    stream = sk.StreamingCKA()
    stream.update(layers)
    before = stream.compute().values
    with pytest.raises(ValueError, match=r"^y holds 1e\+308, too large to centre in float64: rescale its features$"):
        stream.update({"x": layers["x"][:1], "y": np.full((1, 9), 1e308)})
    assert np.array_equal(stream.compute().values, before)


@pytest.mark.parametrize("first", [1e-300, 1e-200, 1.0])
@pytest.mark.parametrize("rows", [300, 600, 1100])
def test_rows_beyond_the_range_of_the_first_units(layers: dict[str, Array], first: float, rows: int) -> None:
    data = {"x": layers["x"].copy(), "y": layers["y"]}
    data["x"][:rows] *= first
    data["x"][rows:] *= 1e200
    for sizes in ([N], [rows, N - rows], [100] * 15):
        assert run(data, sizes).compute()["x", "y"] == pytest.approx(truth(data), abs=1e-9)


@pytest.mark.parametrize("gap", [1e-300, 1e-200, 1e-100, 1e-10, 1.0, 1e100, 1e250])
def test_parts_in_which_a_layer_is_constant_make_one_that_is_not(layers: dict[str, Array], gap: float) -> None:
    data = {"x": np.zeros((N, 6)), "y": layers["y"]}
    data["x"][700:] = gap
    merged = sk.StreamingCKA()
    for part in (slice(0, 700), slice(700, 1300), slice(1300, N)):
        stream = sk.StreamingCKA()
        stream.update({name: x[part] for name, x in data.items()})
        merged.merge(stream)
    assert merged.compute()["x", "y"] == pytest.approx(truth(data), abs=1e-9)
