"""`plan` reads config.json alone; the loader and the engine must come to the same numbers."""

from pathlib import Path

import pytest
import torch

from mimo_engine.checkpoint.load import load_checkpoint
from mimo_engine.cli.capacity import layout_for, weight_groups
from mimo_engine.cli.main import main
from mimo_engine.config.engine import CacheConfig, EngineConfig, SchedulerConfig
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
    )
    info = core.info()
    core.close()
    assert (info.num_full_pages, info.num_sliding_pages) == (
        layout.num_full_pages,
        layout.num_sliding_pages,
    )
