"""ONNX to TensorFlow SavedModel; see `mlscope_lab.conversion.onnx_tf.convert`."""

from __future__ import annotations

from mlscope_lab.conversion.onnx_tf.convert import convert

__all__ = ["convert"]
