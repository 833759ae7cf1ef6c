"""One vector a text, or one for each of given spans of it (late chunking).

Late chunking reads the whole text first and pools afterwards, so that each span's vector knows of
its surroundings (Günther et al. 2024, arXiv:2409.04701).

Legend: N texts, S spans of a text, T tokens, H hidden, D numbers of a vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from enrobe.config import EncoderConfig
from enrobe.engines.base import Array, Engine, Sums
from enrobe.errors import CallError, TextError, nearest, show
from enrobe.sentence_folder import PoolName, SentenceSettings
from enrobe.tasks.parts import Cutter, Long, Part, run_parts, sum_parts
from enrobe.tasks.pooling import SUMMED, Pooling, follow, normalize, width_after
from enrobe.text.ragged import Ids
from enrobe.text.rows import trimmed
from enrobe.text.tokenizer import Tokenizer
from enrobe.text.tokens import Tokens
from enrobe.text.windows import Window


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """Checked once a call; see `Model.embed`. None: as the folder says."""

    pool: PoolName | Sequence[PoolName] | None = None
    layers: int | Sequence[int] | None = None
    normalize: bool | None = None
    truncate_dim: int | None = None
    prompt: str | None = None
    long: Long = "window"
    special: bool = True

    def __post_init__(self) -> None:
        check_long(self.long)
        for name in ("normalize", "special"):
            value = getattr(self, name)
            if not isinstance(value, bool) and not (value is None and name == "normalize"):
                raise CallError(f"{name} is {show(value)}; allowed: True or False")
        cut = self.truncate_dim
        if cut is not None and (type(cut) is not int or cut < 1):
            raise CallError(f"truncate_dim is {show(cut)}; allowed: a whole number from 1")


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbedPlan:
    """What a call's options and the folder's settings come to."""

    pools: tuple[PoolName, ...]
    layers: tuple[int, ...]
    settings: SentenceSettings
    # the folder's, less what the call left out
    normalize: bool
    # at the end, after a cut
    width: int
    # numbers of a finished vector
    prompt: str
    cutter: Cutter


def embed(
    engine: Engine,
    tokenizer: Tokenizer,
    settings: SentenceSettings,
    texts: Sequence[str],
    options: EmbedOptions,
) -> tuple[Array, dict[int, TextError]]:
    """Vectors (N, D), and the errors of the texts that have none: their rows are NaN."""
    plan = plan_embedding(engine.config, tokenizer, settings, options)
    rows = tokenizer.ids(_prompted(plan.prompt, texts), special=options.special)
    cuts = [r if isinstance(r, TextError) else plan.cutter.cut(n, r) for n, r in enumerate(rows)]
    parts = [part for cut in cuts if not isinstance(cut, TextError) for part in cut]
    pooled = Pooling(len(texts), engine.config.hidden_size, plan.pools)
    only_first = set(plan.pools) == {"cls"}
    if isinstance(engine, Sums) and SUMMED.issuperset(plan.pools):
        for part, sum_H in sum_parts(engine, parts, plan.layers):
            pooled.add_sum(part.text, sum_H, part.stop - part.start)
    else:
        for part, vectors_TH in run_parts(engine, parts, plan.layers, first=only_first):
            counted_TH = vectors_TH if only_first else vectors_TH[part.start : part.stop]
            first_H = vectors_TH[0 if only_first else part.first]
            pooled.add(part.text, counted_TH, first_H, part.share)
    failed = {n: cut for n, cut in enumerate(cuts) if isinstance(cut, TextError)}
    return _finish(pooled, plan, list(failed)), failed


def embed_spans(
    engine: Engine,
    tokenizer: Tokenizer,
    settings: SentenceSettings,
    texts: Sequence[str],
    spans: Sequence[Sequence[Window]],
    options: EmbedOptions,
) -> tuple[list[Array | TextError], int]:
    """For each text the vectors (S, D) of its spans, each pooled over its tokens; and D."""
    if len(spans) != len(texts):
        raise CallError(f"{len(texts)} texts and spans for {len(spans)}; allowed: as many")
    plan = plan_embedding(engine.config, tokenizer, settings, options)
    if "cls" in plan.pools:
        raise CallError(
            "cls pooling takes a text's first token, which a span does not have; "
            "fix: pool='mean' or pool='max'"
        )
    contents = tokenizer.contents(_prompted(plan.prompt, texts), special=options.special)
    cuts: list[list[Part] | TextError] = []
    ranges: list[list[Window]] = []
    for n, (text, tokens, wanted) in enumerate(zip(texts, contents, spans, strict=True)):
        cut, places = _located(plan, n, text, tokens, wanted)
        cuts.append(cut)
        ranges.append(places)
    firsts = np.cumsum([0, *(len(places) for places in ranges)])
    pooled = Pooling(int(firsts[-1]), engine.config.hidden_size, plan.pools)
    parts = [
        part
        for cut in cuts
        if isinstance(cut, list)
        for part in cut
        if any(a < part.kept[1] and b > part.kept[0] for a, b in ranges[part.text])
    ]
    for part, vectors_TH in run_parts(engine, parts, plan.layers):
        for n, (a, b) in enumerate(ranges[part.text], start=int(firsts[part.text])):
            a, b = max(a, part.kept[0]), min(b, part.kept[1])
            if a < b:
                pooled.add(n, vectors_TH[a + part.shift : b + part.shift], vectors_TH[0])
    vectors_SD = _finish(pooled, plan, [])
    found = [
        cut if isinstance(cut, TextError) else vectors_SD[firsts[n] : firsts[n + 1]].copy()
        for n, cut in enumerate(cuts)
    ]
    return found, plan.width


def _located(
    plan: EmbedPlan, number: int, text: str, tokens: Tokens | TextError, spans: Sequence[Window]
) -> tuple[list[Part] | TextError, list[Window]]:
    """A text's rows, and the tokens of each of its spans."""
    if isinstance(tokens, TextError):
        return tokens, []
    cut = plan.cutter.cut(number, tokens.ids)
    if isinstance(cut, TextError):
        return cut, []
    read = cut[-1].kept[1]
    found = _places(text, tokens[:read], spans, len(plan.prompt), cut=len(tokens) - read)
    return (found, []) if isinstance(found, TextError) else (cut, found)


