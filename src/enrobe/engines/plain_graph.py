"""The model as a plain ONNX graph: standard operators, padded rows, the names that others expect.

    input_ids, attention_mask (batch, sequence), token_type_ids where there are several types
    -> last_hidden_state (batch, sequence, hidden), sentence_embedding (batch, numbers) of a
       sentence-transformers folder, logits of a head; start_logits and end_logits of an answer head

Several heads are one graph: `NAME.logits` each. Places whose attention mask is 0 change nothing.

In int8 both sides of a product are written as Q/DQ: rounded to whole numbers by QuantizeLinear,
with a scale that was found beforehand, and back by DequantizeLinear. A runtime that knows the
pattern multiplies whole numbers; another one computes the same in float32.

Legend: B rows, S places of a row, H hidden, K inputs and N outputs of a matrix.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from enrobe.config import EncoderConfig, HeadConfig
from enrobe.engines.base import Array, Request
from enrobe.sentence_folder import Dense, PoolName, SentenceSettings
from enrobe.weights import Int8Rows

_OPSET = 17
_IR_VERSION = 9
_FAR = -1e9
# Added to the score of a place that is not there; exp of it is 0.


@dataclass(frozen=True, kw_only=True)
class Static:
    """What makes a graph int8: matrices, and the scale and the zero of what each multiplies.

    Of a table, which is not multiplied, there is no scale.
    """

    rows: Mapping[str, Int8Rows]
    inputs: Mapping[str, tuple[float, int]]


class _Graph:
    def __init__(
        self,
        config: EncoderConfig,
        tensors: Mapping[str, Array],
        *,
        half: bool,
        static: Static | None = None,
    ) -> None:
        self.config, self.half = config, half
        self._static = static or Static(rows={}, inputs={})
        self._rounded: dict[tuple[str, float, int, bytes], str] = {}
        self.at = False
        self.nodes: list[onnx.NodeProto] = []
        self.values: dict[str, onnx.TensorProto] = {}
        self._tensors = tensors

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        output = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def value(self, name: str, value: npt.ArrayLike, dtype: Any = np.int64) -> str:
        if name not in self.values:
            self.values[name] = numpy_helper.from_array(np.asarray(value, dtype), name)
        return name

    def weight(self, name: str, *, turned: bool = False) -> str:
        """A weight by its name; `turned` as a product takes it, and in half precision if so."""
        kept = f"{name}.T" if turned else name
        if kept not in self.values:
            array = np.asarray(self._tensors[name])
            dtype = np.float16 if self.half and turned else np.float32
            self.values[kept] = numpy_helper.from_array(
                np.ascontiguousarray(array.T if turned else array, dtype), kept
            )
        return kept

    def product(self, a: str, b: str) -> str:
        """Of two float32 values, or of one with a turned weight; back in float32."""
        if not self.half:
            return self.node("MatMul", a, b)
        sides = [x if x in self.values else self.cast(x, TensorProto.FLOAT16) for x in (a, b)]
        return self.cast(self.node("MatMul", *sides), TensorProto.FLOAT)

    def cast(self, x: str, to: int) -> str:
        return self.node("Cast", x, to=to)

    def linear(self, x: str, name: str, weight: str | None = None, bias: str | None = None) -> str:
        weight = weight or f"{name}.weight"
        if weight in self._static.inputs:
            out = self.int8_product(x, weight)
        else:
            out = self.product(x, self.weight(weight, turned=True))
        return self.node("Add", out, self.weight(bias or f"{name}.bias"))

    def int8_product(self, x: str, weight: str) -> str:
        rows, (scale, zero) = self._static.rows[weight], self._static.inputs[weight]
        smooth = b"" if rows.smooth is None else rows.smooth.tobytes()
        key = (x, scale, zero, smooth)
        if key not in self._rounded:
            if rows.smooth is not None:
                x = self.node("Mul", x, self.value(f"{weight}.smooth", rows.smooth, np.float32))
            how = (
                self.value(f"{weight}.input_scale", scale, np.float32),
                self.value(f"{weight}.input_zero", zero, np.uint8),
            )
            numbers = self.node("QuantizeLinear", x, *how)
            self._rounded[key] = self.node("DequantizeLinear", numbers, *how)
        turned = self.value(f"{weight}.T", np.ascontiguousarray(rows.values.T), np.int8)
        matrix = self.node("DequantizeLinear", turned, self.scale(weight), axis=1)
        return self.node("MatMul", self._rounded[key], matrix)

    def scale(self, weight: str) -> str:
        return self.value(f"{weight}.scale", self._static.rows[weight].scale, np.float32)

    def rows(self, table: str, ids: str) -> str:
        """Rows of an embedding table."""
        if table not in self._static.rows:
            return self.node("Gather", self.weight(table), ids)
        stored = self.value(table, self._static.rows[table].values, np.int8)
        found = self.cast(self.node("Gather", stored, ids), TensorProto.FLOAT)
        scale = self.node("Gather", self.scale(table), ids)
        return self.node("Mul", found, self.node("Unsqueeze", scale, self.value("last", [-1])))

    def norm(self, x: str, name: str) -> str:
        factors = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.node(
            "LayerNormalization", x, *factors, axis=-1, epsilon=self.config.layer_norm_eps
        )

    def gelu(self, x: str) -> str:
        root = self.value("root_of_half", np.sqrt(0.5), np.float32)
        erf = self.node("Erf", self.node("Mul", x, root))
        one, half = self.value("one", 1, np.float32), self.value("half", 0.5, np.float32)
        return self.node("Mul", self.node("Mul", x, self.node("Add", erf, one)), half)

    def embeddings(self) -> str:
        mask = "attention_mask"
        total = self.rows("embeddings.word.weight", "input_ids")
        if self.config.position_offset:
            # Padding stands at the padding's own position, as RoBERTa has it.
            counted = self.node("Mul", self.node("CumSum", mask, self.value("1", 1)), mask)
            places = self.node("Add", counted, self.value("pad", [self.config.position_offset - 1]))
        else:
            places = self._row_places()
        at = self.node("Gather", self.weight("embeddings.position.weight"), places)
        if self.config.type_vocab_size > 1:
            table = self.weight("embeddings.token_type.weight")
            total = self.node("Add", total, self.node("Gather", table, "token_type_ids"))
        elif self.config.type_vocab_size:
            only = self._tensors["embeddings.token_type.weight"][0]
            total = self.node("Add", total, self.value("token_type", only, np.float32))
        return self.norm(self.node("Add", total, at), "embeddings.norm")

    def _row_places(self) -> str:
        """0, 1, 2, ... for every row."""
        shape = self.node("Shape", "input_ids")
        count = self.node("Gather", shape, self.value("1", 1))
        return self.node("Range", self.value("0", 0), count, self.value("1", 1))

    def far(self) -> str:
        """What is added to scores (B, 1, 1, S)."""
        there = self.node("Unsqueeze", self.mask(), self.value("ahead", [1, 2]))
        away = self.node("Sub", self.value("one", 1, np.float32), there)
        return self.node("Mul", away, self.value("far", _FAR, np.float32))

    def mask(self) -> str:
        return self.cast("attention_mask", TensorProto.FLOAT)

    def layer(self, x: str, index: int, far: str) -> str:
        name, size = f"layers.{index}", self.config.head_size
        split = self.value("split", [0, 0, self.config.num_heads, size])

        def heads(part: str, order: list[int]) -> str:
            cut = self.node("Reshape", self.linear(x, f"{name}.{part}"), split)
            return self.node("Transpose", cut, perm=order)

        query, value = heads("query", [0, 2, 1, 3]), heads("value", [0, 2, 1, 3])
        scale = self.value("scale", 1 / np.sqrt(size), np.float32)
        scores = self.product(self.node("Mul", query, scale), heads("key", [0, 2, 3, 1]))
        weights = self.node("Softmax", self.node("Add", scores, far), axis=-1)
        mixed = self.node("Transpose", self.product(weights, value), perm=[0, 2, 1, 3])
        joined = self.value("join", [0, 0, self.config.hidden_size])
        mixed = self.linear(self.node("Reshape", mixed, joined), f"{name}.output")
        middle = self.norm(self.node("Add", mixed, x), f"{name}.attention_norm")
        wide = self.gelu(self.linear(middle, f"{name}.up"))
        return self.norm(
            self.node("Add", self.linear(wide, f"{name}.down"), middle), f"{name}.norm"
        )

    def first(self, x: str) -> str:
        """(B, S, H) -> (B, H): each row's first token, which is the first that is there."""
        return self.node("Gather", x, self.value("0", 0), axis=1)

    def picked(self, x: str, flat: str) -> str:
        """Asked places of the flattened block. Shapes: (B, S, H) -> (M, H)."""
        self.at = True
        return self.node("Gather", self.node("Reshape", x, flat), "at")

    def head(self, x: str, name: str, head: HeadConfig) -> str:
        path = f"heads.{name}"
        if head.kind == "mlm":
            x = self.norm(self.gelu(self.linear(x, f"{path}.dense")), f"{path}.norm")
            tied = "embeddings.word.weight" if head.tied else f"{path}.decoder.weight"
            return self.linear(x, path, tied, f"{path}.bias")
        if head.is_sequence:
            x = self.linear(self.first(x), f"{path}.dense")
            x = self.node("Tanh" if head.activation == "tanh" else "Relu", x)
        return self.linear(x, f"{path}.out")

    def embedding(self, x: str, settings: SentenceSettings) -> str:
        pooled = [self.pooled(x, pool) for pool in settings.pool]
        out = pooled[0] if len(pooled) == 1 else self.node("Concat", *pooled, axis=-1)
        for number, step in enumerate(settings.steps):
            out = self.dense(out, step, number) if isinstance(step, Dense) else self.unit(out)
        return out

    def pooled(self, x: str, pool: PoolName) -> str:
        if pool == "cls":
            return self.first(x)
        last, middle = self.value("last", [-1]), self.value("middle", [1])
        there = self.node("Unsqueeze", self.mask(), last)
        if pool == "max":
            zero = self.value("zero", 0, np.float32)
            inside = self.node("Greater", there, zero)
            lowest = self.value("lowest", np.finfo(np.float32).min, np.float32)
            return self.node(
                "ReduceMax", self.node("Where", inside, x, lowest), axes=[1], keepdims=0
            )
        total = self.node("ReduceSum", self.node("Mul", x, there), middle, keepdims=0)
        count = self.node("ReduceSum", there, middle, keepdims=0)
        count = self.node("Max", count, self.value("one", 1, np.float32))
        return self.node("Div", total, self.node("Sqrt", count) if pool != "mean" else count)

    def dense(self, x: str, step: Dense, number: int) -> str:
        x = self.node("MatMul", x, self.value(f"dense.{number}", step.weight.T, np.float32))
        if step.bias is not None:
            x = self.node("Add", x, self.value(f"dense.{number}.bias", step.bias, np.float32))
        return x if step.activation == "Identity" else self.node(_ACTIVATIONS[step.activation], x)

    def unit(self, x: str) -> str:
        length = self.node("ReduceL2", x, axes=[-1], keepdims=1)
        return self.node("Div", x, self.node("Max", length, self.value("least", 1e-12, np.float32)))


