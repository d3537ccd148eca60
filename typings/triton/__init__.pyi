"""Triton to the type checker: anything.

Its own annotations describe its compiler, not its language, in which a number is a constant and
operators work on tensors. And so the tree is checked alike whether Triton is installed or not.
"""

from typing import Any

def jit(function: Any = ..., **options: Any) -> Any: ...
def __getattr__(name: str) -> Any: ...
