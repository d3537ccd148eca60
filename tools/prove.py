"""Run the long proofs at full size and append one result line to benchmarks/results/prove.jsonl.

A proof is a test marked `prove`, or a property test, which then looks at thousands of examples
instead of a few. The line says what ran, on what, and how it ended; a failed run is a line too.
Arguments are passed on to pytest.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

from mimo_engine.bench.record import append_result

ROOT = Path(__file__).resolve().parent.parent


def run_proofs(report: Path, arguments: list[str]) -> int:
    """pytest's exit code; `report` receives its JUnit file."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-m", "prove or hypothesis"]
    # The limit of pytest-timeout is for hangs in the short suite: a proof may take hours.
    command += ["--timeout=0", "--hypothesis-profile=prove", f"--junitxml={report}", *arguments]
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
    seconds = round(time.perf_counter() - started, 1)
    path = append_result(
        "prove", {"arguments": arguments, "exit_code": exit_code, "seconds": seconds, **numbers}
    )
    print(f"{path.relative_to(ROOT)}: {numbers}, {seconds} s")
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
