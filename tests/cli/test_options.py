from __future__ import annotations

from pathlib import Path

import pytest
import typer

from mlscope_lab.cli.options import memory_limit, samples_from, symbols_from
from mlscope_lab.errors import InputError


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png", "x=y.png"):
        Path(name).write_bytes(b"")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("given", "meaning"),
    [
        (None, None), ([], None), (["a.png"], "a.png"), (["a.png", "b.png"], ["a.png", "b.png"]),
        (["in=a.png"], {"in": "a.png"}), (["in=a.png", "in=b.png"], {"in": ["a.png", "b.png"]}),
        (["x=y.png"], "x=y.png"), (["input:0=a.png", "sr=b.png"], {"input:0": "a.png", "sr": "b.png"}),
    ],
)  # fmt: skip
def test_inputs(given: list[str] | None, meaning: object) -> None:
    assert samples_from(given) == meaning


@pytest.mark.usefixtures("files")
def test_inputs_that_cannot_be() -> None:
    with pytest.raises(InputError, match=r"c\.png: there is no such file"):
        samples_from(["in=c.png"])
    with pytest.raises(typer.BadParameter, match="or none"):
        samples_from(["in=a.png", "b.png"])


def test_symbols_and_memory() -> None:
    assert symbols_from(["sequence=128", "n=1"]) == {"sequence": 128, "n": 1}
    assert (memory_limit(None), memory_limit("2MiB")) == (None, 2**21)
    for wrong in ("sequence", "=3", "n=0", "n=x"):
        with pytest.raises(typer.BadParameter, match="NAME=LENGTH"):
            symbols_from([wrong])
    with pytest.raises(typer.BadParameter, match="2GB"):
        memory_limit("much")
