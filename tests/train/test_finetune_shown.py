"""What a person sees of several runs."""

from pathlib import Path

import pytest

from enrobe import console_scores
from enrobe.evaluate.seeds import Spread
from enrobe.train.finetune_result import FinetuneResult, Gain


def test_means_intervals_and_gains_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, together = Spread.of([0.5, 0.6]), Spread.of([0.7, 0.6])
    gain = Gain(alone=alone, together=together, difference=Spread.of([0.2, 0.0]))
    result = FinetuneResult(
        model=Path("model"),
        step=3,
        best_step=2,
        finished=True,
        early=False,
        scores={"one": {"macro_f1": 0.7}},
        score=0.7,
        tokens=5,
        seconds=1.0,
        evaluation_seconds=1.0,
        seed=4,
        spread={"one": {"macro_f1": together}},
        gains={"one": {"macro_f1": gain}},
    )
    monkeypatch.setattr(console_scores, "_shown_as_json", lambda *_: False)
    console_scores.show_finetuned(result, as_json=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "over seeds; the model is seed 4's" in shown
    assert "one macro f1 0.6500 0.0147 to 1.2853" in shown
    assert "one macro f1 0.5500 0.6500 +0.1000 -1.1706 to 1.3706" in shown
