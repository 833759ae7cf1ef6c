"""Recipes for `enrobe align`: a model, the target whose space it is put into, and `[pairs]`.

Without more the map is found in closed form; with `[train]` the model is trained.
"""

from dataclasses import dataclass
from pathlib import Path

from enrobe.errors import CallError, show
from enrobe.train.loop import TrainConfig


@dataclass(frozen=True, kw_only=True)
class PairsTable:
    """Translations.

    Raises:
        CallError: no file, or a value that is not allowed.
    """

    files: tuple[Path, ...]
    # csv, tsv, jsonl, parquet, gz and xz of these; patterns
    text: tuple[str, str]
    # the column that the model reads, and the one that the target reads
    language: str | None = None
    # a column: scores are then told by language
    heldout: float = 0.1
    # the share of texts that are measured on and never learned from
    most: int | None = None
    # pairs of a language that are used; None: all

    def __post_init__(self) -> None:
        if not self.files:
            raise CallError("[pairs] files is empty; fix: name a file")
        if self.text[0] == self.text[1]:
            raise CallError(f"text is {show(self.text[0])} twice; allowed: two columns")
        if not 0 < self.heldout < 1:
            raise CallError(f"heldout is {show(self.heldout)}; allowed: between 0 and 1")
        if self.most is not None and self.most < 2:
            raise CallError(f"most is {self.most}; allowed: 2 or more")


@dataclass(frozen=True, kw_only=True)
class AlignRecipe:
    """All that `enrobe align` needs to know.

    Raises:
        CallError: a value is not allowed.
    """

    output: Path
    model: str
    # whose vectors are moved: a folder, a built-in name, a hub id
    target: str
    # the model into whose space they are moved; with [train] the teacher
    pairs: PairsTable
    prompt: str | None = None
    # of the model's texts: a name among its folder's prompts, or a prefix
    target_prompt: str | None = None
    # of the target's
    train: TrainConfig | None = None
    # given: the model learns to place both texts of a pair where the target places its own
    seed: int = 1
    # of the split, and of training

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise CallError(f"seed is {show(self.seed)}; allowed: 0 to 2**63 - 1")
