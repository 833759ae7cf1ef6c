"""Enrobe: a toolkit for RoBERTa-family text encoders."""

from enrobe.errors import (
    CallError,
    EnrobeError,
    HubError,
    MissingExtraError,
    ModelError,
    TextError,
)
from enrobe.tasks.model import Model, load
from enrobe.tasks.results import Candidate, Fill, JointFill, Mask, Score

__version__ = "0.1.0"

__all__ = [
    "CallError",
    "Candidate",
    "EnrobeError",
    "Fill",
    "HubError",
    "JointFill",
    "Mask",
    "MissingExtraError",
    "Model",
    "ModelError",
    "Score",
    "TextError",
    "load",
]
