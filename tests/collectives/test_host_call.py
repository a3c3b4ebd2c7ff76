"""The way out of a graph to the host and back, as TensorFlow's registry is, and as if it were not there."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import tensorflow as tf

from mpi_train.collectives import host_call
from mpi_train.collectives.exchange_log import ExchangeLog
from mpi_train.collectives.host_call import HostCall
from mpi_train.runtime.aligned import ALIGNMENT, aligned_empty


@pytest.fixture(params=["direct", "public"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "public":
        monkeypatch.setattr(host_call, "_py_funcs", None)
    else:
        assert host_call._py_funcs is not None  # or a step costs 10 to 120 µs more, with no other sign of it
    return request.param


def test_a_function_is_called_in_turn_and_timed(way: str) -> None:
    numbers: list[int] = []

    def note(number: np.ndarray, values: np.ndarray) -> np.ndarray:
        numbers.append(int(number))
        return values + np.float32(number)

    log = ExchangeLog()
    call = HostCall(note, log)

    @tf.function(autograph=False)
    def run(values: tf.Tensor) -> tf.Tensor:
        def body(i: tf.Tensor, values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return i + 1, call([i, values], values.shape)

        return tf.while_loop(lambda i, _: i < 10, body, (0, values), parallel_iterations=1)[1]

    assert (run(tf.zeros(3)).numpy() == 45).all()
    assert numbers == list(range(10))
    durations = log.take_durations()
    assert len(durations) == 10
    assert durations.sum() == pytest.approx(log.total_s)
    assert len(log.take_durations()) == 0


@pytest.mark.parametrize("places", [0, 1])
def test_only_what_is_aligned_stays_where_it_is(places: int, way: str) -> None:
    buffer = aligned_empty((1000 + places,), np.float32)[places:]
    assert (buffer.ctypes.data % ALIGNMENT == 0) == (places == 0)

    def fill(value: np.ndarray) -> np.ndarray:
        buffer[...] = value
        return buffer

    call = HostCall(fill, ExchangeLog())

    @tf.function(autograph=False)
    def run() -> tf.Tensor:
        first = call([tf.constant(1.0)], [1000])
        with tf.control_dependencies([first]):
            second = call([tf.constant(2.0)], [1000])
        with tf.control_dependencies([second]):
            return first + 0.0

    assert run().numpy()[0] == (1 if places else 2)


def test_an_error_is_said_at_once(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: said.append(error))

    def fail(values: np.ndarray) -> np.ndarray:
        raise ValueError("a rank is not where it should be")

    call = HostCall(fail, ExchangeLog())
    with pytest.raises(tf.errors.InvalidArgumentError, match="a rank is not where it should be"):
        tf.function(lambda: call([tf.zeros(1)], [1]))()
    assert [str(error) for error in said] == ["a rank is not where it should be"]
