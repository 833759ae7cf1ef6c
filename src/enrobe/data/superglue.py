"""Rows of SuperGLUE's files that a pair of texts cannot show as they are, with columns that can.

WiC      marked1, marked2: the sentences with the word in question between asterisks
WSC      marked: the text with the name between asterisks and the pronoun between underscores
MultiRC  a record for each answer: passage, question_answer, label, question (which one it is)
"""

from collections.abc import Iterator, Mapping
from typing import Any


def unfold(values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The records of one line; of any other file the line itself."""
    passage = values.get("passage")
    if isinstance(passage, dict) and isinstance(passage.get("questions"), list):
        yield from _answers(values, passage)
    elif {"word", "sentence1", "sentence2", "start1", "end1", "start2", "end2"} <= values.keys():
        marked = {f"marked{n}": _by_place(values, n) for n in (1, 2)}
        yield {**values, **{key: text for key, text in marked.items() if text is not None}}
    elif isinstance(values.get("target"), dict) and "span1_index" in values["target"]:
        text = _by_word(values)
        yield {**values, **({} if text is None else {"marked": text})}
    else:
        yield values


def _answers(values: Mapping[str, Any], passage: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for question in passage["questions"]:
        answers = question.get("answers") if isinstance(question, dict) else None
        for answer in answers if isinstance(answers, list) else ():
            if isinstance(answer, dict):
                yield {
                    "passage": passage.get("text"),
                    "question_answer": f"{question.get('question')} {answer.get('text')}",
                    "question": f"{values.get('idx')}-{question.get('idx')}",
                    **({"label": answer["label"]} if "label" in answer else {}),
                }


def _by_place(values: Mapping[str, Any], n: int) -> str | None:
    """WiC's places are characters; as text in the oldest files."""
    text = values[f"sentence{n}"]
    try:
        start, end = int(values[f"start{n}"]), int(values[f"end{n}"])
    except (TypeError, ValueError):
        return None
    if not isinstance(text, str) or not 0 <= start < end <= len(text):
        return None
    return f"{text[:start]}*{text[start:end]}*{text[end:]}"


def _by_word(values: Mapping[str, Any]) -> str | None:
    """WSC's places are words, between single spaces; its spans may have several."""
    text, target = values.get("text"), values["target"]
    if not isinstance(text, str):
        return None
    words = text.split(" ")
    for n, sign in ((1, "*"), (2, "_")):
        first, span = target.get(f"span{n}_index"), target.get(f"span{n}_text")
        if not isinstance(first, int) or not isinstance(span, str) or not span:
            return None
        last = first + len(span.split()) - 1
        if not 0 <= first <= last < len(words):
            return None
        words[first] = sign + words[first]
        words[last] += sign
    return " ".join(words)
