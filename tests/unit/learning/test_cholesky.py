"""Solutions are NumPy's."""

from __future__ import annotations

import numpy as np
import pytest

from topwork.learning.cholesky import solve


@pytest.mark.parametrize("size", [1, 5, 127, 128, 129, 400])
@pytest.mark.parametrize(("dtype", "close"), [(np.float32, 1e-4), (np.float64, 1e-11)])
def test_the_solution_is_numpys(size: int, dtype: type[np.floating], close: float) -> None:
    """Of any size, in both precisions, with the input left as it was."""
    rng = np.random.default_rng(size)
    root = rng.normal(size=(size, size + 9))
    system = (root @ root.T / size + 0.1 * np.eye(size)).astype(dtype)
    aims = rng.normal(size=(size, 3)).astype(dtype)
    before = system.copy(), aims.copy()
    found = solve(system, aims)
    assert found.dtype == dtype
    want = np.linalg.solve(system.astype(float), aims.astype(float))
    np.testing.assert_allclose(found, want, atol=close * np.abs(want).max())
    np.testing.assert_array_equal(system, before[0])
    np.testing.assert_array_equal(aims, before[1])


def test_what_is_positive_only_in_double_is_solved_in_double() -> None:
    """A system that rounding makes indefinite in float32 is solved none the less."""
    system = np.full((200, 200), 1e3, dtype=np.float32)
    np.fill_diagonal(system, np.float32(1e3) + np.float32(1e-4))
    aims = np.eye(200, 1, dtype=np.float32)
    found = solve(system, aims)
    np.testing.assert_allclose(system.astype(float) @ found, aims, atol=1e-6)


def test_an_indefinite_system_is_refused() -> None:
    """There is no such solution, and that is said."""
    with pytest.raises(np.linalg.LinAlgError):
        solve(-np.eye(3), np.ones((3, 1)))


def test_a_refined_solution_is_doubles() -> None:
    """Of a system in single precision, conditioned as a kernel's is, in half the time."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(300, 40))
    system = (root @ root.T + 0.03 * np.eye(300)).astype(np.float32)
    aims = rng.normal(size=(300, 3))
    want = np.linalg.solve(system.astype(float), aims)
    far, near = (abs(solve(system, aims, refined=one) - want).max() for one in (False, True))
    assert near < 1e-5 * abs(want).max()
    assert near < far / 20
