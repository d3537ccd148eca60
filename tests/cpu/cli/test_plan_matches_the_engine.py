"""`plan` reads configurations alone; the loader and the engine must come to the same numbers."""

import re
from pathlib import Path

import pytest
import torch

from mimo_engine.checkpoint.load import load_checkpoint
from mimo_engine.checkpoint.tower_params import Tower, tower_params
from mimo_engine.checkpoint.towers import load_towers
from mimo_engine.cli.capacity import layout_for, tower_groups, weight_groups
from mimo_engine.cli.main import main
from mimo_engine.config.engine import CacheConfig, EngineConfig, SchedulerConfig
from mimo_engine.config.media import load_media_config
from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.config.model import load_model_config
from mimo_engine.distributed.plan import ParallelPlan
from mimo_engine.engine.core import build_engine


@pytest.fixture(scope="module", params=["fp8", "mxfp4-experts", "bf16"])
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plan") / request.param
    assert main(["random-checkpoint", str(out), "--format", request.param]) == 0
    return out


@pytest.mark.parametrize("tp_size", [1, 2, 3, 8])
@pytest.mark.parametrize("decoded", [False, True])
def test_weight_bytes_are_those_that_are_loaded(
    model_dir: Path, tp_size: int, decoded: bool
) -> None:
    config = load_model_config(model_dir)
    plan = ParallelPlan(tp_size=tp_size)
    loaded = load_checkpoint(
        model_dir,
        config,
        plan,
        dtype=torch.bfloat16,
        keep_quantised=not decoded,
        num_mtp_layers=3,
    )
    groups = weight_groups(config, plan, dtype_bytes=2, decoded=decoded, num_mtp_layers=3)
    planned = sum(group.num_bytes for group in groups)
    # FP8 scales are counted a block of a canonical tensor; the files' grids restart in chunks.
    assert planned == pytest.approx(sum(w.nbytes for w in loaded.values()), rel=2e-3)


@pytest.mark.parametrize(("dtype", "dtype_bytes"), [(torch.bfloat16, 2), (torch.float32, 4)])
def test_bytes_of_towers_are_those_that_are_loaded(
    model_dir: Path, dtype: torch.dtype, dtype_bytes: int
) -> None:
    config = load_model_config(model_dir)
    media = load_media_config(model_dir, config.media, MediaFacts(), hidden_size=config.hidden_size)
    assert media is not None
    loaded = load_towers(model_dir, media, dtype=dtype)
    groups = tower_groups(tower_params(media), dtype_bytes=dtype_bytes)
    assert {group.name: group.num_bytes for group in groups} == {
        tower: sum(tensor.nbytes for tensor in loaded[tower].values()) for tower in Tower
    }


def test_plan_reads_the_audio_tokenizer_of_a_directory(
    model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = []
    for model in (model_dir, model_dir / "config.json"):
        assert main(["plan", str(model)]) == 0
        row = re.search(r"audio tokenizer, rank 0 .* ([\d.]+) B", capsys.readouterr().out)
        assert row is not None
        sizes.append(row.group(1))
    # The released one, which stands in for a config.json alone, is a thousand times larger.
    assert sizes == ["0.000", "0.313"]


def test_pages_are_those_that_the_engine_allocates(model_dir: Path) -> None:
    cache = CacheConfig(kv_cache_gib=0.0625, page_size=8)
    scheduler = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=64)
    core = build_engine(
        EngineConfig(model=str(model_dir), device="cpu", cache=cache, scheduler=scheduler)
    )
    layout = layout_for(
        load_model_config(model_dir),
        ParallelPlan(),
        budget_bytes=2**26,
        dtype_bytes=4,
        cache=cache,
        scheduler=scheduler,
        num_draft_layers=3,
    )
    info = core.info()
    core.close()
    assert (info.num_full_pages, info.num_sliding_pages) == (
        layout.num_full_pages,
        layout.num_sliding_pages,
    )