_ACTIVATIONS = {"Tanh": "Tanh", "ReLU": "Relu", "Sigmoid": "Sigmoid"}


def build_request(
    config: EncoderConfig,
    heads: Mapping[str, HeadConfig],
    tensors: Mapping[str, Array],
    request: Request,
) -> onnx.ModelProto:
    """The graph for a request of an engine, on padded rows.

    Outputs are `hidden.N` (B, S, H), of a picked last layer (M, H), and `heads.NAME` (B, C),
    (B, S, C), or (M, V) of a masked-LM head. What is asked at positions takes one more input: `at`
    (M,), places of the flattened block.
    """
    graph = _Graph(config, tensors, half=False)
    far = graph.far()
    states = [graph.embeddings()]
    depth = config.num_layers if request.heads else max(request.layers)
    for index in range(depth):
        states.append(graph.layer(states[-1], index, far))
    flat = graph.value("flat", [-1, config.hidden_size])
    results = {}
    for layer in request.layers:
        picked = request.picked and layer == config.num_layers
        x = states[layer]
        results[f"hidden.{layer}"] = graph.picked(x, flat) if picked else x
    for name in request.heads:
        mlm = heads[name].kind == "mlm"
        x = graph.picked(states[-1], flat) if mlm else states[-1]
        results[f"heads.{name}"] = graph.head(x, name, heads[name])
    return _model(graph, {name: (value, None) for name, value in results.items()})


