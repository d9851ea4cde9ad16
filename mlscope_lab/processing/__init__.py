"""Declared pre- and post-processing; see `mlscope_lab.processing.base` for what a step is.

The steps run inside the small measuring process, so their modules import numpy and Pillow and nothing heavier.

=================== =========================== ==============================================================
registered name     class                       from -> to
=================== =========================== ==============================================================
decode_image        `image.DecodeImage`         path, bytes, PIL image or array -> uint8 (height, width, channel)
resize              `image.Resize`              (height, width, channel) -> the same, other size
crop                `image.Crop`                (height, width, channel) -> its centre
convert             `image.Convert`             array -> other element type, scaled
normalize           `image.Normalize`           (..., channel) -> less mean, over std
layout              `image.Layout`              axes in another order
tensor              `raw.Tensor`                array, nested lists or .npy path -> checked array
constant            `raw.Constant`              nothing -> an array of one value
select              `raw.Select`                array -> one index of an axis
audio_frames        `audio.AudioFrames`         WAV path, bytes or samples -> float32 (frame, sample)
byte_windows        `text.ByteWindows`          path or bytes -> int32 (byte,)
softmax             `classification.Softmax`    scores -> probabilities
sigmoid             `classification.Sigmoid`    scores -> probabilities, each on its own
top_k               `classification.TopK`       scores -> the k best, as `classification.Ranked`
=================== =========================== ==============================================================
"""
