"""The command line: one thin function a verb."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

import enrobe
from enrobe import console, console_data, console_scores, console_small, progress
from enrobe.compress.api import ExportFormat, Quantized
from enrobe.data.labels import Kind
from enrobe.errors import CallError, EnrobeError, RefusedError
from enrobe.evaluate.files import Task as EvaluateTask
from enrobe.evaluate.suites import Suite
from enrobe.tasks.info import info as model_info
from enrobe.tasks.model import Device, Errors
from enrobe.tasks.parts import Long
from enrobe.tasks.results import Fill, Score
from enrobe.tasks.score import Method
from enrobe.tasks.vector_files import Precision as WrittenPrecision

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
Files = Annotated[list[Path] | None, Parameter(consume_multiple=True, negative=())]
Column = Annotated[str | None, Parameter(name="--text")]
Columns = Annotated[str, Parameter(name="--text")]

# Options that several verbs have; those of one verb are told in its docstring.
ModelOption = Annotated[
    str | None,
    Parameter(
        help="A folder, a built-in name or a hub id; else $ENROBE_MODEL or the built-in model."
    ),
]
ModelName = Annotated[str, Parameter(help="A folder, a built-in name or a hub id.")]
JsonLines = Annotated[bool, Parameter(negative=(), help="JSON lines on a terminal too.")]
JsonObject = Annotated[bool, Parameter(negative=(), help="One JSON object on a terminal too.")]
TextInput = Annotated[
    str | None, Parameter(help="A file of texts: txt, jsonl, csv, tsv, parquet; gz and xz of them.")
]
TextColumn = Annotated[
    str | None,
    Parameter(
        name="--text", help="The column that holds the text; standard input is then JSON lines."
    ),
]
LinesOutput = Annotated[
    str | None, Parameter(help="A file for the answers, as JSON lines; else standard output.")
]
OnDevice = Annotated[Device, Parameter(help="cuda needs PyTorch.")]
Pool = Annotated[
    str | None,
    Parameter(
        help="cls, mean, max, mean_sqrt_len, or several (cls,mean); else what the "
        "folder says, or mean."
    ),
]
Layers = Annotated[
    str | None,
    Parameter(allow_leading_hyphen=True, help="Layers to average, such as -1,-2; else the last."),
]
Normalize = Annotated[
    bool | None, Parameter(help="Vectors of length 1; else what the folder says.")
]
Resume = Annotated[bool, Parameter(negative=(), help="Go on from the last complete checkpoint.")]
LabelColumns = Annotated[
    str | None, Parameter(help="The label's column; for multilabel also several of 0 and 1: A,B,C.")
]
TaskColumns = Annotated[
    str | None,
    Parameter(
        name="--text",
        help="The text column, or the two of a pair: A,B; else what the file leaves no doubt of.",
    ),
]


@app.command
def fill(
    *text: str,
    model: ModelOption = None,
    top_k: int = 5,
    target: Words = None,
    joint: Switch = False,
    max_pieces: int = 1,
    input: TextInput = None,
    column: TextColumn = None,
    output: LinesOutput = None,
    json: JsonLines = False,
) -> int:
    """Fill the masks of texts with the likeliest words.

    Parameters
    ----------
    text
        Texts with <mask> (or [MASK], as the model has it); "-" reads standard input.
    top_k
        Candidates a mask.
    target
        Score these words instead.
    joint
        Fill all masks of a text together, too.
    max_pieces
        Words of one to this many pieces.
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
    model: ModelOption = None,
    method: Method = "plain",
    input: TextInput = None,
    column: TextColumn = None,
    output: LinesOutput = None,
    json: JsonLines = False,
) -> int:
    """Say how likely the model finds each text (pseudo-log-likelihood, natural log).

    Parameters
    ----------
    text
        Texts; "-" reads standard input.
    method
        within_word masks the later pieces of a token's word too.
    """
    loaded = enrobe.load(model)

    def run(texts: list[str], errors: Errors) -> list[Score]:
        return loaded.score(texts, method=method, errors=errors)

    return console.answer_all(
        console.Job(text, input, column, output, json), run, Score.failed, console.score_table
    )


