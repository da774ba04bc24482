"""Coordinators and agents as child processes: the `kvferry` command that this package carries."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._client import Client, connect
from .errors import ProcessError

if TYPE_CHECKING:
    from typing_extensions import Self

# Bytes of a line that says where a process listens.
_MAX_LINE = 65536


def binary() -> str:
    """The path of the `kvferry` command: KVFERRY_BINARY, or the one that was installed with this package."""
    named = os.environ.get("KVFERRY_BINARY")
    if named:
        return named
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    folders = [
        sysconfig.get_path("scripts"),
        sysconfig.get_path("scripts", scheme="posix_user"),
        os.path.join(sys.prefix, "bin"),
        os.path.join(here, "bin"),  # pip install --target
    ]
    for folder in folders:
        path = os.path.join(folder, "kvferry")
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    raise ProcessError(f"the kvferry command is in none of {', '.join(folders)}: install the package, or set KVFERRY_BINARY")


def _flags(settings: Mapping[str, object]) -> list[str]:
    """Settings as flags: `pool_bytes="4GiB"` is --pool-bytes 4GiB; lists and dicts are a,b and k=v,k=v."""
    flags = []
    for key, value in settings.items():
        name = "--" + key.replace("_", "-")
        if value is True:
            flags.append(name)
        elif value is False or value is None:
            continue
        elif isinstance(value, Mapping):
            flags += [name, ",".join(f"{k}={v}" for k, v in value.items())]
        elif isinstance(value, (list, tuple)):
            flags += [name, ",".join(str(it) for it in value)]
        else:
            flags += [name, str(value)]
    return flags


class _Process:
    """A `kvferry` process. It holds one end of a pipe whose other end is ours: it ends when we do, however that happens."""

    def __init__(self, arguments: Sequence[str], start_timeout: float) -> None:
        command = [binary(), *arguments, "--announce", "--until-stdin-closes"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            self.announced: dict[str, Any] = self._announcement(start_timeout)
        except BaseException:
            self.stop(0)
            raise

    def _announcement(self, start_timeout: float) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        readable = select.poll()  # also for descriptors beyond 1023, which an engine has
        readable.register(stdout, select.POLLIN)
        deadline, line = time.monotonic() + start_timeout, b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not readable.poll(left * 1000):
                raise ProcessError(f"{self._process.args!r} is not ready after {start_timeout} s")
            piece = os.read(stdout.fileno(), _MAX_LINE)
            line += piece
            if not piece or len(line) > _MAX_LINE:
                code = self._process.wait(5)
                raise ProcessError(f"{self._process.args!r} ended with {code} before it was ready; its log says why")
        announced: dict[str, Any] = json.loads(line)
        return announced

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """It has not ended."""
        return self._process.poll() is None

    def stop(self, timeout: float = 5.0) -> int:
        """Ends it in good order, and with force after `timeout` seconds; gives its exit code. Twice is nothing."""
        process = self._process
        if process.stdin is not None:
            process.stdin.close()
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if process.stdout is not None:
            process.stdout.close()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Coordinator(_Process):
    """A coordinator as a child process. Keywords are its settings (`listen="127.0.0.1:7400"`); it listens on ports of the
    kernel's choice on loopback unless told otherwise. It ends with `stop`, at the end of `with`, and with this process, however
    that ends. ProcessError where it does not start."""

    def __init__(self, *, start_timeout: float = 10.0, **settings: object) -> None:
        settings = {"listen": "127.0.0.1:0", "listen_metrics": "off", "log": "warn", **settings}
        super().__init__(["coordinator", *_flags(settings)], start_timeout)

    @property
    def url(self) -> str:
        """For agents' `coordinators`."""
        return f"http://{self.announced['listen']}"


class Agent(_Process):
    """An agent as a child process: an agent embedded in an engine. Keywords are its settings (`pool_bytes="4GiB"`,
    `transport="tcp"`, `labels={"zone": "a"}`); it listens on ports of the kernel's choice on loopback unless told otherwise, and
    its socket is in a folder of its own. It ends with `stop`, at the end of `with`, and with this process, however that
    ends. ProcessError where it does not start."""

    def __init__(
        self,
        *,
        coordinators: Sequence[str] | str,
        node: str | None = None,
        start_timeout: float = 10.0,
        **settings: object,
    ) -> None:
        self._folder = tempfile.mkdtemp(prefix="kvferry-")
        given: dict[str, object] = {
            "node": node or f"{os.uname().nodename}-{os.getpid()}-{os.path.basename(self._folder)[-8:]}",
            "coordinators": coordinators,
            "listen_peer": "127.0.0.1:0",
            "listen_data": "127.0.0.1:0",
            "listen_metrics": "off",
            "socket": os.path.join(self._folder, "agent.sock"),
            "log": "warn",
            **settings,
        }
        try:
            super().__init__(["agent", *_flags(given)], start_timeout)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    @property
    def node(self) -> str:
        """Its name."""
        return self.announced["node"]

    @property
    def socket(self) -> str:
        """For `connect`, also of other processes of this user."""
        return self.announced["socket"]

    def connect(self, *, connect_timeout: float = 5.0, call_timeout: float = 5.0) -> Client:
        """A connection to it."""
        return connect(self.socket, connect_timeout=connect_timeout, call_timeout=call_timeout)

    def stop(self, timeout: float = 5.0) -> int:
        """As `Coordinator.stop`."""
        code = super().stop(timeout)
        shutil.rmtree(self._folder, ignore_errors=True)
        return code
