"""The command line: one thin function a verb."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

import enrobe
from enrobe import console
from enrobe.errors import EnrobeError
from enrobe.tasks.info import info as model_info
from enrobe.tasks.model import Errors
from enrobe.tasks.results import Fill, Score
from enrobe.tasks.score import Method

app = App(
    name="enrobe",
    help="A toolkit for RoBERTa-family text encoders.",
    version=enrobe.__version__,
    help_format="plaintext",
    help_formatter="plain",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)

Switch = Annotated[bool, Parameter(negative=())]
Words = Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())]
Column = Annotated[str | None, Parameter(name="--text")]


@app.command
def fill(
    *text: str,
    model: str | None = None,
    top_k: int = 5,
    target: Words = None,
    joint: Switch = False,
    max_pieces: int = 1,
    input: str | None = None,
    column: Column = None,
    output: str | None = None,
    json: Switch = False,
) -> int:
    """Fill the masks of texts with the likeliest words.

    Parameters
    ----------
    text
        Texts with <mask> (or [MASK], as the model has it); "-" reads standard input.
    model
        A folder or a hub id; else $ENROBE_MODEL.
    top_k
        Candidates a mask.
    target
        Score these words instead.
    joint
        Fill all masks of a text together, too.
    max_pieces
        Words of one to this many pieces.
    input
        A file of texts: txt, jsonl, csv, tsv, parquet; gz and xz of them.
    column
        The column that holds the text; standard input is then JSON lines.
    output
        A file for the answers, as JSON lines; else standard output.
    json
        JSON lines on a terminal too.
    """
    loaded = enrobe.load(model)

    def run(texts: list[str], errors: Errors) -> list[Fill]:
        return loaded.fill(
            texts, top_k=top_k, targets=target, joint=joint, max_pieces=max_pieces, errors=errors
        )

    return console.answer_all(
        console.Job(text, input, column, output, json), run, Fill.failed, console.fill_table
    )


@app.command
def score(
    *text: str,
    model: str | None = None,
    method: Method = "plain",
    input: str | None = None,
    column: Column = None,
    output: str | None = None,
    json: Switch = False,
) -> int:
    """Say how likely the model finds each text (pseudo-log-likelihood, natural log).

    Parameters
    ----------
    text
        Texts; "-" reads standard input.
    model
        A folder or a hub id; else $ENROBE_MODEL.
    method
        within_word masks the later pieces of a token's word too.
    input
        A file of texts: txt, jsonl, csv, tsv, parquet; gz and xz of them.
    column
        The column that holds the text; standard input is then JSON lines.
    output
        A file for the answers, as JSON lines; else standard output.
    json
        JSON lines on a terminal too.
    """
    loaded = enrobe.load(model)

    def run(texts: list[str], errors: Errors) -> list[Score]:
        return loaded.score(texts, method=method, errors=errors)

    return console.answer_all(
        console.Job(text, input, column, output, json), run, Score.failed, console.score_table
    )


@app.command
def info(model: str | None = None, *, json: Switch = False) -> int:
    """Tell what a model is: family, sizes, heads, memory, tokenizer, and what was not read.

    Parameters
    ----------
    model
        A folder or a hub id; else $ENROBE_MODEL.
    json
        One JSON object on a terminal too.
    """
    console.show_facts(model_info(model), as_json=json)
    return 0


@app.command
def convert(source: str, *, output: Path, tokenizer: Path | None = None) -> int:
    """Turn an older checkpoint into a safetensors folder that Enrobe and transformers load.

    Parameters
    ----------
    source
        A folder or hub id with pytorch_model.bin or safetensors, or fairseq's model.pt.
    output
        The folder to write; it must not exist, or be empty.
    tokenizer
        A folder with the tokenizer, where the source has none.
    """
    from enrobe.convert import convert as run_convert

    for line in run_convert(source, output, tokenizer=tokenizer).report():
        print(line, file=sys.stderr)
    return 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; a mistake of the user's is one line on standard error and exit code 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # A lone "-" is standard input (or output, behind its option), not an option without a name.
    while "-" in given:
        at = given.index("-")
        if at and given[at - 1] in ("--input", "--output"):
            given[at - 1 : at + 1] = [f"{given[at - 1]}=-"]
        else:
            given[at] = "--input=-"
    try:
        code = app(given, exit_on_error=False, print_error=False)
    except (EnrobeError, CycloptsError) as error:
        message = " ".join(str(error).split())
        print(f"enrobe: {message}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # Whoever read our output has gone; Python must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)
