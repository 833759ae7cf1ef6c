"""What a student is told: against formulas written out in numpy, and gradients against autograd."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from enrobe.train.distil_losses import HiddenStates, soft_loss, soft_masked_loss, vector_loss


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(11)


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    out: np.ndarray = e / e.sum(axis, keepdims=True)
    return out


def divergence(student: np.ndarray, teacher: np.ndarray, t: float, axis: int = -1) -> float:
    """t^2 * sum of p log(p / q)."""
    p, q = softmax(teacher / t, axis), softmax(student / t, axis)
    return float(t**2 * (p * np.log(p / q)).sum())


@pytest.mark.parametrize("kind", ["classify", "tag"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_soft_targets_of_classes(kind: str, temperature: float) -> None:
    logits, teacher = torch.randn(7, 5, dtype=torch.float64), torch.randn(3, 5)
    at = torch.tensor([1, 4, 6])
    found = soft_loss(
        kind,
        logits,
        teacher,
        {"rows": at, "places": at},
        temperature=temperature,
    )
    expected = divergence(logits[at].numpy(), teacher.numpy(), temperature)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_temperature_squared_keeps_the_gradient_of_high_temperatures() -> None:
    """Hinton et al. 2015, section 2.1: it tends to that of the squared difference of logits."""
    teacher = torch.randn(4, 6)
    teacher -= teacher.mean(1, keepdim=True)
    logits = torch.randn(4, 6)
    logits = (logits - logits.mean(1, keepdim=True)).requires_grad_()
    rows = torch.arange(4)
    soft_loss("classify", logits, teacher, {"rows": rows}, temperature=1e3).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.allclose(logits.grad, (logits - teacher).detach() / 6, atol=2e-3)


def test_soft_targets_of_several_labels() -> None:
    logits, teacher, t = torch.randn(5, 3), torch.randn(2, 3), 2.0
    rows = torch.tensor([0, 3])
    p = 1 / (1 + np.exp(-teacher.numpy() / t))
    q = 1 / (1 + np.exp(-logits[rows].numpy() / t))
    each = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    found = soft_loss("multilabel", logits, teacher, {"rows": rows}, temperature=t)
    assert float(found) == pytest.approx(t**2 * each.mean(1).sum(), rel=1e-5)


def test_soft_targets_of_a_number_are_its_square() -> None:
    logits, teacher = torch.randn(5, 1), torch.randn(2, 1)
    rows = torch.tensor([4, 2])
    found = soft_loss("regress", logits, teacher, {"rows": rows}, temperature=3.0)
    assert float(found) == pytest.approx(float((logits[rows] - teacher).square().sum()))


def test_soft_targets_of_an_answer_are_over_the_places_of_its_row() -> None:
    logits, t = torch.randn(12, 2, requires_grad=True), 2.0
    places = torch.tensor([[0, 3, 4, -1], [6, 8, 9, 10]])
    # Where there is no place, whatever stands there must not count.
    teacher = torch.randn(2, 4, 2)
    found = soft_loss("answer", logits, teacher, {"places": places}, temperature=t)
    own, theirs = logits.detach().numpy(), teacher.numpy()
    expected = divergence(own[[0, 3, 4]], theirs[0, :3], t, 0)
    expected += divergence(own[[6, 8, 9, 10]], theirs[1], t, 0)
    assert float(found.detach()) == pytest.approx(expected / 2, rel=1e-5)
    found.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and bool(torch.isfinite(logits.grad).all())


@pytest.mark.parametrize("kind", ["classify", "multilabel", "regress", "tag", "answer"])
def test_nothing_is_to_be_learned_from_oneself(kind: str) -> None:
    logits = torch.randn(6, 1 if kind == "regress" else 2)
    at = torch.arange(6)
    places = torch.tensor([[0, 1, -1], [2, 3, 4]])
    arrays = {"rows": at, "places": places if kind == "answer" else at}
    teacher = logits[places.clamp(min=0)] if kind == "answer" else logits
    found = soft_loss(kind, logits, teacher, arrays, temperature=2.0)
    assert float(found) == pytest.approx(0.0, abs=1e-5)


def test_vectors() -> None:
    a, b = torch.randn(4, 7), torch.randn(4, 7)
    x, y = a.numpy().astype(float), b.numpy().astype(float)
    cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert float(vector_loss(a, b, "cosine")) == pytest.approx((1 - cosine).sum(), rel=1e-5)
    # That of torch and of sentence-transformers, but for the mean over texts.
    assert float(vector_loss(a, b, "mse")) == pytest.approx(4 * float(F.mse_loss(a, b)), rel=1e-5)


def test_hidden_states_of_equal_width_are_compared_as_they_are() -> None:
    loss = HiddenStates([(1, 2), (2, 4)], widths=(6, 6), distance="mse")
    assert not list(loss.parameters())
    assert (loss.layers, loss.teacher_layers) == ((1, 2), (2, 4))
    student = {n: torch.randn(5, 6) for n in (1, 2)}
    teacher = {n: torch.randn(5, 6) for n in (2, 4)}
    expected = sum(float(F.mse_loss(student[a], teacher[b])) * 5 for a, b in ((1, 2), (2, 4))) / 2
    assert float(loss(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_hidden_states_of_another_width_are_projected() -> None:
    loss = HiddenStates([(0, 0), (2, 3)], widths=(4, 6), distance="cosine")
    student = {n: torch.randn(5, 4) for n in (0, 2)}
    teacher = {n: torch.randn(5, 6) for n in (0, 3)}
    expected = 0.0
    for (own, theirs), projection in zip(loss.pairs, loss.projections, strict=True):
        there = student[own] @ projection.weight.detach().T
        expected += float((1 - F.cosine_similarity(there, teacher[theirs])).sum()) / 2
    assert float(loss(student, teacher).detach()) == pytest.approx(expected, rel=1e-5)
    assert len(list(loss.parameters())) == 2


@pytest.mark.parametrize(("soft", "hard"), [(1.0, 0.0), (0.0, 1.0), (0.7, 0.4)])
def test_the_masked_loss_in_chunks_is_autograds(
    soft: float, hard: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Chunks of 3 of 8 positions.
    monkeypatch.setattr("enrobe.train.losses._CHUNK", 3 * 13)
    t = 2.0
    targets, theirs = torch.randint(13, (8,)), torch.randn(8, 13)
    features = torch.randn(8, 5, requires_grad=True)
    weight, bias = torch.randn(13, 5, requires_grad=True), torch.randn(13, requires_grad=True)
    leaves = [features, weight, bias]
    asked: list[int] = []

    def teacher(part: slice) -> Tensor:
        asked.append(len(theirs[part]))
        return theirs[part]

    loss, soft_sum, hard_sum, right = soft_masked_loss(
        features, weight, bias, targets, teacher, temperature=t, soft=soft, hard=hard
    )
    found = torch.autograd.grad(loss * 0.5, leaves)
    logits = features @ weight.T + bias
    rows = {"rows": torch.arange(8)}
    plain = F.cross_entropy(logits, targets, reduction="sum")
    softly = soft_loss("classify", logits, theirs, rows, temperature=t)
    expected = torch.autograd.grad((soft * softly + hard * plain) * 0.5, leaves)
    assert asked == ([3, 3, 2] if soft else [])
    assert float(hard_sum) == pytest.approx(float(plain.detach()), rel=1e-5)
    assert float(soft_sum) == pytest.approx(float(softly.detach()) if soft else 0.0, rel=1e-5)
    assert int(right) == int((logits.argmax(1) == targets).sum())
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
