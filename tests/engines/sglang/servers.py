"""Real SGLang servers as child processes, with HiCache over kvferry. Only what was started here is ended, each by its own id."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import Any

import kvferry

HERE = pathlib.Path(__file__).resolve().parent
# A server takes 25 s to start on two idle cores; these are shared.
START_S = 600.0
ANSWER_S = 300.0
END_S = 30.0

PAGE = 32
# Of the engine's own cache: 32 MiB for the tiny models.
TOKENS = 8192


class ServerError(RuntimeError):
    """A server ended, or did not answer: the text has the end of its log."""


def storage(agent: kvferry.Agent, **settings: object) -> dict[str, Any]:
    """docs/sglang.md's extra configuration."""
    return {
        "backend_name": "kvferry",
        "module_path": "kvferry.sglang",
        "class_name": "KvferryStorage",
        "interface_v1": 1,
        "allocator": "shm",
        # A shared machine of two cores answers late.
        "kvferry": {"socket": agent.socket, "lookup_timeout_s": 10.0, "pull_timeout_s": 30.0, **settings},
    }


def hicache(extra: dict[str, Any], layout: str, ratio: float = 2.0) -> list[str]:
    """docs/sglang.md's options, with policies that leave nothing to chance: all is backed up at once, a prefetch is waited for."""
    # What moves a layout between the engine and the host pool; only page_first has no other way than a GPU's kernels.
    backend = "kernel" if layout == "page_first" else "direct"
    return [
        *("--enable-hierarchical-cache", "--hicache-ratio", str(ratio), "--hicache-write-policy", "write_through"),
        *("--hicache-mem-layout", layout, "--hicache-io-backend", backend),
        *("--hicache-storage-prefetch-policy", "wait_complete", "--hicache-storage-backend", "dynamic"),
        *("--hicache-storage-backend-extra-config", json.dumps(extra)),
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One server on a port of its own, on the processor."""

    def __init__(self, name: str, model: str, options: list[str], log: pathlib.Path, tokens: int = TOKENS, tp: int = 1) -> None:
        self.name, self._log = name, log
        self._port = _free_port()
        self._pending: tuple[threading.Thread, list[Any]] | None = None
        self._output = log.open("w")
        command = [
            *(sys.executable, "-m", "sglang.launch_server", "--model-path", model),
            *("--host", "127.0.0.1", "--port", str(self._port), "--device", "cpu", "--attention-backend", "torch_native"),
            *("--dtype", "float32", "--skip-tokenizer-init", "--page-size", str(PAGE), "--tp-size", str(tp)),
            *("--max-total-tokens", str(tokens), "--max-running-requests", "8", "--enable-cache-report"),
            # An idle one leaves its processor to the others.
            *("--skip-server-warmup", "--random-seed", "0", "--sleep-on-idle", *options),
        ]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env=self._environment(tp),
            start_new_session=True,  # its processes are ended with it
        )
        self._ready = False

    @staticmethod
    def _environment(tp: int) -> dict[str, str]:
        """Of two cores each rank has one."""
        binding = {} if tp == 1 else {"SGLANG_CPU_OMP_THREADS_BIND": "|".join(str(rank) for rank in range(tp))}
        return {**os.environ, "OMP_NUM_THREADS": "1", **binding}

    def ready(self) -> None:
        """Waits until it answers. Several start at once."""
        deadline = time.monotonic() + START_S
        while not self._ready:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ServerError(f"server {self.name} did not start; its log ends with\n{self.log()[-3000:]}")
            with contextlib.suppress(OSError, urllib.error.URLError):
                self._call("GET", "/health")
                self._ready = True
            time.sleep(0.2)

    def generate(self, prompt: list[int], max_tokens: int = 16) -> dict[str, Any]:
        """Tokens, and how many of the prompt were `cached`, and of these how many came from `storage`."""
        self.ready()
        sampling = {"max_new_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        said = json.loads(self._call("POST", "/generate", {"input_ids": prompt, "sampling_params": sampling}))
        about = said["meta_info"]
        details = about.get("cached_tokens_details") or {}
        return {
            "tokens": said["output_ids"],
            "finish": about["finish_reason"]["type"],
            "cached": about["cached_tokens"],
            "storage": details.get("storage", 0),
        }

    def begin(self, prompt: list[int], max_tokens: int = 16) -> None:
        """As `generate`; `end` waits for its answer."""
        self.ready()
        said: list[Any] = []

        def ask() -> None:
            try:
                said.append(self.generate(prompt, max_tokens))
            except (OSError, ValueError, ServerError) as error:
                said.append(error)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        self._pending = (thread, said)

    def end(self) -> dict[str, Any]:
        assert self._pending is not None
        thread, said = self._pending
        thread.join(ANSWER_S)
        if not said or isinstance(said[0], Exception):
            raise ServerError(f"server {self.name} did not answer ({said}); its log ends with\n{self.log()[-3000:]}")
        answer: dict[str, Any] = said[0]
        return answer

    def forget(self) -> None:
        """Drops what it holds itself, on the device and on the host: what comes now, comes from storage."""
        deadline = time.monotonic() + END_S
        while True:
            try:
                self._call("POST", "/flush_cache")
                return
            except urllib.error.HTTPError:
                # Something is still being backed up.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
        # What is left of its session.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._output.close()

    def _call(self, method: str, path: str, body: object = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}{path}", data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            said: bytes = answer.read()
        return said
