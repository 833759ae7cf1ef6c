"""Enrobe's own kernels for CPUs: `enrobe.engines.native` runs models by them, `enrobe.nn` and
`enrobe.train` train.

`kernels()` names what this processor can run, the quickest first.
"""

from enrobe_native._native import (
    Encoder,
    adamw,
    add_norm,
    add_norm_back,
    attend,
    attend_back,
    kernels,
    layer,
    layer_back,
    layer_memory,
    product,
    product_back,
    product_memory,
    sum_of_squares,
)

__all__ = [
    "Encoder",
    "adamw",
    "add_norm",
    "add_norm_back",
    "attend",
    "attend_back",
    "kernels",
    "layer",
    "layer_back",
    "layer_memory",
    "product",
    "product_back",
    "product_memory",
    "sum_of_squares",
]
