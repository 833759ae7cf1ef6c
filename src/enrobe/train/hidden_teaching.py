"""A teacher that is run in every step, for its hidden states.

They are not kept: a row's are (layers x tokens x hidden) numbers, a thousand times its answers.

Legend: T tokens, H hidden.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from enrobe.nn.attention import Ids
from enrobe.nn.encoder import Encoder, initialise
from enrobe.nn.heads import Model
from enrobe.train.distil_losses import HiddenStates
from enrobe.train.distil_recipe import HiddenTable
from enrobe.train.state import save_arrays
from enrobe.train.student import layer_pairs

PROJECTIONS = "projections.safetensors"
"""A file in a checkpoint's model folder that is no part of the model."""
_NAME = "projections"


class HiddenTeaching:
    """The loss on hidden states; its projections are learned with the student.

    Raises:
        CallError: layers that one of the two has not.
    """

    def __init__(self, student: Model, teacher: Model, table: HiddenTable) -> None:
        """Give a student what it needs to be compared; a weight of 0 leaves it as it is."""
        self._student, self._teacher, self.weight = student, teacher, table.hidden
        own, theirs = student.config, teacher.config
        pairs = layer_pairs(table.hidden_layers, own.num_layers, theirs.num_layers)
        self._states = HiddenStates(
            pairs, widths=(own.hidden_size, theirs.hidden_size), distance=table.hidden_distance
        )
        initialise(self._states, own)
        self._learned = bool(table.hidden and [*self._states.parameters()])
        if self._learned:
            student.add_module(_NAME, self._states)

    @property
    def layers(self) -> tuple[int, ...]:
        """The student's layers that are compared; none where the loss has no weight."""
        return self._states.layers if self.weight else ()

    def __call__(
        self, hidden: Mapping[int, Tensor], ids_T: Tensor, offsets: Ids, types_T: Tensor
    ) -> Tensor:
        """Summed over tokens, not yet weighted. Shapes: hidden (T, H) a layer -> ()."""
        with torch.no_grad():
            told = Encoder.forward(
                self._teacher, ids_T, offsets, types_T, layers=self._states.teacher_layers
            )
        loss: Tensor = self._states(hidden, told)
        return loss

    def write(self, folder: Path) -> None:
        """Put the projections beside a checkpoint's model."""
        if self._learned:
            arrays = {n: x.detach().cpu().numpy() for n, x in self._states.state_dict().items()}
            save_arrays(folder / PROJECTIONS, arrays)

    @contextmanager
    def reading(self, folder: Path) -> Iterator[None]:
        """While a model is read from a checkpoint, whose folder has no name for the projections."""
        if not self._learned:
            yield
            return
        del self._student._modules[_NAME]
        try:
            yield
        finally:
            self._student.add_module(_NAME, self._states)
        self._states.load_state_dict(safetensors.torch.load_file(folder / PROJECTIONS))
