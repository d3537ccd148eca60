"""The engine one captured step ahead: what it leaves, counts and asks."""

from dataclasses import replace

from captured import engine

from mimo_engine import SamplingParams
from mimo_engine.engine.drafts import DraftControl


def stopped(path):
    """An engine whose requests were ended by a stop token, one long before the other; its texts."""
    llm = engine(path, 3)
    greedy = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=40)
    prompts = [[7, 8, 9], [11, 12, 13]]
    free = [output.token_ids for output in llm.generate(prompts, greedy)]
    new = [[i for i, token in enumerate(own) if token not in own[:i]] for own in free]
    places = (new[0][8], max(place for place in new[1] if place < 28))
    assert places[0] + 8 < places[1]
    stops = [
        replace(greedy, stop_token_ids=(own[place],))
        for own, place in zip(free, places, strict=True)
    ]
    return llm, llm.generate(prompts, stops)


def test_nothing_is_under_way_when_generate_returns(random_path, on_a_cpu):
    llm, outputs = stopped(random_path)
    assert {output.finish_reason for output in outputs} == {"stop"}
    assert not llm.core.has_work
    assert llm.core.stats().full_pages_used == 0
    llm.close()


def test_rows_computed_in_vain_count_as_no_drafts(random_path, request):
    expected = stopped(random_path)[0].core.stats().drafts
    request.getfixturevalue("on_a_cpu")
    found = stopped(random_path)[0].core.stats().drafts
    assert found.num_drafted == expected.num_drafted
    assert found.num_accepted == expected.num_accepted


def test_a_depth_is_chosen_once_a_step(random_path, on_a_cpu, monkeypatch):
    num_chosen = 0

    def choose(self, num_decoding):
        nonlocal num_chosen
        num_chosen += 1
        return num_chosen // 5 % 4

    monkeypatch.setattr(DraftControl, "choose", choose)
    llm = engine(random_path, 3)
    launch, num_launched = llm.core.executor.launch, 0

    def counted(plan):
        nonlocal num_launched
        num_launched += 1
        return launch(plan)

    monkeypatch.setattr(llm.core.executor, "launch", counted)
    params = SamplingParams(temperature=0.0, ignore_eos=True)
    own = [replace(params, max_tokens=count) for count in (9, 20, 33, 40)]
    llm.generate([[count] for count in range(3, 7)], own)
    assert num_launched > 20
    # One was chosen for a step that did not come.
    assert num_launched <= num_chosen <= num_launched + 1
    llm.close()
