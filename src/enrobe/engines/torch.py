"""PyTorch: the default engine on a GPU, and exact in float32 on a CPU.

Legend: see `engines.base`.
"""

from collections.abc import Mapping
from typing import Self

import torch

from enrobe.checkpoint import Checkpoint
from enrobe.config import EncoderConfig, HeadConfig
from enrobe.engines.base import BUDGET, Array, Outputs, Request, check
from enrobe.errors import CallError, show
from enrobe.nn.encoder import Encoder
from enrobe.nn.heads import Model
from enrobe.text.ragged import Ids, Ragged

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DEVICES = ("cpu", "cuda")


class TorchEngine:
    """Runs a checkpoint through PyTorch; answers are float32 whatever it computes in.

    Raises:
        CallError: a device or a precision that is unknown, not present, or of no use together.
    """

    name = "torch"
    precision: str
    budget = BUDGET
    device: str
    config: EncoderConfig
    heads: Mapping[str, HeadConfig]

    def __init__(
        self, checkpoint: Checkpoint, *, precision: str = "float32", device: str = "cpu"
    ) -> None:
        """Copy a checkpoint's weights to a device.

        Args:
            checkpoint: a folder that was read.
            precision: "float32", or on a GPU "bfloat16" or "float16".
            device: "cpu" or "cuda".
        """
        _check_place(precision, device)
        self.precision = precision
        self.device = device
        self.config = checkpoint.config
        self.heads = checkpoint.heads
        model = Model.from_checkpoint(checkpoint).eval().requires_grad_(False)
        self._model = model.to(device=device, dtype=_PRECISIONS[precision])

    @classmethod
    def around(cls, model: Model) -> Self:
        """An engine that runs a live model as it is, where it is: to measure it between two steps.

        Whoever trains it puts it into eval mode, and under autocast where that is wanted.
        """
        engine = cls.__new__(cls)
        parameter = next(model.parameters())
        engine.precision = str(parameter.dtype).removeprefix("torch.")
        engine.device = parameter.device.type
        engine.config = model.config
        engine.heads = model.head_configs
        engine._model = model
        return engine

    @torch.inference_mode()
    def run(self, batch: Ragged, request: Request, at: Ids | None = None) -> Outputs:
        """See `engines.base.Engine.run`."""
        check(batch, request, at, self)
        # torch.tensor copies: a caller's arrays may be read-only.
        ids = torch.tensor(batch.ids, device=self.device)
        types = torch.tensor(batch.types, device=self.device)
        if request.picked:
            # The encoder alone: no head says where the last layer is read.
            hidden = Encoder.forward(
                self._model, ids, batch.offsets, types, layers=request.layers, at=at
            )
            return Outputs(hidden={layer: _array(value) for layer, value in hidden.items()})
        answers = self._model(
            ids, batch.offsets, types, layers=request.layers, heads=request.heads, at=at
        )
        return Outputs(
            hidden={layer: _array(value) for layer, value in answers.hidden.items()},
            heads={name: _array(value) for name, value in answers.heads.items()},
        )


def _array(value: torch.Tensor) -> Array:
    array: Array = value.float().cpu().numpy()
    return array


def _check_place(precision: str, device: str) -> None:
    if precision not in _PRECISIONS:
        raise CallError(
            f"precision {show(precision)} of the torch engine; allowed: {', '.join(_PRECISIONS)}"
        )
    if device not in _DEVICES:
        raise CallError(f"device {show(device)}; allowed: {', '.join(_DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise CallError(
            f"device 'cuda', and PyTorch {torch.__version__} finds no CUDA device; allowed here: "
            "cpu; fix: device='cpu', or install a driver and a CUDA build of PyTorch"
        )
    if device == "cpu" and precision != "float32":
        raise CallError(
            f"precision {show(precision)} with device 'cpu', where it is 20 to 50 times slower; "
            "allowed there: float32; fix: precision='float32' or device='cuda'"
        )
