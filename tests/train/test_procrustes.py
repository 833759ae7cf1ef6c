import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes

from enrobe.errors import CallError
from enrobe.tasks.pooling import normalize
from enrobe.train.procrustes import procrustes


def spaces(seed: int, count: int, width: int, other: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors, and the same turned, with noise and a mean of their own."""
    print("seed", seed)
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((count, width)).astype(np.float32)
    turn = np.linalg.qr(generator.standard_normal((max(width, other),) * 2))[0][:other, :width]
    y = x @ turn.T + 0.1 * generator.standard_normal((count, other)) + 0.5
    return x + 0.3, y.astype(np.float32)


def test_it_is_scipys_on_centred_vectors() -> None:
    x, y = spaces(1, 90, 7, 7)
    found = procrustes(x, y)
    a, b = normalize(x).astype(np.float64), normalize(y).astype(np.float64)
    expected, _ = orthogonal_procrustes(a - a.mean(0), b - b.mean(0))
    np.testing.assert_allclose(found.weight, expected.T, atol=1e-5)
    np.testing.assert_allclose(found.weight @ found.weight.T, np.eye(7), atol=1e-5)
    np.testing.assert_allclose(found.bias, -expected.T @ a.mean(0), atol=1e-5)


@pytest.mark.parametrize(("width", "other"), [(5, 8), (8, 5)])
def test_widths_may_differ(width: int, other: int) -> None:
    x, y = spaces(2, 60, width, other)
    found = procrustes(x, y)
    assert found.weight.shape == (other, width)
    small = min(width, other)
    inner = found.weight.T @ found.weight if width < other else found.weight @ found.weight.T
    np.testing.assert_allclose(inner, np.eye(small), atol=1e-5)
    # Each vector finds its own among all.
    moved = found(normalize(x))
    centred = normalize(normalize(y) - normalize(y).mean(0))
    right = (moved @ centred.T).argmax(1) == np.arange(len(x))
    # By chance 1 in 60; what is cut from 8 numbers to 5 has lost some.
    assert right.mean() > (0.9 if width < other else 0.6)


def test_too_few_pairs() -> None:
    with pytest.raises(CallError, match="pairs, two or more"):
        procrustes(np.ones((1, 3), np.float32), np.ones((1, 3), np.float32))
