"""mlscope-lab."""

from mlscope_lab._version import __version__
