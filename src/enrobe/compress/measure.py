"""What a model is worth on a person's own data: the numbers that compression must keep."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from enrobe.data.examples import read_examples
from enrobe.errors import CallError
from enrobe.evaluate.files import Task, evaluate_file, evaluate_head, labelled
from enrobe.evaluate.intervals import Interval
from enrobe.evaluate.rows import read_rows
from enrobe.evaluate.similarity import StsReport
from enrobe.tasks.model import Model


@dataclass(frozen=True, kw_only=True)
class Data:
    """A labelled file, and what is measured on it."""

    file: Path
    task: Task | None = None
    # of a model of vectors; None: its trained heads
    head: str | None = None
    # None: all of them
    text: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    # columns; (): as `enrobe evaluate` finds them

    def heads(self, model: Model) -> list[str]:
        """The heads that are measured.

        Raises:
            CallError: the model has none, and no task is named.
        """
        trained = [name for name, head in model.engine.heads.items() if head.kind != "mlm"]
        if not trained:
            raise CallError(
                "the model has no head that was trained on labels; "
                "fix: --task sts --text A,B --label C, or --task bitext --text A,B"
            )
        return trained if self.head is None else [self.head]

    def scores(self, model: Model) -> dict[str, Interval]:
        """The usual number of each head, or of the task, by its name.

        Raises:
            CallError, ModelError: as `enrobe evaluate`.
        """
        if self.task is not None:
            label = self.label[0] if self.label else None
            done = evaluate_file(model, self.file, task=self.task, text=self.text, label=label)
            if isinstance(done, StsReport):
                return {"spearman": done.spearman}
            return {
                "accuracy, forward": done.accuracy_forward,
                "accuracy, backward": done.accuracy_backward,
            }
        out = {}
        for head in self.heads(model):
            found = evaluate_head(model, self.file, head=head, text=self.text, label=self.label)
            name, value = next(iter(found.scores.items()))
            out[f"{head}: {name.replace('_', ' ')}"] = value
        return out

    def texts(self, model: Model, most: int = 1000) -> list[str]:
        """Texts of the file, from all over it, to see what goes through the model."""
        if self.task is not None:
            found = [text for row in read_rows(self.file, self.text).texts for text in row]
        else:
            head = self.heads(model)[0]
            task, known = labelled(model, self.file, head, self.text, self.label)
            found = [
                text
                for row in read_examples(task, task.train, labels=known)
                for text in (row.text, row.pair)
                if text
            ]
        return found[:: max(1, len(found) // most)]


def drops(before: Mapping[str, Interval], after: Mapping[str, Interval]) -> dict[str, float]:
    """How much of each number is lost, as a share of it; less than 0 where it rose."""
    return {
        name: (value.value - after[name].value) / max(abs(value.value), 1e-12)
        for name, value in before.items()
    }
