from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest

from mlscope_lab.collectors.sampling import THREAD_NAME, Sampler, sampling_threads


def test_readings_stand_at_the_start_the_end_and_between():
    enough = threading.Event()
    numbers = itertools.count()

    def read():
        number = next(numbers)
        if number >= 5:
            enough.set()
        return float(number), -float(number)

    sampler = Sampler(read, 2, period_s=0.001)
    sampler.start()
    assert THREAD_NAME in {thread.name for thread in threading.enumerate()}
    assert sampling_threads() == {t.native_id for t in threading.enumerate() if t.name == THREAD_NAME}
    assert enough.wait(30)
    times, values = sampler.stop()
    assert (np.diff(times) > 0).all()
    np.testing.assert_array_equal(values[:, 0], np.arange(len(times)))
    np.testing.assert_array_equal(values[:, 1], -values[:, 0])
    assert not sampling_threads()
    assert sampler.error == ""


def test_a_full_buffer_keeps_every_second_reading_and_slows_down():
    enough = threading.Event()
    numbers = itertools.count()

    def read():
        number = next(numbers)
        if number >= 30:
            enough.set()
        return (float(number),)

    sampler = Sampler(read, 1, period_s=0.0005, capacity=8)
    sampler.start()
    assert enough.wait(30)
    times, values = sampler.stop()
    assert len(times) <= 8
    assert values[0] == 0
    assert (np.diff(times) > 0).all()
    assert (np.diff(values[:, 0]) > 0).all()
    assert sampler.period_s >= 4 * 0.0005


def test_a_reading_that_fails_ends_the_sampling_with_its_reason():
    failed = threading.Event()
    numbers = itertools.count()

    def read():
        if next(numbers) == 3:
            failed.set()
            raise OSError("the device is gone")
        return (1.0,)

    sampler = Sampler(read, 1, period_s=0.001)
    sampler.start()
    assert failed.wait(30)
    times, _ = sampler.stop()
    assert len(times) == 3
    assert sampler.error == "the device is gone"


def test_a_first_reading_that_fails_is_raised():
    def read():
        raise OSError("never there")

    with pytest.raises(OSError, match="never there"):
        Sampler(read, 1, period_s=1).start()
    assert not sampling_threads()
