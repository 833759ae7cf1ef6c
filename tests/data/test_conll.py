import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enrobe.data.conll import sentences
from enrobe.errors import CallError


def read(text: str, **options: Any) -> list[tuple[dict[str, Any], str | None]]:
    return list(
        sentences(((n, line, None) for n, line in enumerate(text.split("\n"), 1)), **options)
    )


def good(text: str, **options: Any) -> list[dict[str, Any]]:
    found = read(text, **options)
    assert all(wrong is None for _, wrong in found), found
    return [values for values, _ in found]


@pytest.mark.parametrize("sign", ["\t", " ", "   "])
@pytest.mark.parametrize("end", ["", "\n", "\n\n\n", "\n \n"])
def test_two_columns_with_and_without_a_last_blank_line(sign: str, end: str) -> None:
    text = f"\n\nEU{sign}B-ORG\nrejects{sign}O\n\n\nPeter{sign}B-PER{end}"
    assert good(text) == [
        {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]},
        {"tokens": ["Peter"], "tags": ["B-PER"]},
    ]


def test_four_columns_and_docstart() -> None:
    text = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n-DOCSTART- -X- O O\n\n"
    text += "a b c d"
    first, second = good(text)
    assert first == {
        "tokens": ["EU", "rejects"],
        "column2": ["NNP", "VBZ"],
        "column3": ["B-NP", "B-VP"],
        "column4": ["B-ORG", "O"],
    }
    assert second["tokens"] == ["a"]
    names = ("tokens", "pos", "chunk", "ner")
    assert good(text, columns=names)[0]["ner"] == ["B-ORG", "O"]


def test_one_column_is_words_without_tags() -> None:
    assert good("one\n\ntwo\n#\n") == [{"tokens": ["one"]}, {"tokens": ["two", "#"]}]


def test_tokens_may_hold_spaces_where_columns_stand_between_tabs() -> None:
    assert good("New York\tB-LOC\n\u3000\tO\n \tO\n") == [
        {"tokens": ["New York", "\u3000", " "], "tags": ["B-LOC", "O", "O"]}
    ]


def test_empty_fields_at_the_end_are_none() -> None:
    assert good("a\tO\t\nb\tO\n") == [{"tokens": ["a", "b"], "tags": ["O", "O"]}]


def test_a_token_that_is_a_hash() -> None:
    text = "#\tO\n#pets\tB-x\n\n#\tO\n# text = no token\n\n# text = a comment\n#free\tO\n"
    found = read(text)
    assert found[0] == ({"tokens": ["#", "#pets"], "tags": ["O", "B-x"]}, None)
    # Within a sentence a comment has no place.
    assert "line 5: 1 fields" in str(found[1][1])
    assert found[2] == ({"tokens": ["#free"], "tags": ["O"], "text": "a comment"}, None)
    spaced = "# id 17 domain=en\n# _ _ O\na _ _ O\n\n# _ _ O\nb _ _ O\n\n# id 18 domain=de\nc _ _ O"
    assert [values["tokens"] for values in good(spaced)] == [["a"], ["#", "b"], ["c"]]


def test_a_row_of_another_width_is_an_error_of_its_sentence() -> None:
    found = read("a O\nb O\n\nc\nd O x\n\ne O\n")
    assert [wrong for _, wrong in found] == [None, "line 4: 1 fields in a file of 2 columns", None]


UNIVERSAL = """# newdoc id = d1
# sent_id = s-1
# text = I don't know.
1\tI\tI\tPRON\tPRP\tCase=Nom\t4\tnsubj\t_\t_
2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
2\tdo\tdo\tAUX\tVBP\t_\t4\taux\t_\t_
3\tn't\tnot\tPART\tRB\t_\t4\tadvmod\t_\tSpaceAfter=No
3.1\tghost\t_\tX\t_\t_\t_\t_\t_\t_
4\tknow\tknow\tVERB\tVB\t_\t0\troot\t_\t_
5\t.\t.\tPUNCT\t.\t_\t4\tpunct\t_\t_

# sent_id = s-2
1\tYes\tyes\tINTJ\tUH\t_\t0\troot\t_\t_
x\tYes\tyes\tINTJ\tUH\t_\t0\troot\t_\t_"""


def test_conllu() -> None:
    (first, wrong), (second, broken) = read(UNIVERSAL, universal=True)
    assert wrong is None
    assert first["tokens"] == ["I", "do", "n't", "know", "."]
    assert first["upos"] == ["PRON", "AUX", "PART", "VERB", "PUNCT"]
    assert first["id"] == "s-1" and first["text"] == "I don't know."
    assert "misc" in first and "head" in first
    assert second["tokens"] == ["Yes"]
    assert broken == "line 14: the number of a word is 'x'"


def test_conllu_plus_names_its_columns() -> None:
    text = "# global.columns = ID FORM UPOS\n1\ta\tX\n2\tb\tY\n"
    assert good(text, universal=True) == [{"tokens": ["a", "b"], "upos": ["X", "Y"]}]


def test_names_that_do_not_fit() -> None:
    with pytest.raises(
        CallError, match=r"3 names for the columns \(a, b, c\), and the first row has 2"
    ):
        read("x O\n", columns=("a", "b", "c"))


WORD = st.text(
    st.characters(exclude_categories=["Cs", "Zs", "Cc", "Zl", "Zp"]), min_size=1, max_size=6
)


@settings(max_examples=100, deadline=None)
@given(
    found=st.lists(
        st.lists(st.tuples(WORD, st.sampled_from(["O", "B-x", "I-x"])), min_size=1, max_size=5),
        max_size=5,
    ),
    sign=st.sampled_from(["\t", " "]),
    breaks=st.integers(1, 3),
)
def test_round_trip(found: list[list[tuple[str, str]]], sign: str, breaks: int) -> None:
    blocks = ["\n".join(sign.join(row) for row in rows) for rows in found]
    expected = [{"tokens": [a for a, _ in rows], "tags": [b for _, b in rows]} for rows in found]
    # A first row of "# O" between spaces cannot be told from a comment.
    expected = [e for e in expected if e["tokens"]]
    if found and found[0][0][0] == "#" and sign == " ":
        return
    assert good(("\n" + "\n" * breaks).join(blocks)) == expected


def test_any_mixture_of_lines_gives_columns_of_one_length() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    lines = [
        "",
        " ",
        "a O",
        "b\tO",
        "a",
        "# x",
        "# a = b",
        "#\tO",
        "-DOCSTART-",
        "1\ta",
        "# O",
        "\t",
    ]
    for _ in range(500):
        text = "\n".join(chance.choices(lines, k=chance.randint(0, 9)))
        for universal in (False, True):
            for values, wrong in read(text, universal=universal):
                sizes = {len(v) for v in values.values() if isinstance(v, list)}
                assert wrong is not None or (len(sizes) == 1 and sizes != {0})


def test_the_reader_says_which_sentence(tmp_path: Path) -> None:
    from enrobe.data.records import Records

    path = tmp_path / "a.conll"
    path.write_text("a O\n\nb\n")
    assert [r.error for r in Records(path)] == [
        None,
        "sentence 2: line 3: 1 fields in a file of 2 columns",
    ]
