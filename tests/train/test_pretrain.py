"""Pretraining from text files to a checkpoint, killed and resumed, and against transformers."""

import errno
import json
import math
import shutil
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import enrobe
from enrobe import checkpoint
from enrobe.data import corpus as corpus_module
from enrobe.data.corpus import Corpus
from enrobe.data.masking import Masker, MaskingConfig
from enrobe.data.packing import Documents, FullSentences
from enrobe.data.readers import expand
from enrobe.errors import CallError, EnrobeError, HubError, ModelError
from enrobe.nn import kernels
from enrobe.nn.heads import Model
from enrobe.text.ragged import Ragged
from enrobe.text.tokenizer import Tokenizer
from enrobe.text.tokens import Tokens
from enrobe.train import pretrain
from enrobe.train.losses import masked_lm_loss
from enrobe.train.pretrain import MaskedLM, PretrainResult
from enrobe.train.state import LATEST, Checkpoints, load_state
from enrobe.train.work import Micro
from tests.support import (
    random_documents,
    random_rows,
    reference,
    reference_outputs,
    scaled_error,
    write_txt,
)
from tests.train.toys import (
    ALONE,
    chance,
    corpus_files,
    join,
    log_lines,
    pretrain_job,
    recipe_values,
    same,
    start,
    tokenizer_folder,
    toml,
    toy_recipe,
    weights,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus_files(tmp_path_factory.mktemp("corpus"))


def run(files: Path, output: Path, *, resume: bool = False, **changes: Any) -> PretrainResult:
    return pretrain.run(toy_recipe(files, output, **changes), resume=resume)


def work_of(files: Path, output: Path, **changes: Any) -> MaskedLM:
    recipe = toy_recipe(files, output, **changes)
    model, tokenizer, begun = pretrain._model(recipe, ALONE)
    rows, heldout = pretrain.corpus_rows(recipe, tokenizer, ALONE)
    return MaskedLM(model, tokenizer, begun, rows, heldout, recipe, ALONE)


def latest(output: Path) -> Path:
    path = Checkpoints(output / "checkpoints", keep=2).named(LATEST)
    assert path is not None
    return path


def reference_loss(
    folder: Path, family: str, corpus: Path, *, packing: str = "full", length: int = 32
) -> dict[str, float]:
    """Mean cross-entropy, its power and accuracy by transformers: the same rows and masks, a loop
    of our own.
    """
    model: Any = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = Tokenizer.from_folder(folder, family)
    make = FullSentences if packing == "full" else Documents
    rows = make(Corpus(corpus, tokenizer), tokenizer, length=length)
    masker = Masker(MaskingConfig(rate=0.15), tokenizer, seed=20_190_726)
    losses, right = [], []
    for number in range(len(rows)):
        batch = Ragged.from_rows([rows.row(number)])
        masked = masker(batch, [number], 0)
        with torch.inference_mode():
            logits = model(torch.from_numpy(masked.ids)[None]).logits[0]
        for position, target in zip(masked.positions, masked.targets, strict=True):
            losses.append(-float(logits[position].log_softmax(-1)[target]))
            right.append(int(logits[position].argmax()) == target)
    return {
        "loss": float(np.mean(losses)),
        "perplexity": math.exp(np.mean(losses)),
        "accuracy": float(np.mean(right)),
    }


# --- from text to a checkpoint ------------------------------------------------------------------


def test_predictable_text_is_learned_and_the_result_is_transformers(tmp_path: Path) -> None:
    tokenizer_folder(tmp_path / "tokenizer")
    # Each document repeats a word of its own: what is masked stands beside it.
    words = ["the", "cat", "sat", "on", "mat", "and", "that", "hat"]
    write_txt(tmp_path / "a.txt", [" ".join([word] * 200) for word in words * 3])
    write_txt(tmp_path / "v.txt", [" ".join([word] * 70) for word in words])
    values = recipe_values(
        tmp_path,
        tmp_path / "run",
        corpus__sources={"a": {"files": [str(tmp_path / "a.txt")]}},
        corpus__heldout={"v": {"files": [str(tmp_path / "v.txt")]}},
        corpus__packing="documents",
        train__steps=100,
        train__batch_rows=16,
        train__micro_tokens=600,
        train__log_every=20,
        train__save_every=50,
        train__lr=5e-3,
        model__hidden_size=48,
        model__intermediate_size=96,
        model__hidden_dropout=0.0,
        model__attention_dropout=0.0,
    )
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(toml(values))
    result = enrobe.pretrain(recipe)
    assert result.finished and result.step == 100 and result.model == tmp_path / "run/model"
    assert result.tokens > 100 * 16 * 20 and result.seconds > 0

    tokenizer = Tokenizer.from_folder(result.model, "roberta")
    (shard,) = Corpus(tmp_path / "run/corpus/heldout-v", tokenizer).shards
    counts = np.array(list(Counter(shard.tokens.tolist()).values())) / len(shard.tokens)
    entropy = float(-(counts * np.log(counts)).sum())
    print(f"unigram entropy {entropy:.2f}, {result.before['v']}, {result.after['v']}")
    assert result.before["v"]["loss"] > entropy > 1.5
    assert result.after["v"]["loss"] < 0.3 * entropy
    assert result.after["v"]["accuracy"] > 0.9
    place = tmp_path / "run/corpus/heldout-v"
    wanted = reference_loss(result.model, "roberta", place, packing="documents")
    assert dict(result.after["v"]) == pytest.approx(wanted, rel=1e-4, abs=1e-5)

    # The same logits in transformers, in our model, and in every engine that loads the folder.
    theirs: Any = transformers.AutoModelForMaskedLM.from_pretrained(result.model).eval()
    rows = random_rows(1, (3, 32, 1, 17), 283)
    logits = np.concatenate(reference_outputs(theirs, rows).logits)
    ours = Model.from_checkpoint(checkpoint.read(result.model)).eval()
    batch = Ragged.from_rows(rows)
    flat = (torch.from_numpy(batch.ids), batch.offsets, torch.from_numpy(batch.types))
    with torch.inference_mode():
        found = ours(*flat, heads=["mlm"], at=np.arange(53)).heads["mlm"]
    assert scaled_error(found, logits) <= 1e-5
    text = "cat cat cat cat<mask> cat cat"
    (fill,) = enrobe.load(result.model, engine="onnx").fill([text])
    best = fill.masks[0].candidates[0]
    (row,) = tokenizer.encode([text])
    assert isinstance(row, Tokens)
    with torch.inference_mode():
        answer = theirs(torch.from_numpy(row.ids)[None]).logits[0].log_softmax(-1)
    at = int(np.flatnonzero(row.ids == tokenizer.mask_id)[0])
    assert best.token_ids == (int(answer[at].argmax()),)
    assert best.log_probability == pytest.approx(float(answer[at].max()), abs=1e-5)
    lines = log_lines(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 20, 40, 60, 80, 100, 100]
    assert lines[-1]["evaluation"]["v"]["loss"] == pytest.approx(
        result.after["v"]["loss"], rel=1e-4
    )
    assert 0.1 < lines[1]["masked_share"] < 0.2


def test_a_vocabulary_is_trained_where_one_is_asked_for(tmp_path: Path) -> None:
    random = chance(4)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(random.choices(letters, k=random.randint(4, 9))) for _ in range(4000)]
    documents = [" ".join(random.choices(words, k=300)) for _ in range(60)]
    write_txt(tmp_path / "a.txt", documents)
    changes: dict[str, Any] = {
        "corpus__tokenizer": None,
        "corpus__vocabulary": 8192,
        "corpus__sources": {"a": {"files": [str(tmp_path / "*.txt")]}},
        "corpus__heldout": None,
        "train__steps": 2,
    }
    result = run(tmp_path, tmp_path / "run", **changes)
    assert (result.before, result.after) == ({}, {})
    theirs = transformers.AutoTokenizer.from_pretrained(result.model)
    ours = Tokenizer.from_folder(result.model, "roberta")
    (row,) = ours.encode([documents[0][:40]])
    assert isinstance(row, Tokens)
    assert theirs(documents[0][:40])["input_ids"] == row.ids.tolist()
    assert theirs.model_max_length == 32
    settings = json.loads((result.model / "config.json").read_text())
    assert settings["vocab_size"] == 8192 and settings["max_position_embeddings"] == 34
    # Kept beside the shards, it is not mistaken for another one.
    changes["corpus__folder"] = str(tmp_path / "shards")
    run(tmp_path, tmp_path / "one", **changes)
    run(tmp_path, tmp_path / "two", **changes)
    assert same(weights(tmp_path / "one/model"), weights(tmp_path / "two/model"))
    with pytest.raises(CallError, match=r"vocabulary is 8200; .*tokenizer has 8192 entries; fix"):
        run(tmp_path, tmp_path / "three", **{**changes, "corpus__vocabulary": 8200})