@app.command
def predict(
    model: ModelName,
    input: str,
    *,
    output: LinesOutput = None,
    head: str | None = None,
    columns: Column = None,
    json: JsonLines = False,
) -> int:
    """Label the rows of a file with a model's heads, in their order and in constant memory.

    Of a model with several heads each row gets the answers of all that read texts, in one pass.

    Parameters
    ----------
    input
        Rows: txt, jsonl, csv, tsv, json, conll, conllu, parquet; gz and xz; "-": standard input.
    head
        The head, where the model has several and one is wanted.
    columns
        The text column, or the two of a pair (A,B), or question and context; else those that the
        head was trained on. Standard input is JSON lines then.
    """
    from enrobe.console_predict import predict_rows
    from enrobe.tasks.predict_file import FilePredictor

    names = console.listed(columns) or ()
    predictor = FilePredictor(enrobe.load(model), head, names)
    return predict_rows(console.Job((), input, None, output, json), predictor, names)


@app.command
def info(model: ModelOption = None, *, json: JsonObject = False) -> int:
    """Tell what a model is: family, sizes, heads, memory, tokenizer, and what was not read."""
    console.show_facts(model_info(model), as_json=json)
    return 0


@app.command
def data(
    *file: Path,
    dev: Files = None,
    columns: TaskColumns = None,
    label: LabelColumns = None,
    kind: Annotated[Kind | None, Parameter(name=["--kind", "--task"])] = None,
    format: str | None = None,
    names: Annotated[str | None, Parameter(name="--columns")] = None,
    model: str | None = None,
    json: JsonObject = False,
) -> int:
    """Look at labelled files before anything is trained on them.

    Rows and labels, lengths against a model's limit, duplicates and contradictions, texts that
    stand in training and dev files both, rows that cannot be read (exit code 2).

    Parameters
    ----------
    file
        Training files: csv, tsv, jsonl, json (SQuAD's too), conll, conllu, txt, parquet; gz and xz.
    dev
        Files to be measured on.
    kind
        What the label is made for.
    format
        A format that the files' names do not say.
    names
        Names for the columns of a file without a header: A,B,C.
    model
        Whose tokens are counted; else $ENROBE_MODEL or the built-in model.
    """
    from enrobe.tasks.data_report import report_data

    report = report_data(
        file,
        dev or (),
        kind=kind,
        text=console.listed(columns) or (),
        label=console.listed(label) or (),
        format=format,
        columns=console.listed(names) or (),
        model=model,
    )
    return console_data.show_data(report, as_json=json)


@app.command
def convert(source: str, *, output: Path, tokenizer: Path | None = None) -> int:
    """Turn another checkpoint into a safetensors folder that Enrobe and transformers load.

    Parameters
    ----------
    source
        A folder, built-in name or hub id (pytorch_model.bin, safetensors), or fairseq's model.pt.
    output
        The folder to write; it must not exist, or be empty.
    tokenizer
        A folder with the tokenizer, where the source has none.
    """
    from enrobe.convert import convert as run_convert

    for line in run_convert(source, output, tokenizer=tokenizer).report():
        print(line, file=sys.stderr)
    return 0


@app.command
def export(
    model: ModelName,
    *,
    output: Path,
    format: ExportFormat,
    head: str | None = None,
    calibrate: Path | None = None,
    column: TextColumn = None,
) -> int:
    """Write a model in another form.

    huggingface: one head on its encoder, as a folder that transformers loads as it is. onnx,
    openvino, tensorrt: a graph with all heads, run at once and compared with the model; exit code 3
    and no folder where they differ.

    Parameters
    ----------
    output
        The folder to write; it must not exist, or be empty.
    head
        The head, where the model has several; of a graph else all.
    calibrate
        A file of texts like those that the graph will read: onnx and openvino then get an int8
        graph (Q/DQ), with scales for these texts; without it, it is in float32.
    """
    from enrobe.compress.export import export as run_export

    made = run_export(model, output, format=format, head=head, calibrate=calibrate, column=column)
    print(f"written: {made}", file=sys.stderr)
    return 0


