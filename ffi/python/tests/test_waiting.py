"""Waiting: without the GIL, for no longer than was said, and given up at once."""

from __future__ import annotations

import gc
import os
import select
import signal
import threading
import time

import pytest
from conftest import Cluster, a_namespace, key, publish, stopped

import kvferry
from kvferry import Kind

KEYS = [key(seed) for seed in range(4)]


def hanging(over_tcp: Cluster, timeout: float) -> kvferry.Pull:
    """A pull from an owner that is stopped, under way."""
    namespace = publish(over_tcp.a, a_namespace())
    over_tcp.b.register_pool(namespace)
    return over_tcp.b.pull(namespace, KEYS, timeout=timeout)


def test_other_threads_run_while_one_waits(over_tcp: Cluster) -> None:
    turns = 0
    ended = threading.Event()

    def work() -> None:
        nonlocal turns
        while not ended.is_set():
            turns += 1

    namespace = publish(over_tcp.a, a_namespace())
    over_tcp.b.register_pool(namespace)
    with stopped(over_tcp.agent_a):
        pull = over_tcp.b.pull(namespace, KEYS, timeout=2.0)
        thread = threading.Thread(target=work)
        thread.start()
        result = pull.result()
        ended.set()
        thread.join()
    # A wait that kept the GIL would have let it turn not at all.
    assert turns > 1000
    assert {it.kind for it in result.outcomes} <= {Kind.TIMED_OUT, Kind.UNREACHABLE}
    assert len(result.outcomes) == 4 and not result.ok


def test_not_done_is_said_without_waiting(over_tcp: Cluster) -> None:
    with stopped(over_tcp.agent_b):
        call = over_tcp.b.background.stats()
        assert not call.done()
        assert not call.wait(0.05)
        with pytest.raises(kvferry.NotDoneError):
            call.result(0)
        with pytest.raises(kvferry.NotDoneError):
            call.exception(0)
    assert call.result(60).node == "b"
    assert call.exception() is None
    assert call.result() is call.result()


def test_a_call_ends_by_its_deadline(over_tcp: Cluster) -> None:
    client = over_tcp.agent_b.connect(call_timeout=3)
    with stopped(over_tcp.agent_b), pytest.raises(kvferry.DeadlineError, match="agent b .*unknown") as error:
        client.stats()
    assert isinstance(error.value, TimeoutError)
    assert client.stats().node == "b"


def test_a_call_can_be_given_up(over_tcp: Cluster) -> None:
    with stopped(over_tcp.agent_b):
        call = over_tcp.b.background.stats()
        call.cancel()
        with pytest.raises(kvferry.CancelledError):
            call.result(60)


def test_a_pull_can_be_given_up(over_tcp: Cluster) -> None:
    namespace = publish(over_tcp.a, a_namespace())
    over_tcp.b.register_pool(namespace)
    with stopped(over_tcp.agent_a):
        pull = over_tcp.b.pull(namespace, KEYS, timeout=60)
        assert not pull.wait(0.1)
        pull.cancel()
        with pytest.raises(kvferry.CancelledError):
            pull.result(60)
        assert [it.kind for it in pull.outcomes()] == [Kind.CANCELLED] * 4


def test_a_pull_that_nobody_holds_is_given_up(over_tcp: Cluster) -> None:
    namespace = publish(over_tcp.a, a_namespace())
    over_tcp.b.register_pool(namespace)

    def under_way(wanted: int) -> bool:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if over_tcp.b.stats().pulls_in_flight == wanted:
                return True
            time.sleep(0.05)
        return False

    with stopped(over_tcp.agent_a):
        pull = over_tcp.b.pull(namespace, KEYS, timeout=60)
        assert under_way(1)
        del pull
        gc.collect()
        assert under_way(0)


def test_a_signal_ends_a_wait(over_tcp: Cluster) -> None:
    class Alarm(Exception):
        pass

    def raised(*_: object) -> None:
        raise Alarm

    old = signal.signal(signal.SIGALRM, raised)
    try:
        with stopped(over_tcp.agent_b):
            call = over_tcp.b.background.stats()
            with pytest.raises(Alarm):
                signal.setitimer(signal.ITIMER_REAL, 0.2)
                call.result(60)
    finally:
        signal.signal(signal.SIGALRM, old)


def test_a_descriptor_says_when_there_is_something_new(over_tcp: Cluster) -> None:
    call = over_tcp.b.background.stats()
    assert select.select([call], [], [], 60)[0] == [call]
    assert call.done() and call.result(0).node == "b"

    namespace = publish(over_tcp.a, a_namespace())
    over_tcp.b.register_pool(namespace)
    pull = over_tcp.b.pull(namespace, [*KEYS, key(9)])
    descriptor = pull.fileno()
    seen = []
    while not (pull.done() and len(seen) == 5):
        assert select.select([descriptor], [], [], 60)[0]
        seen += pull.poll()
    assert sorted(it.index for it in seen) == list(range(5))
    pull.poll()
    assert not select.select([descriptor], [], [], 0)[0]
    assert sorted(pull.outcomes()) == sorted(seen)


def test_callbacks_come_once_from_another_thread_or_at_once(
    over_tcp: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[object, int]] = []
    event = threading.Event()

    def callback(call: kvferry.Call[object]) -> None:
        heard.append((call, threading.get_ident()))
        event.set()

    with stopped(over_tcp.agent_b):
        call = over_tcp.b.background.stats()
        call.add_done_callback(callback)
    assert event.wait(60)
    assert heard[0][0] is call and heard[0][1] != threading.get_ident()
    call.add_done_callback(callback)
    assert heard[1] == (call, threading.get_ident())
    assert len(heard) == 2

    # What a callback raises is nobody's.
    unraisable: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", unraisable.append)
    call.add_done_callback(lambda _: 1 / 0)
    assert len(unraisable) == 1


def test_one_client_serves_many_threads(over_tcp: Cluster) -> None:
    namespace = publish(over_tcp.a, a_namespace(), range(8))
    over_tcp.b.register_pool(namespace)
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for _ in range(10):
                result = over_tcp.b.pull(namespace, [key(seed)]).result(60)
                assert result.ok and result.pin is not None
                result.pin.release()
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_a_client_does_not_survive_a_fork(over_tcp: Cluster) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = "nothing"
        try:
            over_tcp.b.stats()
        except kvferry.InvalidArgumentError as error:
            said = str(error)
        try:
            with over_tcp.agent_b.connect() as own:
                said += f"; {own.stats().node}"
        finally:
            os.write(writer, said.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        assert said.read() == b"a connection does not survive a fork: connect in the child; b"
    os.waitpid(child, 0)
    assert over_tcp.b.stats().node == "b"
