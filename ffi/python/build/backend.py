"""Builds the wheel: maturin's work, with the `kvferry` command beside the native half.

KVFERRY_BUILD_PROFILE is the cargo profile of both (release; `dev` is quick to build). CARGO_TARGET_DIR is honoured.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import maturin

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = ROOT / "ffi/python/kvferry.data/scripts"


def _profile() -> str:
    return os.environ.get("KVFERRY_BUILD_PROFILE", "release")


def _build_command() -> None:
    """Builds the command, and puts it where maturin looks for what belongs beside Python's."""
    asked = ["cargo", "build", "--locked", "--package", "kvferry", "--bin", "kvferry", "--profile", _profile()]
    built = subprocess.run(
        [*asked, "--message-format", "json-render-diagnostics"], cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    messages = (json.loads(line) for line in built.stdout.splitlines())
    paths = [it["executable"] for it in messages if it.get("executable")]
    SCRIPTS.mkdir(parents=True, exist_ok=True)
    shutil.copy2(paths[-1], SCRIPTS / "kvferry")
    if shutil.which("strip"):
        subprocess.run(["strip", str(SCRIPTS / "kvferry")], check=True)


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    _build_command()
    os.environ.setdefault("MATURIN_PEP517_ARGS", f"--profile {_profile()}")
    name: str = maturin.build_wheel(wheel_directory, config_settings, metadata_directory)
    return name


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    raise NotImplementedError("there is no source distribution: install from the repository (pip install .)")


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Any = None) -> str:
    SCRIPTS.mkdir(parents=True, exist_ok=True)  # pyproject.toml names it
    name: str = maturin.prepare_metadata_for_build_wheel(metadata_directory, config_settings)
    return name


get_requires_for_build_wheel = maturin.get_requires_for_build_wheel
