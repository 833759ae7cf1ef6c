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
        return self.class_prefix + SUFFIXES[role(kind) if kind else None]


def role(kind: HeadKind) -> str:
    """Kinds that share one module: classify, multilabel and regress are all `sequence`."""
    return "sequence" if kind in ("classify", "multilabel", "regress") else kind


SUFFIXES: dict[str | None, str] = {
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

# Buffers, and parameters that never take part in a result.
_SKIPPED = re.compile(r"(^|\.)embeddings\.(position_ids|token_type_ids)$")


def canonical_names(
    names: Iterable[str], config: EncoderConfig, head: HeadConfig | None
) -> tuple[dict[str, str], list[str]]:
    """Match a checkpoint's parameter names with ours; `head` is what its class tells, if anything.

    Returns a map ours -> theirs and the list of unexpected names. Ours are `embeddings.*`,
    `layers.N.*`, `pooler.*` and `head.ROLE.*`, the role as `heads` of the dialect spells it.
    """
    dialect = DIALECTS[config.family]
    table: dict[str, str] = {}
    for ours, theirs in (*dialect.names(config).items(), *_POOLER):
        table[theirs] = ours
        table[dialect.prefix + theirs] = ours
    wanted = role(head.kind) if head else None
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


assert set(SUFFIXES) - {None} == {role(kind) for kind in HEAD_KINDS}
