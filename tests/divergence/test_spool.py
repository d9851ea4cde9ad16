import resource

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlscope_lab.divergence.spool import Spool
from mlscope_lab.errors import StoreError

NUMBERS = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5).flatmap(
    lambda shape: hnp.arrays(st.sampled_from(["f2", "f4", "f8", "i1", "i8", "?", "c8"]), shape)
)


@given(st.lists(NUMBERS, min_size=1, max_size=6))
def test_what_is_written_comes_back_in_any_order(arrays):
    with Spool() as spool:
        for number, array in enumerate(arrays):
            spool.write(number, array)
        for number in reversed(range(len(arrays))):
            found = spool.read(number)
            assert (found.shape, found.dtype) == (arrays[number].shape, arrays[number].dtype)
            assert found.tobytes() == np.ascontiguousarray(arrays[number]).tobytes()
        assert spool.nbytes == sum(a.nbytes for a in arrays)


def test_views_are_written_in_order():
    with Spool() as spool:
        array = np.arange(24.0).reshape(2, 3, 4)
        spool.write(7, array.transpose(2, 0, 1))
        assert 7 in spool
        assert 0 not in spool
        assert np.array_equal(spool.read(7), array.transpose(2, 0, 1))


def test_nothing_stays_in_the_folder(tmp_path):
    with Spool(tmp_path) as spool:
        spool.write(0, np.ones(1000))
        assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_with_the_way_out(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        with Spool(tmp_path) as spool, pytest.raises(StoreError, match=r"do not fit into .*TMPDIR"):
            spool.write(0, np.ones(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
