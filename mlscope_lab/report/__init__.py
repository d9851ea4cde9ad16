"""Reports: runs as one HTML page that needs nothing but a browser."""

from mlscope_lab.report.page import write_report

__all__ = ["write_report"]
