"""Every exception this package raises on purpose.

    MimoError
    ├── ConfigError            a configuration that cannot be served: ours, or config.json
    ├── CheckpointError        files that are not what config.json and the official layout say
    ├── RequestError           a request that its sender can mend; HTTP 400
    │   └── ContextLengthError     prompt and max_tokens do not fit the context
    ├── QueueFullError         the waiting queue is at its limit; HTTP 503
    ├── EngineUnavailableError the engine process is starting, restarting or given up; HTTP 503
    └── EngineDeadError        the engine process ended while the request was in flight; HTTP 500

The first three are also `ValueError`: each message names what is wrong and the remedy. Broken
invariants of our own are `assert`s, never members of this tree.
"""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ContextLengthError",
    "EngineDeadError",
    "EngineUnavailableError",
    "MimoError",
    "QueueFullError",
    "RequestError",
]


class MimoError(Exception):
    """Root of the tree."""


class ConfigError(MimoError, ValueError):
    """A configuration that cannot be served."""


class CheckpointError(MimoError, ValueError):
    """Checkpoint files that contradict config.json or the official layout."""


class RequestError(MimoError, ValueError):
    """A request that its sender can mend. `param` names the offending field, when there is one."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthError(RequestError):
    """Prompt and requested tokens do not fit the context length."""


class QueueFullError(MimoError):
    """The waiting queue is at its limit; trying again later is the remedy."""


class EngineUnavailableError(MimoError):
    """No engine process can take a request now; the message says whether it is coming back."""


class EngineDeadError(MimoError):
    """The engine process ended while the request was in flight."""
