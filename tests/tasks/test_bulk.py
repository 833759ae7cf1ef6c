"""Bulk jobs: the vectors are those of `embed`, and no interruption changes a byte."""

import gzip
import hashlib
import json
import lzma
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import enrobe
from enrobe.errors import CallError
from enrobe.tasks import bulk_inputs, bulk_state
from enrobe.tasks.bulk import EmbeddedFile, embed_files
from enrobe.tasks.vector_blocks import blocks
from tests.support import reference

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat", "."]
WORDS += [f"w{i}" for i in range(97 - len(WORDS))]
FORMATS = ["npy", "jsonl", "safetensors", "parquet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "tiny"
    reference(out, "bert", None, seed=4)
    (out / "vocab.txt").write_text("\n".join(WORDS))
    return out


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_inputs, "_SHARD_ROWS", 8)


def lines(path: Path, count: int, seed: int = 0) -> Path:
    chance = random.Random(seed)
    rows = [" ".join(chance.choices(WORDS[5:], k=chance.randint(0, 12))) for _ in range(count)]
    path.write_text("\n".join(rows) + "\n")
    return path


def digest(*paths: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def beside(output: Path) -> list[Path]:
    """The output and what stands beside it."""
    return sorted(p for p in output.parent.iterdir() if p.name.startswith(output.name))


# --- what comes out -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_the_vectors_are_those_of_embed(
    kind: str, folder: Path, tmp_path: Path, small_shards: None
) -> None:
    path = lines(tmp_path / "in.txt", 45)
    output = tmp_path / f"out.{kind}"
    made = embed_files(path, output, model=folder, pool=("cls", "mean"), normalize=True)
    assert (made.rows, made.failed, made.resumed_at, made.dimensions) == (45, 0, 0, 112)
    texts = path.read_text().splitlines()
    expected = enrobe.load(folder).embed(texts, pool=("cls", "mean"), normalize=True)
    found = np.concatenate([block for _, block in blocks(output)])
    assert np.abs(found - expected).max() < 2e-6
    assert beside(output) == [output, output.with_name(f"out.{kind}.json")]
    facts = json.loads(output.with_name(f"out.{kind}.json").read_text())
    assert facts["sources"] == [
        {
            "path": "in.txt",
            "bytes": path.stat().st_size,
            "sha256": digest(path)[0],
            "rows": 45,
            "failed": 0,
        }
    ]
    assert facts["tokens"] == made.tokens > 45 * 2
    assert facts["model"]["name"] == os.path.relpath(folder, tmp_path)


def test_every_kind_of_input_and_folders_of_them(
    folder: Path, tmp_path: Path, small_shards: None
) -> None:
    texts = [f"w{n} cat" for n in range(20)]
    plain = "\n".join(texts).encode()
    records = "\n".join(json.dumps({"text": text, "n": 1}) for text in texts).encode()
    table = "\n".join(["n,text", *(f"1,{text}" for text in texts)]).encode()
    inside = tmp_path / "data"
    (inside / "deep").mkdir(parents=True)
    (inside / "a.txt").write_bytes(plain)
    (inside / "b.jsonl.gz").write_bytes(gzip.compress(records))
    (inside / "c.csv").write_bytes(table)
    (inside / "deep/d.tsv.xz").write_bytes(lzma.compress(table.replace(b",", b"\t")))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), inside / "deep/e.parquet")
    (inside / "README.md").write_text("no text")
    (inside / ".hidden.txt").write_text("hidden")
    output = inside / "out.jsonl"
    made = embed_files([inside, inside / "a.txt"], output, model=folder)
    assert made.rows == 120
    assert made.left_out == (str(inside / "README.md"),)
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["text"] for record in found] == texts * 6
    names = ["a.txt", "b.jsonl.gz", "c.csv", "deep/d.tsv.xz", "deep/e.parquet", "a.txt"]
    assert [record["source"] for record in found[::20]] == names
    assert [record["number"] for record in found[:20]] == [*range(1, 21)]
    # The output is not among its own inputs.
    again = embed_files([inside, inside / "a.txt"], output, model=folder, resume=True)
    assert (again.rows, again.resumed_at) == (120, 120)
    assert again.left_out == made.left_out


