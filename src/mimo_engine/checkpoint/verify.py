"""Does the checkpoint hold exactly what config.json promises? Answered from the headers.

Everything is compared before a byte of data is read: each parameter has all its tensors, of the
right shape, type and scale grid, and each tensor is used once or named in IGNORED. The towers' part
of it is in `verify_towers.py`. The answer is a `LoadPlan`: what `load.py` executes, and the list of
what is wrong, each with its remedy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from mimo_engine.checkpoint.formats import StoredFormat
from mimo_engine.checkpoint.index import CheckpointIndex, TensorInfo
from mimo_engine.checkpoint.names import (
    FP8_SCALE_SUFFIX,
    MXFP4_SCALE_SUFFIX,
    Placement,
    ignored_reason,
    mtp_layer_index,
    placements,
    tensor_name,
    tower_of,
)
from mimo_engine.checkpoint.params import ParamSpec, layer_of, parameter_specs
from mimo_engine.checkpoint.qkv_layout import (
    LayerEvidence,
    QkvLayout,
    decide_qkv_layout,
    fuse_qkv,
    fused_grid,
    fused_rows,
    num_quantiser_ranks,
    split_grid,
)
from mimo_engine.checkpoint.remedies import (
    AGAIN,
    format_problem,
    missing_remedy,
    shape_remedy,
    unknown_remedy,
)
from mimo_engine.checkpoint.verify_towers import PLAIN_DTYPES, TowerSource, verify_towers
from mimo_engine.config.media import MediaConfig
from mimo_engine.config.model import ModelConfig
from mimo_engine.distributed.plan import ParallelPlan
from mimo_engine.errors import CheckpointError
from mimo_engine.kernels.quant import FP8_BLOCK, MXFP4_GROUP, RowGrid

__all__ = ["LoadPlan", "Source", "count_mtp_layers", "verify_headers"]

_QKV = ".self_attn.qkv_proj.weight"
_DTYPE_FORMATS = {
    torch.float8_e4m3fn: StoredFormat.FP8,
    torch.uint8: StoredFormat.MXFP4,
    **dict.fromkeys(PLAIN_DTYPES, StoredFormat.PLAIN),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One weight of the files, its scales, and its place."""

    tensor: TensorInfo
    scales: TensorInfo | None
    format: StoredFormat
    grid: RowGrid | None
    """Row grid of FP8 scales."""
    placement: Placement


@dataclass(kw_only=True, slots=True)
class LoadPlan:
    """What fills what. Not to be executed while `problems` is not empty."""

    specs: dict[str, ParamSpec]
    """The parameters, qkv fused where the files have it so."""
    qkv_layout: QkvLayout | None
    """Row order of the fused tensors; None: split, or undecided (then that is a problem)."""
    sources: dict[str, Source] = field(default_factory=dict)
    """By tensor name."""
    formats: dict[str, StoredFormat] = field(default_factory=dict)
    """By parameter."""
    towers: dict[str, TowerSource] = field(default_factory=dict)
    """By tensor name: what `load_towers` takes from the same files. Empty: only text is served."""
    ignored: dict[str, str] = field(default_factory=dict)
    """Tensor name -> reason."""
    problems: list[str] = field(default_factory=list)

    def grids(self, parameter: str) -> dict[str, RowGrid]:
        """FP8 row grid by part; all experts of a parameter share it."""
        found = {}
        for part in self.specs[parameter].parts:
            expert = None if self.specs[parameter].num_experts is None else 0
            grid = self.sources[tensor_name(parameter, part.name, expert)].grid
            assert grid is not None
            found[part.name] = grid
        return found


def count_mtp_layers(index: CheckpointIndex) -> int:
    """MTP layers in the files: the names decide, config.json is not reliable (text.md 1.2)."""
    numbers = {mtp_layer_index(name) for name in index.tensors} - {None}
    if numbers != set(range(len(numbers))):
        raise CheckpointError(
            f"the MTP layers are numbered {sorted(n for n in numbers if n is not None)}, which is "
            f"not 0 ... n-1: a file is missing; {AGAIN}"
        )
    return len(numbers)