@app.command
def embed(
    *files: str,
    output: Path,
    input: Annotated[str | None, Parameter(show=False)] = None,
    model: ModelOption = None,
    pool: Pool = None,
    layers: Layers = None,
    normalize: Normalize = None,
    prompt: str | None = None,
    truncate_dim: int | None = None,
    long: Long = "window",
    column: TextColumn = None,
    precision: WrittenPrecision = "float32",
    resume: Switch = False,
    workers: int = 1,
    device: OnDevice = "auto",
    json: JsonObject = False,
) -> int:
    """Write a vector for every row of files, in their order and in constant memory.

    Killed or stopped at any moment, it goes on with --resume, to the same bytes.

    Parameters
    ----------
    files
        Files, or folders of them: txt, jsonl, csv, tsv, parquet; gz and xz; "-": standard input.
    output
        The file to write: .npy, .safetensors, .jsonl or .parquet. FILE.json tells of what.
    prompt
        A name among the folder's prompts, or a prefix for every text.
    truncate_dim
        Leading numbers to keep.
    long
        What is longer than the model: in windows, cut, or an error.
    precision
        Of the written numbers; int8 has a scale a row, and no place in an npy file.
    resume
        Go on with a job that was interrupted; it has the same model, options and input.
    workers
        Processes, each with its share of the cores; the result is the same.
    """
    from enrobe.tasks.bulk import embed_files

    with progress.shown() as show:
        made = embed_files(
            [*files, *([] if input is None else [input])],
            output,
            model=model,
            pool=console.listed(pool),  # type: ignore[arg-type]
            layers=console.numbers(layers),
            normalize=normalize,
            truncate_dim=truncate_dim,
            prompt=prompt,
            long=long,
            column=column,
            precision=precision,
            resume=resume,
            workers=workers,
            device=device,
            report=show,
        )
    return console.show_embedded(made, as_json=json)


@app.command
def search(
    file: Path,
    *query: str,
    top_k: int = 5,
    model: str | None = None,
    prompt: str | None = None,
    texts: str | None = None,
    column: Column = None,
    json: JsonLines = False,
) -> int:
    """Find the rows of a file by `enrobe embed` that are most like each query: exact, all compared.

    Parameters
    ----------
    file
        The file of vectors; FILE.json tells of their model and their texts.
    query
        Texts to look for.
    top_k
        Hits a query.
    model
        A folder, a built-in name or a hub id; else the one that FILE.json names.
    prompt
        For the queries; else the one that the rows have.
    texts
        Where the texts of an npy or safetensors file are; else where FILE.json says.
    column
        The column of --texts that holds them.
    """
    from enrobe.tasks.search_file import search as search_file

    found = search_file(
        file, query, top_k=top_k, model=model, prompt=prompt, texts=texts, column=column
    )
    console.show_found(found, as_json=json)
    return 0


