"""How each checkpoint family spells what we know: one reversible table a family.

A dialect is data. It gives the configuration keys, the parameter names of the encoder, and those
of each kind of head, as pairs (ours, theirs); reading and writing walk the same table. `{i}` stands
for the layer's number. Names follow the transformers library's files, which most published
checkpoints use; legacy spellings (`gamma`/`beta`, with and without the family's prefix) are read.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from enrobe.config import HEAD_KINDS, EncoderConfig, HeadConfig, HeadKind
from enrobe.errors import ModelError, nearest, show

Pairs = tuple[tuple[str, str], ...]


def both(ours: str, theirs: str) -> Pairs:
    """The weight and the bias of one linear layer or norm."""
    return ((f"{ours}.weight", f"{theirs}.weight"), (f"{ours}.bias", f"{theirs}.bias"))


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """One family's spelling."""

    family: str
    # what config.json calls model_type
    class_prefix: str
    # transformers' class names: class_prefix + "ForMaskedLM" and so on
    tokenizer_class: str
    prefix: str
    # stands before the encoder's parameter names in a checkpoint that has a head
    encoder: Pairs
    layer: Pairs
    heads: Mapping[str, Pairs]
    # by role: mlm, sequence, tag, answer
    config_keys: Mapping[str, str]
    # EncoderConfig's field -> config.json's key
    defaults: Mapping[str, object]
    # what a missing key means, as published
    fixed: Mapping[str, object] = field(default_factory=dict)
    # EncoderConfig's fields that config.json does not give
    offset_from_pad: bool = False
    # RoBERTa counts positions from padding_idx + 1
    special_tokens: tuple[str, str, str, str, str]
    # first, last, padding, unknown, mask
    head_activation: str = "tanh"
    head_dropout_key: str = "classifier_dropout"
    head_input_dropout: bool = False
    answer_dropout_key: str | None = None

    def names(self, config: EncoderConfig) -> dict[str, str]:
        """Parameter names of the encoder, ours -> theirs, without prefix and pooler."""
        table = {
            ours: theirs
            for ours, theirs in self.encoder
            if config.type_vocab_size or not ours.startswith("embeddings.token_type.")
        }
        for i in range(config.num_layers):
            table.update((ours.format(i=i), theirs.format(i=i)) for ours, theirs in self.layer)
        return table

    def architecture(self, kind: HeadKind | None) -> str:
        """The transformers class of an encoder with this head, or with none."""
        return self.class_prefix + _SUFFIXES[role(kind) if kind else None]


def role(kind: HeadKind) -> str:
    """Kinds that share one module: classify, multilabel and regress are all `sequence`."""
    return "sequence" if kind in ("classify", "multilabel", "regress") else kind


_SUFFIXES: dict[str | None, str] = {
    None: "Model",
    "mlm": "ForMaskedLM",
    "sequence": "ForSequenceClassification",
    "tag": "ForTokenClassification",
    "answer": "ForQuestionAnswering",
}

_POOLER = both("pooler", "pooler.dense")

_BERT_EMBEDDINGS: Pairs = (
    ("embeddings.word.weight", "embeddings.word_embeddings.weight"),
    ("embeddings.position.weight", "embeddings.position_embeddings.weight"),
    ("embeddings.token_type.weight", "embeddings.token_type_embeddings.weight"),
    *both("embeddings.norm", "embeddings.LayerNorm"),
)
_BERT_LAYER: Pairs = (
    *both("layers.{i}.query", "encoder.layer.{i}.attention.self.query"),
    *both("layers.{i}.key", "encoder.layer.{i}.attention.self.key"),
    *both("layers.{i}.value", "encoder.layer.{i}.attention.self.value"),
    *both("layers.{i}.output", "encoder.layer.{i}.attention.output.dense"),
    *both("layers.{i}.attention_norm", "encoder.layer.{i}.attention.output.LayerNorm"),
    *both("layers.{i}.up", "encoder.layer.{i}.intermediate.dense"),
    *both("layers.{i}.down", "encoder.layer.{i}.output.dense"),
    *both("layers.{i}.norm", "encoder.layer.{i}.output.LayerNorm"),
)
_DISTILBERT_LAYER: Pairs = (
    *both("layers.{i}.query", "transformer.layer.{i}.attention.q_lin"),
    *both("layers.{i}.key", "transformer.layer.{i}.attention.k_lin"),
    *both("layers.{i}.value", "transformer.layer.{i}.attention.v_lin"),
    *both("layers.{i}.output", "transformer.layer.{i}.attention.out_lin"),
    *both("layers.{i}.attention_norm", "transformer.layer.{i}.sa_layer_norm"),
    *both("layers.{i}.up", "transformer.layer.{i}.ffn.lin1"),
    *both("layers.{i}.down", "transformer.layer.{i}.ffn.lin2"),
    *both("layers.{i}.norm", "transformer.layer.{i}.output_layer_norm"),
)

