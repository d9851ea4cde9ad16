"""What an operator computes, in one vocabulary for all frameworks.

Names of operators differ (``Conv``, ``aten::conv2d``, ``_MklNativeFusedConv2D``); what they compute does not. Kinds are
what alignment compares and what tells compute from mere layout.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["COMPUTE", "KINDS", "LAYOUT", "kind_of"]

_TYPES: Final[dict[str, str]] = {
    "convolution": "conv conv1d conv2d conv3d convolution convinteger qlinearconv fusedconv nhwcconv depthwiseconv2d "
                   "depthwiseconv2dnative depthwise_conv_2d conv_2d conv_3d mkldnn_convolution thnn_conv2d "
                   "_convolution deformconv conv_tbc causalconvwithstate svdf",
    "transposed_convolution": "convtranspose conv_transpose1d conv_transpose2d conv_transpose3d conv2dbackpropinput "
                              "transpose_conv "
                              "conv3dbackpropinputv2 conv_3d_transpose convtransposewithdynamicpads",
    "product": "gemm matmul fusedgemm fusedmatmul linear addmm mm bmm baddbmm matmulinteger qlinearmatmul "
               "matmulnbits dynamicquantizematmul matmulintegertofloat batchmatmul batchmatmulv2 fully_connected "
               "einsum qgemm mv dot batch_matmul "
               "addmv _addmm_activation mkldnn_linear linear_relu transposematmul gemmfastgelu matmulbnb4 "
               "matmulfpq4 gemmfloat8 moe qmoe bilinear inner outer addr tensordot sparsetodensematmul xlaeinsum",
    "recurrent": "lstm gru rnn lstm_cell gru_cell rnn_tanh unidirectional_sequence_lstm lstmcell "
                 "dynamicquantizelstm unidirectional_sequence_rnn bidirectional_sequence_lstm "
                 "bidirectional_sequence_rnn cudnnrnn blocklstm blocklstmv2 grublockcell mkldnn_rnn_layer rnn_relu",
    "attention": "attention scaled_dot_product_attention multiheadattention "
                 "_scaled_dot_product_flash_attention_for_cpu groupqueryattention qattention "
                 "_scaled_dot_product_attention_math _scaled_dot_product_efficient_attention "
                 "_scaled_dot_product_flash_attention _native_multi_head_attention _transformer_encoder_layer_fwd "
                 "flexattention linearattention packedattention packedmultiheadattention "
                 "decodermaskedmultiheadattention decodermaskedselfattention longformerattention sparseattention "
                 "pagedattention",
    "embedding": "embedding embeddingbag embedding_bag embedlayernormalization embedding_lookup "
                 "_embedding_bag torchembedding qembedlayernormalization",
    "normalization": "batchnormalization batch_norm native_batch_norm _native_batch_norm_legit_no_training "
                     "fusedbatchnormv3 fusedbatchnorm fusedbatchnormex layernormalization layer_norm native_layer_norm "
                     "group_norm native_group_norm instancenormalization instance_norm lrn skiplayernormalization "
                     "simplifiedlayernormalization rms_norm local_response_normalization l2_normalization "
                     "lpnormalization groupnormalization "
                     "groupnorm skipgroupnorm rmsnormalization _fused_rms_norm meanvariancenormalization "
                     "skipsimplifiedlayernormalization batchnormwithglobalnormalization cudnn_batch_norm batchnorm",
    "activation": "relu relu6 clip clipbyvalue hardtanh clamp leakyrelu leaky_relu elu selu celu gelu sigmoid tanh "
                  "silu mish hardswish hard_swish hardsigmoid prelu softplus softsign threshold fastgelu "
                  "biasgelu quickgelu logistic relu_n1_to_1 log_sigmoid clamp_min clamp_max erf erfc "
                  "thresholdedrelu swish "
                  "glu swiglu relu_0_to_1 rrelu shrink hardshrink softshrink biassplitgelu hard_sigmoid "
                  "_prelu_kernel",
    "softmax": "softmax log_softmax _softmax _log_softmax logsoftmax hardmax "
               "biassoftmax",
    "pooling": "maxpool averagepool avgpool globalaveragepool globalmaxpool max_pool2d avg_pool2d adaptive_avg_pool2d "
               "adaptive_max_pool2d _adaptive_avg_pool2d max_pool2d_with_indices max_pool1d avg_pool1d max_pool_2d "
               "average_pool_2d lppool mkldnn_max_pool2d adaptive_avg_pool1d maxpoolv2 maxpool3d avgpool3d "
               "max_pool3d avg_pool3d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool3d "
               "max_pool3d_with_indices globallppool roialign maxroipool l2_pool_2d roi_align",
    "reduction": "reducemean reducesum reducemax reducemin reduceprod reducel2 mean sum max min prod amax amin argmax "
                 "argmin norm cumsum reduce_max reduce_min reduce_prod arg_max topk topkv2 any all std var "
                 "reducesumsquare reducelogsumexp logsumexp "
                 "reducel1 reducelogsum cumprod euclideannorm reduce_any reduce_all linalg_vector_norm segmentsum "
                 "unsortedsegmentsum bincount var_mean std_mean topk_v2",
    "addition": "add addv2 biasadd bias_add sub subtract add_ addn",
    "multiplication": "mul multiply div divide realdiv truediv rsub mul_no_nan divnonan xdivy",
    "elementwise": "exp log sqrt rsqrt pow abs neg sin cos reciprocal square squareddifference maximum minimum floor "
                   "round ceil sign where select selectv2 equal greater less greaterequal lessequal greater_equal "
                   "logical_and logical_or logical_not not and or mod floordiv floormod isnan isinf gt lt ge le eq ne "
                   "log1p expm1 squared_difference notequal select_v2 inv atan2 greaterorequal "
                   "lessorequal less_equal not_equal xor logical_xor "
                   "tan asin acos atan sinh cosh asinh acosh atanh bitwiseand bitwiseor bitwisexor bitwisenot "
                   "bitwise_and bitwise_or bitwise_not masked_fill trilu tril triu matrixbandpart rotaryembedding "
                   "onehot one_hot floor_div floor_mod trunc fmod remainder lgamma digamma isfinite real imag "
                   "complex polar addcmul addcdiv lerp",
    "concatenation": "concat concatv2 cat concatenation stack pack concatenate",
    "padding": "pad padv2 constant_pad_nd mirrorpad reflection_pad2d reflection_pad1d zeropad2d replication_pad2d "
               "mirror_pad",
    "slicing": "slice stridedslice strided_slice gather gatherv2 gathernd gathernd select index index_select narrow "
               "split splitv split_with_sizes chunk unbind unpack unstack unsafe_split getitem scatternd "
               "gatherelements gather_nd split_v resourcegather "
               "scatter scatterelements scatter_add index_put _index_put_impl slice_scatter select_scatter compress "
               "unique unfold im2col col2im cropandresize nonmaxsuppression tensorscatterupdate tensorscatter "
               "dynamic_update_slice masked_select centercroppad splittosequence tensor_split",
    "resizing": "resize upsample resizebilinear resizenearestneighbor upsample_nearest2d upsample_bilinear2d "
                "resize_bilinear resize_nearest_neighbor interpolate "
                "upsample_nearest1d upsample_nearest3d upsample_linear1d upsample_bicubic2d upsample_trilinear3d "
                "resizebicubic resizearea grid_sampler grid_sampler_2d gridsample",
    "quantization": "quantizelinear dequantizelinear dynamicquantizelinear quantize dequantize quantize_per_tensor "
                    "fakequantwithminmaxvars quantize_per_channel quantizev2 fake_quantize_per_tensor_affine "
                    "fakequantwithminmaxargs fakequantwithminmaxvarsperchannel fake_quantize_per_channel_affine "
                    "requantize",
    "cast": "cast to _to_copy type_as to.dtype castlike "
            "bitcast",
    "layout": "transpose permute t reorderinput reorderoutput transpose.int movedim contiguous numpy_t swapaxes "
              "_mkltotf mkltotf depthtospace spacetodepth pixel_shuffle depth_to_space space_to_depth "
              "spacetobatchnd batchtospacend reversev2 reverse_v2 "
              "roll flip reversesequence pixel_unshuffle channel_shuffle space_to_batch_nd batch_to_space_nd",
    "reshaping": "reshape flatten view squeeze unsqueeze expanddims expand_dims expand _unsafe_view tile broadcastto "
                 "flatten.using_ints broadcast_to view_as as_strided repeat _reshape_alias unflatten "
                 "expand_as repeat_interleave view_as_real view_as_complex",
    "identity": "identity dropout alias clone detach lift_fresh copy_ identityn snapshot stopgradient _identity "
                "feature_dropout preventgradient ensureshape copy "
                "biasdropout readvariableop checknumerics native_dropout alpha_dropout sequenceat "
                "optionalgetelement noop",
    "shape": "shape size constantofshape fill zeros ones full arange range rank constant nonzero numtotensor "
             "shapen zeros_like ones_like full_like empty new_zeros prim_numtotensor "
             "eyelike new_ones new_full new_empty empty_like linspace broadcastargs broadcast_args "
             "sequenceconstruct scalar_tensor eye hammingwindow hannwindow blackmanwindow melweightmatrix "
             "randomnormal randomuniform randomnormallike randomuniformlike placeholder",
    "control": "if loop scan while partitionedcall statefulpartitionedcall case statelessif statelesswhile merge "
               "exit "
               "switch call_once sequencemap tensorlistreserve tensorlistgetitem tensorlistsetitem "
               "tensorliststack tensorlistfromtensor",
}  # fmt: skip
_KINDS: Final = {name.lower(): kind for kind, names in _TYPES.items() for name in names.split()}
# kinds whose results differ between frameworks only by rounding, and that carry the weights
COMPUTE: Final = frozenset({"convolution", "transposed_convolution", "product", "recurrent", "attention"})
# kinds that move or wrap values and compute nothing
LAYOUT: Final = frozenset({"layout", "reshaping", "identity", "padding", "cast", "shape"})
KINDS: Final = (*_TYPES, "other")
_MARKS = re.compile(
    r"^(?:_|mklnative|mkl|fused|nhwc|qlinear(?=add|mul|sigmoid|averagepool|globalaveragepool|concat|softmax|leakyrelu|reducemean|where))"
)


def kind_of(operator: str) -> str:
    """Return what an operator computes, "other" for one that is not known.

    Parameters
    ----------
    operator
        A framework's name of it; a namespace (``aten::``), an overload (``.default``), an in-place mark (``relu_``)
        and the marks of a kernel's library (``_MklNativeFused``) are seen through.

    Examples
    --------
    >>> kind_of("aten::conv2d"), kind_of("Conv"), kind_of("aten::hardtanh_"), kind_of("Gemm"), kind_of("BiasAdd")
    ('convolution', 'convolution', 'activation', 'product', 'addition')
    """
    name = operator.lower().rpartition("::")[2]
    for candidate in (name, name.partition(".")[0], name.rstrip("_"), name.partition(".")[0].rstrip("_")):
        if candidate in _KINDS:
            return _KINDS[candidate]
    bare = _MARKS.sub("", name.partition(".")[0])
    return kind_of(bare) if bare and bare != name else "other"
