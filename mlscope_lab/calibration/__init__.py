"""What this machine can do at most: bandwidth of its caches and memory, and arithmetic by element type.

`caches` knows the cache sizes; `stream` and `gemm` are the kernels of numpy, `peers` those of the frameworks; `repeats`
times them; `measuring` runs them all in a process of its own; `peaks` makes a dataset of what came out, or of a system
manifest; `stored` keeps it by machine. The public call is `mlscope_lab.calibrate`.
"""