def build_plain(
    config: EncoderConfig,
    heads: Mapping[str, HeadConfig],
    tensors: Mapping[str, Array],
    sentence: SentenceSettings | None = None,
    *,
    half: bool = False,
    static: Static | None = None,
) -> onnx.ModelProto:
    """The graph, with its weights in it.

    Args:
        config, heads, tensors: of a checkpoint.
        sentence: what a sentence-transformers folder says; None: it is none.
        half: matrices, and products, in float16; all else stays float32. Types are all explicit.
        static: the matrices that are int8.
    """
    graph = _Graph(config, tensors, half=half, static=static)
    x, far = graph.embeddings(), graph.far()
    for index in range(config.num_layers):
        x = graph.layer(x, index, far)
    results: dict[str, tuple[str, list[str | int]]] = {}
    if sentence is not None or not heads:
        results["last_hidden_state"] = (x, ["batch", "sequence", config.hidden_size])
    if sentence is not None:
        results["sentence_embedding"] = (graph.embedding(x, sentence), ["batch", "numbers"])
    for name, head in heads.items():
        prefix = f"{name}." if len(heads) > 1 else ""
        out = graph.head(x, name, head)
        if head.kind == "answer":
            for i, end in enumerate(("start", "end")):
                column = graph.node("Gather", out, graph.value(str(i), i), axis=-1)
                results[f"{prefix}{end}_logits"] = (column, ["batch", "sequence"])
            continue
        width = head.width or config.vocab_size
        shape: list[str | int] = (
            ["batch", width] if head.is_sequence else ["batch", "sequence", width]
        )
        results[f"{prefix}logits"] = (out, shape)
    return _model(graph, results)


def _model(
    graph: _Graph, results: Mapping[str, tuple[str, list[str | int] | None]]
) -> onnx.ModelProto:
    for name, (value, _) in results.items():
        graph.nodes.append(helper.make_node("Identity", [value], [name]))
    names = ["input_ids", "attention_mask"]
    names += ["token_type_ids"] if graph.config.type_vocab_size > 1 else []
    shapes = {name: ["batch", "sequence"] for name in names} | ({"at": ["M"]} if graph.at else {})
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, shape)
        for name, shape in shapes.items()
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, (_, shape) in results.items()
    ]
    body = helper.make_graph(graph.nodes, "enrobe", inputs, outputs, [*graph.values.values()])
    opsets = [helper.make_opsetid("", _OPSET)]
    return helper.make_model(
        body, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="enrobe"
    )
