"""`mimo-engine generate`: one completion, in this process, on standard output."""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import PositionalRequiredArgs

from mimo_engine.config.engine import EngineConfig
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.llm import LLM


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """Complete one prompt and print the text. MODEL is a directory or a name on the hub."""

    engine: PositionalRequiredArgs[EngineConfig]
    prompt: str
    """The text to complete, or with --chat the user's message."""
    chat: bool = False
    """Put the prompt through the checkpoint's chat template."""
    max_tokens: int = 128
    """Tokens to generate at most."""
    temperature: float = 1.0
    """0 always takes the most likely token."""
    top_p: float = 1.0
    """Sample from the most likely tokens that together have this probability."""
    top_k: int = -1
    """Sample from this many most likely tokens; -1 for all."""
    seed: int | None = None
    """Makes the draws repeatable."""


def run(command: Command) -> int:
    params = SamplingParams(
        max_tokens=command.max_tokens,
        temperature=command.temperature,
        top_p=command.top_p,
        top_k=command.top_k,
        seed=command.seed,
    )
    llm = LLM.from_config(command.engine)
    try:
        if command.chat:
            outputs = llm.chat([{"role": "user", "content": command.prompt}], params)
        else:
            outputs = llm.generate(command.prompt, params)
    finally:
        llm.close()
    print(outputs[0].text)
    return 0