def _places(
    text: str, tokens: Tokens, spans: Sequence[Window], lead: int, *, cut: int
) -> list[Window] | TextError:
    """The tokens that share a character with each span; `lead` characters stand before the text."""
    limits = trimmed(tokens.spans - lead, text)
    out = []
    for start, end in spans:
        if not 0 <= start < end <= len(text):
            where = f"allowed: 0 <= start < end <= {len(text)}, the text's length"
            return TextError(f"span ({start}, {end}); {where}")
        inside = np.flatnonzero((limits[:, 0] < end) & (limits[:, 1] > start))
        if not len(inside):
            reason = f", or in the {cut} that were cut" if cut else ""
            return TextError(
                f"span ({start}, {end}), {show(text[start:end])}, has no token{reason}"
            )
        out.append((int(inside[0]), int(inside[-1]) + 1))
    return out


# --- options ------------------------------------------------------------------------------------


def plan_embedding(
    config: EncoderConfig, tokenizer: Tokenizer, settings: SentenceSettings, options: EmbedOptions
) -> EmbedPlan:
    """What options mean for a folder.

    Raises:
        CallError: they do not fit it.
    """
    pools = check_pools(options.pool) if options.pool is not None else settings.pool
    layers = check_layers(options.layers, config.num_layers)
    steps = settings.steps
    ends_normal = steps[-1:] == ("normalize",)
    if options.pool is not None:
        # A layer was trained on the folder's own pooling.
        steps = ()
    elif ends_normal:
        steps = steps[:-1]
    rest = SentenceSettings(steps=steps)
    width = width_after(len(pools) * config.hidden_size, rest)
    cut = options.truncate_dim or settings.truncate_dim
    if cut is not None and cut > width:
        raise CallError(f"truncate_dim is {cut}; the vectors have {width} numbers")
    prompt = choose_prompt(options.prompt, settings)
    limit = longest_row(config, tokenizer, settings)
    return EmbedPlan(
        pools=pools,
        layers=layers,
        settings=rest,
        normalize=ends_normal if options.normalize is None else options.normalize,
        width=cut or width,
        prompt=prompt,
        cutter=Cutter(
            tokenizer=tokenizer,
            limit=limit,
            long=options.long,
            prompt=_prompt_ids(prompt, tokenizer, limit, special=options.special),
            pool_prompt=settings.include_prompt,
        ),
    )


