"""Engines as child processes. Only what was started here is ended, each by its own id."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
MARK = "@@kvferry "
# An engine takes 12 s to start on two idle cores; these are shared.
START_S = 600.0
ANSWER_S = 300.0


class EngineError(RuntimeError):
    """An engine ended, or did not answer: the text has the end of its log."""


class Engine:
    """See engine.py."""

    def __init__(self, name: str, options: dict[str, Any], log: pathlib.Path, path: str | None, hash_seed: str = "0") -> None:
        self.name, self._log = name, log
        environment = dict(os.environ, PYTHONHASHSEED=hash_seed)
        if path is not None:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [path, environment.get("PYTHONPATH")]))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), str(HERE)]))
        self._errors = log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "engine.py"), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._version: str | None = None

    @property
    def version(self) -> str:
        """vLLM's; waits until the engine has started. Several start at once."""
        if self._version is None:
            self._version = str(self._answer(START_S)["version"])
        return self._version

    def begin(self, do: str, **words: Any) -> None:
        """Gives a command; `end` waits for its answer."""
        assert self.version
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **words}) + "\n")
        self._process.stdin.flush()

    def end(self) -> dict[str, Any]:
        return self._answer(ANSWER_S)

    def ask(self, do: str, **words: Any) -> dict[str, Any]:
        self.begin(do, **words)
        return self.end()

    def generate(self, prompt: list[int], max_tokens: int = 16, params: dict[str, Any] | None = None) -> dict[str, Any]:
        return self.ask("generate", prompt=prompt, max_tokens=max_tokens, params=params)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(EngineError, OSError):
                self.ask("quit")
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._errors.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                self._answers.put(json.loads(line[len(MARK) :]))
            else:
                self._errors.write(line)
                self._errors.flush()
        self._answers.put(None)

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        try:
            answer = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            answer = None
        if answer is None:
            # It stays ended, whoever asks next.
            self._answers.put(None)
            raise EngineError(f"engine {self.name} did not answer; its log ends with\n{self.log()[-3000:]}")
        return answer
