"""``python -m mlscope_lab.cli`` is ``mlscope``."""

from __future__ import annotations

from mlscope_lab.cli import main

if __name__ == "__main__":
    main()