@app.command
def evaluate(
    model: ModelName,
    *data: Path,
    head: str | None = None,
    suite: Suite | None = None,
    task: EvaluateTask | None = None,
    columns: Column = None,
    label: str | None = None,
    by_language: Switch = False,
    source: str | None = None,
    output: Path | None = None,
    pool: Pool = None,
    layers: Layers = None,
    normalize: Normalize = None,
    prompt: str | None = None,
    device: OnDevice = "auto",
    json: JsonObject = False,
) -> int:
    """Score a model on a file, with bootstrap intervals; or on many languages.

    Without --task one of its heads, on rows with labels of the head's kind: all that its kind is
    measured by, and each label by itself.

    With --suite its heads on a benchmark, each on the task that it is called like (cola, sst2,
    mnli, boolq, ...), with the official metrics and their mean.

    sts: Spearman's and Pearson's correlation of the similarity of pairs with their scores. bitext:
    how often each text's other half is the most like it of all, both ways, and its mean reciprocal
    rank.

    Parameters
    ----------
    data
        A file of rows: csv, tsv, jsonl (gz and xz of them) or parquet; for a head also json
        (SQuAD's too), conll and conllu. For a suite the folder of its official files; with
        --by-language a file a language.
    head
        The head, where the model has several.
    suite
        glue, superglue (val.jsonl) or xnli.
    task
        What is scored in place of a head: similarity.
    by_language
        Scores by language: of the files, called after what tells their names apart; or of one file
        with a column "language" or "lang".
    source
        With --by-language the language that was trained on, which the others' gap is told to; else
        English where it is there.
    output
        With --by-language a folder to write: languages.json, languages.md, languages.png.
    prompt
        For a task, a name among the folder's prompts, or a prefix for every text.
    columns
        The text columns: A,B; of a head those that it was trained on.
    label
        The label's column, else what the file leaves no doubt of; for sts the scores.
    """
    from enrobe.evaluate.files import evaluate_file, evaluate_head
    from enrobe.evaluate.similarity import Embedding

    if not data:
        raise CallError("no file to measure on is named; fix: enrobe evaluate MODEL DATA")
    if suite is not None:
        from enrobe.evaluate.suites import evaluate_suite

        options: dict[str, object] = {"--head": head, "--task": task, "--text": columns}
        options |= {"--label": label, "--by-language": by_language or None}
        options |= {"a second folder": data[1:] or None}
        console.refuse(options, "beside --suite", "one of the two")
        done = evaluate_suite(enrobe.load(model, device=device), suite, data[0])
        return console_scores.show_suite(done, as_json=json)
    embedding = Embedding(
        pool=console.listed(pool),  # type: ignore[typeddict-item]
        layers=console.numbers(layers),
        normalize=normalize,
        prompt=prompt,
    )
    if by_language:
        from enrobe.evaluate.languages import evaluate_languages
        from enrobe.evaluate.languages_folder import check_output, write_languages

        if output is not None:
            check_output(output)
        with progress.shown() as show:
            found = evaluate_languages(
                enrobe.load(model, device=device),
                data,
                source=source,
                head=head,
                task=task,
                text=console.listed(columns) or (),
                label=console.listed(label) or (),
                embedding=embedding,
                progress=show,
            )
        if output is not None:
            write_languages(found, output, name=model)
        return console_scores.show_languages(found, output, as_json=json)
    if len(data) != 1 or source is not None or output is not None:
        what = "--source and --output" if len(data) == 1 else f"{len(data)} files"
        raise CallError(f"{what}: one file has one score; fix: --by-language for a file a language")
    if task is None:
        scores = evaluate_head(
            enrobe.load(model, device=device),
            data[0],
            head=head,
            text=console.listed(columns) or (),
            label=console.listed(label) or (),
        )
        return console_scores.show_head(scores, as_json=json)
    with progress.shown() as show:
        report = evaluate_file(
            enrobe.load(model, device=device),
            data[0],
            task=task,
            text=console.listed(columns) or (),
            label=label,
            embedding=embedding,
            progress=show,
        )
    return console_scores.show_evaluated(report, as_json=json)


@app.command
def layers(
    *,
    dev: Path,
    train: Path | None = None,
    columns: Columns,
    label: str,
    output: Path,
    model: ModelOption = None,
    device: OnDevice = "auto",
    json: JsonObject = False,
) -> int:
    """Find the layer and pooling that know most about a task: a score for each, as table and curve.

    Labels are classes, told apart by logistic regression on the vectors of --train. Two text
    columns with labels that are fractions, or without --train, are scored pairs: Spearman's
    correlation of the cosine with the score.

    Parameters
    ----------
    dev
        Rows to test on: csv, tsv, jsonl (gz and xz of them) or parquet.
    train
        Rows to learn from.
    columns
        The text column, or the two of a pair: A,B.
    label
        The column of labels.
    output
        The folder to write (layers.json, layers.md, layers.png); it must not exist, or be empty.
    """
    from enrobe.evaluate.layers_folder import write_layers

    with progress.shown() as show:
        report = write_layers(
            enrobe.load(model, device=device),
            output,
            name=model or os.environ.get("ENROBE_MODEL") or "the built-in model",
            train=train,
            dev=dev,
            text=console.listed(columns) or (),
            label=label,
            progress=show,
        )
    return console_scores.show_layers(report, output, as_json=json)


