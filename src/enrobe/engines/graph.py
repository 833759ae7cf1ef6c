"""The encoder and its heads as an ONNX graph, built node by node from a configuration.

Linear layers, norms and activations work on flat tokens; only inside attention are rows gathered
into a padded block and back. The graph holds what a request asks for and nothing else, and names
its weights without holding them: the session gets them by name.

A matrix that is given as int8 is multiplied as int8: each row of its input gets a scale of its own
and becomes whole numbers of 0 to 255, so that the sums are exact, and no row knows of another
(docs/small.md has the formula).

Legend: T tokens, B rows, S longest row, H hidden, V vocabulary, M asked positions, P picked
positions (those that the last layer has to be computed at), Q most picks of one row.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from enrobe.config import EncoderConfig, HeadConfig
from enrobe.engines.base import Request, picks

# The fused attention operator of ONNX Runtime.
_CONTRIB = "com.microsoft"
_OPSET = 20
_IR_VERSION = 9
# What stands for 0 in uint8, unless a matrix says otherwise of its inputs.
_ZERO = 128

_INPUTS: dict[str, tuple[int, list[str]]] = {
    "ids": (TensorProto.INT64, ["T"]),
    "positions": (TensorProto.INT64, ["T"]),
    "types": (TensorProto.INT64, ["T"]),
    "lengths": (TensorProto.INT32, ["B"]),
    "cells": (TensorProto.INT64, ["B", "S"]),
    "tokens": (TensorProto.INT64, ["T"]),
    "picks": (TensorProto.INT64, ["P"]),
    "pick_cells": (TensorProto.INT64, ["B", "Q"]),
    "pick_tokens": (TensorProto.INT64, ["P"]),
    "at": (TensorProto.INT64, ["M"]),
    "firsts": (TensorProto.INT64, ["B"]),
}
"""What the graph may take; the engine feeds those that the built graph has.

