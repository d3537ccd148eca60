"""Kernels that are compiled are told from those found on disk; no GPU is needed to compile."""

import json
import os
import subprocess
import sys

PROGRAM = """
import json
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mimo_engine.bench.compilations import counted_compilations

@triton.jit
def double(pointer):
    tl.store(pointer, tl.load(pointer) * 2)

found = []
for _ in range(2):
    with counted_compilations() as counted:
        source = ASTSource(fn=double, signature={"pointer": "*fp32"})
        triton.compile(source, target=GPUTarget("cuda", 90, 32))
    found.append((counted.num_compiled, counted.num_found, counted.seconds))
assert triton.knobs.compilation.listener is None
print(json.dumps(found))
"""


def test_the_second_start_compiles_nothing(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    own = {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, env={**environment, **own}
    )
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert first[:2] == [1, 0]
    assert second[:2] == [0, 1]
    assert first[2] > second[2] >= 0
