"""`enrobe.load` and the model that it returns: one method a job, each a thin line to its task."""

import os
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from enrobe import checkpoint, hub
from enrobe.config import EncoderConfig
from enrobe.engines.base import Engine
from enrobe.errors import CallError, MissingExtraError, TextError, nearest, show
from enrobe.tasks import fill as filling
from enrobe.tasks import score as scoring
from enrobe.tasks.masked import mask_head
from enrobe.tasks.results import Fill, Score
from enrobe.text.tokenizer import Tokenizer

EngineName = Literal["auto", "onnx", "torch"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]
Errors = Literal["raise", "collect"]

Result = TypeVar("Result")


class Model:
    """A loaded model. Its methods may be called from several threads.

    Every method takes a string or a sequence of strings and answers with one entry a text.
    `errors="raise"` (default) raises the first text's error; `"collect"` gives such a text a result
    whose `error` says what is wrong, and answers the others.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        """Put an engine and its tokenizer together; `enrobe.load` is the usual way."""
        self.engine = engine
        self.tokenizer = tokenizer

    @property
    def config(self) -> EncoderConfig:
        """The encoder's sizes."""
        return self.engine.config

    def fill(
        self,
        texts: str | Sequence[str],
        *,
        top_k: int = 5,
        targets: Sequence[str] | None = None,
        joint: bool = False,
        max_pieces: int = 1,
        special: bool = True,
        errors: Errors = "raise",
    ) -> list[Fill]:
        """Fill the masks of texts.

        Args:
            texts: each with one mask or more (`tokenizer.mask_token`).
            top_k: candidates a mask, best first; of equal ones, the lower id first.
            targets: score these words instead, each whole, in this order. Their `probability` is
                shared out among them; `log_probability` is over the whole vocabulary.
            joint: also fill all masks of a text together (`Fill.joint`), by a beam search whose
                score is the chain-rule product, the most confident mask filled first.
            max_pieces: whole words of one to this many pieces (at most 10; pieces that only
                continue a word are left out). A word of n pieces has the chain-rule probability
                that it has in place of n masks.
            special: False reads a literal `<mask>` or `</s>` as plain text.
            errors: "raise" or "collect".

        Raises:
            CallError: an argument is wrong.
            TextError: a text has no mask, or cannot be read (with errors="raise").
            ModelError: the model has no masked-LM head.
        """
        given = _texts(texts)
        options = filling.FillOptions(
            top_k=top_k,
            targets=None if targets is None else tuple(_texts(targets)),
            joint=joint,
            max_pieces=max_pieces,
            special=special,
        )
        mask_head(self.engine)
        found = filling.fill(self.engine, self.tokenizer, given, options)
        return _settle(given, found, errors, Fill.failed)

    def distribution(
        self, texts: str | Sequence[str], *, errors: Errors = "raise"
    ) -> list[npt.NDArray[np.float32]]:
        """The probability of every vocabulary entry at every mask.

        Shapes: for each text (M, V), M its masks, V the vocabulary; float32, each row sums to 1. A
        text with an error (errors="collect") has one row of NaN.

        Raises:
            CallError, TextError, ModelError: as `fill`.
        """
        given = _texts(texts)
        mask_head(self.engine)
        width = self.config.vocab_size
        found = filling.distribution(self.engine, self.tokenizer, given)
        return _settle(given, found, errors, lambda *_: np.full((1, width), np.nan, np.float32))

    def score(
        self,
        texts: str | Sequence[str],
        *,
        method: scoring.Method = "plain",
        errors: Errors = "raise",
    ) -> list[Score]:
        """Pseudo-log-likelihood of texts: natural log, summed over tokens, specials excluded.

        Args:
            texts: any length; special tokens in them are plain text.
            method: "plain" masks each token in turn (Salazar et al. 2020); "within_word" masks the
                later pieces of its word too (Kauf and Ivanova 2023).
            errors: "raise" or "collect".

        Raises:
            CallError: an argument is wrong.
            TextError: a text is empty or cannot be read (with errors="raise").
            ModelError: the model has no masked-LM head.
        """
        given = _texts(texts)
        mask_head(self.engine)
        found = scoring.score(self.engine, self.tokenizer, given, method)
        return _settle(given, found, errors, Score.failed)


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    engine: EngineName = "auto",
    precision: Precision = "auto",
    device: Device = "auto",
) -> Model:
    """Load a model.

    Args:
        model: a folder, or a hub id such as "FacebookAI/roberta-base"; None: $ENROBE_MODEL.
        engine: "auto" is onnx on a CPU, torch on a GPU.
        precision: "auto" is float32; the half precisions are for a GPU.
        device: "auto" is the CPU; "cuda" has to be asked for, since finding out costs the import of
            PyTorch.

    Raises:
        CallError: an argument is wrong, or two contradict each other.
        HubError: a hub id that cannot be fetched.
        ModelError: a folder that cannot be read.
        MissingExtraError: the torch engine without PyTorch.
    """
    for name, value, allowed in (
        ("engine", engine, get_args(EngineName)),
        ("precision", precision, get_args(Precision)),
        ("device", device, get_args(Device)),
    ):
        if value not in allowed:
            hint = nearest(str(value), allowed)
            raise CallError(f"{name} is {show(value)}; allowed: {', '.join(allowed)}{hint}")
    where = "cpu" if device == "auto" else device
    chosen = ("torch" if where == "cuda" else "onnx") if engine == "auto" else engine
    width = "float32" if precision == "auto" else precision
    if chosen == "onnx" and (where != "cpu" or width != "float32"):
        raise CallError(
            f"engine 'onnx' runs float32 on a CPU, not {width} on {where}; use engine='torch'"
        )
    read = checkpoint.read(hub.resolve(model))
    tokenizer = Tokenizer.from_folder(read.folder, read.config.family, read.config.vocab_size)
    return Model(_engine(read, chosen, width, where), tokenizer)


def _engine(read: checkpoint.Checkpoint, name: str, precision: str, device: str) -> Engine:
    if name == "onnx":
        from enrobe.engines.onnx import OnnxEngine

        return OnnxEngine(read)
    try:
        from enrobe.engines.torch import TorchEngine
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError("PyTorch", "train", "engine 'torch'") from None
    return TorchEngine(read, precision=precision, device=device)


def _texts(texts: str | Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, bytes | dict) or not hasattr(texts, "__iter__"):
        raise CallError(f"texts is {show(texts)}; allowed: a string or a sequence of strings")
    return list(texts)


def _settle(
    texts: Sequence[str],
    found: Sequence[Result | TextError],
    errors: Errors,
    failed: Callable[[str, TextError], Result],
) -> list[Result]:
    if errors not in get_args(Errors):
        raise CallError(f"errors is {show(errors)}; allowed: {', '.join(get_args(Errors))}")
    out: list[Result] = []
    for index, (text, item) in enumerate(zip(texts, found, strict=True)):
        if not isinstance(item, TextError):
            out.append(item)
        elif errors == "collect":
            out.append(failed(text, item))
        else:
            raise TextError(f"text {index}: {item}" if len(texts) > 1 else str(item))
    return out
