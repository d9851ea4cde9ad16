"""Kinds of operators: one word for what frameworks name differently."""

from __future__ import annotations

import pytest

from mlscope_lab.trace.kinds import COMPUTE, KINDS, LAYOUT, kind_of


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("convolution", "Conv aten::conv2d Conv2D _FusedConv2D DepthwiseConv2dNative NhwcFusedConv ConvInteger"),
        ("convolution", "aten::_convolution DEPTHWISE_CONV_2D _MklNativeFusedConv2D com.microsoft::FusedConv"),
        ("product", "Gemm MatMul aten::addmm aten::linear FULLY_CONNECTED _FusedMatMul com.microsoft::MatMulNBits"),
        ("attention", "aten::scaled_dot_product_attention com.microsoft::MultiHeadAttention PackedAttention"),
        ("recurrent", "LSTM aten::gru.input UNIDIRECTIONAL_SEQUENCE_LSTM com.microsoft::DynamicQuantizeLSTM"),
        ("normalization", "BatchNormalization aten::batch_norm FusedBatchNormV3 com.microsoft::SkipLayerNormalization"),
        ("activation", "Clip aten::hardtanh_ Relu6 aten::silu LOGISTIC com.microsoft::QuickGelu"),
        ("addition", "Add aten::add_.Tensor AddV2 BiasAdd QLinearAdd"),
        ("reduction", "ReduceMean aten::mean.dim Mean QLinearReduceMean"),
        ("layout", "Transpose aten::permute com.microsoft.nchwc::ReorderInput TRANSPOSE"),
        ("reshaping", "Reshape aten::view ExpandDims aten::flatten.using_ints"),
        ("other", "TfIdfVectorizer aten::what_is_this"),
    ],
)  # fmt: skip
def test_names_of_all_frameworks(kind: str, names: str) -> None:
    assert {name: kind_of(name) for name in names.split()} == dict.fromkeys(names.split(), kind)


def test_the_vocabulary_is_closed() -> None:
    assert set(KINDS) > COMPUTE | LAYOUT
    assert not COMPUTE & LAYOUT