@pytest.mark.parametrize("kind", FORMATS)
def test_a_row_with_an_error_has_a_place(
    kind: str, folder: Path, tmp_path: Path, small_shards: None
) -> None:
    path = tmp_path / "in.jsonl"
    rows = [json.dumps({"text": f"w{n}"}) for n in range(20)]
    rows[3], rows[11], rows[19] = "{", '{"text": "\\ud800"}', json.dumps({"text": "w1 " * 600})
    path.write_text("\n".join(rows) + "\n")
    output = tmp_path / f"out.{kind}"
    made = embed_files(path, output, model=folder, long="refuse")
    assert (made.rows, made.failed) == (20, 3)
    found = np.concatenate([block for _, block in blocks(output)])
    assert np.flatnonzero(np.isnan(found).any(axis=1)).tolist() == [3, 11, 19]
    assert np.flatnonzero(np.isnan(found).all(axis=1)).tolist() == [3, 11, 19]
    if kind in ("npy", "safetensors"):
        text = output.with_name(f"{output.name}.errors.jsonl").read_text()
        errors = [json.loads(line) for line in text.splitlines()]
        assert [error["row"] for error in errors] == [3, 11, 19]
        assert [error["number"] for error in errors] == [4, 12, 20]
    else:
        assert len(beside(output)) == 2
        if kind == "parquet":
            errors = pyarrow.parquet.read_table(output).to_pylist()
        else:
            errors = [json.loads(line) for line in output.read_text().splitlines()]
        errors = [record for record in errors if record["error"] is not None]
    assert "not JSON" in errors[0]["error"]
    assert "surrogate" in errors[1]["error"]
    assert "602 tokens" in errors[2]["error"]


def test_no_rows_at_all(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"")
    for kind in FORMATS:
        made = embed_files(tmp_path / "in.txt", tmp_path / f"out.{kind}", model=folder)
        assert (made.rows, made.failed, made.dimensions) == (0, 0, 56)
    assert np.load(tmp_path / "out.npy").shape == (0, 56)


def test_int8_is_close(folder: Path, tmp_path: Path) -> None:
    path = lines(tmp_path / "in.txt", 30)
    embed_files(path, tmp_path / "a.npy", model=folder)
    embed_files(path, tmp_path / "a.safetensors", model=folder, precision="int8")
    tensors = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    restored = tensors["vectors"].astype(np.float32) * tensors["scales"][:, None]
    full = np.load(tmp_path / "a.npy")
    assert (np.abs(restored - full) <= 0.501 * tensors["scales"][:, None]).all()


@given(st.binary(max_size=200), st.sampled_from(["txt", "jsonl", "csv", "tsv"]))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_a_row_each_or_one_line(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, content: bytes, kind: str
) -> None:
    place = tmp_path_factory.mktemp("bytes")
    path, output = place / f"in.{kind}", place / "out.jsonl"
    path.write_bytes(content)
    try:
        made = embed_files(path, output, model=folder)
    except CallError:
        assert beside(output) in ([], [bulk_state.state_folder(output)])
        return
    found = [json.loads(line) for line in output.read_bytes().split(b"\n")[:-1]]
    assert len(found) == made.rows
    assert all((r["vector"] is None) == (r["error"] is not None) for r in found)
    assert sum(r["error"] is not None for r in found) == made.failed


def test_progress_is_told(folder: Path, tmp_path: Path, small_shards: None) -> None:
    told: list[tuple[int, int, float | None]] = []
    path = lines(tmp_path / "in.txt", 20)
    embed_files(path, tmp_path / "o.npy", model=folder, report=lambda *now: told.append(now))
    assert [rows for rows, _, _ in told] == [0, 8, 16, 20]
    assert told[0][1:] == (0, 0.0)
    assert told[-1][2] == 1.0
    assert [tokens for _, tokens, _ in told] == sorted(tokens for _, tokens, _ in told)


# --- interrupted --------------------------------------------------------------------------------


class Died(BaseException):
    """The machine stopped here."""


def dying(monkeypatch: pytest.MonkeyPatch, after: int) -> Callable[[], int]:
    """Die at the nth thing that is done to the disk; the function tells how many were done."""
    done = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            if done == after:
                raise Died
            done += 1
            return real(*arguments, **options)

        return call

    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    monkeypatch.setattr(Path, "replace", counted(Path.replace))
    monkeypatch.setattr(bulk_state, "complete", counted(bulk_state.complete))
    monkeypatch.setattr(bulk_state.shutil, "rmtree", counted(bulk_state.shutil.rmtree))
    return lambda: done


