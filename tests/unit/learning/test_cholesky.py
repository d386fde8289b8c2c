"""Cholesky solver: solutions match NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from topwork.learning.cholesky import solve


@pytest.mark.parametrize("size", [1, 5, 63, 64, 65, 129, 400])
@pytest.mark.parametrize(("dtype", "close"), [(np.float32, 1e-4), (np.float64, 1e-11)])
def test_solution_matches_numpy(size: int, dtype: type[np.floating], close: float) -> None:
    """Solutions match NumPy at any size and in both precisions; the input is unchanged."""
    rng = np.random.default_rng(size)
    root = rng.normal(size=(size, size + 9))
    system = (root @ root.T / size + 0.1 * np.eye(size)).astype(dtype)
    right_sides = rng.normal(size=(size, 3)).astype(dtype)
    before = system.copy(), right_sides.copy()
    found = solve(system, right_sides)
    assert found.dtype == dtype
    expected = np.linalg.solve(system.astype(float), right_sides.astype(float))
    np.testing.assert_allclose(found, expected, atol=close * np.abs(expected).max())
    np.testing.assert_array_equal(system, before[0])
    np.testing.assert_array_equal(right_sides, before[1])


def test_system_indefinite_in_float32_is_solved_in_double() -> None:
    """A system that rounding makes indefinite in float32 is solved in double."""
    system = np.full((200, 200), 1e3, dtype=np.float32)
    np.fill_diagonal(system, np.float32(1e3) + np.float32(1e-4))
    right_sides = np.eye(200, 1, dtype=np.float32)
    found = solve(system, right_sides)
    np.testing.assert_allclose(system.astype(float) @ found, right_sides, atol=1e-6)


def test_indefinite_system_raises() -> None:
    """An indefinite system raises LinAlgError."""
    with pytest.raises(np.linalg.LinAlgError):
        solve(-np.eye(3), np.ones((3, 1)))


def test_refined_solution_is_nearly_double_precision() -> None:
    """Refinement improves the solution of an ill-conditioned float32 system."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(300, 40))
    system = (root @ root.T + 0.03 * np.eye(300)).astype(np.float32)
    right_sides = rng.normal(size=(300, 3))
    expected = np.linalg.solve(system.astype(float), right_sides)
    far, near = (
        abs(solve(system, right_sides, refined=refined) - expected).max()
        for refined in (False, True)
    )
    assert near < 1e-5 * abs(expected).max()
    assert near < far / 20
