"""The real download path of huggingface_hub, against a small server on loopback."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from enrobe import checkpoint, hub
from enrobe.errors import CallError
from tests.support import reference

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A server that offers every folder under a root as the model someone/FOLDER."""
    root, asked = tmp_path / "served", []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(send=False)

        def do_GET(self) -> None:
            self.answer(send=True)

        def answer(self, *, send: bool) -> None:
            path = self.path.split("?")[0]
            asked.append(path)
            api = path.removeprefix("/api/models/someone/")
            name = api.split("/")[0] if api != path else path.split("/")[2]
            folder = root / name
            if not folder.is_dir():
                self.reply(b"{}", 404, {"X-Error-Code": "RepoNotFound"}, send)
            elif "/tree/" in path:
                found = [f for f in folder.rglob("*") if f.is_file()]
                tree = [self.entry(f, folder) for f in found]
                self.reply(json.dumps(tree).encode(), 200, {}, send)
            elif api != path:
                files = [{"rfilename": str(f.relative_to(folder))} for f in folder.rglob("*")]
                body = {"id": f"someone/{name}", "sha": COMMIT, "siblings": files, "private": False}
                self.reply(json.dumps(body).encode(), 200, {}, send)
            else:
                file = folder / path.split(f"/resolve/{COMMIT}/")[1]
                data = file.read_bytes()
                etag = f'"{hashlib.sha256(data).hexdigest()}"'
                self.reply(data, 200, {"ETag": etag, "X-Repo-Commit": COMMIT}, send)

        def entry(self, file: Path, folder: Path) -> dict[str, object]:
            name, size = str(file.relative_to(folder)), file.stat().st_size
            oid = hashlib.sha1(file.read_bytes()).hexdigest()
            return {"type": "file", "path": name, "size": size, "oid": oid}

        def reply(self, body: bytes, status: int, headers: dict[str, str], send: bool) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if send:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", root, asked
    server.shutdown()
    server.server_close()


def load(name: str, endpoint: str, cache: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """`enrobe info` in a process of its own: huggingface_hub reads its settings at import."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), **more}
    environment.pop("HF_HUB_OFFLINE", None) if "HF_HUB_OFFLINE" not in more else None
    return subprocess.run(
        [sys.executable, "-m", "enrobe", "info", name],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )


def with_tokenizer(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join(words + [f"w{i}" for i in range(92)]))


def test_fetched_once_then_from_the_cache(
    served: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    endpoint, root, asked = served
    reference(root / "tiny", "bert", "mlm")
    with_tokenizer(root / "tiny")
    (root / "tiny" / "training_args.bin").write_bytes(b"not wanted")
    (root / "tiny" / "evil.py").write_text("raise SystemExit(1)")
    first = load("someone/tiny", endpoint, tmp_path / "cache")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["family"] == "bert"
    assert not [path for path in asked if path.endswith((".py", "training_args.bin"))]
    # Without the server, the cache serves; offline mode too.
    again = load("someone/tiny", "http://127.0.0.1:9", tmp_path / "cache", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr


def test_int8_rows_are_fetched(served: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    endpoint, root, _ = served
    reference(tmp_path / "whole", "bert", "mlm")
    read = checkpoint.read(tmp_path / "whole")
    parts = {"config": read.config, "heads": read.heads, "tensors": read.tensors}
    checkpoint.write(root / "small", **parts, int8_rows=True)  # type: ignore[arg-type]
    with_tokenizer(root / "small")
    found = load("someone/small", endpoint, tmp_path / "cache")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["weights"]["stored"] == "int8 rows"


@pytest.mark.parametrize(
    ("name", "said"),
    [("someone/nothing", "no public model"), ("someone/pickled", "enrobe convert")],
)
def test_what_the_hub_does_not_have(
    name: str, said: str, served: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    endpoint, root, _ = served
    reference(root / "pickled", "bert", "mlm")
    (root / "pickled" / "model.safetensors").unlink()
    found = load(name, endpoint, tmp_path / "cache")
    assert found.returncode == 2
    assert said in found.stderr
    assert found.stderr.count("\n") == 1
    assert not found.stdout


def test_offline_without_a_cache(tmp_path: Path) -> None:
    found = load("someone/tiny", "http://127.0.0.1:9", tmp_path / "cache", HF_HUB_OFFLINE="1")
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
    assert "cache does not have it" in found.stderr


def test_an_unreachable_hub(tmp_path: Path) -> None:
    found = load("someone/tiny", "http://127.0.0.1:9", tmp_path / "cache")
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.resolve(str(tmp_path)) == tmp_path
    monkeypatch.setenv(hub.ENVIRONMENT, str(tmp_path))
    assert hub.resolve(None) == tmp_path


@pytest.mark.parametrize(
    "name",
    ["./nothing", "/nothing/at/all", "a/b/c", "", "a b", "../x", "x\x00y", "ü/x", "http://h/x"],
)
def test_neither_folder_nor_hub_id(name: str) -> None:
    with pytest.raises(CallError) as caught:
        hub.resolve(name)
    assert "\n" not in str(caught.value)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(CallError, match="is a file"):
        hub.resolve(str(tmp_path / "x"))
