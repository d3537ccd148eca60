"""Where benches leave their numbers: JSON lines under benchmarks/results/, one file a bench.

A line says what was measured, of which commit and on what hardware, and nothing about the place
where that machine keeps its files.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mimo_engine.errors import ConfigError

__all__ = ["append_line", "append_result", "hardware", "repository_root"]


def append_result(name: str, payload: Mapping[str, Any]) -> Path:
    """Append `payload`, with date, commit and hardware, to benchmarks/results/<name>.jsonl.

    Returns the file. Raises ConfigError outside a checkout of the repository.
    """
    path = repository_root() / "benchmarks" / "results" / f"{name}.jsonl"
    append_line(path, name, payload)
    return path


def append_line(path: Path, name: str, payload: Mapping[str, Any]) -> None:
    """Append the same line to a file anywhere. Raises ConfigError as `append_result` does."""
    record = {
        "bench": name,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": _commit(repository_root()),
        "hardware": hardware(),
        "python": platform.python_version(),
        **payload,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def hardware() -> str:
    """The processor and how many there are, such as "AMD EPYC (x86_64, 2 CPUs)"."""
    return f"{_processor_name()} ({platform.machine()}, {os.cpu_count()} CPUs)"


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.system()


def repository_root() -> Path:
    """The checkout that this is run in, or of. Raises ConfigError where there is none."""
    for start in (Path.cwd(), Path(__file__).resolve()):
        for directory in (start, *start.parents):
            if (directory / "pyproject.toml").exists() and (directory / "benchmarks").is_dir():
                return directory
    raise ConfigError("no checkout of the repository here: run the bench from within one")


def _commit(root: Path) -> str:
    """The short commit, with "+" when tracked sources differ from it. Without git what the file
    `.commit` says, for copies of a checkout; "unknown" without that."""
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "src")
    except (OSError, subprocess.CalledProcessError):
        named = root / ".commit"
        return named.read_text(encoding="ascii").strip() if named.exists() else "unknown"
    return commit + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.strip()
