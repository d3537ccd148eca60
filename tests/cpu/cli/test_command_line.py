"""The command line: its flags are frozen here, its errors are one line."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import get_origin, get_type_hints

import pytest
import torch

import mimo_engine
from mimo_engine.cli import main as command_line
from mimo_engine.cli.main import COMMANDS, main, parse
from mimo_engine.config.engine import CacheConfig, EngineConfig, ModelSettings, ParallelConfig

SETTINGS = {"--num-visible-tokens", "--qkv-layout", "--ignore-config-key"}
CACHE = {
    "--page-size",
    "--kv-cache-gib",
    "--gpu-memory-share",
    "--prefix-caching",
    "--no-prefix-caching",
}
SCHEDULER = {
    "--max-num-seqs",
    "--max-num-batched-tokens",
    "--max-queue-len",
    "--max-model-len",
}
MEDIA_FACTS = {
    "--text-only",
    "--no-text-only",
    "--vision-sinks",
    "--vision-merger-norm",
    "--pixel-stats",
    "--resize-filter",
    "--pixel-limits",
    "--image-alpha",
    "--exif-orientation",
    "--audio-mask",
    "--audio-bf16-tables",
    "--video-step-without-audio",
}
MEDIA_LIMITS = {
    "--media-root",
    "--allow-private-media-hosts",
    "--no-allow-private-media-hosts",
    "--media-timeout-s",
    "--max-media-mib",
    "--max-media-items",
    "--max-image-megapixels",
    "--max-audio-s",
}
SECURITY = {
    "--api-key",
    "--api-key-file",
    "--cors-origin",
    "--allowed-host",
    "--max-body-mib",
    "--log-requests",
    "--no-log-requests",
}
ENCODER = {"--max-encoder-tokens", "--encoder-cache-gib"}
# What the weights, the cache and their sizes hang on.
RUN = {"--dtype", "--device", "--tensor-parallel-size"} | SETTINGS | CACHE | SCHEDULER | MEDIA_FACTS
DRAFTS = {
    "--speculative",
    "--max-draft-tokens",
    "--draft-choice",
    "--recompute-boundary",
    "--no-recompute-boundary",
}
KERNELS = {"--kernels", "--mxfp4-activations"}
ENGINE = RUN | ENCODER | DRAFTS | KERNELS | {"--weights"}
SLICE = {"--layers", "--weights", "--mxfp4-activations", "--kv-cache-gib", "--rounds"}
FLAGS = {
    "serve": ENGINE
    | MEDIA_LIMITS
    | SECURITY
    | {"--host", "--port", "--served-model-name", "--chat-template"}
    | {"--strict-thinking", "--no-strict-thinking"}
    | {"--thinking-token-budget", "--tool-call-in-thinking"}
    | {"--loop-guard", "--max-tool-calls", "--keep-images"}
    | {"--response-store", "--response-store-mib"}
    | {"--transcription-prompt", "--transcription-chunk-s"},
    "generate": ENGINE
    | {"--prompt", "--chat", "--no-chat", "--max-tokens"}
    | {"--temperature", "--top-p", "--top-k", "--seed"},
    "check": SETTINGS
    | MEDIA_FACTS
    | {"--tensors", "--no-tensors", "--deep", "--no-deep", "--towers", "--no-towers"}
    | {"--captions", "--dtype", "--device", "--tensor-parallel-size"},
    "random-checkpoint": {"--like", "--layout", "--format", "--seed", "--vocab-size"}
    | {"--num-layers", "--num-mtp-layers", "--num-experts"}
    | {"--hidden-size", "--intermediate-size", "--moe-intermediate-size"}
    | {"--text-only", "--no-text-only", "--small-towers", "--no-small-towers"},
    "eval": {"--url", "--model", "--data", "--files", "--limit", "--concurrency"}
    | {"--max-tokens", "--thinking", "--timeout-s", "--output"},
    "bench kernels": set(),
    "bench step": SLICE | {"--batches", "--contexts", "--drafts", "--check", "--no-check"},
    "bench prefill": SLICE | {"--lengths", "--image", "--no-image"},
    "plan": RUN | {"--gpus", "--gpu", "--gpu-gib", "--num-mtp-layers"},
}


def flags_in_help(name: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    with pytest.raises(SystemExit) as stop:
        parse(name, ["--help"])
    assert stop.value.code == 0
    # A flag opens its line, framed or not; one that a help text mentions does not.
    lines = re.findall(r"^[│ ] (--[a-z].*?)(?:  |$)", capsys.readouterr().out, flags=re.MULTILINE)
    return {flag for line in lines for flag in re.findall(r"--[a-z0-9-]+", line)}


@pytest.mark.parametrize("name", sorted(FLAGS))
def test_the_flags_of_each_command_are_these(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert flags_in_help(name, capsys) == FLAGS[name]


def test_every_command_has_its_flags_frozen() -> None:
    assert set(FLAGS) == set(COMMANDS)


def test_flags_build_the_config_tree() -> None:
    line = "--ignore-config-key a dir --ignore-config-key b --page-size 32 --no-prefix-caching"
    line += " --tensor-parallel-size 2 --qkv-layout plain --port 9000"
    command = parse("serve", line.split())
    assert command.engine == EngineConfig(
        model="dir",
        settings=ModelSettings(qkv_layout="plain", ignore_config_key=("a", "b")),
        cache=CacheConfig(page_size=32, prefix_caching=False),
        parallel=ParallelConfig(tensor_parallel_size=2),
    )
    assert command.server.port == 9000


def test_without_flags_the_config_tree_has_its_defaults() -> None:
    assert parse("serve", ["dir"]).engine == EngineConfig(model="dir")


def lists(kind: type, name: str = "") -> Iterator[tuple[str, object]]:
    """Fields of a dataclass, and of those in it, that are lists: (name, default)."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if get_origin(hints[field.name]) is tuple:
            yield f"{name}{field.name}", field.default
        elif dataclasses.is_dataclass(hints[field.name]):
            yield from lists(hints[field.name], f"{name}{field.name}.")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_list_is_empty_by_default_since_values_add_to_it(name: str) -> None:
    found = dict(lists(command_line._module(name).Command))
    assert set(found.values()) <= {(), dataclasses.MISSING}
    assert found or name in ("random-checkpoint", "eval")