@app.command
def pretrain(
    recipe: Path, *, resume: Resume = False, set: Words = None, json: JsonObject = False
) -> int:
    """Pretrain a masked language model on text files, or adapt one to a domain.

    Ctrl-C and SIGTERM save first (exit code 130); --resume goes on exactly, after a kill -9 too.

    Parameters
    ----------
    recipe
        A TOML file; docs/pretraining.md has every key.
    set
        KEY=VALUE in place of what the recipe says, for instance train.steps=100.
    """
    from enrobe.train.api import pretrain as run_pretrain

    result = run_pretrain(recipe, resume=resume, changes=set or ())
    console.show_pretrained(result, as_json=json)
    return 0 if result.finished else 130


@app.command
def finetune(
    recipe: Path | None = None,
    *,
    task: Kind | None = None,
    train: Files = None,
    dev: Files = None,
    columns: TaskColumns = None,
    label: LabelColumns = None,
    model: ModelOption = None,
    output: Path | None = None,
    resume: Resume = False,
    set: Words = None,
    json: JsonObject = False,
) -> int:
    """Fine-tune a model for one task or for several: a recipe, or one task by options.

    Ctrl-C and SIGTERM save first (exit code 130); --resume goes on exactly, after a kill -9 too.

    Parameters
    ----------
    recipe
        A TOML file; docs/finetuning.md has every key.
    task
        What the label is made for; else what the file leaves no doubt of.
    train
        Files to learn from: csv, tsv, jsonl, json (SQuAD's too), conll, parquet; gz and xz.
    dev
        Files to be measured on; else a tenth of the rows is split off.
    output
        A new folder.
    set
        KEY=VALUE in place of what the recipe or the default says, for instance epochs=1.
    """
    from enrobe.train.api import finetune as run_finetune
    from enrobe.train.api import finetune_files

    if recipe is not None:
        given = {"--train": train, "--dev": dev, "--output": output, "--task": task}
        options = {**given, "--text": columns, "--label": label, "--model": model}
        console.refuse(options, "beside a recipe", "--set KEY=VALUE")
        result = run_finetune(recipe, resume=resume, changes=set or ())
    else:
        result = finetune_files(
            train or (),
            dev or (),
            kind=task,
            text=console.listed(columns) or (),
            label=console.listed(label) or (),
            model=model,
            output=output,
            resume=resume,
            changes=set or (),
        )
    console_scores.show_finetuned(result, as_json=json)
    return 0 if result.finished else 130


@app.command
def distill(
    recipe: Path, *, resume: Resume = False, set: Words = None, json: JsonObject = False
) -> int:
    """Teach a smaller model what a larger one says, and tell what it has kept and what it saves.

    Ctrl-C and SIGTERM save first (exit code 130); --resume goes on exactly, after a kill -9 too.

    Parameters
    ----------
    recipe
        A TOML file; docs/distilling.md has every key.
    set
        KEY=VALUE in place of what the recipe says, for instance student.layers=3.
    """
    from enrobe.train.api import distill as run_distill

    result = run_distill(recipe, resume=resume, changes=set or ())
    console_scores.show_distilled(result, as_json=json)
    return 0 if result.finished else 130


