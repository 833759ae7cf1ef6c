from pathlib import Path

import pytest

from enrobe.data.languages import in_shares, language_files, smoothed
from enrobe.errors import CallError


def test_shares_are_sizes_to_a_power() -> None:
    # XLM's q_i ~ p_i ** alpha: a thousand times the text is 7.9 times the rows.
    large, small = smoothed([1_000_000, 1_000], [1, 1], 0.3)
    assert large / small == pytest.approx(1000**0.3, rel=0.01)
    assert smoothed([1_000_000, 1_000], [1, 1], 1.0) == [9990, 10]
    # A weight is a factor besides.
    double, single = smoothed([500, 500], [2, 1], 0.3)
    assert double / single == pytest.approx(2, rel=0.001)


def test_without_alpha_weights_stand_as_they_are_written() -> None:
    assert smoothed([5, 7], [0.2, 3], 0.0) == [0.2, 3]


def test_no_language_is_rounded_to_nothing() -> None:
    assert smoothed([10**12, 1], [1, 1], 1.0)[1] == 1


def test_text_for_a_vocabulary_comes_in_the_same_shares() -> None:
    sizes = {"a": 100_000, "é": 2_000, "z": 0}
    sources = [lambda name=name, size=size: [name] * size for name, size in sizes.items()]
    found = list(in_shares(sources, [1, 1, 1], 0.5))
    # é takes two bytes: 100,000 and 4,000; their roots are as 5 to 1, and all of é is taken.
    assert found.count("é") == 2_000
    assert found.count("a") == pytest.approx(5 * 4_000, rel=0.01)
    assert list(in_shares([list], [1], 0.5)) == []


def test_a_folder_has_a_file_or_a_folder_a_language(tmp_path: Path) -> None:
    (tmp_path / "de.txt").write_text("Ein Satz.\n")
    (tmp_path / "fr").mkdir()
    (tmp_path / "fr" / "b.jsonl").write_text('{"text": "Une phrase."}\n')
    (tmp_path / "fr" / "a.txt.xz").write_bytes(b"")
    (tmp_path / "fr" / "notes.md").write_text("no text of ours")
    (tmp_path / "empty").mkdir()
    (tmp_path / ".hidden.txt").write_text("x")
    (tmp_path / "README.md").write_text("x")
    found = language_files(tmp_path)
    assert {name: [path.name for path in files] for name, files in found.items()} == {
        "de": ["de.txt"],
        "fr": ["a.txt.xz", "b.jsonl"],
    }


def test_a_folder_that_says_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CallError, match="no text; allowed: a file"):
        language_files(tmp_path)
    with pytest.raises(CallError, match="no such folder"):
        language_files(tmp_path / "none")
    for name in ("de.txt", "de.jsonl"):
        (tmp_path / name).write_text("x")
    with pytest.raises(CallError, match=r"de\.txt and de\.jsonl are both de"):
        language_files(tmp_path)
