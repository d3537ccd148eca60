"""An inference engine for the MiMo-V2 family.

The public names are loaded when they are first used: importing this package imports neither torch
nor a server, so that the parts without tensors stay usable without them.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mimo_engine.config.engine import (
        CacheConfig,
        EngineConfig,
        ModelSettings,
        ParallelConfig,
        SchedulerConfig,
    )
    from mimo_engine.config.sampling import SamplingParams
    from mimo_engine.errors import (
        CheckpointError,
        ConfigError,
        ContextLengthError,
        EngineDeadError,
        EngineUnavailableError,
        MimoError,
        QueueFullError,
        RequestError,
    )
    from mimo_engine.llm import LLM, Output

# OpenMP's threads spin at their barriers by default: beside other busy processes that makes a small
# model many times slower (docs/log.md). Read once, when torch is loaded, and by child processes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "CacheConfig",
    "CheckpointError",
    "ConfigError",
    "ContextLengthError",
    "EngineConfig",
    "EngineDeadError",
    "EngineUnavailableError",
    "MimoError",
    "ModelSettings",
    "Output",
    "ParallelConfig",
    "QueueFullError",
    "RequestError",
    "SamplingParams",
    "SchedulerConfig",
    "__version__",
]

_HOMES = {
    "LLM": "mimo_engine.llm",
    "Output": "mimo_engine.llm",
    "SamplingParams": "mimo_engine.config.sampling",
    "CacheConfig": "mimo_engine.config.engine",
    "EngineConfig": "mimo_engine.config.engine",
    "ModelSettings": "mimo_engine.config.engine",
    "ParallelConfig": "mimo_engine.config.engine",
    "SchedulerConfig": "mimo_engine.config.engine",
}
"""Where a name that is not an exception lives."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mimo_engine' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "mimo_engine.errors")), name)


def __dir__() -> list[str]:
    return __all__