# A decoder bias stands under two names in older files; the layer's own, read last, is the one that
# transformers computes with.
_ROBERTA_HEADS: dict[str, Pairs] = {
    "mlm": (
        *both("dense", "lm_head.dense"),
        *both("norm", "lm_head.layer_norm"),
        ("bias", "lm_head.bias"),
        ("bias", "lm_head.decoder.bias"),
        ("decoder.weight", "lm_head.decoder.weight"),
    ),
    "sequence": (*both("dense", "classifier.dense"), *both("out", "classifier.out_proj")),
    "tag": both("out", "classifier"),
    "answer": both("out", "qa_outputs"),
}
_BERT_HEADS: dict[str, Pairs] = {
    "mlm": (
        *both("dense", "cls.predictions.transform.dense"),
        *both("norm", "cls.predictions.transform.LayerNorm"),
        ("bias", "cls.predictions.bias"),
        ("bias", "cls.predictions.decoder.bias"),
        ("decoder.weight", "cls.predictions.decoder.weight"),
    ),
    # BERT's tanh pooler is the first layer of its sequence head.
    "sequence": (*both("dense", "bert.pooler.dense"), *both("out", "classifier")),
    "tag": both("out", "classifier"),
    "answer": both("out", "qa_outputs"),
}
_DISTILBERT_HEADS: dict[str, Pairs] = {
    "mlm": (
        *both("dense", "vocab_transform"),
        *both("norm", "vocab_layer_norm"),
        ("bias", "vocab_projector.bias"),
        ("decoder.weight", "vocab_projector.weight"),
    ),
    "sequence": (*both("dense", "pre_classifier"), *both("out", "classifier")),
    "tag": both("out", "classifier"),
    "answer": both("out", "qa_outputs"),
}

_BERT_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "pad_id": "pad_token_id",
    "layer_norm_eps": "layer_norm_eps",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "initializer_range": "initializer_range",
}
_BERT_DEFAULTS: dict[str, object] = {
    "type_vocab_size": 2,
    "pad_id": 0,
    "layer_norm_eps": 1e-12,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "initializer_range": 0.02,
}
_ROBERTA_DEFAULTS = {**_BERT_DEFAULTS, "pad_id": 1}
_ROBERTA_SPECIALS = ("<s>", "</s>", "<pad>", "<unk>", "<mask>")
_BERT_SPECIALS = ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]")


def _roberta(family: str, class_prefix: str, tokenizer_class: str) -> Dialect:
    return Dialect(
        family=family,
        class_prefix=class_prefix,
        tokenizer_class=tokenizer_class,
        prefix="roberta.",
        encoder=_BERT_EMBEDDINGS,
        layer=_BERT_LAYER,
        heads=_ROBERTA_HEADS,
        config_keys=_BERT_KEYS,
        defaults=_ROBERTA_DEFAULTS,
        offset_from_pad=True,
        special_tokens=_ROBERTA_SPECIALS,
        head_input_dropout=True,
    )


