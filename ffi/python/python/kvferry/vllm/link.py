"""The engine's connection to its agent. An agent that goes away costs cache hits, never the engine: the link comes
back by itself, and everything is a miss until then."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import kvferry

# Under vLLM's name: its handlers and levels hold for it.
logger = logging.getLogger("vllm.kvferry.link")
S = TypeVar("S")

# The engine's and the scheduler's loops make calls that the agent answers from memory: what has no answer by then has stopped.
CALL_TIMEOUT_S = 1.0

# The connection is of no more use: connect again, register again.
GONE = (kvferry.AgentLostError, kvferry.AgentUnreachableError, kvferry.ShuttingDownError, kvferry.FencedError)


def connect(socket: str | None) -> kvferry.Client:
    """To the agent of this engine."""
    return kvferry.connect(socket, call_timeout=CALL_TIMEOUT_S)


class Link(Generic[S]):
    """Holds a `session`: what `begin` made of a connection (its registered regions, say). All that is known of an agent
    lies in the session and ends with it. Any thread may use it."""

    def __init__(
        self,
        connect: Callable[[], kvferry.Client],
        begin: Callable[[kvferry.Client], S],
        pause_s: float,
    ) -> None:
        self._connect, self._begin, self._pause_s = connect, begin, pause_s
        self._lock = threading.Lock()
        self._current: tuple[kvferry.Client, S] | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self) -> S:
        """The first session. What fails here is a failed start, and raised."""
        client = self._connect()
        try:
            session = self._begin(client)
        except BaseException:
            client.close()
            raise
        with self._lock:
            self._current = (client, session)
        return session

    @property
    def session(self) -> S | None:
        """None while there is no agent. Never waits."""
        current = self._current
        return None if current is None else current[1]

    def failed(self, error: BaseException, session: S) -> None:
        """A call of this session has failed. Where the connection is gone, a new one is tried for in the background."""
        if not isinstance(error, GONE):
            return
        with self._lock:
            if self._closed.is_set() or self._current is None or self._current[1] is not session:
                return
            client, self._current = self._current[0], None
            self._thread = threading.Thread(target=self._again, args=(client,), name="kvferry-link", daemon=True)
            self._thread.start()
        logger.warning("kvferry: the agent is gone (%s); all look-ups are misses until it is back", error)

    def _again(self, old: kvferry.Client) -> None:
        old.close()
        while not self._closed.wait(self._pause_s):
            try:
                client = self._connect()
            except kvferry.KvferryError:
                continue
            try:
                session = self._begin(client)
            except kvferry.KvferryError as error:
                client.close()
                logger.warning("kvferry: the agent is there, but refuses this engine: %s", error)
                continue
            with self._lock:
                if self._closed.is_set():
                    client.close()
                    return
                self._current = (client, session)
            logger.info("kvferry: connected to agent %s again", client.node)
            return

    def close(self) -> None:
        """Ends the connection. Twice is nothing."""
        self._closed.set()
        with self._lock:
            current, self._current = self._current, None
        if current is not None:
            current[0].close()