@pytest.mark.parametrize(
    ("line", "batches"),
    [("", ()), ("1", (1,)), ("1 8", (1, 8)), ("1 --batches 8 32", (1, 8, 32))],
)
def test_sizes_of_a_bench_are_given_together_or_one_by_one(
    line: str, batches: tuple[int, ...]
) -> None:
    command = parse("bench step", f"--batches {line}".split() if line else [])
    assert tuple(chain(*command.batches)) == batches


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mimo-engine {mimo_engine.__version__}\n"


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in COMMANDS)


def test_the_first_word_of_commands_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    listed = capsys.readouterr().out
    assert "  bench kernels " in listed
    assert "serve" not in listed


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run")
def test_a_bench_of_kernels_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse("bench kernels", ["linear", "fp8 1 x"]).part == ("linear", "fp8 1 x")
    assert main(["bench", "kernels", "linear"]) == 1
    assert re.fullmatch(r"error: torch sees no GPU here.*\n", capsys.readouterr().err)


def test_the_command_line_imports_neither_torch_nor_triton() -> None:
    program = (
        "import sys\n"
        "from mimo_engine.cli.main import main\n"
        "main(['--help'])\n"
        "assert not {'torch', 'triton'} & set(sys.modules)\n"
        "sys.modules['triton'] = None\n"
        "main(['bench', 'kernels', '--help'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_package_is_a_command_too() -> None:
    program = [sys.executable, "-m", "mimo_engine", "bench", "step", "--batches", "1", "--help"]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: mimo-engine bench step")


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="no command"),
        pytest.param(["fly"], id="unknown command"),
        pytest.param(["bench"], id="half a command"),
        pytest.param(["bench", "fly"], id="unknown second word"),
        pytest.param(["plan"], id="no model"),
        pytest.param(["plan", "m", "--wings", "2"], id="unknown flag"),
        pytest.param(["plan", "m", "--gpus", "two"], id="not a number"),
        pytest.param(["plan", "m", "--page-size", "3"], id="out of bounds"),
        pytest.param(["eval", "gsm8k", "--limit", "0"], id="not one item"),
        pytest.param(["eval", "asr"], id="no data"),
        pytest.param(["eval", "gsm8k", "--thinking", "on"], id="of no effect on the task"),
        pytest.param(["eval", "demo", "--data", "rows.jsonl"], id="of data that are made"),
        pytest.param(["eval", "gsm8k", "--url", "127.0.0.1:8000"], id="not a URL"),
        pytest.param(["check", "m", "--towers"], id="incomplete"),
        pytest.param(["check", "m", "--device", "cpu"], id="of no effect"),
        pytest.param(
            ["random-checkpoint", "m", "--text-only", "--small-towers"], id="contradiction"
        ),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 2


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no-such-directory", "neither a directory nor the name of a hub repository"),
        ("./no/such/directory", "neither a directory nor the name of a hub repository"),
        ("nobody/nothing", "could not be fetched from the hub"),
    ],
)
def test_a_model_that_is_not_there_is_one_line_on_stderr(
    model: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", model]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(rf"error: {re.escape(model)} .*{message}.*\n", captured.err)


def test_a_config_that_cannot_be_read_is_one_line_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 8, ')
    assert main(["plan", str(tmp_path)]) == 1
    assert re.fullmatch(r"error: .*config.json is not JSON.*\n", capsys.readouterr().err)


def test_an_interrupt_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "_module", interrupted)
    assert main(["plan", "m"]) == 130