DIALECTS: dict[str, Dialect] = {
    "roberta": _roberta("roberta", "Roberta", "RobertaTokenizer"),
    "xlm-roberta": _roberta("xlm-roberta", "XLMRoberta", "XLMRobertaTokenizer"),
    "camembert": _roberta("camembert", "Camembert", "CamembertTokenizer"),
    "bert": Dialect(
        family="bert",
        class_prefix="Bert",
        tokenizer_class="BertTokenizer",
        prefix="bert.",
        encoder=_BERT_EMBEDDINGS,
        layer=_BERT_LAYER,
        heads=_BERT_HEADS,
        config_keys=_BERT_KEYS,
        defaults=_BERT_DEFAULTS,
        special_tokens=_BERT_SPECIALS,
    ),
    "distilbert": Dialect(
        family="distilbert",
        class_prefix="DistilBert",
        tokenizer_class="DistilBertTokenizer",
        prefix="distilbert.",
        encoder=tuple(pair for pair in _BERT_EMBEDDINGS if ".token_type." not in pair[0]),
        layer=_DISTILBERT_LAYER,
        heads=_DISTILBERT_HEADS,
        config_keys={
            "vocab_size": "vocab_size",
            "hidden_size": "dim",
            "num_layers": "n_layers",
            "num_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "max_positions": "max_position_embeddings",
            "pad_id": "pad_token_id",
            "hidden_dropout": "dropout",
            "attention_dropout": "attention_dropout",
            "initializer_range": "initializer_range",
        },
        defaults={key: _BERT_DEFAULTS[key] for key in _BERT_DEFAULTS if key != "type_vocab_size"},
        fixed={"layer_norm_eps": 1e-12, "type_vocab_size": 0},
        special_tokens=_BERT_SPECIALS,
        head_activation="relu",
        head_dropout_key="seq_classif_dropout",
        answer_dropout_key="qa_dropout",
    ),
}

