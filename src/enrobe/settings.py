"""config.json in and out.

A family's spelling of its sizes stands in its dialect. Here is what else is read, what is refused
because it would change the mathematics, and what is set aside and reported.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from enrobe.config import EncoderConfig, HeadConfig, HeadKind
from enrobe.dialects import DIALECTS, SUFFIXES, Dialect
from enrobe.errors import ModelError, nearest, show

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
        for head_role, suffix in SUFFIXES.items():
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
