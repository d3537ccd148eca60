"""Where kernels run in these tests: on a GPU, or in Triton's interpreter where there is none.

Triton decides when a kernel is decorated, its own library's when Triton is first imported, by
whatever imports it. So `tests/conftest.py` says it before anything else runs; here it is checked.
"""

import torch
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

__all__ = ["ON_GPU"]

ON_GPU = torch.cuda.is_available()

if triton.knobs.runtime.interpret == ON_GPU:
    raise RuntimeError(
        f"torch has {'a' if ON_GPU else 'no'} GPU: set TRITON_INTERPRET={not ON_GPU:d}"
    )
if isinstance(tl.sum, JITFunction) != ON_GPU:
    raise RuntimeError("Triton was imported before tests/conftest.py could set TRITON_INTERPRET")
