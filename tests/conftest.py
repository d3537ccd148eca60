"""What every test shares: one thread a process, hypothesis profiles, no ambient configuration."""

import os
from pathlib import Path

# Before torch is imported anywhere: test processes run side by side on few cores.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("MIMO_ENGINE_API_KEY", None)
# Before Triton is, which other libraries import too: without a GPU its kernels are interpreted.
# torch would know better whether there is one, but tests/pure does without it.
os.environ.setdefault("TRITON_INTERPRET", "0" if list(Path("/dev").glob("nvidia[0-9]*")) else "1")

from hypothesis import HealthCheck, settings  # noqa: E402

# A slow machine must not turn a test red, so no deadline. `default` repeats the same examples
# each time (a red run is a real change); `prove` looks further, and anew.
_QUIET = (HealthCheck.too_slow, HealthCheck.data_too_large)
settings.register_profile(
    "default",
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=_QUIET,
)
settings.register_profile(
    "prove", max_examples=2000, deadline=None, print_blob=True, suppress_health_check=_QUIET
)
settings.load_profile("default")
