"""What a student is told by its teacher: soft targets, hidden states, vectors of sentences.

    soft targets    Hinton, Vinyals and Dean 2015, arXiv:1503.02531
    hidden states   Jiao et al. 2020 (TinyBERT), arXiv:1909.10351; Sanh et al. 2019 (DistilBERT),
                    arXiv:1910.01108, for the cosine
    vectors         Reimers and Gurevych 2020, arXiv:2004.09813

All are sums, to be divided by a global count, and 0 where the student is like its teacher.

Legend: T tokens, R rows, N texts, H hidden of the student, G of the teacher, V vocabulary,
M masked positions, C outputs of a head, D numbers of a vector.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from enrobe.nn.products import product
from enrobe.train.losses import chunk_size
from enrobe.train.supervised import picked_logits

Distance = Literal["cosine", "mse"]

# In place of minus infinity, whose product with a probability of 0 is no number.
_NEVER = -1e9


def soft_loss(
    kind: str, logits: Tensor, teacher: Tensor, arrays: Mapping[str, Tensor], *, temperature: float
) -> Tensor:
    """How far a head's answers are from its teacher's, summed over its targets.

    classify, tag: temperature^2 * KL(teacher || student) of softmax(logits / temperature); the
    square keeps the gradient's size whatever the temperature. multilabel: the same of each label's
    two outcomes, the mean over labels. answer: of first and last token over the places of the row,
    the mean of the two. regress: the squared difference.

    Args:
        kind: the head's.
        logits: the student's, as the head gives them.
        teacher: the teacher's, at the places that the targets have: (R, C); tag (K, C); answer
            (R, K, 2), of which what stands beyond a row's places does not count.
        arrays: "rows" and "places" as `supervised.collate` makes them.
        temperature: of the softmax, above 0.
    """
    student = picked_logits(kind, logits, arrays)
    if kind == "regress":
        return (student - teacher).square().sum()
    student, teacher = student / temperature, teacher / temperature
    if kind == "multilabel":
        sure = torch.sigmoid(teacher)
        each = F.binary_cross_entropy_with_logits(student, sure, reduction="none")
        least = F.binary_cross_entropy_with_logits(teacher, sure, reduction="none")
        return temperature**2 * (each - least).mean(1).sum()
    if kind == "answer":
        beyond = (arrays["places"] < 0)[:, :, None]
        student, teacher = (x.masked_fill(beyond, _NEVER) for x in (student, teacher))
    # Over the places of an answer, else over the classes.
    divergence = F.kl_div(
        F.log_softmax(student, 1), F.log_softmax(teacher, 1), reduction="sum", log_target=True
    )
    return temperature**2 * (divergence / 2 if kind == "answer" else divergence)


def vector_loss(student: Tensor, teacher: Tensor, distance: Distance) -> Tensor:
    """How far vectors are from the teacher's, summed over them.

    cosine: 1 - cosine. mse: the mean of the squared differences of a vector's numbers.

    Shapes: (N, D), (N, D) -> ().
    """
    if distance == "cosine":
        return (1 - F.cosine_similarity(student, teacher, dim=1)).sum()
    return (student - teacher).square().mean(1).sum()


class HiddenStates(nn.Module):
    """The distance of layers from the teacher's, with what brings them to its width.

    Where the widths differ, each pair of layers has a linear layer of its own (TinyBERT, equation
    8), which is learned with the student and left behind at the end.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[int, int]],
        *,
        widths: tuple[int, int],
        distance: Distance,
    ) -> None:
        """Compare a student of a width with a teacher of another.

        Args:
            pairs: layers of the student with those of the teacher; 0 the embeddings, 1 the lowest.
            widths: H and G.
            distance: as in `vector_loss`.
        """
        super().__init__()
        self.pairs, self._distance = tuple(pairs), distance
        same = widths[0] == widths[1]
        self.projections = nn.ModuleList(nn.Linear(*widths, bias=False) for _ in pairs if not same)

    @property
    def layers(self) -> tuple[int, ...]:
        """The student's that are compared, ascending."""
        return tuple(sorted({own for own, _ in self.pairs}))

    @property
    def teacher_layers(self) -> tuple[int, ...]:
        """The teacher's that they are compared with, ascending."""
        return tuple(sorted({theirs for _, theirs in self.pairs}))

    def forward(self, student: Mapping[int, Tensor], teacher: Mapping[int, Tensor]) -> Tensor:
        """Summed over tokens, the mean over pairs. Shapes: (T, H) and (T, G) a layer -> ()."""
        total = torch.zeros((), device=next(iter(student.values())).device)
        for number, (own, theirs) in enumerate(self.pairs):
            hidden_TG = student[own]
            if self.projections:
                hidden_TG = self.projections[number](hidden_TG)
            total = total + vector_loss(hidden_TG.float(), teacher[theirs].float(), self._distance)
        return total / len(self.pairs)


