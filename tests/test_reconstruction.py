"""Least-squares reconstruction of removed units: against lstsq on the rows themselves, and its own laws."""

from __future__ import annotations

import numpy as np
import pytest

from simkit.metrics.reconstruction import reconstruction
from simkit.streaming.covariance import BLOCK, Covariance, CovarianceStream


def values(n: int = 500, units: int = 12, rank: int = 6, seed: int = 0, offset: float = 3.0) -> np.ndarray:
    r = np.random.default_rng(seed)
    return (
        r.standard_normal((n, rank)) @ r.standard_normal((rank, units)) + 0.3 * r.standard_normal((n, units)) + offset
    )


def covariance(x: np.ndarray) -> Covariance:
    stream = CovarianceStream(x.shape[1])
    stream.update(x)
    return stream.result()


@pytest.mark.parametrize("n", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7])
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e8])
def test_covariance_is_that_of_the_rows(n: int, offset: float) -> None:
    x = np.random.default_rng(n).standard_normal((n, 5)) + offset
    found = covariance(x)
    near = x - offset  # exact
    z = near - near.mean(axis=0)
    assert found.n == n
    np.testing.assert_allclose(found.mean, offset + near.mean(axis=0), rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(found.scatter, z.T @ z, rtol=1e-12, atol=1e-12 * n)


def test_batches_change_no_bit_and_states_add() -> None:
    x = values(2 * BLOCK + 100)
    whole = covariance(x)
    stream = CovarianceStream(x.shape[1])
    for part in np.array_split(x, [1, 8, 8, 5000]):
        stream.update(part)
    assert stream.rows == len(x)
    np.testing.assert_array_equal(stream.result().scatter, whole.scatter)
    np.testing.assert_array_equal(stream.result().mean, whole.mean)
    joined = covariance(x[:3000]) + covariance(x[3000:]) + Covariance(0, np.zeros(12), np.zeros((12, 12)))
    assert joined.n == whole.n
    np.testing.assert_allclose(joined.scatter, whole.scatter, rtol=1e-11)


def test_bad_rows() -> None:
    stream = CovarianceStream(3)
    with pytest.raises(ValueError, match=r"rows have shape \(2, 4\), not \[k, 3\]"):
        stream.update(np.zeros((2, 4)))
    stream.update(np.array([[0.0, np.nan, 1.0]]))
    with pytest.raises(ValueError, match="column 1 holds a value that is not finite"):
        stream.result()
    with pytest.raises(ValueError, match="a covariance of 3 columns and one of 2 do not add"):
        _ = Covariance(1, np.zeros(3), np.zeros((3, 3))) + Covariance(1, np.zeros(2), np.zeros((2, 2)))


@pytest.mark.parametrize("kept", [[0], [0, 3, 4, 9], list(range(11)), list(range(12))])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_equals_least_squares_on_the_rows(kept: list[int], offset: float) -> None:
    x = values(offset=offset)
    found = reconstruction(covariance(x), kept, precision="float64")
    assert found.ridge == 0.0
    design = np.column_stack([x[:, kept], np.ones(len(x))])
    solution = np.linalg.lstsq(design, x, rcond=None)[0]
    np.testing.assert_allclose(found.mixing, solution[:-1].T, atol=1e-10)
    np.testing.assert_allclose(found.offset, solution[-1], atol=1e-9)
    left = x - design @ solution
    np.testing.assert_allclose(found.lost, left.T @ left / len(x), atol=1e-10)


def test_without_a_constant() -> None:
    x, kept = values(offset=3.0), [0, 3, 4, 9]
    found = reconstruction(covariance(x), kept, constant=False, precision="float64")
    solution = np.linalg.lstsq(x[:, kept], x, rcond=None)[0]
    np.testing.assert_allclose(found.mixing, solution.T, atol=1e-9)
    assert not found.offset.any()
    left = x - x[:, kept] @ solution
    np.testing.assert_allclose(found.lost, left.T @ left / len(x), atol=1e-8)
    with_it = reconstruction(covariance(x), kept, precision="float64")
    np.testing.assert_allclose(found.removed, with_it.removed)


def test_errors_are_those_of_the_consumer() -> None:
    x, kept = values(), [1, 2, 5, 7, 8]
    weight = np.random.default_rng(1).standard_normal((4, 12))
    found = reconstruction(covariance(x), kept, precision="float64")
    plain, repaired = found.error(weight)
    y = x @ weight.T
    assert plain == pytest.approx(((x[:, kept] @ weight[:, kept].T - y) ** 2).sum() / len(x), rel=1e-10)
    ours = x[:, kept] @ (weight @ found.mixing).T + weight @ found.offset
    assert repaired == pytest.approx(((ours - y) ** 2).sum() / len(x), rel=1e-8)
    assert repaired < plain


def test_mixtures_of_kept_units_are_reconstructed_exactly() -> None:
    x = values(offset=2.0)
    x[:, 7] = 2 * x[:, 0] - x[:, 3] + 5
    found = reconstruction(covariance(x), [0, 1, 2, 3, 4], precision="float64")
    np.testing.assert_allclose(found.mixing[7], [2, 0, 0, -1, 0], atol=1e-9)
    assert found.offset[7] == pytest.approx(5)
    assert found.lost[7, 7] < 1e-10


def test_collinear_kept_units_get_a_ridge_and_still_reconstruct() -> None:
    x = values().astype(np.float32).astype(np.float64)
    x[:, 1] = x[:, 0]
    found = reconstruction(covariance(x), [0, 1, 2, 3])
    assert found.condition > 1e6
    assert 0.0 < found.ridge < 1e-3
    assert np.isfinite(found.mixing).all()
    alone = reconstruction(covariance(x), [0, 2, 3])
    np.testing.assert_allclose(np.trace(found.lost), np.trace(alone.lost), rtol=1e-3)
    np.testing.assert_allclose(found.mixing[5:, 0], found.mixing[5:, 1], rtol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_ridge_is_the_least_that_gives_the_condition(precision: str) -> None:
    limit = np.finfo(precision).eps ** -0.5
    for noise in (1e-2, 1e-5, 1e-9, 0.0):
        x = values()
        x[:, 1] = x[:, 0] + noise * np.random.default_rng(5).standard_normal(len(x))
        kept = [0, 1, 2, 3]
        found = reconstruction(covariance(x), kept, precision=precision)
        eigenvalues = np.linalg.eigvalsh(np.corrcoef(x[:, kept].T))
        condition = eigenvalues[-1] / max(eigenvalues[0], 1e-17)
        if condition < 0.9 * limit:
            assert found.ridge == 0.0
        elif condition > 1.1 * limit:
            reached = (eigenvalues[-1] + found.ridge) / (eigenvalues[0] + found.ridge)
            assert reached == pytest.approx(limit, rel=1e-3 if precision == "float32" else 0.2)


@pytest.mark.parametrize("constant", [True, False])
def test_the_error_on_other_rows(constant: bool) -> None:
    x, other, kept = values(seed=0), values(n=77, seed=1) + 0.5, [1, 2, 5, 7, 8]
    weight = np.random.default_rng(1).standard_normal((4, 12))
    found = reconstruction(covariance(x), kept, constant=constant, precision="float64")
    left = (other - other[:, kept] @ found.mixing.T - found.offset) @ weight.T
    assert found.error_on(covariance(other), weight) == pytest.approx((left**2).sum() / 77, rel=1e-9)
    assert found.error_on(covariance(x), weight) == pytest.approx(found.error(weight)[1], rel=1e-6)
    for rows, sentence in (
        (covariance(other[:, :3]), "77 rows of 3 units"),
        (Covariance(0, np.zeros(12), x[:12].T @ x[:12]), "0 "),
    ):
        with pytest.raises(ValueError, match=f"^{sentence}.*do not test a reconstruction of 12$"):
            found.error_on(rows, weight)


def test_units_that_never_vary() -> None:
    x = values()
    x[:, 4], x[:, 6] = 1.5, 0.0
    found = reconstruction(covariance(x), [0, 4, 5])
    assert found.mixing[6].tolist() == [0.0, 0.0, 0.0]
    assert found.offset[6] == pytest.approx(0.0, abs=1e-12)
    assert not found.mixing[[1, 2, 3], 1].any()
    dead = reconstruction(covariance(x), [4])
    np.testing.assert_allclose(dead.offset[[0, 1]], x.mean(axis=0)[[0, 1]])
    assert dead.condition == 1.0


def test_scale_of_a_unit_does_not_matter() -> None:
    x, kept = values(), [0, 2, 4, 6]
    scale = np.logspace(-8, 8, 12)
    plain = reconstruction(covariance(x), kept, precision="float64")
    scaled = reconstruction(covariance(x * scale), kept, precision="float64")
    np.testing.assert_allclose(scaled.mixing * scale[kept] / scale[:, None], plain.mixing, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kept", [[], [0, 0], [-1, 2], [3, 12]])
def test_bad_units(kept: list[int]) -> None:
    with pytest.raises(ValueError, match="kept must be distinct units below 12, at least one"):
        reconstruction(covariance(values()), kept)


def test_bad_options() -> None:
    x = values()
    with pytest.raises(ValueError, match="ridge must be at least 0 and finite, not -1"):
        reconstruction(covariance(x), [0], ridge=-1)
    with pytest.raises(ValueError, match="a covariance of 0 rows says nothing"):
        reconstruction(Covariance(0, np.zeros(2), np.zeros((2, 2))), [0])
