"""`enrobe.load` and the model that it returns: one method a job, each a thin line to its task."""

import os
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from enrobe import checkpoint, hub
from enrobe.config import EncoderConfig
from enrobe.engines.base import Engine
from enrobe.errors import CallError, MissingExtraError, TextError, nearest, show
from enrobe.sentence_folder import PoolName, SentenceSettings, read_sentence_settings
from enrobe.tasks import embed as embedding
from enrobe.tasks import fill as filling
from enrobe.tasks import hidden
from enrobe.tasks import score as scoring
from enrobe.tasks.calls import Errors as Errors
from enrobe.tasks.calls import as_matrix, as_spans, as_texts, check_errors, raise_error, settle
from enrobe.tasks.masked import mask_head
from enrobe.tasks.model_heads import HeadMethods
from enrobe.tasks.parts import Long
from enrobe.tasks.pooling import similarity
from enrobe.tasks.results import Fill, Score, TokenVectors
from enrobe.text.tokenizer import Tokenizer

EngineName = Literal["auto", "onnx", "torch", "openvino", "native"]
Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]
Device = Literal["auto", "cpu", "cuda"]

Array = npt.NDArray[np.float32]


class Model(HeadMethods):
    """A loaded model. Its methods may be called from several threads.

    Every method takes a string or a sequence of strings and answers with one entry a text.
    `errors="raise"` (default) raises the first text's error; `"collect"` gives such a text a result
    whose `error` says what is wrong, and answers the others.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, folder: Path | None = None) -> None:
        """Put an engine and its tokenizer together; `enrobe.load` is the usual way.

        folder: where sentence-transformers' files may stand; None: there are none.
        """
        self.engine = engine
        self.tokenizer = tokenizer
        self._folder = folder

    @property
    def config(self) -> EncoderConfig:
        """The encoder's sizes."""
        return self.engine.config

    @cached_property
    def sentence(self) -> SentenceSettings:
        """What the folder says of its vectors: pooling, normalisation, prompts, length.

        Raises:
            ModelError: its sentence-transformers files are damaged or ask for what is not known.
        """
        return SentenceSettings() if self._folder is None else read_sentence_settings(self._folder)

    @cached_property
    def _sentence_tokenizer(self) -> Tokenizer:
        return self.tokenizer.lower_cased() if self.sentence.lower_case else self.tokenizer

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
        given = as_texts(texts)
        options = filling.FillOptions(
            top_k=top_k,
            targets=None if targets is None else tuple(as_texts(targets)),
            joint=joint,
            max_pieces=max_pieces,
            special=special,
        )
        mask_head(self.engine)
        found = filling.fill(self.engine, self.tokenizer, given, options)
        return settle(given, found, errors, Fill.failed)

    def distribution(
        self, texts: str | Sequence[str], *, errors: Errors = "raise"
    ) -> list[npt.NDArray[np.float32]]:
        """The probability of every vocabulary entry at every mask.

        Shapes: for each text (M, V), M its masks, V the vocabulary; float32, each row sums to 1. A
        text with an error (errors="collect") has one row of NaN.

        Raises:
            CallError, TextError, ModelError: as `fill`.
        """
        given = as_texts(texts)
        mask_head(self.engine)
        width = self.config.vocab_size
        found = filling.distribution(self.engine, self.tokenizer, given)
        return settle(given, found, errors, lambda *_: np.full((1, width), np.nan, np.float32))

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
        given = as_texts(texts)
        mask_head(self.engine)
        found = scoring.score(self.engine, self.tokenizer, given, method)
        return settle(given, found, errors, Score.failed)

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        pool: PoolName | Sequence[PoolName] | None = None,
        layers: int | Sequence[int] | None = None,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        prompt: str | None = None,
        long: Long = "window",
        special: bool = True,
        errors: Errors = "raise",
    ) -> Array:
        """One vector a text.

        None means what the folder says: a sentence-transformers folder names its pooling, layers
        after it, normalisation, prompts and length, and its vectors come out. Any other folder:
        the mean over all tokens, special ones included, of the last layer, not normalised.

        Args:
            texts: each of any length; an empty one is the row of special tokens alone.
            pool: "cls" (the first token), "mean", "max", "mean_sqrt_len" (the sum over the square
                root of the count), or several, laid side by side. A pool that is given leaves out
                the folder's Dense layers, which were trained on its own.
            layers: averaged before pooling: 0 is the embeddings, -1 the last layer.
            normalize: to length 1, after a cut; a vector of zeros stays.
            truncate_dim: keep this many leading numbers (for models trained for that).
            prompt: a name among the folder's prompts (`sentence.prompts`), or a literal prefix,
                which ends with a space or a sign ("query: "): what ends with a letter or digit and
                is no name is an error, never glued to the text. "" is none, whatever the default.
            long: what is longer than the folder's length, else the model's: "window" reads it in
                windows that share half of their tokens. Each token counts once, from the window
                that has it nearest its middle; the special tokens, once each; a prompt stands
                before each window and counts once. For cls the windows' first vectors are
                averaged by the tokens that count from each. "truncate" cuts as
                sentence-transformers does; "refuse" is a TextError.
            special: False reads a literal `</s>` in a text as plain text.
            errors: "raise", or "collect": NaN for a text with an error.

        Shapes: (N, D), float32.

        Raises:
            CallError: an argument is wrong.
            TextError: a text cannot be read, or is refused (with errors="raise").
            ModelError: the folder's sentence-transformers files cannot be used.
        """
        given = as_texts(texts)
        options = embedding.EmbedOptions(
            pool=pool,
            layers=layers,
            normalize=normalize,
            truncate_dim=truncate_dim,
            prompt=prompt,
            long=long,
            special=special,
        )
        check_errors(errors)
        vectors, failed = self.try_embed(given, options)
        if failed and errors == "raise":
            raise_error(min(failed), failed[min(failed)], len(given))
        return vectors

    def try_embed(
        self, texts: Sequence[str], options: embedding.EmbedOptions
    ) -> tuple[Array, dict[int, TextError]]:
        """`embed` with each error beside its text's number; the rows of these are NaN."""
        return embedding.embed(self.engine, self._sentence_tokenizer, self.sentence, texts, options)

    def embed_spans(
        self,
        texts: str | Sequence[str],
        spans: Sequence[tuple[int, int]] | Sequence[Sequence[tuple[int, int]]],
        *,
        pool: PoolName | Sequence[PoolName] | None = None,
        layers: int | Sequence[int] | None = None,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        prompt: str | None = None,
        long: Long = "window",
        special: bool = True,
        errors: Errors = "raise",
    ) -> list[Array]:
        """One vector for each of given spans of each text, read in its context: late chunking.

        The whole text goes through the encoder (in windows where it is long), and then the tokens
        that share a character with a span are pooled; special tokens are in no span.

        Args:
            texts: each of any length.
            spans: of each text, (start, end) in characters; of a single string, its own pairs.
                They may overlap and leave gaps.
            pool: as in `embed`, without "cls".
            layers, normalize, truncate_dim, prompt, long, special, errors: as in `embed`; the
                prompt is context, and in no span.

        Shapes: for each text (S, D), float32; NaN for a text with an error (errors="collect").

        Raises:
            CallError: an argument is wrong, or the folder pools by cls and no pool is given.
            TextError: as `embed`; a span is outside its text, or has no token.
            ModelError: as `embed`.
        """
        given = as_texts(texts)
        wanted = as_spans([spans] if isinstance(texts, str) else spans)
        options = embedding.EmbedOptions(
            pool=pool,
            layers=layers,
            normalize=normalize,
            truncate_dim=truncate_dim,
            prompt=prompt,
            long=long,
            special=special,
        )
        found, width = embedding.embed_spans(
            self.engine, self._sentence_tokenizer, self.sentence, given, wanted, options
        )
        counts = iter(
            [len(w) for w, f in zip(wanted, found, strict=True) if isinstance(f, TextError)]
        )
        return settle(
            given, found, errors, lambda *_: np.full((next(counts), width), np.nan, np.float32)
        )

    def hidden_states(
        self, texts: str | Sequence[str], *, special: bool = True, errors: Errors = "raise"
    ) -> list[Array]:
        """The hidden states of every layer at every token.

        Shapes: for each text (L+1, T, H), float32; row 0 the embeddings, row L the last layer; T
        counts the special tokens at either end. A text with an error (errors="collect") has one
        token of NaN.

        Args:
            texts: each at most as long as the model (`config.max_tokens`), and a TextError beyond,
                since a token has other states in other windows; `tokens` reads long texts.
            special: False reads a literal `</s>` in a text as plain text.
            errors: "raise" or "collect".

        Raises:
            CallError, TextError: as `embed`.
        """
        given = as_texts(texts)
        found = hidden.hidden_states(self.engine, self.tokenizer, given, special=special)
        shape = (self.config.num_layers + 1, 1, self.config.hidden_size)
        return settle(given, found, errors, lambda *_: np.full(shape, np.nan, np.float32))

    def tokens(
        self,
        texts: str | Sequence[str],
        *,
        layers: int | Sequence[int] = (-1,),
        words: bool = False,
        long: Long = "window",
        special: bool = True,
        errors: Errors = "raise",
    ) -> list[TokenVectors]:
        """A vector for each token of a text, or for each word, with its place in the text.

        Args:
            texts: each of any length; an empty one has no tokens.
            layers: averaged; counted as in `embed`.
            words: the mean over each word's tokens instead. Words are what the vocabulary joins
                pieces to: signs are words of their own in BERT's and RoBERTa's, parts of one in
                XLM-R's.
            long: as in `embed`, with the model's length; a token has its vector from the window
                that has it nearest its middle.
            special: False reads a literal `<mask>` in a text as plain text.
            errors: "raise" or "collect".

        Raises:
            CallError, TextError: as `embed`.
        """
        given = as_texts(texts)
        chosen = embedding.check_layers(layers, self.config.num_layers)
        embedding.check_long(long)
        found = hidden.token_vectors(
            self.engine,
            self.tokenizer,
            given,
            layers=chosen,
            words=words,
            long=long,
            special=special,
        )
        return settle(given, found, errors, TokenVectors.failed)

    def similarity(self, a: str | Sequence[str] | Array, b: str | Sequence[str] | Array) -> Array:
        """How alike each of a is to each of b: cosine, or what the folder names.

        Args:
            a, b: texts, which are embedded as `embed` does by itself, or arrays (N, D), (M, D). A
                folder may name "dot", "euclidean" or "manhattan"; a distance counts as its
                negative.

        Shapes: (N, M), float32.

        Raises:
            CallError, TextError, ModelError: as `embed`; arrays that do not fit each other.
        """
        left, right = (as_matrix(x, self.embed) for x in (a, b))
        if left.shape[1] != right.shape[1]:
            raise CallError(f"a has vectors of {left.shape[1]} numbers and b of {right.shape[1]}")
        return similarity(left, right, self.sentence.similarity)


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    engine: EngineName = "auto",
    precision: Precision = "auto",
    device: Device = "auto",
) -> Model:
    """Load a model.

    Args:
        model: a folder, a built-in name, or a hub id such as "FacebookAI/roberta-base"; None:
            $ENROBE_MODEL, else the built-in model.
        engine: "auto" is torch on a GPU; on a CPU native where it is installed and the quickest
            (int8 with AMX, VNNI or Arm's dot product; float32 with AMX), else onnx.
        precision: "auto" is int8 for a folder that `enrobe.quantize` made for it, on a CPU, else
            float32; the half precisions are for a GPU.
        device: "auto" is the CPU; "cuda" has to be asked for, since finding out costs the import of
            PyTorch.

    Raises:
        CallError: an argument is wrong, or two contradict each other.
        HubError: a hub id that cannot be fetched.
        ModelError: a folder that cannot be read.
        MissingExtraError: the torch engine without PyTorch, openvino without OpenVINO, native
            without enrobe-native.
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
    read = checkpoint.read(hub.resolve(model))
    chosen, width = chosen_engine(read, engine, precision, where)
    if chosen in ("onnx", "native") and (where != "cpu" or width not in ("float32", "int8")):
        raise CallError(
            f"engine {show(chosen)} runs float32 or int8 on a CPU, not {width} on {where}; "
            "use engine='torch'"
        )
    if chosen == "openvino" and (where != "cpu" or width != "float32"):
        raise CallError(f"engine 'openvino' runs float32 on a CPU, not {width} on {where}")
    if width == "int8" and not read.int8:
        raise CallError(
            f"precision 'int8', and {read.folder} holds no int8 matrices; "
            "fix: enrobe quantize MODEL --output DIR, which says what that costs"
        )
    tokenizer = Tokenizer.from_folder(read.folder, read.config.family, read.config.vocab_size)
    return Model(_engine(read, chosen, width, where), tokenizer, read.folder)


def chosen_engine(
    read: checkpoint.Checkpoint,
    engine: EngineName = "auto",
    precision: Precision = "auto",
    device: str = "cpu",
) -> tuple[str, str]:
    """The engine and the precision that "auto" stands for."""
    if precision != "auto":
        width: str = precision
    else:
        at_home = device == "cpu" and engine in ("auto", "onnx", "native")
        width = "int8" if at_home and read.computes_int8 else "float32"
    if engine != "auto":
        return engine, width
    if device == "cuda":
        return "torch", width
    return ("native" if _native_is_quickest(width) else "onnx"), width


def _native_is_quickest(precision: str) -> bool:
    if not find_spec("enrobe_native"):
        return False
    import enrobe_native

    kernels = enrobe_native.kernels()[0]
    # Products of bytes want an instruction for them, and float32 wants wide registers.
    quickest = {"int8": ("amx", "avx512", "avx_vnni", "arm"), "float32": ("amx", "avx512")}
    return kernels in quickest.get(precision, ())


def _engine(read: checkpoint.Checkpoint, name: str, precision: str, device: str) -> Engine:
    if name == "onnx":
        from enrobe.engines.onnx import OnnxEngine

        return OnnxEngine(read, precision=precision)
    if name == "native":
        try:
            from enrobe.engines.native import NativeEngine
        except ModuleNotFoundError as error:
            if error.name != "enrobe_native":
                raise
            raise MissingExtraError("enrobe-native", "native", "engine 'native'") from None
        return NativeEngine(read, precision=precision)
    if name == "openvino":
        try:
            from enrobe.engines.openvino import OpenvinoEngine
        except ModuleNotFoundError as error:
            if error.name != "openvino":
                raise
            raise MissingExtraError("OpenVINO", "openvino", "engine 'openvino'") from None
        return OpenvinoEngine(read)
    try:
        from enrobe.engines.torch import TorchEngine
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError("PyTorch", "train", "engine 'torch'") from None
    return TorchEngine(read, precision=precision, device=device)
