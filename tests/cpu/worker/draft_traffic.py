"""Requests at random times, for an engine that is stepped by hand."""

import random
from dataclasses import replace

from slow_drafting import LOUD_TOKENS

from mimo_engine import SamplingParams
from mimo_engine.messages import NewRequest

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1.0, top_k=6, ignore_eos=True)


def random_prompt(length, seed):
    draw = random.Random(f"{length} {seed}")
    return [draw.randrange(500) for _ in range(length)]


def random_traffic(llm, draw):
    """Requests at any time, many of which go on from earlier ones; some are aborted. What ended
    by itself: {name: (prompt, params, tokens)}."""
    prompts, params, tokens, ended, known = {}, {}, {}, {}, [[]]
    num_left = 24
    while num_left or llm.core.has_work:
        if num_left and draw.random() < 0.2:
            num_left -= 1
            name, base = f"{num_left}", draw.choice(known)
            base = base[: draw.choice((len(base), draw.randint(0, len(base))))][:90]
            prompts[name] = base + random_prompt(draw.randint(1, 20), draw.random())
            params[name] = replace(
                draw.choice((GREEDY, SAMPLED)),
                seed=draw.randint(0, 99),
                max_tokens=draw.randint(1, 28),
                stop_token_ids=draw.choice(((), LOUD_TOKENS[:1])),
                min_tokens=draw.choice((0, 1)),
            )
            tokens[name] = []
            llm.core.add(
                NewRequest(request_id=name, prompt_token_ids=prompts[name], params=params[name])
            )
        if tokens and draw.random() < 0.02:
            name = draw.choice(list(tokens))
            assert llm.core.abort(name)
            known.append(prompts[name] + tokens.pop(name))
        for output in llm.core.step():
            assert output.finish_reason != "error", output.error
            name = output.request_id
            tokens[name] += output.token_ids
            if output.finish_reason is not None:
                ended[name] = (prompts[name], params[name], tokens.pop(name))
                known.append(prompts[name] + ended[name][2])
        llm.core._scheduler._cache.check()
    return ended