def verify_headers(
    index: CheckpointIndex,
    config: ModelConfig,
    plan: ParallelPlan,
    *,
    media: MediaConfig | None = None,
    qkv_layout: str = "auto",
    num_mtp_layers: int = 0,
) -> LoadPlan:
    """Match the files against `config`, for the rank of `plan`. Reads headers, and the data of
    single fp8 tensors only where scale counts leave a grid open. Does not raise: see `problems`.

    media: the towers that the files must hold; None serves text alone and ignores them by name.
    """
    return _Verifier(index, config, media).run(plan, qkv_layout, num_mtp_layers)


class _Verifier:
    def __init__(
        self, index: CheckpointIndex, config: ModelConfig, media: MediaConfig | None
    ) -> None:
        self._index = index
        self._config = config
        self._media = media
        self._problems: list[str] = []
        self._used: set[str] = set()

    def run(self, plan: ParallelPlan, requested: str, num_mtp_layers: int) -> LoadPlan:
        specs = parameter_specs(self._config, plan, num_mtp_layers=num_mtp_layers)
        layout = None
        if self._layout_flag_fits() and self._config.qkv_chunks is not None:
            layout = self._decide_layout(requested)
        fused = self._fused(specs, layout or QkvLayout.CHUNKED)
        result = LoadPlan(specs=fused, qkv_layout=layout, problems=self._problems)
        for name, placement in placements(fused):
            source = self._source(name, placement, fused[placement.parameter], layout)
            if source is not None:
                result.sources[name] = source
        self._agree_on_formats(result)
        if self._media is not None:
            self._towers(result, self._media)
        self._leftovers(result, num_mtp_layers)
        return result

    def _layout_flag_fits(self) -> bool:
        """Whether fused or split, as config.json has it, is what the files have."""
        names = [name for name in self._index.tensors if name.startswith("model.")]
        has_fused = any(name.endswith(_QKV) for name in names)
        has_split = any(name.endswith(".self_attn.q_proj.weight") for name in names)
        wants_fused = self._config.qkv_chunks is not None
        if wants_fused and has_split and not has_fused:
            self._problems.append(
                "the files have split q_proj, k_proj, v_proj tensors, but config.json says "
                "attention_projection_layout 'fused_qkv': set it to 'split'"
            )
        elif has_fused and not wants_fused:
            self._problems.append(
                "the files have fused qkv_proj tensors, but config.json's "
                "attention_projection_layout is not 'fused_qkv': set it"
            )
        else:
            return True
        return False

    def _decide_layout(self, requested: str) -> QkvLayout | None:
        config, evidence = self._config, []
        assert config.qkv_chunks is not None
        for number, layer in enumerate(config.layers):
            name = tensor_name(f"layers.{number}{_QKV}")
            info = self._index.tensors.get(name)
            scales = self._index.tensors.get(name + FP8_SCALE_SUFFIX)
            # A wrong shape or type is reported where the tensor itself is checked.
            if layer.is_sliding or info is None or scales is None:
                continue
            shape = (fused_rows(layer), config.hidden_size)
            if info.dtype is not torch.float8_e4m3fn or info.shape != shape:
                continue
            if len(scales.shape) == 2:
                evidence.append(
                    LayerEvidence(
                        tensor=name,
                        layer=layer,
                        num_scale_rows=scales.shape[0],
                        read=lambda name=name: self._index.read(name),
                    )
                )
        try:
            return decide_qkv_layout(
                evidence,
                num_chunks=config.qkv_chunks,
                metadata=self._index.metadata,
                requested=requested,
            )
        except CheckpointError as error:
            self._problems.append(str(error))
            return None

    def _fused(self, specs: dict[str, ParamSpec], layout: QkvLayout) -> dict[str, ParamSpec]:
        chunks = self._config.qkv_chunks
        if chunks is None:
            return specs
        return {
            name: fuse_qkv(spec, layer_of(self._config, name), chunks, layout)
            if name.endswith(_QKV)
            else spec
            for name, spec in specs.items()
        }

    def _source(
        self, name: str, placement: Placement, spec: ParamSpec, layout: QkvLayout | None
    ) -> Source | None:
        """Check one weight and its scales; None when something is wrong."""
        self._used.add(name)
        info = self._index.tensors.get(name)
        if info is None:
            remedy = missing_remedy(placement, self._config)
            self._problems.append(f"tensor {name} is missing: {remedy}")
            return None
        stored = self._format(info, spec)
        if stored is None or not self._has_shape(info, placement, stored):
            # The weight's problem is named; its scales are no second one.
            self._used |= {name + FP8_SCALE_SUFFIX, name + MXFP4_SCALE_SUFFIX}
            return None
        if stored is StoredFormat.PLAIN:
            return Source(tensor=info, scales=None, format=stored, grid=None, placement=placement)
        scales, grid = self._scales(info, stored), None
        unit = FP8_BLOCK if stored is StoredFormat.FP8 else MXFP4_GROUP
        if scales is None or not self._cuts_between(unit, info, placement):
            return None
        num_rows, num_columns = placement.part.full_shape
        expected = (num_rows, num_columns // MXFP4_GROUP)
        if stored is StoredFormat.FP8:
            grid = self._grid(info, scales, placement, layout)
            if grid is None:
                return None
            expected = (grid.num_scale_rows, -(-num_columns // FP8_BLOCK))
        if not self._has_scale_shape(scales, expected):
            return None
        return Source(tensor=info, scales=scales, format=stored, grid=grid, placement=placement)

    def _has_shape(self, info: TensorInfo, placement: Placement, stored: StoredFormat) -> bool:
        """Whether the weight has its shape; MXFP4 stores two columns in one."""
        *rows, columns = placement.part.full_shape
        expected = (*rows, columns // 2 if stored is StoredFormat.MXFP4 else columns)
        if info.shape == expected:
            return True
        self._problems.append(
            f"tensor {info.name} is {list(info.shape)}, not {list(expected)}: "
            f"{shape_remedy(info, placement, self._config)}"
        )
        return False

    def _has_scale_shape(self, scales: TensorInfo, expected: tuple[int, int]) -> bool:
        if scales.shape == expected:
            return True
        self._problems.append(
            f"tensor {scales.name} is {list(scales.shape)}, not {list(expected)}: the scale grid "
            "is not the official one; restore the official scales"
        )
        return False

    def _cuts_between(self, unit: int, info: TensorInfo, placement: Placement) -> bool:
        """Whether ranks are cut between groups of `unit` columns under one scale."""
        cut = placement.part.cut
        if cut is None or cut.dim == 0:
            return True
        if all(run.src % unit == run.dst % unit == 0 for run in cut.runs):
            return True
        self._problems.append(
            f"tensor {info.name} has one scale for {unit} columns, and its heads are not as wide: "
            "store it unquantised"
        )
        return False

    def _format(self, info: TensorInfo, spec: ParamSpec) -> StoredFormat | None:
        """The stored format, if this parameter may have it."""
        stored = _DTYPE_FORMATS.get(info.dtype)
        problem = format_problem(info, stored, spec, self._config.quantization)
        if problem is not None:
            self._problems.append(f"tensor {info.name} is {info.dtype}, {problem}")
            return None
        return stored

    def _scales(self, info: TensorInfo, stored: StoredFormat) -> TensorInfo | None:
        """The scales beside a quantised weight, of the type its format has."""
        if stored is StoredFormat.FP8:
            suffix, other, dtype = FP8_SCALE_SUFFIX, MXFP4_SCALE_SUFFIX, torch.float32
        else:
            suffix, other, dtype = MXFP4_SCALE_SUFFIX, FP8_SCALE_SUFFIX, torch.uint8
        name, misnamed = info.name + suffix, info.name + other
        self._used.add(name)
        scales = self._index.tensors.get(name)
        if scales is None:
            problem = f"tensor {info.name} is {stored}, but its scales {name} are missing"
            if misnamed in self._index.tensors:
                self._used.add(misnamed)
                problem += f" ({misnamed} has the name of the other format)"
            self._problems.append(f"{problem}: {AGAIN}")
            return None
        if len(scales.shape) != 2:
            self._problems.append(
                f"tensor {name} is {list(scales.shape)}, not one scale a block: only the official "
                "block formats are read; restore the official tensors"
            )
            return None
        if scales.dtype is not dtype:
            meant = "exponents of MXFP4" if scales.dtype is torch.uint8 else "not exponents"
            self._problems.append(
                f"tensor {name} is {scales.dtype} ({meant}), but scales of {stored} weights are "
                f"{dtype}: restore the official tensor"
            )
            return None
        return scales

    def _grid(
        self,
        info: TensorInfo,
        scales: TensorInfo,
        placement: Placement,
        layout: QkvLayout | None,
    ) -> RowGrid | None:
        """The row grid of an FP8 weight; None when that is a problem."""
        num_rows = info.shape[0]
        if not placement.parameter.endswith(_QKV):
            return RowGrid(num_rows, num_rows)
        layer = layer_of(self._config, placement.parameter)
        if placement.part.name == "":
            assert self._config.qkv_chunks is not None
            if layout is None:
                # A problem already; no second one for the grid that hangs on it.
                return None
            return fused_grid(layer, self._config.qkv_chunks, layout)
        try:
            return split_grid(
                info.name,
                num_rows,
                scales.shape[0],
                num_quantiser_ranks(self._config),
                lambda: self._index.read(info.name),
            )
        except CheckpointError as error:
            self._problems.append(str(error))
            return None

    def _agree_on_formats(self, result: LoadPlan) -> None:
        """All tensors of one parameter must have one format."""
        for name, source in result.sources.items():
            parameter = source.placement.parameter
            first = result.formats.setdefault(parameter, source.format)
            if source.format is not first:
                self._problems.append(
                    f"tensor {name} is {source.format}, but others of {parameter} are {first}: one "
                    f"file belongs to another checkpoint; {AGAIN}"
                )

    def _towers(self, result: LoadPlan, media: MediaConfig) -> None:
        """Every tensor that a tower claims by name is accounted for there."""
        towers = verify_towers(self._index, media)
        result.towers = towers.sources
        self._problems += towers.problems
        self._used |= {name for name in self._index.tensors if tower_of(name) is not None}

    def _leftovers(self, result: LoadPlan, num_mtp_layers: int) -> None:
        """Every tensor that fills nothing must have a reason."""
        present = len({mtp_layer_index(name) for name in self._index.tensors} - {None})
        draft_names = self._draft_names(present)
        for name in self._index.tensors:
            if name in self._used:
                continue
            number = mtp_layer_index(name)
            if number is not None and number >= num_mtp_layers and name in draft_names:
                result.ignored[name] = "draft layer; drafts are off"
                continue
            reason = ignored_reason(name, self._config)
            if reason is not None:
                result.ignored[name] = reason
            else:
                self._problems.append(f"tensor {name} {unknown_remedy(name, self._config)}")

    def _draft_names(self, num_layers: int) -> set[str]:
        specs = parameter_specs(self._config, num_mtp_layers=num_layers)
        drafts = {name: spec for name, spec in specs.items() if name.startswith("mtp.")}
        names = {name for name, _ in placements(self._fused(drafts, QkvLayout.CHUNKED))}
        return names | {name + FP8_SCALE_SUFFIX for name in names}
