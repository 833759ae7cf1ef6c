"""Enrobe: a toolkit for RoBERTa-family text encoders."""

from enrobe.compress.api import quantize
from enrobe.errors import (
    CallError,
    EnrobeError,
    HubError,
    MissingExtraError,
    ModelError,
    RefusedError,
    TextError,
    TrainError,
)
from enrobe.tasks.model import Model, load
from enrobe.tasks.results import (
    Answer,
    Candidate,
    Fill,
    JointFill,
    Mask,
    Prediction,
    Score,
    Span,
    TokenVectors,
)
from enrobe.train.api import align, distill, finetune, pretrain

__version__ = "0.2.0"

__all__ = [
    "Answer",
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
    "Prediction",
    "RefusedError",
    "Score",
    "Span",
    "TextError",
    "TokenVectors",
    "TrainError",
    "align",
    "distill",
    "finetune",
    "load",
    "pretrain",
    "quantize",
]