# Values of these keys would change the mathematics: any other than the one named is refused.
_REQUIRED_VALUES: dict[str, tuple[object, ...]] = {
    "hidden_act": ("gelu",),
    "activation": ("gelu",),
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "is_encoder_decoder": (False, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "embedding_size": (None,),
}
# Keys that are read elsewhere (heads, tokenizer) or say nothing of the model.
_HEAD_KEYS = {"architectures", "id2label", "label2id", "num_labels", "problem_type"}
_HEAD_KEYS |= {"tie_word_embeddings", "classifier_dropout", "seq_classif_dropout", "qa_dropout"}
_NEUTRAL_KEYS = {"model_type", "transformers_version", "_name_or_path", "torch_dtype", "dtype"}
_NEUTRAL_KEYS |= {"bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"}
# `sinusoidal_pos_embds` only says how the stored position table was first filled.
_NEUTRAL_KEYS |= {"sinusoidal_pos_embds", "use_cache", "gradient_checkpointing"}

# Buffers, and parameters that never take part in a result.
_SKIPPED = re.compile(r"(^|\.)embeddings\.(position_ids|token_type_ids)$")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What config.json said: the encoder, the head if its class is known, the keys set aside."""

    encoder: EncoderConfig
    head: HeadConfig | None
    head_settings: Mapping[str, object]
    # every key of the file, for a head that only the tensors reveal
    ignored_keys: tuple[str, ...]


def dialect_of(config: Mapping[str, object]) -> Dialect:
    """The dialect that config.json names, or ModelError."""
    family = config.get("model_type")
    if not isinstance(family, str) or family not in DIALECTS:
        hint = nearest(family, DIALECTS) if isinstance(family, str) else ""
        raise ModelError(
            f"config.json: model_type {show(family)}; allowed: {', '.join(DIALECTS)}{hint}"
        )
    return DIALECTS[family]


def read_config(config: Mapping[str, object]) -> Reading:
    """Turn a parsed config.json into ours.

    Raises:
        ModelError: an unknown family, a missing size, or a value that changes the mathematics in a
            way that is not implemented.
    """
    dialect = dialect_of(config)
    for key, allowed in _REQUIRED_VALUES.items():
        if key in config and not any(
            config[key] == value and type(config[key]) is type(value) for value in allowed
        ):
            raise ModelError(
                f"config.json: {key} {show(config[key])} is not implemented; "
                f"allowed: {' or '.join(show(value) for value in allowed)}"
            )
    values: dict[str, object] = {"family": dialect.family, **dialect.fixed}
    for ours, theirs in dialect.config_keys.items():
        if config.get(theirs) is not None:
            values[ours] = config[theirs]
        elif ours in dialect.defaults:
            values[ours] = dialect.defaults[ours]
        else:
            raise ModelError(f"config.json: {theirs} is missing")
    if dialect.offset_from_pad and isinstance(values["pad_id"], int):
        values["position_offset"] = values["pad_id"] + 1
    try:
        encoder = EncoderConfig(**values)  # type: ignore[arg-type]  # checked by the class
    except ModelError as error:
        raise ModelError(f"config.json: {error}") from None
    known = {*dialect.config_keys.values(), *_REQUIRED_VALUES, *_HEAD_KEYS, *_NEUTRAL_KEYS}
    return Reading(
        encoder=encoder,
        head=_head_from_class(dialect, config),
        head_settings=config,
        ignored_keys=tuple(sorted(key for key in config if key not in known)),
    )


def _head_from_class(dialect: Dialect, config: Mapping[str, object]) -> HeadConfig | None:
    names = config.get("architectures")
    for name in names if isinstance(names, list) else []:
        for head_role, suffix in _SUFFIXES.items():
            if head_role and isinstance(name, str) and name.endswith(suffix):
                return head_of_role(dialect, head_role, config)
        # Pretraining classes carry the masked-LM head beside others that we do not use.
        if isinstance(name, str) and name.endswith(("ForPreTraining", "LMHeadModel")):
            return head_of_role(dialect, "mlm", config)
    return None


def head_of_role(dialect: Dialect, head_role: str, config: Mapping[str, object]) -> HeadConfig:
    """The head of a known role, with labels and dropout as config.json gives them."""
    dropout = config.get("hidden_dropout_prob", config.get("dropout", 0.1))
    classifier = config.get(dialect.head_dropout_key)
    classifier = dropout if classifier is None else classifier
    if not isinstance(classifier, int | float) or not isinstance(dropout, int | float):
        raise ModelError(f"config.json: dropout {show(dropout)} or {show(classifier)}; not numbers")
    if head_role == "mlm":
        return HeadConfig(kind="mlm", dropout=0.0)
    if head_role == "answer":
        key = dialect.answer_dropout_key
        answer_dropout = config.get(key, 0.1) if key else 0.0
        if not isinstance(answer_dropout, int | float):
            raise ModelError(f"config.json: {key} {show(answer_dropout)} is not a number")
        return HeadConfig(kind="answer", dropout=answer_dropout)
    labels = _labels(config)
    if head_role == "tag":
        # transformers drops out DistilBERT's tags at the encoder's rate, not the classifier's.
        share = dropout if dialect.family == "distilbert" else classifier
        return HeadConfig(kind="tag", labels=labels, dropout=share)
    return HeadConfig(
        kind=_sequence_kind(config, labels),
        labels=labels,
        activation="relu" if dialect.head_activation == "relu" else "tanh",
        input_dropout=classifier if dialect.head_input_dropout else 0.0,
        dropout=classifier,
    )


def _sequence_kind(config: Mapping[str, object], labels: tuple[str, ...]) -> HeadKind:
    problem = config.get("problem_type")
    if problem is None:
        return "regress" if len(labels) == 1 else "classify"
    kind = _PROBLEMS.get(problem) if isinstance(problem, str) else None
    if kind is None:
        raise ModelError(
            f"config.json: problem_type {show(problem)}; allowed: {', '.join(_PROBLEMS)}"
        )
    return kind


_PROBLEMS: dict[str, HeadKind] = {
    "single_label_classification": "classify",
    "multi_label_classification": "multilabel",
    "regression": "regress",
}


def _labels(config: Mapping[str, object]) -> tuple[str, ...]:
    table = config.get("id2label")
    if table is None:
        count = config.get("num_labels", 2)
        if type(count) is not int or not 1 <= count <= 1_000_000:
            raise ModelError(f"config.json: num_labels {show(count)}; allowed: 1 to 1000000")
        return tuple(f"LABEL_{i}" for i in range(count))
    if not isinstance(table, dict) or not table:
        raise ModelError("config.json: id2label is not a table of number: label")
    try:
        by_id = {int(key): str(label) for key, label in table.items()}
    except ValueError:
        raise ModelError("config.json: id2label has a key that is not a number") from None
    if sorted(by_id) != list(range(len(by_id))):
        raise ModelError(f"config.json: id2label does not count 0 to {len(by_id) - 1}")
    return tuple(by_id[i] for i in range(len(by_id)))


def write_config(config: EncoderConfig, head: HeadConfig | None) -> dict[str, object]:
    """The config.json that transformers reads, and that `read_config` turns back into the same."""
    dialect = DIALECTS[config.family]
    out: dict[str, object] = {
        "architectures": [dialect.architecture(head.kind if head else None)],
        "model_type": dialect.family,
        "activation" if dialect.family == "distilbert" else "hidden_act": "gelu",
        "dtype": "float32",
    }
    out.update((theirs, getattr(config, ours)) for ours, theirs in dialect.config_keys.items())
    if head is None:
        return out
    if head.kind == "mlm":
        out["tie_word_embeddings"] = head.tied
    if head.labels:
        out["id2label"] = {str(i): label for i, label in enumerate(head.labels)}
        out["label2id"] = {label: i for i, label in enumerate(head.labels)}
    if head.is_sequence:
        out["problem_type"] = next(key for key, kind in _PROBLEMS.items() if kind == head.kind)
    if head.is_sequence or (head.kind == "tag" and dialect.family != "distilbert"):
        out[dialect.head_dropout_key] = head.dropout
    if head.kind == "answer" and dialect.answer_dropout_key:
        out[dialect.answer_dropout_key] = head.dropout
    return out


def canonical_names(names: Iterable[str], reading: Reading) -> tuple[dict[str, str], list[str]]:
    """Match a checkpoint's parameter names with ours.

    Returns a map ours -> theirs and the list of unexpected names. Ours are `embeddings.*`,
    `layers.N.*`, `pooler.*` and `head.ROLE.*`, the role as `heads` of the dialect spells it.
    """
    dialect = DIALECTS[reading.encoder.family]
    table: dict[str, str] = {}
    for ours, theirs in (*dialect.names(reading.encoder).items(), *_POOLER):
        table[theirs] = ours
        table[dialect.prefix + theirs] = ours
    wanted = role(reading.head.kind) if reading.head else None
    # Without a class to go by, only names that no two heads share reveal a head.
    roles = [wanted] if wanted else [r for r in dialect.heads if r not in ("sequence", "tag")]
    if wanted is None and dialect.family != "bert":
        roles.append("sequence")
    for head_role in roles:
        for ours, theirs in dialect.heads[head_role]:
            table[theirs] = f"head.{head_role}.{ours}"
    if wanted == "sequence" and dialect.family == "bert":
        for ours, theirs in _POOLER:
            table[theirs] = f"head.sequence.dense.{ours.rpartition('.')[2]}"
    found: dict[str, str] = {}
    unexpected: list[str] = []
    for name in sorted(names, key=lambda name: name.endswith("decoder.bias")):
        modern = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        if modern in table:
            found[table[modern]] = name
        elif not _SKIPPED.search(modern):
            unexpected.append(name)
    return found, sorted(unexpected)


def checkpoint_names(config: EncoderConfig, head: HeadConfig | None) -> list[tuple[str, str]]:
    """Pairs (ours, theirs) to write an encoder with one head or none; pooler names included.

    A pair is to be left out where the checkpoint has no such tensor (pooler, tied decoder).
    """
    dialect = DIALECTS[config.family]
    prefix = dialect.prefix if head else ""
    pairs = [(ours, prefix + theirs) for ours, theirs in dialect.names(config).items()]
    if head is None or role(head.kind) != "sequence" or dialect.family != "bert":
        pairs += [(ours, prefix + theirs) for ours, theirs in _POOLER]
    if head is not None:
        head_role = role(head.kind)
        for ours, theirs in dialect.heads[head_role]:
            # A tied decoder's own copies are what transformers would warn about.
            if head.tied and ".decoder." in theirs:
                continue
            pairs.append((f"head.{head_role}.{ours}", theirs))
    return pairs


assert set(_SUFFIXES) - {None} == {role(kind) for kind in HEAD_KINDS}
