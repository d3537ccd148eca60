"""Run the long proofs at full size and append one result line to benchmarks/results/prove.jsonl.

A proof is a test marked `prove`, or a property test, which then looks at thousands of examples
instead of a few. The line says what ran, on what, and how it ended; a failed run is a line too.
Arguments are passed on to pytest.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "prove.jsonl"


def git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def run_proofs(report: Path, arguments: list[str]) -> int:
    """pytest's exit code; `report` receives its JUnit file."""
    # pytest-timeout is for hangs in the short suite: a proof may take hours.
    command = [sys.executable, "-m", "pytest", "-q", "-m", "prove or hypothesis", "--timeout=0"]
    command += ["--hypothesis-profile=prove", f"--junitxml={report}", "-n", "auto", *arguments]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def counts(report: Path) -> dict[str, int]:
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    return {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}


def main() -> int:
    arguments = sys.argv[1:]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        exit_code = run_proofs(report, arguments)
        numbers = counts(report) if report.exists() else {}
    line = {
        "bench": "prove",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "--short=12", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "arguments": arguments,
        "exit_code": exit_code,
        "seconds": round(time.perf_counter() - started, 1),
        **numbers,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as results:
        results.write(json.dumps(line) + "\n")
    print(json.dumps(line))
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
