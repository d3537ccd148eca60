"""The demo model as a regression oracle: it answers right, and a wrong engine does not.

Each break is one that a general engine has had: it runs, says nothing, and is worse. The same
held-out examples are answered by the intact engine and by the broken one; what the engine has no
setting for is broken in a copy of the checkpoint.
"""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mimo_engine import LLM, SamplingParams
from mimo_engine.checkpoint.export import ExportFormat, export_checkpoint, export_config, parts_of
from mimo_engine.checkpoint.load import load_checkpoint
from mimo_engine.config.engine import CacheConfig, ModelSettings
from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.config.model import load_model_config, parse_model_config
from mimo_engine.demo.export import make_twin
from mimo_engine.demo.speech import SpeechBanks
from mimo_engine.demo.suite import demo_tasks
from mimo_engine.utils.hub import resolve_model

TEXT = ("text/sums", "text/needle", "text/json", "text/reverse", "text/sort")
VISION = ("image/digits", "image/shape", "image/word", "image/count", "image/position")
SOUND = ("audio/beeps", "video/first")
ITEMS = 12
PARAMS = SamplingParams(temperature=0.0, max_tokens=96)


@pytest.fixture(scope="module")
def demo():
    return resolve_model("demo")


@pytest.fixture(scope="module")
def examples():
    tasks = {f"{task.modality}/{task.name}": task for task in demo_tasks(SpeechBanks(None))}
    made = {}
    for name in (*TEXT, *VISION, *SOUND):
        rng = random.Random(f"oracle {name}")
        made[name] = (tasks[name], [tasks[name].make(rng, "test") for _ in range(ITEMS)])
    return made


def make_llm(model, **parts):
    return LLM(str(model), device="cpu", cache=CacheConfig(kv_cache_gib=0.25), **parts)


def accuracy(llm, examples, names):
    """Share of right answers, all tasks together; the engine is closed."""
    num_right = num_items = 0
    for name in names:
        task, items = examples[name]
        for thinks in (True, False):
            group = [item for item in items if item.thinks is thinks]
            if not group:
                continue
            outputs = llm.chat(
                [item.messages for item in group],
                PARAMS,
                chat_template_kwargs={"enable_thinking": thinks},
            )
            for item, output in zip(group, outputs, strict=True):
                content = output.text.rpartition("</think>")[2]
                num_right += task.is_right(item, {"role": "assistant", "content": content})
                num_items += 1
    llm.close()
    return num_right / num_items


@pytest.fixture(scope="module")
def intact(demo, examples):
    return {names: accuracy(make_llm(demo), examples, names) for names in (TEXT, VISION, SOUND)}


def test_the_intact_engine_answers_right(intact):
    assert min(intact.values()) >= 0.9


def test_a_wrong_window_shows(demo, examples, intact):
    settings = ModelSettings(num_visible_tokens=12)
    assert accuracy(make_llm(demo, settings=settings), examples, TEXT) < intact[TEXT] - 0.15


def test_a_wrong_audio_mask_shows(demo, examples, intact):
    llm = make_llm(demo, media=MediaFacts(audio_mask="bidirectional"))
    assert accuracy(llm, examples, SOUND) < intact[SOUND] - 0.15


def changed_config(demo, out, change):
    """A copy of the model whose config.json is changed in place."""
    shutil.copytree(demo, out)
    raw = json.loads((out / "config.json").read_text())
    change(raw)
    (out / "config.json").write_text(json.dumps(raw))
    return out


@pytest.mark.prove
def test_a_dropped_value_scale_shows(demo, examples, intact, tmp_path):
    model = changed_config(
        demo, tmp_path / "model", lambda raw: raw.update(attention_value_scale=1.0)
    )
    assert accuracy(make_llm(model), examples, TEXT) < intact[TEXT] - 0.15


def test_dropped_sinks_show(demo, examples, intact, tmp_path):
    model, num_dropped = tmp_path / "model", 0
    shutil.copytree(demo, model)
    for path in model.glob("*.safetensors"):
        weights = load_file(path)
        sinks = [name for name in weights if name.endswith("attention_sink_bias")]
        num_dropped += len(sinks)
        # A logit whose exponential is 0.
        weights.update({name: torch.full_like(weights[name], -1e4) for name in sinks})
        save_file(weights, path, {"format": "pt"})
    assert num_dropped == 6
    assert accuracy(make_llm(model), examples, TEXT) < intact[TEXT] - 0.15


def test_a_dropped_column_order_shows(demo, examples, intact, tmp_path):
    def drop(raw):
        vision = raw["vision_config"]
        assert 1 in vision["vit_window_attn_types"]
        vision["vit_window_attn_types"] = [min(t, 0) for t in vision["vit_window_attn_types"]]

    model = changed_config(demo, tmp_path / "model", drop)
    assert accuracy(make_llm(model), examples, VISION) < intact[VISION] - 0.15


@pytest.mark.prove
def test_chunks_read_as_plain_rows_show(demo, examples, intact, tmp_path):
    config = load_model_config(demo)
    weights = load_checkpoint(demo, config, dtype=torch.float32, keep_quantised=False)
    stored = ExportFormat(projection="fused", dtype=torch.float32)
    raw = export_config(json.loads((demo / "config.json").read_text()), stored)
    for name in ("vision_config", "audio_config", "processor_config"):
        del raw[name]
    out = tmp_path / "model"
    export_checkpoint(out, parse_model_config(raw), parts_of(weights), stored)
    (out / "config.json").write_text(json.dumps(raw))
    for path in demo.glob("*token*.json"):
        shutil.copy(path, out)
    # Without scales nothing in the files contradicts the flag.
    settings = ModelSettings(qkv_layout="plain")
    assert accuracy(make_llm(out), examples, TEXT) == intact[TEXT]
    assert accuracy(make_llm(out, settings=settings), examples, TEXT) < intact[TEXT] - 0.15


def test_experts_in_mxfp4_answer_as_well(demo, examples, intact, tmp_path):
    twin_files = Path(str(demo)).with_name("mxfp4")
    assert sum(path.stat().st_size for path in twin_files.iterdir()) < 2e6
    make_twin(demo, twin_files, tmp_path / "twin")
    for names in (TEXT, VISION):
        assert accuracy(make_llm(tmp_path / "twin"), examples, names) >= intact[names] - 0.05