def soft_masked_loss(
    features_MH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor,
    targets_M: Tensor,
    teacher: Callable[[slice], Tensor],
    *,
    temperature: float,
    soft: float,
    hard: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """soft * (soft loss) + hard * (cross-entropy) of a masked-LM head, summed over positions.

    The logits of neither ever stand in memory at once: see `losses.masked_lm_loss`.

    Args:
        features_MH: what the student's decoder multiplies.
        weight_VH, bias_V: its decoder.
        targets_M: the ids that stood there.
        teacher: its logits (C, V) at a slice of the positions.
        temperature, soft, hard: as in `soft_loss`, and the weights of the two.

    Returns:
        The loss; for the log its soft and its hard part before the weights, and how many
        positions the student gets right.
    """
    loss, soft_sum, hard_sum, right = _SoftDecoderLoss.apply(  # type: ignore[no-untyped-call]
        features_MH, weight_VH, bias_V, targets_M, teacher, temperature, soft, hard
    )
    return loss, soft_sum, hard_sum, right


class _SoftDecoderLoss(Function):
    """Decoder and both losses in one, chunk after chunk, with the gradient taken on the way.

    The gradient of a chunk's logits is

        soft * temperature * (softmax(student / temperature) - softmax(teacher / temperature))
        + hard * (softmax(student) - one_hot(target))
    """

    @staticmethod
    def forward(
        ctx: Any,
        features_MH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor,
        targets_M: Tensor,
        teacher: Callable[[slice], Tensor],
        temperature: float,
        soft: float,
        hard: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Under autocast the products are of bfloat16; sums are kept in float32 all the same.
        half = torch.is_autocast_enabled(features_MH.device.type)
        dtype = torch.get_autocast_dtype(features_MH.device.type) if half else features_MH.dtype
        weight = weight_VH.to(dtype)
        features_grad = torch.empty_like(features_MH)
        weight_grad, bias_grad = torch.zeros_like(weight_VH), torch.zeros_like(bias_V)
        soft_sum, hard_sum, right = (torch.zeros((), device=features_MH.device) for _ in range(3))
        size = chunk_size(len(weight_VH))
        with torch.autocast(features_MH.device.type, enabled=False):
            for start in range(0, len(features_MH), size):
                part = slice(start, start + size)
                features, targets = features_MH[part].to(dtype), targets_M[part]
                logits_CV = product(features, weight).float().add_(bias_V)
                right += (logits_CV.argmax(1) == targets).sum()
                grad_CV = torch.zeros_like(logits_CV)
                if soft:
                    own_CV = F.log_softmax(logits_CV / temperature, 1)
                    goal_CV = F.log_softmax(teacher(part).float() / temperature, 1)
                    divergence = F.kl_div(own_CV, goal_CV, reduction="sum", log_target=True)
                    soft_sum += temperature**2 * divergence
                    grad_CV += own_CV.exp_().sub_(goal_CV.exp_()).mul_(soft * temperature)
                own_CV = F.log_softmax(logits_CV, 1)
                hard_sum -= own_CV.gather(1, targets[:, None]).sum()
                if hard:
                    own_CV.exp_()
                    own_CV[torch.arange(len(targets), device=targets.device), targets] -= 1
                    grad_CV += own_CV.mul_(hard)
                bias_grad += grad_CV.sum(0)
                grad = grad_CV.to(dtype)
                features_grad[part] = product(grad, weight.t())
                weight_grad += grad.t() @ features
        ctx.save_for_backward(features_grad, weight_grad, bias_grad)
        ctx.mark_non_differentiable(soft_sum, hard_sum, right)
        return soft * soft_sum + hard * hard_sum, soft_sum, hard_sum, right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # Nobody else holds these, so they are scaled where they are.
        grads = tuple(grad.mul_(scale) for grad in ctx.saved_tensors)
        return (*grads, None, None, None, None, None)
