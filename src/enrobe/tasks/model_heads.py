"""The model's methods for heads that were trained on labels, each a thin line to its task."""

from collections.abc import Sequence

from enrobe.config import SEQUENCE_KINDS
from enrobe.engines.base import Engine
from enrobe.tasks import answer as answering
from enrobe.tasks import predict as predicting
from enrobe.tasks import tag as tagging
from enrobe.tasks.calls import Errors, settle
from enrobe.tasks.heads import choose
from enrobe.tasks.inputs import Pairs, Words, as_inputs, as_questions
from enrobe.tasks.results import Answer, Prediction, Span
from enrobe.text.tokenizer import Tokenizer


class HeadMethods:
    """What a `Model` does with its heads."""

    engine: Engine
    tokenizer: Tokenizer

    def predict(
        self,
        texts: str | Sequence[str] | None = None,
        *,
        pairs: Pairs | None = None,
        words: Words | None = None,
        head: str | None = None,
        special: bool = True,
        errors: Errors = "raise",
    ) -> list[Prediction]:
        """What a classify, multilabel or regress head says of each text, or of each pair.

        Args:
            texts: or `pairs` or `words`, one of the three. What is longer than the model, or than
                the rows that the head was trained on, is cut at its end, in a pair the longer text
                first: `Prediction.cut` counts the tokens that were left out.
            pairs: [(first, second), ...], framed as the family frames them.
            words: for each text its words, for a head that was trained on words.
            head: its name; None: the only one of these kinds.
            special: False reads a literal `</s>` in a text as plain text.
            errors: "raise" or "collect".

        Raises:
            CallError: an argument is wrong; several heads, and none is named; pairs for a head
                that was trained on single texts, or the opposite.
            TextError: a text cannot be read (with errors="raise").
            ModelError: the model has no such head.
        """
        firsts, seconds = as_inputs(texts, pairs, words)
        name = choose(self.engine, head, SEQUENCE_KINDS)
        found = predicting.predict(
            self.engine, self.tokenizer, firsts, seconds, name, special=special
        )
        return settle(
            [""] * len(found), found, errors, lambda _, error: Prediction.failed(name, error)
        )

    def predict_all(
        self,
        texts: str | Sequence[str] | None = None,
        *,
        pairs: Pairs | None = None,
        words: Words | None = None,
        special: bool = True,
        errors: Errors = "raise",
    ) -> list[predicting.Everything]:
        """What every head says of each text, with one pass of the encoder for all of them.

        For each text a dictionary: a head's name to its Prediction, or to the list of Spans of a
        tag head. Heads that answer questions are left out; so are, of texts, the heads that were
        trained on pairs, and of pairs those that were trained on single texts, and tag heads.
        Heads whose longest rows in training differ take a pass for each length.

        Args:
            texts, pairs, words, special, errors: as in `predict`.

        Raises:
            CallError, TextError, ModelError: as `predict`.
        """
        firsts, seconds = as_inputs(texts, pairs, words)
        names = predicting.heads_for(self.engine, pairs=seconds is not None)
        found = predicting.predict_all(
            self.engine, self.tokenizer, firsts, seconds, special=special
        )
        return settle(
            [""] * len(found),
            found,
            errors,
            lambda _, error: predicting.failed(names, self.engine.heads, error),
        )

    def tag(
        self,
        texts: str | Sequence[str] | None = None,
        *,
        words: Words | None = None,
        head: str | None = None,
        special: bool = True,
        errors: Errors = "raise",
    ) -> list[list[Span]]:
        """The labelled spans of each text, as a tag head's BIO tags say them.

        A word is tagged at its first piece, in a long text by the window that has it nearest the
        middle. Tags are read as conlleval reads them: I-x after anything else begins a span, too.

        Args:
            texts: or `words`. `Span.start` and `end` are characters of the text. Words are found
                where spaces, letters and signs meet, and where the vocabulary has them.
            words: for each text its words; `Span.start` and `end` count words then.
            head: its name; None: the only tag head.
            special: as in `predict`; given words are plain text.
            errors: "raise" or "collect": one Span whose `error` says what is wrong.

        Raises:
            CallError, TextError, ModelError: as `predict`.
        """
        given, _ = as_inputs(texts, None, words)
        name = choose(self.engine, head, ("tag",))
        found = tagging.tag(self.engine, self.tokenizer, given, name, special=special)
        return settle(
            [""] * len(found), found, errors, lambda text, error: [Span.failed(text, error)]
        )

    def answer(
        self,
        questions: str | Sequence[str],
        contexts: str | Sequence[str],
        *,
        top_k: int = 1,
        max_answer: int = answering.MAX_ANSWER,
        head: str | None = None,
        special: bool = True,
        errors: Errors = "raise",
    ) -> list[list[Answer]]:
        """The parts of each context that answer its question, the best first.

        A long context is read in windows that share tokens. Where the head carries a threshold for
        it, the text "" (start and end 0) says that the context has no answer.

        Args:
            questions: one or several.
            contexts: as many, or one string for all questions.
            top_k: answers a question; all are different, and they may overlap.
            max_answer: the longest answer in tokens.
            head: its name; None: the only answer head.
            special: as in `predict`.
            errors: "raise" or "collect": one Answer whose `error` says what is wrong.

        Raises:
            CallError, ModelError: as `predict`.
            TextError: as `predict`; a context has no text, and the head no threshold.
        """
        asked, given = as_questions(questions, contexts)
        name = choose(self.engine, head, ("answer",))
        found = answering.answer(
            self.engine,
            self.tokenizer,
            asked,
            given,
            name,
            top_k=top_k,
            max_answer=max_answer,
            special=special,
        )
        return settle(asked, found, errors, lambda text, error: [Answer.failed(text, error)])