@app.command
def quantize(
    model: ModelName,
    *,
    output: Path,
    precision: Quantized = "int8",
    evaluate: Path | None = None,
    max_drop: float = 0.003,
    head: str | None = None,
    task: EvaluateTask | None = None,
    columns: Column = None,
    label: str | None = None,
    json: JsonObject = False,
) -> int:
    """Make a smaller, faster folder of a model, and measure what that cost.

    Exit code 3 and no folder where a number falls further than it may; the costliest layers are
    named then.

    Parameters
    ----------
    output
        A new folder: the model, with report.md, report.json and report.png.
    precision
        int8 is multiplied in int8; int8-weights and float16 are only stored so.
    evaluate
        A labelled file that the model is measured on, before and after.
    max_drop
        The largest loss of any number, as a share of the float32 one.
    head
        The head that is measured; else all that were trained on labels.
    task
        What is measured in place of heads: similarity.
    columns
        The text columns: A,B; of a head those that it was trained on.
    label
        The label's column, else what the file leaves no doubt of; for sts the scores.
    """
    report = enrobe.quantize(
        model,
        output,
        precision=precision,
        evaluate=evaluate,
        max_drop=max_drop,
        head=head,
        task=task,
        text=console.listed(columns) or (),
        label=console.listed(label) or (),
    )
    console_small.show_quantized(report, as_json=json)
    return 0


@app.command
def optimize(
    model: ModelName,
    *,
    output: Path,
    evaluate: Path,
    max_drop: float = 0.003,
    threads: Annotated[str | None, Parameter(help="Numbers of threads to try: 1,2.")] = None,
    head: str | None = None,
    task: EvaluateTask | None = None,
    columns: Column = None,
    label: str | None = None,
    json: JsonObject = False,
) -> int:
    """Find the engine, precision and number of threads that serve a model best on this machine.

    The quickest at 128 tokens among those that lose at most --max-drop becomes a folder.

    Parameters
    ----------
    output
        A new folder: the model, with optimize.md, optimize.json and optimize.png.
    evaluate
        A labelled file that every way to run the model is measured on.
    max_drop
        The largest loss of any number, as a share of the float32 one.
    head
        The head that is measured; else all that were trained on labels.
    task
        What is measured in place of heads: similarity.
    columns
        The text columns: A,B; of a head those that it was trained on.
    label
        The label's column, else what the file leaves no doubt of; for sts the scores.
    """
    from enrobe.compress.measure import Data
    from enrobe.compress.optimize import optimize as run_optimize

    data = Data(
        file=evaluate,
        task=task,
        head=head,
        text=tuple(console.listed(columns) or ()),
        label=tuple(console.listed(label) or ()),
    )
    counts = tuple(console.numbers(threads) or ())
    report = run_optimize(model, output, data=data, max_drop=max_drop, threads=counts)
    console_small.show_optimized(report, as_json=json)
    return 0


@app.command
def trim(
    model: ModelName,
    *,
    corpus: Path,
    output: Path,
    column: Column = None,
    json: JsonObject = False,
) -> int:
    """Drop the vocabulary entries that a corpus never uses; covered text is read as before.

    Tokenizer, embeddings and decoder lose them together. Every text of the corpus is cut into
    tokens both ways, and vectors are compared bit for bit, before anything is kept.

    Parameters
    ----------
    corpus
        Texts like those that the model will read: txt, jsonl, csv, tsv, parquet; gz and xz.
    output
        A new folder.
    column
        The column that holds the text.
    """
    from enrobe.compress.trim import trim as run_trim

    report = run_trim(model, output, corpus=corpus, column=column)
    return console_small.show_trimmed(report, as_json=json)


@app.command
def align(
    recipe: Path, *, resume: Resume = False, set: Words = None, json: JsonObject = False
) -> int:
    """Put a model's vectors of sentences into another model's space.

    By a rotation in closed form, or with [train] by training; measured on held-out translations
    before and after. Ctrl-C and SIGTERM save first (exit code 130).

    Parameters
    ----------
    recipe
        A TOML file; docs/languages.md has every key.
    set
        KEY=VALUE in place of what the recipe says, for instance pairs.most=500.
    """
    with progress.shown() as show:
        result = enrobe.align(recipe, resume=resume, changes=set or (), progress=show)
    console_scores.show_aligned(result, as_json=json)
    return 0 if result.finished else 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; a mistake of the user's is one line on standard error and exit code 2.

    3: what was asked for could be made, but would be worse than it may be.
    """
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
        code = 3 if isinstance(error, RefusedError) else 2
    except KeyboardInterrupt as stopped:
        if str(stopped):
            print(f"enrobe: {stopped}", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # Whoever read our output has gone; Python must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)