cells[b, s] is the flat token of row b's s-th place (any token beyond the row's end); tokens[t] is
the place of token t in the flattened block. The pick_ inputs say the same of the picked positions.
"""


class _Builder:
    """Collects nodes; `linear` and its kin return the name of their output."""

    def __init__(self, config: EncoderConfig, parameters: Mapping[str, npt.NDArray[Any]]) -> None:
        self.config = config
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, None] = {}
        self.constants: dict[str, npt.NDArray[Any]] = {}
        self.used: dict[str, None] = {}
        self.multiplied: dict[str, str] = {}
        # the inputs of each matrix
        self._parameters = parameters
        self._quantized: dict[tuple[str, int, bytes], tuple[str, str]] = {}

    def node(self, op: str, inputs: list[str], domain: str = "", **attributes: Any) -> str:
        for name in inputs:
            if name in _INPUTS:
                self.used[name] = None
        output = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], domain=domain, **attributes))
        return output

    def weight(self, name: str) -> str:
        assert name in self._parameters, name
        self.weights[name] = None
        return name

    def is_int8(self, name: str) -> bool:
        return self._parameters[name].dtype != np.float32

    def constant(self, name: str, value: list[int]) -> str:
        return self.value(name, np.array(value, np.int64))

    def value(self, name: str, value: npt.NDArray[Any]) -> str:
        self.constants[name] = value
        return name

    def linear(self, x: str, name: str) -> str:
        return self.product(x, f"{name}.weight", f"{name}.bias")

    def product(self, x: str, weight: str, bias: str) -> str:
        """x times the transposed weight, plus the bias."""
        self.multiplied[weight] = x
        if self.is_int8(weight):
            return self.node("Add", [self.int8_product(x, weight), self.weight(bias)])
        return self.node("Gemm", [x, self.weight(weight), self.weight(bias)], transB=1)

    def int8_product(self, x: str, weight: str) -> str:
        """The product by whole numbers, scaled back."""
        numbers, scale = self.quantized(x, weight)
        stored = self._parameters[weight]
        # ONNX Runtime does this once, and packs what comes of it.
        turned = self.node("Transpose", [self.weight(weight)], perm=[1, 0])
        one = self.value("one", np.array(1, np.float32))
        zero = self.zero(weight)
        middles = [self.value(f"zero_{zero}", np.array(zero, np.uint8))]
        if stored.dtype == np.uint8:
            middles.append(self.value(f"zero_{_ZERO}", np.array(_ZERO, np.uint8)))
        inputs = [numbers, turned, one, self.weight(f"{weight}.scale"), *middles]
        return self.node("Mul", [self.node("MatMulIntegerToFloat", inputs, _CONTRIB), scale])

    def zero(self, weight: str) -> int:
        stored = self._parameters.get(f"{weight}.zero")
        return _ZERO if stored is None else int(stored[0])

    def quantized(self, x: str, weight: str) -> tuple[str, str]:
        """A row's numbers of 0 to 255, as the fast kernels want them, and its scale."""
        smooth, zero = self._parameters.get(f"{weight}.smooth"), self.zero(weight)
        key = (x, zero, b"" if smooth is None else smooth.tobytes())
        if key not in self._quantized:
            if smooth is not None:
                x = self.node("Mul", [x, self.weight(f"{weight}.smooth")])
            axis = self.constant("last_axis", [-1])
            # Twice read is quicker than written once (Abs); a row of zeros has a scale, too.
            parts = [self.value("tiny", np.array(np.finfo(np.float32).tiny, np.float32))]
            for op, room in (("ReduceMax", 255 - zero), ("ReduceMin", -zero)):
                end = self.node(op, [x, axis], keepdims=1)
                divisor = self.value(f"room_{room}", np.array(room, np.float32))
                parts.append(self.node("Div", [end, divisor]))
            scale = self.node("Max", parts)
            flat = self.node("Reshape", [scale, self.constant("minus_one", [-1])])
            value = helper.make_tensor("zero", TensorProto.UINT8, [1], [zero])
            zeros = self.node("ConstantOfShape", [self.node("Shape", [flat])], value=value)
            numbers = self.node("QuantizeLinear", [x, flat, zeros], axis=0)
            self._quantized[key] = numbers, scale
        return self._quantized[key]

    def rows(self, table: str, ids: str) -> str:
        """Rows of an embedding table."""
        found = self.node("Gather", [self.weight(table), ids])
        if not self.is_int8(table):
            return found
        found = self.node("Cast", [found], to=TensorProto.FLOAT)
        if self._parameters[table].dtype == np.uint8:
            found = self.node("Sub", [found, self.value("zero", np.array(_ZERO, np.float32))])
        scale = self.node("Gather", [self.weight(f"{table}.scale"), ids])
        scale = self.node("Unsqueeze", [scale, self.constant("last_axis", [-1])])
        return self.node("Mul", [found, scale])

    def norm(self, x: str, name: str) -> str:
        inputs = [x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias")]
        return self.node("LayerNormalization", inputs, epsilon=self.config.layer_norm_eps)

    def add_norm(self, x: str, residual: str, name: str) -> str:
        # Two operators: the fused one (SkipLayerNormalization) takes five times as long on a CPU.
        return self.norm(self.node("Add", [x, residual]), name)

    def embeddings(self) -> str:
        total = self.rows("embeddings.word.weight", "ids")
        place = self.rows("embeddings.position.weight", "positions")
        if self.config.type_vocab_size:
            kind = self.rows("embeddings.token_type.weight", "types")
            total = self.node("Add", [total, kind])
        return self.norm(self.node("Add", [total, place]), "embeddings.norm")

    def layer(self, x: str, index: int, *, picked: bool) -> str:
        """One layer; `picked` computes it at the picked positions only."""
        name = f"layers.{index}"
        asking = self.node("Gather", [x, "picks"]) if picked else x
        query_cells, query_tokens = ("pick_cells", "pick_tokens") if picked else ("cells", "tokens")
        query = self.node("Gather", [self.linear(asking, f"{name}.query"), query_cells])
        key = self.node("Gather", [self.linear(x, f"{name}.key"), "cells"])
        value = self.node("Gather", [self.linear(x, f"{name}.value"), "cells"])
        block = self.node(
            "MultiHeadAttention",
            [query, key, value, "", "lengths"],
            _CONTRIB,
            num_heads=self.config.num_heads,
        )
        flat = self.node("Reshape", [block, self.constant("flat", [-1, self.config.hidden_size])])
        mixed = self.linear(self.node("Gather", [flat, query_tokens]), f"{name}.output")
        middle = self.add_norm(mixed, asking, f"{name}.attention_norm")
        wide = self.node("Gelu", [self.linear(middle, f"{name}.up")])
        return self.add_norm(self.linear(wide, f"{name}.down"), middle, f"{name}.norm")

    def head(self, x: str, name: str, head: HeadConfig, *, picked: bool) -> str:
        path = f"heads.{name}"
        if head.kind == "mlm":
            asked = x if picked else self.node("Gather", [x, "at"])
            dense = self.node("Gelu", [self.linear(asked, f"{path}.dense")])
            tied = "embeddings.word.weight" if head.tied else f"{path}.decoder.weight"
            return self.product(self.norm(dense, f"{path}.norm"), tied, f"{path}.bias")
        if head.is_sequence:
            first = x if picked else self.node("Gather", [x, "firsts"])
            dense = self.linear(first, f"{path}.dense")
            x = self.node("Tanh" if head.activation == "tanh" else "Relu", [dense])
        return self.linear(x, f"{path}.out")


def build(
    config: EncoderConfig,
    heads: Mapping[str, HeadConfig],
    parameters: Mapping[str, npt.NDArray[Any]],
    request: Request,
    *,
    inputs: bool = False,
) -> tuple[onnx.ModelProto, list[str]]:
    """The graph for a request, and the names of the weights that it takes.

    parameters: by the names of `checkpoint.shapes`; a matrix may be int8 (or uint8: the same plus
        128), has NAME.scale beside it, and may have NAME.smooth and NAME.zero (`weights.Int8Rows`).
    inputs: what each matrix is multiplied with is an output, too, called `inputs.NAME`, after the
        others (keys and values have the queries'); the last layer is then computed everywhere.

    Outputs are called `hidden.N` and `heads.NAME`, in the request's order, layers first.
    """
    builder = _Builder(config, parameters)
    last = config.num_layers
    confined = picks(heads, request, last) is not None and not inputs
    # Layers above the deepest one asked for are not computed.
    depth = last if request.heads else max(request.layers)
    states = [builder.embeddings()]
    for index in range(depth):
        picked = confined and index == last - 1
        states.append(builder.layer(states[-1], index, picked=picked))
    results = {f"hidden.{layer}": states[layer] for layer in request.layers}
    for name in request.heads:
        results[f"heads.{name}"] = builder.head(states[-1], name, heads[name], picked=confined)
    if inputs:
        # Keys and values have the queries', and an output is a copy.
        results |= {
            f"inputs.{name}": value
            for name, value in builder.multiplied.items()
            if not name.endswith((".key.weight", ".value.weight"))
        }
    for name, value in results.items():
        builder.nodes.append(helper.make_node("Identity", [value], [name]))
    initializers = [numpy_helper.from_array(v, name) for name, v in builder.constants.items()]
    initializers += [_outside(name, parameters[name]) for name in builder.weights]
    graph = helper.make_graph(
        builder.nodes,
        "enrobe",
        [helper.make_tensor_value_info(n, *_INPUTS[n]) for n in _INPUTS if n in builder.used],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results],
        initializers,
    )
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_CONTRIB, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    return model, list(builder.weights)


def _outside(name: str, value: npt.NDArray[Any]) -> TensorProto:
    """A weight that the session is given by name; no file of this name exists."""
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    tensor = TensorProto(name=name, data_type=kind, dims=value.shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights")
    return tensor
