"""The encoder of BERT and its kin (MiniLM, ...), with the parameter names of the published PyTorch weights.

References
----------
Devlin, Chang, Lee and Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
arXiv 1810.04805; the names and the order of operations are those of `BertModel` in the library transformers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mlscope_lab.errors import InputError

__all__ = ["BertEncoder", "build"]


class _Embeddings(nn.Module):  # type: ignore[misc]
    def __init__(self, *, vocabulary: int, width: int, positions: int, types: int, epsilon: float) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, width, padding_idx=0)
        self.position_embeddings = nn.Embedding(positions, width)
        self.token_type_embeddings = nn.Embedding(types, width)
        self.LayerNorm = nn.LayerNorm(width, eps=epsilon)
        self.register_buffer("position_ids", torch.arange(positions)[None])

    def forward(self, ids: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        positions = self.position_ids[:, : ids.shape[1]]
        x = self.word_embeddings(ids) + self.token_type_embeddings(types) + self.position_embeddings(positions)
        return self.LayerNorm(x)


class _SelfAttention(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self._heads, self._size = heads, width // heads

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], x.shape[1], self._heads, self._size).transpose(1, 2)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        query, key, value = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        scores = query @ key.transpose(-1, -2) / math.sqrt(self._size) + bias
        mixed = (functional.softmax(scores, dim=-1) @ value).transpose(1, 2)
        return mixed.reshape(x.shape)


class _Output(nn.Module):  # type: ignore[misc]
    """A linear layer, the residual, and a normalisation behind both."""

    def __init__(self, inputs: int, width: int, epsilon: float) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, width)
        self.LayerNorm = nn.LayerNorm(width, eps=epsilon)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class _Layer(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int, heads: int, inner: int, epsilon: float) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": _SelfAttention(width, heads), "output": _Output(width, width, epsilon)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = _Output(inner, width, epsilon)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        x = self.attention["output"](self.attention["self"](x, bias), x)
        return self.output(functional.gelu(self.intermediate["dense"](x)), x)


class BertEncoder(nn.Module):  # type: ignore[misc]
    """Hidden states of the last layer for each token.

    Parameters
    ----------
    vocabulary, positions, types
        Rows of the three embeddings.
    width, heads, inner, layers
        Size of a hidden state, attention heads, size between the two linear layers, and number of layers.
    epsilon
        Of the normalisations.
    pooler
        Whether the weights hold the pooler of the first token, which the hidden states do not need.
    """

    def __init__(
        self, *, vocabulary: int, positions: int, types: int, width: int, heads: int, inner: int, layers: int,
        epsilon: float, pooler: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embeddings = _Embeddings(vocabulary=vocabulary, width=width, positions=positions, types=types,
                                      epsilon=epsilon)  # fmt: skip
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Layer(width, heads, inner, epsilon)
                                                             for _ in range(layers))})  # fmt: skip
        if pooler:
            self.pooler = nn.ModuleDict({"dense": nn.Linear(width, width)})

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        """Return (batch, sequence, width); all inputs are integers (batch, sequence), the mask 1 for tokens to see."""
        x = self.embeddings(input_ids, token_type_ids)
        # a large negative number, not -Inf: a row whose tokens are all hidden must not become NaN
        bias = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for layer in self.encoder["layer"]:
            x = layer(x, bias)
        return x


def build(
    *, vocabulary: int = 30522, positions: int = 512, types: int = 2, width: int = 768, heads: int = 12,
    inner: int | None = None, layers: int = 12, epsilon: float = 1e-12, pooler: bool = True, **unknown: Any,
) -> BertEncoder:  # fmt: skip
    """Build an encoder; the defaults are those of BERT base, `inner` four times the width.

    Raises
    ------
    InputError
        If a number is not positive, the width is no multiple of the heads, or a parameter is unknown.
    """
    if unknown:
        raise InputError(f"bert_encoder has no parameter '{next(iter(unknown))}'")
    numbers = {"vocabulary": vocabulary, "positions": positions, "types": types, "width": width, "heads": heads,
               "inner": inner or 4 * width, "layers": layers}  # fmt: skip
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 1 << 20:
            raise InputError(f"bert_encoder: {name} must be a positive whole number of a sensible size, not {number!r}")
    if width % heads:
        raise InputError(f"bert_encoder: width {width} is no multiple of the {heads} heads")
    return BertEncoder(vocabulary=vocabulary, positions=positions, types=types, width=width, heads=heads,
                       inner=inner or 4 * width, layers=layers, epsilon=epsilon, pooler=pooler)  # fmt: skip
