"""Fail on a file over 500 lines or a function over 60, and print the lines of each package.

Small files and functions are what keeps this repository readable, so the limit is enforced, not
remembered. Lines are physical lines; a function's are those from `def` to its last statement. Of a
kernel, which Triton compiles, only the body counts: a launch hands over pointers and numbers one by
one, no object could bundle them, and a table of twenty parameters is not hard to read.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
CHECKED = ("src", "tests", "tools")


def oversized(path: Path, name: str) -> Iterator[str]:
    """One complaint for each limit that the Python file at `path` breaks."""
    text = path.read_text(encoding="utf-8")
    num_lines = len(text.splitlines())
    if num_lines > MAX_FILE_LINES:
        yield f"{name}: {num_lines} lines, at most {MAX_FILE_LINES}"
    for node in ast.walk(ast.parse(text, filename=str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if _is_kernel(node) else node
            length = (node.end_lineno or node.lineno) - first.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield (
                    f"{name}:{node.lineno}: {node.name} has {length} lines, "
                    f"at most {MAX_FUNCTION_LINES}"
                )


def _is_kernel(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it is decorated with `triton.jit`, with arguments or without."""
    names = (name.func if isinstance(name, ast.Call) else name for name in node.decorator_list)
    return any(ast.unparse(name) == "triton.jit" for name in names)


def python_files(root: Path) -> list[Path]:
    return sorted(path for top in CHECKED for path in (root / top).rglob("*.py"))


def package_of(path: Path) -> str:
    """`src/mimo_engine/cache` for its files, `tests/cpu` for all below it."""
    depth = 3 if path.parts[0] == "src" else 2
    return "/".join(path.parts[:depth]) if len(path.parts) > depth else str(path.parent)


def main() -> int:
    root = Path(__file__).resolve().parent.parent
    lines: Counter[str] = Counter()
    complaints: list[str] = []
    for path in python_files(root):
        relative = path.relative_to(root)
        lines[package_of(relative)] += len(path.read_text(encoding="utf-8").splitlines())
        complaints.extend(oversized(path, str(relative)))
    for package, count in sorted(lines.items()):
        print(f"{count:7,}  {package}")
    for top in CHECKED:
        total = sum(n for package, n in lines.items() if package.split("/")[0] == top)
        print(f"{total:7,}  {top} in all")
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
