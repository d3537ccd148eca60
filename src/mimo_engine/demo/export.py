"""From a trained network to checkpoints in the official layout, and the demo's two from its data.

The data hold a base, FP8 blocks with fused T = 4 projections, and of its twin what is different:
MXFP4 experts, and the files that tell of them. `make_twin` puts a twin together, `make_plain` a
checkpoint of the same weights without any quantisation.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from mimo_engine.checkpoint.export import (
    ExportFormat,
    export_checkpoint,
    export_config,
    parts_of,
)
from mimo_engine.checkpoint.export_towers import TowerExport, towers_of, write_tower_configs
from mimo_engine.checkpoint.load import load_checkpoint
from mimo_engine.checkpoint.synthetic_tokenizer import Merge
from mimo_engine.checkpoint.towers import load_towers
from mimo_engine.config.engine import EngineConfig
from mimo_engine.config.media import served_media
from mimo_engine.config.model import load_model_config
from mimo_engine.demo.geometry import AUDIO_TOKENIZER, NUM_MTP_LAYERS, PREPROCESSOR, Geometry
from mimo_engine.demo.network import DemoNetwork
from mimo_engine.demo.tokenizer import write_tokenizer
from mimo_engine.errors import ConfigError

__all__ = [
    "BASE",
    "DATA_DIR",
    "PLAIN",
    "TWIN",
    "export_demo",
    "export_model",
    "make_plain",
    "make_twin",
]

DATA_DIR = Path(__file__).parent / "data"
"""What ships: fp8, mxfp4, speech."""

BASE = ExportFormat(projection="fused", linear="fp8", experts="fp8")
TWIN = ExportFormat(projection="fused", linear="fp8", experts="mxfp4")
PLAIN = ExportFormat(projection="split")


def export_model(
    model_dir: Path,
    network: DemoNetwork,
    geometry: Geometry,
    merges: Sequence[Merge],
    stored: ExportFormat,
) -> None:
    """Write a whole checkpoint into the new directory `model_dir`."""
    model_dir.mkdir(parents=True)
    write_tokenizer(model_dir, merges)
    write_tower_configs(model_dir, audio_tokenizer=AUDIO_TOKENIZER, preprocessor=PREPROCESSOR)
    weights = {name: p.detach().cpu() for name, p in network.text_parameters().items()}
    export_checkpoint(
        model_dir,
        geometry.text,
        parts_of(weights),
        stored,
        towers=TowerExport(
            media=geometry.media,
            read=lambda param: network.parameters_of(param.tower)[param.name].detach().cpu(),
        ),
        num_mtp_layers=NUM_MTP_LAYERS,
        splits_experts=True,
    )
    text = json.dumps(export_config(geometry.raw, stored), indent=2) + "\n"
    (model_dir / "config.json").write_text(text, encoding="utf-8")


def export_demo(
    base_dir: Path,
    twin_dir: Path,
    network: DemoNetwork,
    geometry: Geometry,
    merges: Sequence[Merge],
) -> None:
    """Write the base into `base_dir`, and into `twin_dir` what a twin has of its own; both new."""
    whole = twin_dir.with_name(f".{twin_dir.name}-whole")
    for folder in (base_dir, twin_dir, whole):
        _refuse_existing(folder)
    export_model(base_dir, network, geometry, merges, BASE)
    export_model(whole, network, geometry, merges, TWIN)
    twin_dir.mkdir(parents=True)
    for path in sorted(whole.rglob("*")):
        name = path.relative_to(whole)
        if path.is_file() and path.read_bytes() != _content(base_dir / name):
            (twin_dir / name).parent.mkdir(parents=True, exist_ok=True)
            path.rename(twin_dir / name)
    shutil.rmtree(whole)


def make_twin(base_dir: Path, twin_dir: Path, out: Path) -> None:
    """Put a twin together in the new directory `out`: its own files, and links to the base's.

    Files are linked where the file system lets them be, and copied where it does not.
    """
    _refuse_existing(out)
    for source in (twin_dir, base_dir):
        for path in sorted(source.rglob("*")):
            target = out / path.relative_to(source)
            if path.is_file() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(path, target)


def make_plain(base_dir: Path, out: Path) -> None:
    """The same weights in the new directory `out`, dequantised to bf16, with split projections."""
    _refuse_existing(out)
    shutil.copytree(base_dir, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    config, media = load_model_config(base_dir), served_media(EngineConfig(model=str(base_dir)))
    assert media is not None
    weights = load_checkpoint(
        base_dir,
        config,
        media=media,
        dtype=torch.float32,
        keep_quantised=False,
        num_mtp_layers=NUM_MTP_LAYERS,
    )
    dense = {name: w for name, w in weights.items() if isinstance(w, torch.Tensor)}
    assert len(dense) == len(weights), "nothing was to stay quantised"
    towers = load_towers(base_dir, media, dtype=torch.float32)
    export_checkpoint(
        out,
        config,
        parts_of(dense),
        PLAIN,
        towers=TowerExport(media=media, read=towers_of(towers)),
        num_mtp_layers=NUM_MTP_LAYERS,
    )
    raw = json.loads((base_dir / "config.json").read_text(encoding="utf-8"))
    text = json.dumps(export_config(raw, PLAIN), indent=2) + "\n"
    (out / "config.json").write_text(text, encoding="utf-8")


def _refuse_existing(folder: Path) -> None:
    if folder.exists():
        raise ConfigError(f"{folder} already exists: choose a new directory, or remove it first")


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
