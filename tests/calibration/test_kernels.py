"""What the kernels claim to do, they do: bytes and operations, on threads of their own."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from mlscope_lab.calibration.gemm import SIDE, gemm_kernels
from mlscope_lab.calibration.peers import installed_peers, peer_kernels
from mlscope_lab.calibration.repeats import Kernel, _processor_clock, _rate, sample, sized
from mlscope_lab.calibration.stream import _large, bandwidth_kernels


@pytest.mark.parametrize(("total", "large"), [(48 * 1024, False), (2_000_000, True)])
def test_bandwidth_kernels_count_each_array_once_for_each_time_over_it(total, large):
    kernels = {k.name: k for k in bandwidth_kernels("L2", total, 2, seconds=0.001, large=large)}
    assert {"numpy add", "numpy scale", "numpy read"} <= set(kernels)
    assert ("numpy triad" in kernels) == large
    for kernel in kernels.values():
        assert kernel.target == "L2"
        assert len(kernel.work) == kernel.threads == 2
        # a whole number of times over at least nine tenths of the set, and never more than the set
        times = np.ceil(kernel.amount / total)
        assert 0.9 * total <= kernel.amount / times <= total, kernel.name
        rate, share = sample(kernel)
        assert rate > 0
        assert 0 < share <= 1


def test_the_triad_is_streams():
    a, b, out = (np.full(100_000, value, dtype=np.float32) for value in (2, 5, 0))
    _large("triad", (a, b, out), 1)()
    np.testing.assert_array_equal(out, 3 * a + b)


def test_products_count_two_operations_a_multiply_add():
    kernels = list(gemm_kernels(2, seconds=0))
    assert [k.target for k in kernels] == ["float32", "float64"]
    assert all(k.amount == 2 * 2 * SIDE**3 for k in kernels)
    rate, _ = sample(kernels[0])
    assert rate > 1e7


def _threads_of(peer: str) -> int:
    """Return the threads that the framework has in this process already, so that other tests keep theirs."""
    if peer != "pytorch":
        return 1
    import torch

    return torch.get_num_threads()


@pytest.mark.parametrize("peer", ["pytorch", "onnxruntime"])
def test_frameworks_offer_products_by_type(peer):
    if peer not in installed_peers():
        pytest.skip(f"{peer} is not installed")
    kernels = list(peer_kernels(peer, _threads_of(peer), {"L3": 600_000}, seconds=0.001))
    targets = {k.target for k in kernels}
    assert {"float32", "float64"} <= targets <= {"L3", "float32", "float64", "bfloat16", "float16", "int8"}
    assert all(k.name.startswith(peer) and len(k.work) == 1 and k.amount > 0 for k in kernels)
    assert sample(kernels[0])[0] > 0


def test_a_devices_kernels_are_those_of_pytorch():
    pytest.importorskip("torch")
    from mlscope_lab.calibration.accelerator import device_kernels, device_sets

    # the processor stands in for the device: the same calls, nothing to wait for
    assert set(device_sets("cpu")) == {"memory"}
    kernels = list(device_kernels("cpu", {"L2": 120_000}, seconds=0.001, side=64))
    assert [k.name for k in kernels[:4]] == ["pytorch add", "pytorch triad", "pytorch copy", "pytorch read"]
    assert {"L2", "float64", "float32", "bfloat16", "float16"} <= {k.target for k in kernels}
    for kernel in kernels:
        rate, share = sample(kernel)
        assert rate > 0
        assert share == 1


def test_threads_start_together_and_the_slowest_counts():
    seen = []
    meeting = threading.Barrier(3, timeout=30)

    def work():
        meeting.wait()
        seen.append(threading.get_ident())

    rate, share = sample(Kernel(name="n", target="t", work=[work] * 3, amount=1.0, threads=3), batches=4)
    assert len(set(seen)) == 3
    assert len(seen) == 12
    assert rate > 0
    assert share <= 1


def test_threads_that_ran_side_by_side_count_with_their_own_time():
    # begin, end and processor time of each thread
    assert _rate([(0.0, 1.0, 1.0), (0.05, 1.05, 0.5)], 10.0) == (10.0, 0.5)
    # one after the other: what they did took both times
    assert _rate([(0.0, 1.0, 1.0), (1.0, 2.0, 1.0)], 10.0) == (5.0, 0.5)


def test_processor_time_of_other_threads_is_known_to_the_moment():
    end = threading.Event()
    busy = threading.Thread(target=lambda: [sum(range(1000)) for _ in iter(end.is_set, True)])
    busy.start()
    try:
        clock = _processor_clock()
        own, all_ = time.thread_time(), clock()
        while time.thread_time() - own < 0.02:
            sum(range(1000))
        used = clock() - all_
    finally:
        end.set()
        busy.join()
    assert used >= 0.02


def test_work_that_fails_is_no_measurement():
    def fails():
        raise ValueError("no")

    hook, threading.excepthook = threading.excepthook, lambda _: None
    try:
        with pytest.raises(RuntimeError, match="n failed in one of its threads"):
            sample(Kernel(name="n", target="t", work=[fails] * 2, amount=1.0, threads=2))
    finally:
        threading.excepthook = hook


def test_work_is_repeated_until_it_takes_long_enough():
    assert sized(lambda: None, 0.01) > 100
    assert sized(lambda: None, 0) == 1
