"""Enrobe's own engine for CPUs; `enrobe.engines.native` is its user.

`kernels()` names what this processor can run, the quickest first.
"""

from enrobe_native._native import Encoder, kernels

__all__ = ["Encoder", "kernels"]