def longest_row(config: EncoderConfig, tokenizer: Tokenizer, settings: SentenceSettings) -> int:
    """The longest row in tokens: the folder's length, else the model's; room for one at least."""
    limit = min(config.max_tokens, settings.max_tokens or config.max_tokens)
    return max(limit, tokenizer.frame_size + 1)


def _prompt_ids(prompt: str, tokenizer: Tokenizer, limit: int, *, special: bool) -> Ids:
    if not prompt:
        return np.empty(0, np.int64)
    (ids,) = tokenizer.ids([prompt], special=special)
    if isinstance(ids, TextError):
        raise CallError(f"prompt {show(prompt)}: {ids}")
    most = (limit - tokenizer.frame_size) // 2
    if len(ids) > most:
        raise CallError(f"the prompt has {len(ids)} tokens; allowed: {most}, half of a row")
    return ids


def choose_prompt(prompt: str | None, settings: SentenceSettings) -> str:
    """The text of a prompt that is named or given; see `Model.embed`.

    Raises:
        CallError: it is neither a name of the folder nor a text that can stand before another.
    """
    if prompt is None:
        return settings.default_prompt
    if not isinstance(prompt, str):
        raise CallError(f"prompt is {show(prompt)}; allowed: a string")
    if prompt in settings.prompts:
        return settings.prompts[prompt]
    if prompt[-1:].isalnum():
        names = ", ".join(settings.prompts) or "none"
        hint = nearest(prompt, settings.prompts)
        raise CallError(
            f"prompt {show(prompt)} is not among the folder's ({names}){hint}; "
            "a literal prefix ends with a space or a sign, such as 'query: '"
        )
    return prompt


def _prompted(prompt: str, texts: Sequence[str]) -> Sequence[str]:
    # What is no string stays, and gets its error where texts are read.
    return [prompt + t if isinstance(t, str) else t for t in texts] if prompt else texts


def check_pools(pool: object) -> tuple[PoolName, ...]:
    """Names of poolings, one or several.

    Raises:
        CallError: one is unknown, or there is none.
    """
    known = get_args(PoolName)
    names = (pool,) if isinstance(pool, str) or not isinstance(pool, Sequence) else tuple(pool)
    for name in names:
        if name not in known:
            hint = nearest(str(name), known)
            raise CallError(f"pool is {show(pool)}; allowed: {', '.join(known)}, or several{hint}")
    if not names or len(set(names)) < len(names):
        raise CallError(f"pool is {show(pool)}; allowed: each of {', '.join(known)} once")
    return names


def check_layers(layers: object, count: int) -> tuple[int, ...]:
    """Layers counted from 0, the embeddings; negative ones from the end; None: the last.

    Raises:
        CallError: there is no such layer, or one is named twice.
    """
    if layers is None:
        return (count,)
    given = tuple(layers) if isinstance(layers, Sequence) else (layers,)
    allowed = f"allowed: 0 (the embeddings) to {count}, or -1 (the last) to {-count - 1}"
    out = []
    for layer in given:
        if type(layer) is not int or not -count - 1 <= layer <= count:
            raise CallError(f"layers is {show(layers)}; {allowed}")
        out.append(layer % (count + 1))
    if not out or len(set(out)) < len(out):
        raise CallError(f"layers is {show(layers)}; each once, one at least; {allowed}")
    return tuple(out)


def check_long(long: object) -> None:
    """Raise CallError for an unknown way with long texts."""
    if long not in get_args(Long):
        hint = nearest(str(long), get_args(Long))
        raise CallError(f"long is {show(long)}; allowed: {', '.join(get_args(Long))}{hint}")


def _finish(pooled: Pooling, plan: EmbedPlan, failed: Sequence[int]) -> Array:
    vectors = pooled.finish()
    vectors[failed] = np.nan
    vectors = follow(vectors, plan.settings)[:, : plan.width]
    return normalize(vectors) if plan.normalize else np.ascontiguousarray(vectors)
