from __future__ import annotations

import numpy as np
import pytest

from mlscope_lab.numerics.layout import layout_of, pieces


@pytest.mark.parametrize("room", [1, 7, 64, 10_000])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((2, 3, 4, 5), 1), ((2, 3, 4, 5), -1), ((2, 3, 4, 5), 0), ((2, 3, 4, 5), None), ((7,), 0), ((6, 11), 1),
     ((), None), ((3, 1, 5), 1), ((1, 90, 3), 1)],
)  # fmt: skip
@pytest.mark.parametrize("moved", [False, True])
def test_pieces_cover_each_element_once_in_its_place(shape, axis, room, moved):
    a = np.arange(int(np.prod(shape)), dtype=np.float64).reshape(shape)
    b = np.ascontiguousarray(a.T).T if moved else a.copy()
    layout, seen = layout_of(shape, axis), []
    for piece, one, other in pieces(layout, a, b, room):
        assert one.shape == other.shape == (piece.rows, piece.width)
        assert (one == other).all()
        assert piece.size <= max(room, 32)  # transposed ones have at least some rows
        places = [piece.place(i, layout) for i in range(piece.size)]
        assert list(one.reshape(-1)) == places
        seen += places
        if axis is not None:
            channels = np.unravel_index(places, shape)[axis]
            rows, columns = np.divmod(np.arange(piece.size), piece.width)
            wanted = piece.column + columns if layout.across else (piece.row + rows) % layout.channels
            assert (channels == wanted).all()
    assert sorted(seen) == list(range(a.size))


def test_an_empty_tensor_has_no_pieces():
    empty = np.empty((3, 0, 4))
    assert list(pieces(layout_of(empty.shape, 1), empty, empty)) == []
