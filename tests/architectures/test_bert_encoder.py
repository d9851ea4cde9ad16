"""BERT's encoder, against PyTorch's own transformer layers and, elsewhere, against the published ONNX form."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from mlscope_lab.architectures.bert_encoder import build  # noqa: E402 - needs torch
from mlscope_lab.errors import InputError  # noqa: E402

SMALL = {"vocabulary": 40, "positions": 12, "width": 16, "heads": 4, "inner": 24, "layers": 2}


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return build(**SMALL, epsilon=1e-5).eval()


def ask(encoder, ids, mask=None):
    with torch.inference_mode():
        return encoder(ids, torch.ones_like(ids) if mask is None else mask, torch.zeros_like(ids))


def test_names_follow_the_published_weights(encoder):
    names = set(encoder.state_dict())
    for name in (
        "embeddings.position_ids", "embeddings.word_embeddings.weight", "embeddings.LayerNorm.bias",
        "encoder.layer.1.attention.self.query.weight", "encoder.layer.0.attention.output.LayerNorm.weight",
        "encoder.layer.0.intermediate.dense.bias", "encoder.layer.1.output.dense.weight", "pooler.dense.weight",
    ):  # fmt: skip
        assert name in names
    assert len(names) == 6 + 2 * 16 + 2
    assert not any(name.startswith("pooler") for name in build(**SMALL, pooler=False).state_dict())


def test_layers_are_those_of_torch(encoder):
    """`torch.nn.TransformerEncoderLayer` with post-normalisation and GELU, given the same weights."""
    ids = torch.randint(1, 40, (3, 9))
    with torch.inference_mode():
        x = encoder.embeddings(ids, torch.zeros_like(ids))
        for layer in encoder.encoder["layer"]:
            theirs = torch.nn.TransformerEncoderLayer(16, 4, 24, activation="gelu", batch_first=True).eval()
            own = layer.attention["self"]
            parts = (own.query, own.key, own.value)
            state = {
                "self_attn.in_proj_weight": torch.cat([p.weight for p in parts]),
                "self_attn.in_proj_bias": torch.cat([p.bias for p in parts]),
                "self_attn.out_proj.weight": layer.attention["output"].dense.weight,
                "self_attn.out_proj.bias": layer.attention["output"].dense.bias,
                "norm1.weight": layer.attention["output"].LayerNorm.weight,
                "norm1.bias": layer.attention["output"].LayerNorm.bias,
                "linear1.weight": layer.intermediate["dense"].weight, "linear1.bias": layer.intermediate["dense"].bias,
                "linear2.weight": layer.output.dense.weight, "linear2.bias": layer.output.dense.bias,
                "norm2.weight": layer.output.LayerNorm.weight, "norm2.bias": layer.output.LayerNorm.bias,
            }  # fmt: skip
            theirs.load_state_dict(state)
            x = theirs(x)
    torch.testing.assert_close(ask(encoder, ids), x, rtol=1e-4, atol=1e-5)


def test_hidden_tokens_do_not_matter(encoder):
    ids = torch.randint(1, 40, (1, 8))
    other = ids.clone()
    other[0, 5:] = torch.randint(1, 40, (3,))
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]])
    torch.testing.assert_close(ask(encoder, ids, mask)[:, :5], ask(encoder, other, mask)[:, :5])
    torch.testing.assert_close(ask(encoder, ids, mask)[:, :5], ask(encoder, ids[:, :5]), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ask(encoder, ids)[:, :5], ask(encoder, other)[:, :5])
    assert torch.isfinite(ask(encoder, ids, torch.zeros_like(mask))).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"heads": 3}, "no multiple"), ({"layers": 0}, "layers must be"), ({"width": True}, "width must be"),
     ({"head": 4}, "no parameter 'head'"), ({"vocabulary": 1 << 40}, "vocabulary must be")],
)  # fmt: skip
def test_nonsense_is_refused(changed, message):
    with pytest.raises(InputError, match=message):
        build(**{**SMALL, **changed})
