"""Heads, and the model: one encoder that any number of named heads share.

    masked LM        Devlin et al. 2019, arXiv:1810.04805: dense, GELU, norm, word embeddings
    sequence         RoBERTa's: dropout, dense, tanh, dropout, out; BERT's has no first dropout (its
                     dense is the pooler), DistilBERT's neither, and relu for tanh
    token and span   dropout and one linear layer on every token

Legend: T tokens, B rows, H hidden, V vocabulary, M positions of masks, C outputs of a head,
P positions that a head reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from enrobe.config import EncoderConfig, HeadConfig
from enrobe.nn.attention import Ids
from enrobe.nn.dropout import Dropout
from enrobe.nn.encoder import Encoder, Named, initialise

if TYPE_CHECKING:
    from enrobe.checkpoint import Checkpoint


class MaskedLMHead(nn.Module):
    """Logits over the vocabulary; a tied head decodes with the word embeddings it is handed."""

    def __init__(self, config: EncoderConfig, head: HeadConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.dense = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden, config.layer_norm_eps)
        self.decoder = None if head.tied else nn.Linear(hidden, config.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def features(self, hidden_MH: Tensor) -> Tensor:
        """What the decoder multiplies. Shapes: (M, H) -> (M, H)."""
        features_MH: Tensor = self.norm(F.gelu(self.dense(hidden_MH)))
        return features_MH

    def weight(self, words_VH: Tensor) -> Tensor:
        """The decoder's matrix. Shapes: word embeddings (V, H) -> (V, H)."""
        return words_VH if self.decoder is None else self.decoder.weight

    def forward(self, hidden_MH: Tensor, words_VH: Tensor) -> Tensor:
        """Shapes: hidden (M, H), word embeddings (V, H) -> (M, V)."""
        return F.linear(self.features(hidden_MH), self.weight(words_VH), self.bias)


class SequenceHead(nn.Module):
    """One answer a row, from the vector of its first token."""

    def __init__(self, config: EncoderConfig, head: HeadConfig) -> None:
        super().__init__()
        self.input_dropout = Dropout(head.input_dropout)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = nn.Tanh() if head.activation == "tanh" else nn.ReLU()
        self.dropout = Dropout(head.dropout)
        self.out = nn.Linear(config.hidden_size, head.width)

    def forward(self, first_BH: Tensor) -> Tensor:
        """Shapes: first tokens (B, H) -> (B, C)."""
        inner_BH = self.activation(self.dense(self.input_dropout(first_BH)))
        out_BC: Tensor = self.out(self.dropout(inner_BH))
        return out_BC


class TokenHead(nn.Module):
    """One answer a token: tags, or the start and the end of an answer."""

    def __init__(self, config: EncoderConfig, head: HeadConfig) -> None:
        super().__init__()
        self.dropout = Dropout(head.dropout)
        self.out = nn.Linear(config.hidden_size, head.width)

    def forward(self, hidden_TH: Tensor) -> Tensor:
        """Shapes: hidden (T, H) -> (T, C)."""
        out_TC: Tensor = self.out(self.dropout(hidden_TH))
        return out_TC


def make_head(config: EncoderConfig, head: HeadConfig) -> nn.Module:
    """The module of a head, not yet initialised."""
    if head.kind == "mlm":
        return MaskedLMHead(config, head)
    return (SequenceHead if head.is_sequence else TokenHead)(config, head)


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What was asked for.

    Shapes: hidden[layer] (T, H); heads[name] (B, C) of a sequence head, (T, C) of a tag or answer
    head, (M, V) of a masked-LM head at the asked positions. All are logits.
    """

    hidden: Mapping[int, Tensor]
    heads: Mapping[str, Tensor]


class Model(Encoder):
    """An encoder with heads.

    The names and shapes of its state are those of `enrobe.checkpoint.shapes`. A pooler takes part
    in no output; it is held on request, so that a checkpoint's can be kept.
    """

    def __init__(
        self, config: EncoderConfig, heads: Mapping[str, HeadConfig], *, pooler: bool = False
    ) -> None:
        super().__init__(config)
        self.head_configs = dict(heads)
        if pooler:
            self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
            initialise(self.pooler, config)
        self.heads = Named({name: make_head(config, head) for name, head in heads.items()})
        initialise(self.heads, config)

    @classmethod
    def from_checkpoint(cls, checkpoint: "Checkpoint", *, pooler: bool = False) -> Self:
        """A model with a checkpoint's encoder, heads and values, copied.

        Raises:
            KeyError: a pooler is asked for that the checkpoint does not have.
        """
        # On the meta device nothing is drawn or allocated that the checkpoint would replace.
        with torch.device("meta"):
            model = cls(checkpoint.config, checkpoint.heads, pooler=pooler)
        # torch.tensor copies: a mapped file may be read-only, and training writes into weights.
        values = {name: torch.tensor(checkpoint.tensors[name]) for name in model.state_dict()}
        model.load_state_dict(values, assign=True)
        return model

    def forward(  # type: ignore[override]  # a model is asked for more than an encoder
        self,
        ids_T: Tensor,
        offsets: Ids,
        types_T: Tensor,
        *,
        layers: Sequence[int] = (),
        heads: Sequence[str] = (),
        at: Ids | None = None,
    ) -> Outputs:
        """Hidden states of the asked layers and logits of the asked heads; nothing else is run.

        Args:
            ids_T, offsets, types_T, layers: as in `Encoder.forward`.
            heads: names of heads.
            at: positions (M,) of the flat batch that a masked-LM head decodes, ascending, on the
                host; needed by one, ignored without.

        Shapes: ids and types (T,), offsets (B+1,) -> see `Outputs`.
        """
        last = self.config.num_layers
        reads = {name: self._reads(name, offsets, at) for name in heads}
        positions = [read for read in reads.values() if read is not None]
        picks = None
        if heads and last not in layers and len(positions) == len(reads):
            # Nobody reads the last layer elsewhere, so only its keys and values are run there.
            picks = np.unique(np.concatenate(positions))
        hidden = super().forward(
            ids_T, offsets, types_T, layers=(*layers, last) if heads else layers, at=picks
        )
        logits = {}
        for name, read in reads.items():
            read_PH = hidden[last]
            if read is not None:
                index = read if picks is None else np.searchsorted(picks, read)
                read_PH = read_PH.index_select(0, torch.tensor(index, device=ids_T.device))
            inputs = [read_PH]
            if self.head_configs[name].kind == "mlm":
                inputs.append(self.get_parameter("embeddings.word.weight"))
            logits[name] = self.heads[name](*inputs)
        return Outputs(hidden={layer: hidden[layer] for layer in layers}, heads=logits)

    def _reads(self, name: str, offsets: Ids, at: Ids | None) -> Ids | None:
        """Positions of the flat batch that a head reads; None: all of them."""
        head = self.head_configs[name]
        if head.kind == "mlm":
            assert at is not None and len(at) > 0
            return at
        return offsets[:-1] if head.is_sequence else None
