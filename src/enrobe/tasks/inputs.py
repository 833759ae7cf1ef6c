"""What heads are asked of: texts, pairs of texts, or texts that are split into words."""

from collections.abc import Sequence

from enrobe.errors import CallError, show
from enrobe.tasks.calls import as_texts
from enrobe.text.rows import Text, is_split

Pairs = Sequence[tuple[str, str]]
Words = Sequence[Sequence[str]]


def as_inputs(
    texts: str | Sequence[str] | None, pairs: Pairs | None, words: Words | None
) -> tuple[list[Text], list[Text] | None]:
    """First texts, and second ones where pairs are given.

    Raises:
        CallError: none or several of the three are given, or one is not what it should be.
    """
    given = {"texts": texts, "pairs": pairs, "words": words}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        has = " and ".join(names) or "none of them"
        raise CallError(f"give texts, pairs= or words=, one of them; got {has}")
    if texts is not None:
        plain = as_texts(texts)
        for text in plain:
            if is_split(text):
                raise CallError(f"texts has {show(text)}; allowed: strings; fix: pairs= or words=")
        return list[Text](plain), None
    if words is not None:
        return list[Text](as_words(words)), None
    if isinstance(pairs, str | bytes | dict) or not hasattr(pairs, "__iter__"):
        raise CallError(f"pairs is {show(pairs)}; allowed: a list of (first, second)")
    firsts: list[Text] = []
    seconds: list[Text] = []
    for pair in pairs or ():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise CallError(f"pairs has {show(pair)}; allowed: a list of (first, second)")
        # A value that is no string becomes its own text's error.
        firsts.append(pair[0])
        seconds.append(pair[1])
    return firsts, seconds


def as_words(words: Words) -> list[list[str]]:
    """Texts as lists of words, or CallError."""
    wanted = "allowed: for each text a list of its words"
    if isinstance(words, str | bytes | dict) or not hasattr(words, "__iter__"):
        raise CallError(f"words is {show(words)}; {wanted}")
    out = list(words)
    for one in out:
        if isinstance(one, str | bytes | dict) or not hasattr(one, "__iter__"):
            raise CallError(f"words has {show(one)}; {wanted}")
    return [list(one) for one in out]


def as_questions(
    questions: str | Sequence[str], contexts: str | Sequence[str]
) -> tuple[list[str], list[str]]:
    """Questions and their contexts; one context (a string) may serve many questions.

    Raises:
        CallError: there are not as many contexts as questions.
    """
    asked = as_texts(questions)
    given = [contexts] * len(asked) if isinstance(contexts, str) else as_texts(contexts)
    if len(given) != len(asked):
        raise CallError(f"{len(asked)} questions and {len(given)} contexts; allowed: as many")
    return asked, given