def test_the_embeddings_cover_a_vocabulary_whose_mask_is_not_last(
    files: Path, tmp_path: Path
) -> None:
    state = json.loads((files / "tokenizer/tokenizer.json").read_text())
    vocabulary, last = state["model"]["vocab"], len(state["model"]["vocab"]) - 1
    assert vocabulary["<mask>"] == last
    other = next(name for name, number in vocabulary.items() if number == 4)
    vocabulary["<mask>"], vocabulary[other] = 4, last
    for token in state["added_tokens"]:
        if token["content"] == "<mask>":
            token["id"] = 4
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/tokenizer.json").write_text(json.dumps(state))
    result = run(files, tmp_path / "run", corpus__tokenizer=str(tmp_path / "tokenizer"))
    assert checkpoint.read(result.model).config.vocab_size == last + 1


@pytest.mark.parametrize("packing", ["full", "documents"])
def test_perplexity_is_that_of_transformers(packing: str, files: Path, tmp_path: Path) -> None:
    result = run(files, tmp_path / "run", corpus__packing=packing)
    for name in ("near", "far"):
        place = tmp_path / f"run/corpus/heldout-{name}"
        wanted = reference_loss(result.model, "roberta", place, packing=packing)
        assert dict(result.after[name]) == pytest.approx(wanted, rel=1e-5)


