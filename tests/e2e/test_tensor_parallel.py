"""Tensor parallelism over real processes gives the text of one rank."""

import pytest
from reference_model import make_reference, random_prompts

from mimo_engine import LLM, SamplingParams
from mimo_engine.config.engine import ParallelConfig
from mimo_engine.config.sampling import GrammarSpec


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("tp")
    make_reference(path, "four_chunks")
    return str(path)


def run(checkpoint: str, tp_size: int):
    """Scores of a prompt past the window; greedy, drawn and constrained continuations."""
    llm = LLM(
        checkpoint,
        dtype="float32",
        device="cpu",
        parallel=ParallelConfig(tensor_parallel_size=tp_size),
    )
    params = [
        SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, prompt_logprobs=0),
        SamplingParams(temperature=1.0, seed=7, max_tokens=8, ignore_eos=True),
        SamplingParams(
            temperature=0.0, max_tokens=40, grammar=GrammarSpec(kind="regex", text="(yes|no){4}")
        ),
    ]
    outputs = llm.generate(random_prompts([200, 40, 9], seed=5), params)
    llm.close()
    scores = [score.logprob for score in outputs[0].prompt_logprobs[1:]]
    return scores, [output.token_ids for output in outputs]


# 2 cuts heads plainly; 3 pads heads, MLP blocks and vocabulary with zeros.
@pytest.mark.parametrize("tp_size", [2, 3])
def test_ranks_together_compute_what_one_rank_computes(checkpoint, tp_size):
    expected_scores, expected_tokens = run(checkpoint, 1)
    scores, tokens = run(checkpoint, tp_size)
    assert scores == pytest.approx(expected_scores, abs=1e-4)
    assert tokens == expected_tokens
