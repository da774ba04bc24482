"""A coordinator and the agents beside engines. Only what was started here is ended, each by its own id."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import kvferry


@dataclass
class Cluster:
    """A coordinator, and agents by name."""

    coordinator: kvferry.Coordinator
    stack: contextlib.ExitStack

    def agent(self, name: str, **settings: object) -> kvferry.Agent:
        return self.stack.enter_context(
            kvferry.Agent(node=name, coordinators=[self.coordinator.url], **{"pool_bytes": "128MiB", **settings})
        )

    def restart_coordinator(self) -> None:
        """After its end: another one, where its agents look for it."""
        listen = self.coordinator.announced["listen"]
        self.coordinator = self.stack.enter_context(kvferry.Coordinator(listen=listen))


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        yield Cluster(stack.enter_context(kvferry.Coordinator()), stack)


def freeze(agent: kvferry.Agent) -> None:
    """It answers nothing from now on, but is not gone."""
    os.kill(agent.pid, signal.SIGSTOP)


def kill(process: kvferry.Agent | kvferry.Coordinator) -> None:
    """As a power cut does."""
    os.kill(process.pid, signal.SIGKILL)


def wait_for(what: str, seen: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Until `seen()` is true."""
    deadline = time.monotonic() + timeout_s
    while not seen():
        if time.monotonic() >= deadline:
            raise AssertionError(f"after {timeout_s:g} s still not: {what}")
        time.sleep(0.005)


def sealed(client: kvferry.Client) -> int:
    """Blocks that others can have of its agent."""
    return sum(region.sealed for region in client.stats().regions)
