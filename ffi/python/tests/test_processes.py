"""Agents embedded as child processes, and the command that the package carries."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

import kvferry
from kvferry import Agent, Coordinator


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_an_embedded_agent_ends_with_its_process() -> None:
    script = """if True:
        import sys, time
        from kvferry import Agent, Coordinator
        coordinator = Coordinator()
        agent = Agent(node="embedded", coordinators=coordinator.url, pool_bytes="1MiB")
        print(coordinator.pid, agent.pid, flush=True)
        agent.connect().stats()
        time.sleep(600)
    """
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        pids = [int(word) for word in child.stdout.readline().split()]
        assert len(pids) == 2 and all(alive(pid) for pid in pids)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "they outlived their parent"
        time.sleep(0.05)


def test_an_agent_is_stopped_in_good_order_and_its_socket_goes() -> None:
    with Coordinator() as coordinator:
        agent = Agent(coordinators=[coordinator.url], labels={"zone": "a"}, pool_bytes="1MiB")
        assert agent.running and agent.announced["node"] == agent.node
        with agent.connect() as client:
            assert client.node == agent.node
        assert agent.stop() == 0
        assert agent.stop() == 0
        assert not agent.running and not os.path.exists(os.path.dirname(agent.socket))


def test_what_does_not_start_says_so() -> None:
    with pytest.raises(kvferry.ProcessError, match="ended with 2"):
        Agent(coordinators=["not a url"])
    with pytest.raises(kvferry.ProcessError, match="ended with 2"):
        Coordinator(no_such_setting=1)


def test_the_command_is_carried() -> None:
    for command in ([kvferry.binary()], [sys.executable, "-m", "kvferry"]):
        said = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        assert said.stdout.split() == ["kvferry", kvferry.__version__]


def test_the_command_is_looked_for_where_it_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFERRY_BINARY", "/usr/bin/true")
    assert kvferry.binary() == "/usr/bin/true"
    with pytest.raises(kvferry.ProcessError, match="ended with 0"):
        Coordinator()