def test_of_many_held_out_rows_a_fixed_choice_is_measured(files: Path, tmp_path: Path) -> None:
    heldout = {"near": {"files": [str(files / "near.txt")], "rows": 5}}
    work = work_of(files, tmp_path / "a", corpus__heldout=heldout)
    (micros,) = work._heldout.values()
    assert sum(len(micro.batch) for micro in micros) == 5
    again = work_of(files, tmp_path / "b", corpus__heldout=heldout, seed=9, masking__rate=0.4)
    for one, other in zip(micros, again._heldout["near"], strict=True):
        assert np.array_equal(one.batch.ids, other.batch.ids)
        assert np.array_equal(one.arrays["positions"], other.arrays["positions"])


# --- what is trained on -------------------------------------------------------------------------


def rows_seen(work: MaskedLM, steps: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The original row and the masked one, for each row of the steps."""
    seen = []
    for step in range(steps):
        for micro in work.batch(step):
            whole = micro.batch.ids.copy()
            whole[micro.arrays["positions"]] = micro.arrays["targets"]
            for begin, end in zip(micro.batch.offsets[:-1], micro.batch.offsets[1:], strict=True):
                seen.append((tuple(whole[begin:end]), tuple(micro.batch.ids[begin:end])))
    return seen


def test_masks_differ_by_epoch_and_are_the_same_again(files: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"corpus__sources": {"a": {"files": [str(files / "a.txt")]}}}
    changes["train__steps"] = 100
    work = work_of(files, tmp_path / "a", **changes)
    count = len(work._sources[0])
    steps = 2 * -(-count // 4)
    seen = rows_seen(work, steps)
    first, second = seen[:count], seen[count : 2 * count]
    # Every row once an epoch, in another order, with other masks.
    assert sorted(row for row, _ in first) == sorted(row for row, _ in second)
    assert [row for row, _ in first] != [row for row, _ in second]
    changed = sum(dict(first)[row] != masked for row, masked in second)
    assert changed > 0.9 * count
    assert rows_seen(work_of(files, tmp_path / "b", **changes), steps) == seen
    assert rows_seen(work_of(files, tmp_path / "c", **changes, seed=2), steps) != seen
    static = work_of(files, tmp_path / "d", **changes, masking__static=True)
    seen = rows_seen(static, steps)
    assert sorted(seen[:count]) == sorted(seen[count : 2 * count])


def test_parts_of_a_batch_are_that_batch(files: Path, tmp_path: Path) -> None:
    whole = work_of(files, tmp_path / "a", train__micro_tokens=10**6, train__batch_rows=12)
    parts = work_of(files, tmp_path / "b", train__micro_tokens=50, train__batch_rows=12)
    assert rows_seen(whole, 3) == rows_seen(parts, 3)
    assert len(whole.batch(0)) == 1
    assert len(parts.batch(0)) > 6
    for micro in parts.batch(0):
        assert len(micro.batch) == 1 or len(micro.batch.ids) <= 50
        assert micro.counts == {"masked": len(micro.arrays["targets"])}
    # More rows than are masked at once are one batch all the same.
    wide = work_of(files, tmp_path / "c", train__micro_tokens=10**6, train__batch_rows=600)
    narrow = work_of(files, tmp_path / "d", train__micro_tokens=50, train__batch_rows=600)
    assert len(wide.batch(0)) == 1
    assert rows_seen(wide, 1) == rows_seen(narrow, 1)


def test_sources_come_in_their_shares(files: Path, tmp_path: Path) -> None:
    work = work_of(files, tmp_path / "a", train__steps=100)
    sources = [work._mixture.at(i).source for i in range(30)]
    assert Counter(sources) == {0: 20, 1: 10}
    rows = {tuple(work._sources[0].row(i)) for i in range(len(work._sources[0]))}
    assert Counter(row in rows for row, _ in rows_seen(work, 9))[True] == 24


def test_like_rows_of_two_sources_have_masks_of_their_own(files: Path, tmp_path: Path) -> None:
    both = {name: {"files": [str(files / "a.txt")]} for name in ("one", "two")}
    work = work_of(files, tmp_path / "a", corpus__sources=both, train__steps=100)
    count = len(work._sources[0])
    seen: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for row, masked in rows_seen(work, 2 * count // 4):
        seen.setdefault(row, set()).add(masked)
    assert len([row for row, masks in seen.items() if len(masks) == 2]) > 0.9 * count


def test_the_share_that_is_masked_follows_its_schedule(files: Path, tmp_path: Path) -> None:
    changes = {"masking__rate": 0.4, "masking__final_rate": 0.1, "train__batch_rows": 40}
    work = work_of(files, tmp_path / "a", train__steps=10, **changes)
    shares = [sum(m.counts["masked"] for m in work.batch(step)) for step in (0, 9)]
    assert shares[0] > 2 * shares[1]


def test_operations_are_those_that_torch_counts(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch counts its own.
    monkeypatch.setattr(kernels, "_kernels", lambda: None)
    work = work_of(files, tmp_path / "a", model__hidden_dropout=0.0, model__attention_dropout=0.0)
    (micro, *_) = work.batch(0)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        masked_lm_loss(work.model.eval(), "mlm", *arguments(micro))
    assert counter.get_total_flops() == micro.flops / 3 > 1e6


def arguments(micro: Micro) -> tuple[Any, ...]:
    """A batch as the loss takes it."""
    return (
        torch.from_numpy(micro.batch.ids),
        micro.batch.offsets,
        torch.from_numpy(micro.batch.types),
        micro.arrays["positions"],
        torch.from_numpy(micro.arrays["targets"]),
    )


# --- killed, stopped, gone on with ----------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_killed_at_random_moments_it_ends_bitwise_the_same(
    optimizer: str, files: Path, tmp_path: Path
) -> None:
    random = chance(time.time_ns() % 10**6)
    changes = {"train__optimizer": optimizer, "train__steps": 12, "train__save_every": 1}
    began = time.monotonic()
    assert join(start(pretrain_job, toy_recipe(files, tmp_path / "whole", **changes), False)) == [0]
    whole = time.monotonic() - began
    recipe = toy_recipe(files, tmp_path / "run", **changes)
    kills = 0
    for _ in range(40):
        process = start(pretrain_job, recipe, True)
        if kills < 4:
            process.join(random.uniform(0, 0.8 * whole))
            process.kill()
        (code,) = join(process)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    print(f"{kills} kills, an undisturbed run of {whole:.1f} s")
    assert code == 0
    assert same(weights(tmp_path / "run/model"), weights(tmp_path / "whole/model"))
    one, other = (
        {line["step"]: line["loss"] for line in log_lines(tmp_path / name) if "loss" in line}
        for name in ("run", "whole")
    )
    assert one == other and list(one) == list(range(1, 13))
    assert not list((tmp_path / "run/checkpoints").glob(".step*"))


class Stop(BaseException):
    """A kill, as far as the code that it comes into can tell."""


def test_stopped_in_the_making_of_the_corpus_it_goes_on(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = weights(run(files, tmp_path / "whole").model)
    made: list[Path] = []

    def shard(job: Any, tokenizer: Any) -> Any:
        if len(made) == 2:
            raise Stop
        made.append(job[1])
        return real(job, tokenizer)

    real = corpus_module._shard
    with monkeypatch.context() as patch:
        patch.setattr(corpus_module, "_shard", shard)
        with pytest.raises(Stop):
            run(files, tmp_path / "run")
    with pytest.raises(CallError, match="exists and is not empty"):
        run(files, tmp_path / "run")
    assert same(weights(run(files, tmp_path / "run", resume=True).model), wanted)


def stop_at(number: int, patch: pytest.MonkeyPatch) -> None:
    """SIGTERM in the middle of the training loss of this number."""
    calls = [0]

    def loss(model: Any, *arguments: Any) -> Any:
        calls[0] += model.training
        if model.training and calls[0] == number:
            signal.raise_signal(signal.SIGTERM)
        return masked_lm_loss(model, *arguments)

    patch.setattr(pretrain, "masked_lm_loss", loss)


def test_a_run_that_was_stopped_names_its_checkpoint(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = run(files, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(5, patch)
        result = run(files, tmp_path / "run")
    assert not result.finished and 0 < result.step < 6
    assert result.model == latest(tmp_path / "run") / "model"
    assert result.before and not result.after
    assert checkpoint.read(result.model).config.vocab_size == 283
    assert not (tmp_path / "run/model").exists()
    again = run(files, tmp_path / "run", resume=True)
    assert again.finished and not again.before
    assert again.after == wanted.after
    assert same(weights(again.model), weights(wanted.model))
    # Once more: nothing is left to do, and nothing changes.
    assert run(files, tmp_path / "run", resume=True).tokens == 0
    assert same(weights(again.model), weights(wanted.model))


def test_more_steps_give_a_new_model(files: Path, tmp_path: Path) -> None:
    changes = {"train__schedule": "constant"}
    whole = run(files, tmp_path / "whole", **changes, train__steps=9)
    short = weights(run(files, tmp_path / "run", **changes).model)
    longer = run(files, tmp_path / "run", **changes, train__steps=9, resume=True)
    assert longer.finished and longer.step == 9
    assert same(weights(longer.model), weights(whole.model))
    assert not same(weights(longer.model), short)
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"model", "checkpoints"}
    assert not list((tmp_path / "run").glob(".model*"))


def test_stopped_while_the_model_is_written_it_is_written_again(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(self: MaskedLM, folder: Path) -> None:
        if folder.name == "model" and folder.parent == tmp_path / "run":
            raise Stop
        real(self, folder)

    real = MaskedLM.write
    with monkeypatch.context() as patch:
        patch.setattr(MaskedLM, "write", write)
        with pytest.raises(Stop):
            run(files, tmp_path / "run")
    result = run(files, tmp_path / "run", resume=True)
    assert same(weights(result.model), weights(latest(tmp_path / "run") / "model"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__lr": 2e-2}, "train.lr is 0.02, and was 0.01"),
        ({"seed": 2}, "seed is 2, and was 1"),
        ({"masking__unit": "word"}, "masking.unit is 'word', and was 'token'"),
        ({"corpus__length": 30}, "corpus.length is 30, and was 32"),
        ({"corpus__sources__a__weight": 3}, "corpus.sources.a.weight is 3"),
        ({"model__num_layers": 1}, "model.num_layers is 1, and was 2"),
        ({"train__steps": 3}, "steps is 3; 6 of the run are done already"),
    ],
)
def test_another_recipe_is_refused_by_its_key(
    changes: dict[str, Any], words: str, files: Path, tmp_path: Path
) -> None:
    run(files, tmp_path / "run")
    with pytest.raises(CallError) as caught:
        run(files, tmp_path / "run", resume=True, **changes)
    assert words in str(caught.value)


def test_a_run_may_move_with_its_files(tmp_path: Path) -> None:
    corpus_files(tmp_path / "old")
    run(tmp_path / "old", tmp_path / "old/run", train__schedule="constant")
    (tmp_path / "old").rename(tmp_path / "new")
    changes = {"train__steps": 7, "train__schedule": "constant", "corpus__workers": 2}
    # All but the tokenizer's folder, which says what it is by its name.
    with pytest.raises(CallError, match=r"corpus\.tokenizer is '.*/new/tokenizer', and was"):
        run(tmp_path / "new", tmp_path / "new/run", resume=True, **changes)
    changes["corpus__tokenizer"] = str(tmp_path / "old/tokenizer")
    shutil.copytree(tmp_path / "new/tokenizer", tmp_path / "old/tokenizer")
    assert run(tmp_path / "new", tmp_path / "new/run", resume=True, **changes).step == 7


def test_another_corpus_is_refused(tmp_path: Path) -> None:
    corpus_files(tmp_path)
    run(tmp_path, tmp_path / "run")
    write_txt(tmp_path / "b.txt", random_documents(77, 12))
    with pytest.raises(CallError, match=r"b\.txt: changed since .*corpus/b was built from it"):
        run(tmp_path, tmp_path / "run", resume=True)
    # As that message has it; but this is another run then.
    shutil.rmtree(tmp_path / "run/corpus/b")
    with pytest.raises(CallError, match=r"data\.b is .*, and was .*in the run to go on with"):
        run(tmp_path, tmp_path / "run", resume=True)
    write_txt(tmp_path / "b.txt", random_documents(1, 12))
    shutil.rmtree(tmp_path / "run/corpus/b")
    assert run(tmp_path, tmp_path / "run", resume=True).finished


def test_a_missing_shard_is_said_and_can_be_made_again(files: Path, tmp_path: Path) -> None:
    recipe = toy_recipe(files, tmp_path / "run", train__schedule="constant")
    wanted = pretrain.run(recipe, resume=False)
    before = weights(wanted.model)
    shutil.rmtree(tmp_path / "run/corpus/a/00000")
    with pytest.raises(CallError, match=r"tokens\.bin: missing.*fix: delete manifest\.json"):
        pretrain.run(recipe, resume=True)
    (tmp_path / "run/corpus/a/manifest.json").unlink()
    assert pretrain.run(recipe, resume=True).finished
    assert same(weights(wanted.model), before)


# --- a model to start from ------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(80))]


def model_folder(folder: Path, family: str, head: str | None) -> Path:
    """A random model of the transformers library, with a tokenizer."""
    vocabulary = 283 if family == "roberta" else 97
    reference(folder, family, head, seed=5, vocab_size=vocabulary, initializer_range=0.02)
    if family == "roberta":
        return tokenizer_folder(folder)
    words = [*WORDS, *(f"##{i}" for i in range(97 - len(WORDS)))]
    (folder / "vocab.txt").write_text("\n".join(words))
    return folder


def word_files(folder: Path, unknown: int = 0) -> Path:
    """Words of the small WordPiece vocabulary, and documents that it has not one word of."""
    folder.mkdir(exist_ok=True)
    random = chance(8)
    for name in ("a", "b", "near", "far"):
        known = [" ".join(random.choices(WORDS[5:], k=40)) for _ in range(8)]
        write_txt(folder / f"{name}.txt", ["☃ ☂"] * unknown + known)
    return folder


def adapted(files: Path, output: Path, model: Path, **changes: Any) -> PretrainResult:
    return run(files, output, model=str(model), corpus__tokenizer=None, **changes)


@pytest.mark.parametrize("head", ["mlm", None])
@pytest.mark.parametrize("family", ["roberta", "bert", "distilbert"])
def test_a_model_is_adapted_and_measured_before_and_after(
    family: str, head: str | None, files: Path, tmp_path: Path
) -> None:
    model = model_folder(tmp_path / "model", family, head)
    if family != "roberta":
        files = word_files(tmp_path / "files")
    result = adapted(files, tmp_path / "run", model, train__lr=1e-3, train__steps=12)
    assert result.before.keys() == result.after.keys() == {"near", "far"}
    for name in ("near", "far"):
        place = tmp_path / f"run/corpus/heldout-{name}"
        if head:
            wanted = reference_loss(model, family, place)
            assert dict(result.before[name]) == pytest.approx(wanted, rel=1e-4)
        wanted = reference_loss(result.model, family, place)
        assert dict(result.after[name]) == pytest.approx(wanted, rel=1e-4)
        assert result.after[name]["loss"] < result.before[name]["loss"]
    theirs: Any = transformers.AutoModelForMaskedLM.from_pretrained(result.model)
    assert theirs.config.model_type == family
    # A pooler that the model brought is kept as it was: nothing trains it.
    given = checkpoint.read(model).tensors
    if "pooler.weight" in given:
        assert family != "distilbert" and head is None
        kept = checkpoint.read(result.model).tensors
        assert np.array_equal(kept["pooler.weight"], given["pooler.weight"])
    # And it is a run like any other.
    assert adapted(
        files, tmp_path / "run", model, train__lr=1e-3, train__steps=12, resume=True
    ).finished


def test_a_stopped_adaptation_goes_on_bitwise(tmp_path: Path) -> None:
    files, model = word_files(tmp_path / "files"), model_folder(tmp_path / "model", "bert", None)
    wanted = adapted(files, tmp_path / "whole", model)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(5, patch)
        assert not adapted(files, tmp_path / "run", model).finished
    result = adapted(files, tmp_path / "run", model, resume=True)
    assert same(weights(result.model), weights(wanted.model))


def test_rows_of_unknown_words_alone_have_nothing_to_predict(tmp_path: Path) -> None:
    files = word_files(tmp_path / "files", unknown=30)
    model = model_folder(tmp_path / "model", "bert", "mlm")
    changes = {"corpus__packing": "documents", "train__batch_rows": 1, "train__steps": 12}
    result = adapted(files, tmp_path / "run", model, **changes, train__log_every=1)
    shares = [line["masked_share"] for line in log_lines(tmp_path / "run") if "loss" in line]
    assert 0 < shares.count(0.0) < 12
    assert result.finished and math.isfinite(result.after["near"]["loss"])
    write_txt(files / "near.txt", ["☃"] * 3)
    with pytest.raises(CallError, match="held-out near: no word in it is known"):
        adapted(files, tmp_path / "other", model, **changes)


def test_a_model_too_short_for_the_rows_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    reference(model, "bert", "mlm", max_positions=20)
    (model / "vocab.txt").write_text("\n".join(WORDS))
    with pytest.raises(CallError, match=r"corpus\.length is 32; .*model has 20 positions"):
        adapted(word_files(tmp_path / "files"), tmp_path / "run", model)


def test_a_model_that_cannot_be_read_is_said(files: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        adapted(files, tmp_path / "a", tmp_path / "model")
    with pytest.raises(CallError, match="no such folder"):
        adapted(files, tmp_path / "b", tmp_path / "none")
    # An error of the hub is an OSError too, and keeps its words.
    with pytest.raises(HubError, match="owner/none"):
        adapted(files, tmp_path / "c", Path("owner/none"))


# --- what goes wrong ------------------------------------------------------------------------------


def test_an_output_that_exists_is_refused(files: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    run(files, tmp_path / "run")
    with pytest.raises(CallError, match="run exists and is not empty"):
        run(files, tmp_path / "run")


def test_files_that_are_not_there_are_said(files: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("none.txt", "none-*.txt")):
        sources = {"x": {"files": [str(files / "a.txt"), str(files / name)]}}
        with pytest.raises(CallError, match=r"none.*\.txt: no such file"):
            run(files, tmp_path / str(number), corpus__sources=sources)


def test_patterns_name_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b-2.txt", "b-10.txt", "a.txt", "[x].txt"):
        (tmp_path / name).touch()
    found = expand([tmp_path / "b-*.txt", tmp_path / "[x].txt", tmp_path / "a.txt"])
    assert [path.name for path in found] == ["b-10.txt", "b-2.txt", "[x].txt", "a.txt"]


@pytest.mark.parametrize("where", ["checkpoints", "model"])
def test_a_full_disk_is_said_and_loses_nothing(
    where: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = weights(run(files, tmp_path / "whole").model)

    def write(self: MaskedLM, folder: Path) -> None:
        if self._writes == (1 if where == "checkpoints" else 3):  # type: ignore[attr-defined]
            raise OSError(errno.ENOSPC, "No space left on device")
        self._writes += 1  # type: ignore[attr-defined]
        real(self, folder)

    real = MaskedLM.write
    with monkeypatch.context() as patch:
        patch.setattr(MaskedLM, "_writes", 0, raising=False)
        patch.setattr(MaskedLM, "write", write)
        with pytest.raises(CallError) as caught:
            run(files, tmp_path / "run")
    assert "No space left on device" in str(caught.value)
    if where == "checkpoints":
        assert f"the last complete checkpoint is {latest(tmp_path / 'run')}" in str(caught.value)
        assert latest(tmp_path / "run").name == "step-000000002"
        assert "go on with --resume" in str(caught.value)
    assert same(weights(run(files, tmp_path / "run", resume=True).model), wanted)


def test_a_damaged_checkpoint_is_said(files: Path, tmp_path: Path) -> None:
    run(files, tmp_path / "run")
    path = latest(tmp_path / "run")
    config = json.loads((path / "model/config.json").read_text())
    (path / "model/config.json").write_text(json.dumps({**config, "hidden_size": 48}))
    with pytest.raises(ModelError):
        run(files, tmp_path / "run", resume=True)
    shutil.rmtree(path / "model")
    with pytest.raises(ModelError, match="no such folder"):
        run(files, tmp_path / "run", resume=True)
    shutil.rmtree(path)
    with pytest.raises(CallError, match=r"missing, and .*latest names it"):
        run(files, tmp_path / "run", resume=True)


def test_a_loss_that_is_not_finite_saves_a_batch_that_reproduces_it(
    files: Path, tmp_path: Path
) -> None:
    changes = {"train__lr": 1e30, "train__clip": None, "train__warmup": 0}
    with pytest.raises(enrobe.TrainError, match="allowed: finite numbers") as caught:
        run(files, tmp_path / "run", **changes, train__save_every=1)
    (path,) = (tmp_path / "run").glob("failed-*")
    assert str(path) in str(caught.value)
    saved = safetensors.numpy.load_file(path)
    state, _ = load_state(latest(tmp_path / "run"))
    work = work_of(files, tmp_path / "other", **changes)
    micros = work.batch(state.step)
    assert len({name.split(".")[0] for name in saved}) == len(micros)
    work.read(latest(tmp_path / "run") / "model")
    losses = []
    for number, micro in enumerate(micros):
        for name, array in (("ids", micro.batch.ids), ("targets", micro.arrays["targets"])):
            assert np.array_equal(saved[f"{number}.{name}"], array)
        loss, _ = masked_lm_loss(
            work.model,
            "mlm",
            torch.from_numpy(saved[f"{number}.ids"]),
            saved[f"{number}.offsets"],
            torch.from_numpy(saved[f"{number}.types"]),
            saved[f"{number}.positions"],
            torch.from_numpy(saved[f"{number}.targets"]),
        )
        losses.append(loss.item())
    assert not math.isfinite(sum(losses))


@pytest.mark.parametrize("precision", ["bfloat16", "tf32"])
def test_less_precision_on_a_cpu_learns_too(files: Path, tmp_path: Path, precision: str) -> None:
    whole = run(files, tmp_path / "whole")
    half = run(files, tmp_path / "half", train__precision=precision)
    assert torch.get_float32_matmul_precision() == "highest"
    assert half.after["near"]["loss"] == pytest.approx(whole.after["near"]["loss"], rel=0.02)


def test_the_call_takes_a_file_or_values(files: Path, tmp_path: Path) -> None:
    values = recipe_values(files, tmp_path / "run")
    (tmp_path / "recipe.toml").write_text(toml(values))
    result = enrobe.pretrain(str(tmp_path / "recipe.toml"), changes=["train.steps=1", "seed=3"])
    assert result.step == 1 and result.finished
    recipe = toy_recipe(files, tmp_path / "other", train__steps=1, seed=3)
    assert same(weights(enrobe.pretrain(recipe).model), weights(result.model))
    with pytest.raises(CallError, match="changes replace what a file says"):
        enrobe.pretrain(replace(recipe, seed=4), changes=["train.steps=2"])
    with pytest.raises(EnrobeError):
        enrobe.pretrain(tmp_path / "none.toml")


def test_a_folder_of_languages_is_drawn_from_by_smoothed_shares(
    files: Path, tmp_path: Path
) -> None:
    texts = tmp_path / "texts"
    (texts / "small").mkdir(parents=True)
    text = "\n\n".join(random_documents(7, 400))
    (texts / "large.txt").write_text(text * 8)
    (texts / "small" / "a.txt").write_text(text[: len(text) // 4])
    recipe = toy_recipe(files, tmp_path / "run", train__steps=1)
    corpus = replace(recipe.corpus, sources={}, languages=texts, alpha=0.3)
    recipe = pretrain.with_languages(replace(recipe, corpus=corpus))
    assert [*recipe.corpus.sources] == ["large", "small"]
    model, tokenizer, begun = pretrain._model(recipe, ALONE)
    rows, heldout = pretrain.corpus_rows(recipe, tokenizer, ALONE)
    work = MaskedLM(model, tokenizer, begun, rows, heldout, recipe, ALONE)
    large, small = (len(some) for some in rows.values())
    assert large > 25 * small
    drawn = Counter(work._mixture.at(place).source for place in range(1000))
    assert drawn[0] / drawn[1] == pytest.approx((large / small) ** 0.3, rel=0.02)