@pytest.mark.parametrize("kind", FORMATS)
def test_a_death_at_every_step_changes_nothing(
    kind: str, folder: Path, tmp_path: Path, small_shards: None
) -> None:
    path = tmp_path / "in.jsonl"
    rows = [json.dumps({"text": f"w{n} " * (n % 7)}) for n in range(20)]
    rows[9] = "{"
    path.write_text("\n".join(rows))
    precision: Any = "int8" if kind == "safetensors" else "float32"

    def job(resume: bool = False) -> EmbeddedFile:
        output = tmp_path / f"out.{kind}"
        return embed_files(path, output, model=folder, precision=precision, resume=resume)

    made = job()
    files = beside(made.output)
    calm = digest(*files)
    for file in files:
        file.unlink()
    step = 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            dying(patch, step)
            try:
                job(resume=step % 2 == 0)
            except Died:
                pass
            else:
                break
        again = job(resume=True)
        assert (again.rows, again.failed, again.tokens) == (20, 1, made.tokens)
        assert beside(made.output) == files, step
        assert digest(*files) == calm, step
        for file in files:
            file.unlink()
        step += 1
    assert step > 12


def command(*arguments: str | Path, shard: int = 64, before: str = "") -> list[str]:
    """`enrobe embed` with small shards, so that a small file has many of them."""
    code = f"from enrobe.tasks import bulk_inputs; bulk_inputs._SHARD_ROWS = {shard}; {before}"
    code += "import sys; from enrobe.cli import main; main(sys.argv[1:])"
    return [sys.executable, "-c", code, "embed", *map(str, arguments)]


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_random_moments(workers: int, folder: Path, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    chance = random.Random(seed)
    path = lines(tmp_path / "in.txt", 24_000, seed)
    kind = chance.choice(FORMATS)
    calm, output = tmp_path / f"calm.{kind}", tmp_path / f"out.{kind}"
    calls = [path, "--model", folder, "--resume", "--workers", str(workers)]
    subprocess.run(command(*calls, "--output", calm), check=True, capture_output=True)
    kills = 0
    for _ in range(40):
        process = subprocess.Popen(
            command(*calls, "--output", output),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # Most of them in the work: the first shard is waited for, now and then.
        begun = bulk_state.state_folder(output) / "progress.json"
        until = time.monotonic() + 60
        while chance.random() < 0.999 and not begun.exists() and time.monotonic() < until:
            if process.poll() is not None:
                break
            time.sleep(0.01)
        try:
            process.wait(chance.uniform(0, 0.5))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        if process.returncode == 0 or kills == 4:
            break
    subprocess.run(command(*calls, "--output", output), check=True, capture_output=True)
    assert digest(output) == digest(calm)
    assert (
        output.with_name(f"{output.name}.json").read_bytes()
        == calm.with_name(f"{calm.name}.json").read_bytes()
    )
    assert not bulk_state.state_folder(output).exists()
    assert kills


def test_the_number_of_workers_changes_nothing(
    folder: Path, tmp_path: Path, small_shards: None
) -> None:
    path = lines(tmp_path / "in.txt", 100)
    for workers in (1, 2, 3):
        made = embed_files(path, tmp_path / f"{workers}.npy", model=folder, workers=workers)
        assert made.rows == 100
    assert len({*digest(*(tmp_path / f"{n}.npy" for n in (1, 2, 3)))}) == 1
    assert len({*digest(*(tmp_path / f"{n}.npy.json" for n in (1, 2, 3)))}) == 1


def test_ctrl_c_can_go_on(folder: Path, tmp_path: Path) -> None:
    path = lines(tmp_path / "in.txt", 20_000)
    output = tmp_path / "out.npy"
    for workers in ("1", "2"):
        calls = command(path, "--model", folder, "--output", output, "--workers", workers)
        process = subprocess.Popen(
            [*calls, "--resume"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        progress = bulk_state.state_folder(output) / "progress.json"
        before = progress.read_text() if progress.is_file() else ""
        until = time.monotonic() + 90
        while (not progress.is_file() or progress.read_text() == before) and (
            time.monotonic() < until
        ):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert not out
        assert err.startswith(b"enrobe: stopped after ") and err.count(b"\n") == 1, err
        assert b"--resume" in err
        assert progress.is_file() and not output.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on files stands for a full disk")
def test_a_full_disk_loses_nothing(folder: Path, tmp_path: Path) -> None:
    path = lines(tmp_path / "in.txt", 1_000)
    limit = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (100_000,) * 2); "
    for kind in FORMATS:
        calm, output = tmp_path / f"calm.{kind}", tmp_path / f"out.{kind}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bulk_inputs, "_SHARD_ROWS", 64)
            embed_files(path, calm, model=folder)
        arguments = [path, "--model", folder, "--output", output]
        answer = subprocess.run(command(*arguments, before=limit), capture_output=True)
        assert answer.returncode == 2, answer.stderr
        assert answer.stderr.count(b"\n") == 1
        assert b"cannot be written (File too large); what is done is kept" in answer.stderr
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bulk_inputs, "_SHARD_ROWS", 64)
            made = embed_files(path, output, model=folder, resume=True)
        assert 0 < made.resumed_at < 1_000
        assert digest(output) == digest(calm)


# --- refused ------------------------------------------------------------------------------------


@pytest.fixture
def begun(
    folder: Path, tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """An input, and the output of a job on it that died."""
    path, output = lines(tmp_path / "in.txt", 40), tmp_path / "out.npy"
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, 13)
        with pytest.raises(Died):
            embed_files(path, output, model=folder)
    return path, output


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"pool": "cls"}, r"pool \(is \['cls'\], was None\)"),
    ({"layers": 0}, r"layers \(is \[0\], was None\)"),
    ({"normalize": True}, "normalize"),
    ({"truncate_dim": 5}, "truncate_dim"),
    ({"prompt": "the "}, "prompt"),
    ({"long": "refuse"}, "long"),
    ({"precision": "float16"}, "precision"),
]


