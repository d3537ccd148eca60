"""The command `mimo-engine`: picks a command, makes its flags from its dataclass, runs it.

A command is a module of this package with a frozen dataclass `Command` (its fields are the flags,
their docstrings the help) and `run(command) -> exit code`; a command of two words, as `bench step`,
is the module `bench_step`. Only the module of the command that was asked for is imported, so that
`plan` on a laptop does not wait for a server's imports.

Exit codes: 0 done, 1 refused (one line on stderr says why and what to do), 2 wrong usage.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import tyro

from mimo_engine import __version__
from mimo_engine.errors import MimoError

__all__ = ["COMMANDS", "main", "parse"]

COMMANDS = {
    "serve": "serve the OpenAI API over HTTP",
    "generate": "complete one prompt on the terminal",
    "check": "is this checkpoint whole, and which layout has it",
    "plan": "what fits on which GPUs, from config.json alone",
    "eval": "how well a served model answers: GSM8K, MMMU, speech, tool calls",
    "random-checkpoint": "write a checkpoint of the official layout with random weights",
    "bench kernels": "how fast every operator is on this GPU, against what the hardware allows",
    "bench step": "how long a decode step takes through the engine, on random weights",
    "bench prefill": "how long a prompt takes through the engine, on random weights",
}

# Flat flags: `--page-size`, not `--engine.cache.page-size`. A list is given by repeating its flag,
# so that it cannot swallow the model that follows it; what is given adds to the default, which is
# empty therefore. A list of lists takes several values a flag, where no model can follow.
_FLAG_STYLE = (
    tyro.conf.DisallowNone,
    tyro.conf.OmitArgPrefixes,
    tyro.conf.PositionalMetavarFromFieldName,
    tyro.conf.UseAppendAction,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command named by `argv` (default: `sys.argv[1:]`); returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = _command(arguments)
    group, _, rest = name.partition(" ")
    if name in ("-h", "--help") or rest in ("-h", "--help"):
        print(_usage(group if rest else ""))
        return 0 if arguments else 2
    if name == "--version":
        print(f"mimo-engine {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"error: no command {name!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    try:
        return _module(name).run(parse(name, arguments[len(name.split()) :]))
    except MimoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def parse(name: str, arguments: Sequence[str]) -> Any:
    """The `Command` of the command `name`. Exits with 2 on wrong usage, with 0 after --help."""
    return tyro.cli(
        _module(name).Command,
        prog=f"mimo-engine {name}",
        args=list(arguments),
        config=_FLAG_STYLE,
    )


def _command(arguments: Sequence[str]) -> str:
    """What stands where a command does: two words where the first begins such commands."""
    first = arguments[0] if arguments else "--help"
    is_group = any(name.startswith(f"{first} ") for name in COMMANDS)
    return " ".join(arguments[:2]) if is_group else first


def _module(name: str) -> Any:
    return import_module(f"mimo_engine.cli.{name.replace('-', '_').replace(' ', '_')}")


def _usage(group: str = "") -> str:
    """Of all commands, or of those that begin with a word."""
    names = [name for name in COMMANDS if name.startswith(group)]
    width = max(map(len, names))
    lines = [f"  {name:{width}}  {COMMANDS[name]}" for name in names]
    return "\n".join(
        [
            "usage: mimo-engine [--version] COMMAND ...",
            "",
            *lines,
            "",
            "mimo-engine COMMAND --help lists a command's flags.",
        ]
    )
