"""The rows of the word table that a run's texts have; the others stay as they are.

A table is half of a small model and more of a multilingual one, and most of its rows have no
gradient in a whole run: the norm, the optimiser and its state would go through them at every step
for nothing. What AdamW would do to them is decay them, towards words that mean nothing.

Legend: V vocabulary, U words that are used, H hidden, T tokens.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from enrobe.nn.heads import Model

# Of all words; where a run has more of them, a smaller part saves little.
_MOST = 0.8


def train_used_words(model: Model, used: npt.NDArray[np.int64]) -> None:
    """From now on the word table's parameter is that of the used words alone.

    In the model's state it is whole as before. Nothing is done where the table is frozen, where a
    masked-LM head reads all of it, or where nearly every word is used.

    Args:
        model: where it will be trained; it is not to be moved afterwards.
        used: ids that rows of the run have, each once.
    """
    table = model.embeddings["word"]
    assert isinstance(table, nn.Embedding)
    masked = any(head.kind == "mlm" for head in model.head_configs.values())
    if masked or not table.weight.requires_grad or len(used) > _MOST * len(table.weight):
        return
    model.embeddings.add_module("word", WordRows(table.weight.detach(), used))


class WordRows(nn.Module):
    """An embedding whose used rows come first in memory, and are its parameter."""

    def __init__(self, table_VH: Tensor, used_U: npt.NDArray[np.int64]) -> None:
        super().__init__()
        rest = np.setdiff1d(np.arange(len(table_VH)), used_U)
        order_V = torch.from_numpy(np.concatenate([used_U, rest])).to(table_VH.device)
        self.place_V: Tensor
        self.register_buffer("place_V", torch.argsort(order_V), persistent=False)
        self.table_VH: Tensor
        self.register_buffer("table_VH", table_VH[order_V], persistent=False)
        # The same memory: what moves one moves the other.
        self.weight = nn.Parameter(self.table_VH[: len(used_U)])

    def forward(self, ids_T: Tensor) -> Tensor:
        """Shapes: (T,) -> (T, H). With gradients, ids of used words alone."""
        rows_VH = self.weight if torch.is_grad_enabled() else self.table_VH
        return F.embedding(self.place_V[ids_T], rows_VH)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.table_VH[self.place_V]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *_: Any) -> None:
        with torch.no_grad():
            # A checkpoint is read to the host, and an assignment by places does not cross devices.
            whole_VH = state_dict[f"{prefix}weight"].to(self.table_VH)
            self.table_VH[self.place_V] = whole_VH
