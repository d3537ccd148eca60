"""An inference engine for the MiMo-V2 family.

The public names are loaded when they are first used: importing this package imports neither torch
nor a server, so that the parts without tensors stay usable without them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mimo_engine.config.engine import EngineConfig
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
    from mimo_engine.llm import LLM

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "CheckpointError",
    "ConfigError",
    "ContextLengthError",
    "EngineConfig",
    "EngineDeadError",
    "EngineUnavailableError",
    "MimoError",
    "QueueFullError",
    "RequestError",
    "SamplingParams",
    "__version__",
]

_HOME_OF = {
    "LLM": "mimo_engine.llm",
    "EngineConfig": "mimo_engine.config.engine",
    "SamplingParams": "mimo_engine.config.sampling",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mimo_engine' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF.get(name, "mimo_engine.errors")), name)


def __dir__() -> list[str]:
    return __all__
