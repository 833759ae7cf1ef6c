"""The student of a teacher: some of its layers, a new shape, or a model that is there already."""

from collections.abc import Sequence
from dataclasses import replace

from enrobe import checkpoint, hub
from enrobe.checkpoint import Checkpoint
from enrobe.config import EncoderConfig
from enrobe.errors import CallError, ModelError
from enrobe.text.tokenizer import Tokenizer
from enrobe.train.distil_recipe import StudentTable


def student_of(teacher: Checkpoint, table: StudentTable) -> Checkpoint:
    """What a student begins with; a parameter that is not among its tensors is drawn.

    Raises:
        CallError: layers that the teacher has not, sizes that do not fit, a model with another
            vocabulary.
    """
    if table.model is not None:
        return _given(teacher, table.model)
    try:
        layers = chosen_layers(table.layers, teacher.config.num_layers)
        config = student_config(teacher.config, table)
    except (CallError, ModelError) as error:
        raise CallError(f"[student]: {error}") from None
    if table.is_new:
        return replace(teacher, config=config, heads={}, tensors={})
    tensors = {}
    for name, tensor in teacher.tensors.items():
        if name.startswith("layers."):
            _, number, part = name.split(".", 2)
            if int(number) + 1 not in layers:
                continue
            name = f"layers.{layers.index(int(number) + 1)}.{part}"
        tensors[name] = tensor
    return replace(teacher, config=config, tensors=tensors)


def chosen_layers(layers: int | Sequence[int] | None, count: int) -> tuple[int, ...]:
    """The layers that a student takes of so many, counted from 1.

    A number is spread evenly from the first to the last; six of twelve are 1, 3, 5, 8, 10 and 12,
    as DistilBERT has them. None: half of them.

    Raises:
        CallError: there is no such layer.
    """
    if layers is None:
        layers = max(1, count // 2)
    if not isinstance(layers, int):
        most = max(layers)
        if most > count:
            raise CallError(f"layers has {most}; the teacher's are 1 to {count}")
        return tuple(layers)
    if layers > count:
        raise CallError(f"layers is {layers}; the teacher has {count}")
    if layers == 1:
        return (1,)
    # Halves go up, which Python's own rounding would send to the even neighbour.
    return tuple(1 + (2 * n * (count - 1) // (layers - 1) + 1) // 2 for n in range(layers))


def layer_pairs(
    given: Sequence[tuple[int, int]] | None, student: int, teacher: int
) -> tuple[tuple[int, int], ...]:
    """Layers of the student with those of the teacher whose hidden states they learn.

    None: layer n of M with that of the teacher's L which ends the same share of it, n * L / M
    (TinyBERT's uniform map).

    Raises:
        CallError: there is no such layer.
    """
    if given is None:
        return tuple((n, -(-n * teacher // student)) for n in range(1, student + 1))
    for own, theirs in given:
        if not (0 <= own <= student and 0 <= theirs <= teacher):
            raise CallError(
                f"losses.hidden_layers has [{own}, {theirs}]; allowed: 0 (the embeddings) to "
                f"{student} of the student, to {teacher} of the teacher"
            )
    return tuple(given)


def student_config(teacher: EncoderConfig, table: StudentTable) -> EncoderConfig:
    """The teacher's configuration with the student's sizes; heads and feed-forward in proportion.

    Raises:
        ModelError: the sizes contradict each other.
    """
    layers = chosen_layers(table.layers, teacher.num_layers)
    hidden = table.hidden_size or teacher.hidden_size
    return replace(
        teacher,
        num_layers=len(layers),
        hidden_size=hidden,
        num_heads=table.num_heads or max(1, hidden // teacher.head_size),
        intermediate_size=table.intermediate_size
        or max(1, hidden * teacher.intermediate_size // teacher.hidden_size),
    )


def _given(teacher: Checkpoint, model: str) -> Checkpoint:
    read = checkpoint.read(hub.resolve(model))
    own, theirs = (
        Tokenizer.from_folder(one.folder, one.config.family, one.config.vocab_size).to_json()
        for one in (read, teacher)
    )
    if own != theirs:
        raise CallError(f"student.model {model}: its tokenizer is not the teacher's")
    return read
