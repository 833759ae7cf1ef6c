"""The masked-LM loss, without the logits ever standing in memory at once.

Legend: T tokens, M masked positions, H hidden, V vocabulary, C positions of one chunk.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from enrobe.nn.attention import Ids
from enrobe.nn.encoder import Encoder
from enrobe.nn.heads import MaskedLMHead, Model
from enrobe.nn.products import product

# Logits that stand in memory at once: 128 MB of float32.
_CHUNK = 2**25


def masked_lm_loss(
    model: Model,
    head: str,
    ids_T: Tensor,
    offsets: Ids,
    types_T: Tensor,
    at: Ids,
    targets_M: Tensor,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy (nats) at the masked positions, summed, and how many the model gets right.

    Only there are the last layer and the head run. Divide by the global count of targets.

    Args:
        model: an encoder with a masked-LM head of this name.
        ids_T, offsets, types_T: a batch as `Encoder.forward` takes it.
        at: masked positions of the flat batch (M,), ascending, on the host.
        targets_M: the ids that stood there (M,).

    Shapes: -> (), ().
    """
    if not len(at):
        # Rows of unknown words alone have nothing to predict.
        nothing = torch.zeros((), device=ids_T.device, requires_grad=torch.is_grad_enabled())
        return nothing, nothing.detach()
    last = model.config.num_layers
    hidden_MH = Encoder.forward(model, ids_T, offsets, types_T, layers=(last,), at=at)[last]
    module = model.heads[head]
    assert isinstance(module, MaskedLMHead)
    weight_VH = module.weight(model.get_parameter("embeddings.word.weight"))
    bias_V: Tensor = module.bias
    if not torch.is_grad_enabled():
        # Inside, a parameter would still say that it needs a gradient.
        weight_VH, bias_V = weight_VH.detach(), bias_V.detach()
    loss, right = _DecoderLoss.apply(  # type: ignore[no-untyped-call]
        module.features(hidden_MH), weight_VH, bias_V, targets_M
    )
    return loss, right


def chunk_size(vocabulary: int) -> int:
    """Positions whose logits stand in memory at once."""
    return max(1, _CHUNK // vocabulary)


class _DecoderLoss(Function):
    """Decoder and summed cross-entropy in one, chunk after chunk of positions.

    The gradient of a chunk's logits, softmax - one_hot(target), is known as soon as they are, so
    both gradients are taken at once and no logits are kept or computed again.
    """

    @staticmethod
    def forward(
        ctx: Any, features_MH: Tensor, weight_VH: Tensor, bias_V: Tensor, targets_M: Tensor
    ) -> tuple[Tensor, Tensor]:
        training = any(ctx.needs_input_grad)
        # Under autocast both come as bfloat16; sums are kept in float32 all the same.
        half = torch.is_autocast_enabled(features_MH.device.type)
        dtype = torch.get_autocast_dtype(features_MH.device.type) if half else features_MH.dtype
        weight = weight_VH.to(dtype)
        features_grad = torch.empty_like(features_MH) if training else None
        weight_grad = torch.zeros_like(weight_VH) if training else None
        bias_grad = torch.zeros_like(bias_V) if training else None
        loss = torch.zeros((), device=features_MH.device)
        right = torch.zeros((), device=features_MH.device)
        size = chunk_size(len(weight_VH))
        with torch.autocast(features_MH.device.type, enabled=False):
            for start in range(0, len(features_MH), size):
                features = features_MH[start : start + size].to(dtype)
                targets = targets_M[start : start + size]
                logits_CV = product(features, weight).float().add_(bias_V)
                right += (logits_CV.argmax(1) == targets).sum()
                # Log-probabilities, in place of the logits.
                logits_CV -= torch.logsumexp(logits_CV, 1, keepdim=True)
                loss -= logits_CV.gather(1, targets[:, None]).sum()
                if features_grad is None or weight_grad is None or bias_grad is None:
                    continue
                grad_CV = logits_CV.exp_()
                grad_CV[torch.arange(len(targets), device=targets.device), targets] -= 1
                bias_grad += grad_CV.sum(0)
                grad = grad_CV.to(dtype)
                features_grad[start : start + size] = product(grad, weight.t())
                if dtype == weight_grad.dtype:
                    weight_grad.addmm_(grad.t(), features)
                else:
                    weight_grad += grad.t() @ features
        if training:
            ctx.save_for_backward(features_grad, weight_grad, bias_grad)
        ctx.mark_non_differentiable(right)
        return loss, right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # Nobody else holds these, so they are scaled where they are.
        grads = tuple(grad.mul_(scale) for grad in ctx.saved_tensors)
        return (*grads, None)
