"""ONNX to TensorFlow: reading the graph, one function an operator, writing a SavedModel."""