@pytest.mark.parametrize(("change", "named"), CHANGES)
def test_another_option_is_refused(
    change: dict[str, Any], named: str, folder: Path, begun: tuple[Path, Path]
) -> None:
    with pytest.raises(CallError, match=f"begun with another.*{named}.*fix: give the same"):
        embed_files(*begun, model=folder, resume=True, **change)
    embed_files(*begun, model=folder, resume=True)
    # And the same where the job is finished.
    with pytest.raises(CallError, match=f"begun with another.*{named}.*name another output"):
        embed_files(*begun, model=folder, resume=True, **change)


def test_another_model_is_refused(folder: Path, begun: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    reference(other, "bert", None, seed=5)
    (other / "vocab.txt").write_text("\n".join(WORDS))
    with pytest.raises(CallError, match=r"the model \(was "):
        embed_files(*begun, model=other, resume=True)
    # The same weights and another vocabulary are another model; in another place, the same one.
    for name in ("config.json", "model.safetensors"):
        (other / name).write_bytes((folder / name).read_bytes())
    (other / "vocab.txt").write_text("\n".join([*WORDS[:-1], "other"]))
    with pytest.raises(CallError, match=r"the model \(was "):
        embed_files(*begun, model=other, resume=True)
    (other / "vocab.txt").write_text("\n".join(WORDS))
    assert embed_files(*begun, model=other, resume=True).resumed_at


def test_another_input_is_refused(folder: Path, begun: tuple[Path, Path], tmp_path: Path) -> None:
    path, output = begun
    old = path.read_bytes()
    path.write_bytes(old[:-2] + b"x\n")
    with pytest.raises(CallError, match=r"the input in\.txt"):
        embed_files(path, output, model=folder, resume=True)
    path.write_bytes(old)
    more = lines(tmp_path / "more.txt", 3)
    with pytest.raises(CallError, match=r"the input \(2 files, were 1\)"):
        embed_files([path, more], output, model=folder, resume=True)
    with pytest.raises(CallError, match="cannot be read again"):
        embed_files("-", output, model=folder, resume=True)


def test_what_came_while_the_job_was_dead_is_not_overwritten(
    folder: Path, tmp_path: Path, small_shards: None
) -> None:
    path, output = lines(tmp_path / "in.txt", 4), tmp_path / "out.npy"
    for step in range(100):
        output.unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            dying(patch, step)
            try:
                embed_files(path, output, model=folder, resume=True)
            except Died:
                pass
            else:
                break
        if not output.exists() and bulk_state.was_begun(output):
            output.write_bytes(b"mine")
            with pytest.raises(CallError, match="exists, and a job for it is not finished"):
                embed_files(path, output, model=folder, resume=True)
            assert output.read_bytes() == b"mine"
    assert step > 3


def test_what_exists_is_not_overwritten(folder: Path, begun: tuple[Path, Path]) -> None:
    path, output = begun
    with pytest.raises(CallError, match="begun and is not finished"):
        embed_files(path, output, model=folder)
    output.write_bytes(b"mine")
    for resume in (False, True):
        with pytest.raises(CallError, match="exists"):
            embed_files(path, output, model=folder, resume=resume)
    assert output.read_bytes() == b"mine"
    output.unlink()
    embed_files(path, output, model=folder, resume=True)
    output.with_name("out.npy.json").unlink()
    with pytest.raises(CallError, match=r"exists, and no out\.npy\.json"):
        embed_files(path, output, model=folder, resume=True)
    with pytest.raises(CallError, match=r"is the output, too|exists"):
        embed_files(output.with_name("in.txt"), output, model=folder)


def test_a_state_that_was_damaged(folder: Path, begun: tuple[Path, Path]) -> None:
    state = bulk_state.state_folder(begun[1])
    data = (state / "data").read_bytes()
    (state / "data").write_bytes(data[:500])
    with pytest.raises(CallError, match="shorter than what was written"):
        embed_files(*begun, model=folder, resume=True)
    (state / "data").write_bytes(data)
    manifest = (state / "manifest.json").read_text()
    (state / "manifest.json").write_text('{"format": 1, "sources": [{"sha256": ""}]}')
    with pytest.raises(CallError, match="damaged"):
        embed_files(*begun, model=folder, resume=True)
    (state / "manifest.json").write_text(manifest.replace('"format": 1', '"format": 2'))
    with pytest.raises(CallError, match="another version"):
        embed_files(*begun, model=folder, resume=True)


def test_one_process_at_a_time(folder: Path, begun: tuple[Path, Path]) -> None:
    def again(rows: int, *_: object) -> None:
        with pytest.raises(CallError, match="another process is writing it"):
            embed_files(*begun, model=folder, resume=True)

    made = embed_files(*begun, model=folder, resume=True, report=again)
    assert made.rows == 40


def test_an_input_that_changes_while_it_is_read(
    folder: Path, tmp_path: Path, small_shards: None
) -> None:
    path = lines(tmp_path / "in.txt", 30)

    def change(rows: int, *_: object) -> None:
        if rows == 8:
            with path.open("a") as file:
                file.write("the cat\n")

    with pytest.raises(CallError, match="changed while it was read"):
        embed_files(path, tmp_path / "out.npy", model=folder, report=change)
    assert not (tmp_path / "out.npy").exists()


def test_mistakes_show_before_the_work(folder: Path, tmp_path: Path) -> None:
    good = lines(tmp_path / "in.txt", 3)
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty").mkdir()
    output = tmp_path / "out.npy"
    mistakes: list[tuple[Any, dict[str, Any], str]] = [
        ([], {}, "no input"),
        ([good, tmp_path / "none.txt"], {}, "no such file"),
        ([good, tmp_path / "bad.csv"], {}, "no column 'text'"),
        (tmp_path / "empty", {}, "no file in it"),
        ([good, "-"], {}, "several inputs"),
        (good, {"workers": 0}, "workers is 0"),
        (good, {"column": "x"}, "has no columns"),
        (good, {"pool": "mena"}, "mean"),
        (good, {"layers": [9]}, "layers"),
        (good, {"truncate_dim": 1000}, "truncate_dim"),
        (good, {"precision": "int8"}, "scales"),
        (good, {"prompt": "unknown"}, "prompt"),
    ]
    for inputs, options, message in mistakes:
        with pytest.raises(CallError, match=message):
            embed_files(inputs, output, model=folder, **options)
        assert beside(output) == []
    with pytest.raises(CallError, match="no such folder"):
        embed_files(good, tmp_path / "none/out.npy", model=folder)


# --- memory -------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory as Linux counts it")
def test_memory_does_not_grow_with_the_rows(folder: Path, tmp_path: Path) -> None:
    peaks = []
    for count in (3_000, 30_000):
        path = lines(tmp_path / f"{count}.txt", count)
        process = subprocess.Popen(
            command(path, "--model", folder, "--output", tmp_path / f"{count}.npy", shard=512),
            stdout=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        peaks.append(usage.ru_maxrss)
    print("peaks", peaks)
    # The 27,000 vectors more are 6 MB, the texts 1 MB.
    assert peaks[1] < peaks[0] + 4_000
