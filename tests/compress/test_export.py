"""One head of several as a plain folder: transformers computes the same from it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from enrobe import checkpoint
from enrobe.cli import main
from enrobe.compress.export import export
from enrobe.config import HeadConfig
from enrobe.dialects import DIALECTS
from enrobe.errors import CallError
from tests.support import _CLASSES as AUTO
from tests.support import random_rows, reference, reference_outputs, scaled_error

KINDS = ("classify", "multilabel", "regress", "tag", "answer", "mlm")


def two_heads(folder: Path, family: str, kind: str) -> None:
    """A reference model's head, with a temperature or the like, and another one beside it."""
    read = checkpoint.read(folder / "one")
    tensors = {
        name.replace(f"heads.{kind}.", "heads.mine."): value for name, value in read.tensors.items()
    }
    other = HeadConfig(kind="tag", labels=("a", "b"))
    width = read.config.hidden_size
    tensors["heads.other.out.weight"] = read.tensors["embeddings.word.weight"][:2, :width]
    tensors["heads.other.out.bias"] = tensors["heads.other.out.weight"][:, 0]
    mine = read.heads[kind]
    if kind not in ("regress", "mlm"):
        mine = replace(mine, temperature=1.5)
    checkpoint.write(
        folder / "two", config=read.config, heads={"mine": mine, "other": other}, tensors=tensors
    )


@pytest.mark.parametrize("family", DIALECTS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_head_has_the_same_logits_in_transformers(
    family: str, kind: str, tmp_path: Path
) -> None:
    model = reference(tmp_path / "one", family, kind)
    two_heads(tmp_path, family, kind)
    export(tmp_path / "two", tmp_path / "out", format="huggingface", head="mine")
    theirs, info = AUTO[kind].from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    rows = random_rows(2, (7, 40), model.config.vocab_size)
    found = reference_outputs(theirs.eval(), rows).logits
    for a, b in zip(found, reference_outputs(model, rows).logits, strict=True):
        assert scaled_error(a, b) < 1e-6
    # And here, with what config.json cannot say.
    again = checkpoint.read(tmp_path / "out")
    assert list(again.heads) == ["mine"]
    assert again.heads["mine"] == checkpoint.read(tmp_path / "two").heads["mine"]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference(tmp_path / "one", "roberta", "classify")
    two_heads(tmp_path, "roberta", "classify")

    def call(*arguments: object) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["export", str(tmp_path / "two"), *map(str, arguments)])
        return int(ended.value.code or 0)

    options = ("--format", "huggingface", "--output", tmp_path / "out")
    assert call(*options) == 2
    assert "several heads; name one: 'mine', 'other'" in capsys.readouterr().err
    assert call(*options, "--head", "mime") == 2
    assert "did you mean 'mine'?" in capsys.readouterr().err
    assert call(*options, "--head", "other") == 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["RobertaForTokenClassification"]
    assert call(*options, "--head", "other") == 2
    assert "exists and is not empty" in capsys.readouterr().err
    with pytest.raises(CallError, match="format is 'torch'; allowed: huggingface"):
        export(tmp_path / "two", tmp_path / "new", format="torch", head="mine")  # type: ignore[arg-type]
