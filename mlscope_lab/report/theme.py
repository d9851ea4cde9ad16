"""Colours and the plotly template, shared by the report and the widgets.

Backends use the Okabe-Ito palette, layer families Tol's "bright" one; both can be told apart with any kind of colour
vision, and every colour here keeps some contrast on white and on near-black. Where colour carries meaning a label or a
marker's shape says the same.

References
----------
Okabe and Ito, "Color Universal Design", 2008. Tol, "Colour Schemes", SRON technical note, 2021.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

__all__ = [
    "BACKEND_COLOURS", "FAMILY_COLOURS", "INJECTED_COLOUR", "INK", "LEVEL_COLOURS", "OVERLAP_COLOUR", "TEMPLATE",
    "TOLERANCE_COLOUR", "UNATTRIBUTED_COLOUR", "backend_colour", "backend_symbol", "layer_family", "side_colours",
]  # fmt: skip

BACKEND_COLOURS: Final = {
    "onnxruntime": "#0072B2",
    "pytorch": "#D55E00",
    "tensorflow": "#009E73",
}
_BACKEND_SYMBOLS: Final = {"onnxruntime": "circle", "pytorch": "diamond", "tensorflow": "square"}
_SPARE_COLOURS: Final = ("#B4659A", "#937A00", "#7468C8", "#2A8C9E", "#A0522D")
_SPARE_SYMBOLS: Final = ("triangle-up", "pentagon", "hexagon", "star", "triangle-down")

LEVEL_COLOURS: Final = {
    "model": "#0072B2",
    "layer": "#D55E00",
    "operator": "#009E73",
    "kernel": "#B4659A",
    "hardware": "#937A00",
}

FAMILY_COLOURS: Final = {
    "convolution": "#4477AA",
    "matrix product": "#AA3377",
    "normalisation": "#228833",
    "activation": "#EE6677",
    "elementwise": "#CCBB44",
    "pooling and reduction": "#66CCEE",
    "data movement": "#99703A",
    "module": "#8D86C9",
    "other": "#9AA0A6",
}
INJECTED_COLOUR: Final = "#C2378F"
"""Error that a layer makes itself; what it inherits has the colour of its backend."""
TOLERANCE_COLOUR: Final = "rgba(128,134,142,0.22)"
UNATTRIBUTED_COLOUR: Final = "#80868E"
OVERLAP_COLOUR: Final = "#B0B5BB"
INK: Final = "#6B7280"

# The first family with a matching word wins, so "BatchMatMul" must meet "matmul" before "batch", and
# "QuantizeLinear" must meet "quantize" before "linear".
_FAMILY_WORDS: Final = (
    ("data movement", ("quantize", "reorder", "unsqueeze")),
    ("convolution", ("conv",)),
    ("matrix product", ("matmul", "gemm", "linear", "dense", "einsum", "attention", "lstm", "gru", "rnn")),
    ("normalisation", ("norm", "lrn")),
    ("pooling and reduction", ("pool", "reduce", "mean", "argmax", "argmin", "topk", "cumsum")),
    ("activation", ("softmax", "relu", "sigmoid", "tanh", "swish", "silu", "gelu", "elu", "clip", "softplus", "mish",
                    "activation")),
    ("data movement", ("reshape", "transpose", "concat", "gather", "scatter", "slice", "split", "pad", "cast",
                       "flatten", "squeeze", "expand", "tile", "resize", "upsample", "shape", "identity", "copy",
                       "stack", "strided", "embedding", "const", "readvariable", "_arg", "_retval", "dropout")),
    ("elementwise", ("add", "mul", "sub", "div", "pow", "sqrt", "exp", "log", "abs", "neg", "min", "max", "where",
                     "equal", "less", "greater", "erf", "sin", "cos", "sum")),
    ("module", ("functional", "block", "sequential", "module", "layer", "model", "net", "stage")),
)  # fmt: skip

_LINE: Final = "rgba(128,134,142,0.28)"
_AXIS: Final[dict[str, Any]] = {
    "gridcolor": _LINE,
    "linecolor": _LINE,
    "zerolinecolor": _LINE,
    "automargin": True,
    "ticks": "outside",
    "ticklen": 6,
    "tickcolor": "rgba(0,0,0,0)",
    "title": {"standoff": 8, "font": {"size": 13}},
}

TEMPLATE: Final[dict[str, Any]] = {
    "layout": {
        "font": {
            "family": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif",
            "size": 13,
            "color": INK,
        },
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "colorway": [*BACKEND_COLOURS.values(), *_SPARE_COLOURS],
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "legend": {
            "orientation": "h",
            "yanchor": "bottom",
            "y": 1.0,
            "xanchor": "left",
            "x": 0.0,
        },
        "margin": {"l": 8, "r": 24, "t": 32, "b": 8},
        "bargap": 0.3,
        "hoverlabel": {"align": "left", "font": {"size": 13}},
    }
}


def _spare(name: str) -> int:
    """Return a place in the spare lists that depends on the name alone."""
    return hashlib.sha256(name.encode("utf-8", "replace")).digest()[0] % len(_SPARE_COLOURS)


def backend_colour(name: str) -> str:
    """Return the colour of a backend: the same in every figure, whatever else is drawn."""
    return BACKEND_COLOURS.get(name) or _SPARE_COLOURS[_spare(name)]


def backend_symbol(name: str) -> str:
    """Return the plotly marker symbol of a backend, which tells it apart without colour."""
    return _BACKEND_SYMBOLS.get(name) or _SPARE_SYMBOLS[_spare(name)]


def side_colours(a: str, b: str) -> tuple[str, str]:
    """Return the colours of the two sides of a comparison: their backends' own, apart where they are of one backend."""
    first, second = backend_colour(a), backend_colour(b)
    return first, second if second != first else next(c for c in reversed(_SPARE_COLOURS) if c != first)


def layer_family(type_: str) -> str:
    """Return the family of a layer type, one of `FAMILY_COLOURS`.

    Parameters
    ----------
    type_
        A framework's operator or class name. "Conv2d", "Conv" and "_FusedConv2D" are one family, so that frameworks
        can be compared by colour.
    """
    word = type_.lower()
    for family, parts in _FAMILY_WORDS:
        if any(part in word for part in parts):
            return family
    return "other"
