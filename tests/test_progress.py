"""What is said of work that goes on."""

import json

import pytest

from enrobe import progress


def test_rates_count_from_where_this_run_began(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    rates = progress.Rates()
    assert rates.of(1000, 5000, 0.5)["rows_per_second"] == 0
    now = 110.0
    record = rates.of(1200, 7000, 0.6)
    assert record == {
        "rows": 1200,
        "rows_per_second": 20.0,
        "tokens_per_second": 200,
        "share": 0.6,
        "seconds_left": 40,
    }
    assert progress.in_words(record) == "20 rows/s, 200 tokens/s, 0:00:40 left"
    unknown = rates.of(1300, 0, None)
    assert unknown == {"rows": 1300, "rows_per_second": 30.0, "share": None}
    assert progress.in_words(unknown) == "30 rows/s"


def test_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.shown() as show:
        for second in range(0, 31, 3):
            now = float(second)
            show(second * 10, second, second / 40)
    records = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [record["rows"] for record in records] == [120, 240]
    assert records[1]["seconds_left"] == 16
    with progress.shown(False) as show:
        now = 100.0
        show(1, 1, 0.5)
    assert not capsys.readouterr().err
