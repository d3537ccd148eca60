"""What /metrics tells: times and counts that the server sees, and the engine's latest snapshot."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily as _Counter
from prometheus_client.core import GaugeMetricFamily as _Gauge
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from mimo_engine.engine.client import AsyncEngineClient
from mimo_engine.messages import DraftStats

__all__ = ["Metrics"]

TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
TPOT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """One registry an app: two apps in one process do not share a count."""

    def __init__(self, client: AsyncEngineClient) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(client))
        self.ttft_s = Histogram(
            "mimo_engine_time_to_first_token_seconds",
            "From the arrival of a request to its first token.",
            buckets=TTFT_BUCKETS_S,
            registry=self._registry,
        )
        self.tpot_s = Histogram(
            "mimo_engine_time_per_output_token_seconds",
            "Mean time between the tokens of a finished request, the first token left out.",
            buckets=TPOT_BUCKETS_S,
            registry=self._registry,
        )
        self.requests = self._counter(
            "requests",
            "Ended engine requests (each choice of an HTTP request is one).",
            "finish_reason",
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self.output_tokens = self._counter("output_tokens", "Tokens generated.")
        # Of guards (GuardConfig), and of the thinking budget.
        self.loops = self._counter(
            "loops",
            "Outputs that repeated themselves without end, by what was done about it.",
            "action",
        )
        self.tool_call_limits = self._counter(
            "tool_call_limits", "Answers that ended with the last tool call that they may have."
        )
        self.thoughts_closed = self._counter(
            "thoughts_closed", "Thoughts that were ended by their budget."
        )
        self.images_removed = self._counter(
            "images_removed",
            "Images of conversations that the model saw as a text, older than those kept.",
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"mimo_engine_{name}", text, labels, registry=self._registry)

    def render(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """Reads the client at each scrape. Counters of the engine start again with its process."""

    def __init__(self, client: AsyncEngineClient) -> None:
        self._client = client

    def collect(self) -> Iterator[Metric]:
        stats, client = self._client.stats, self._client
        for family, name, text, value in (
            (_Gauge, "engine_up", "1 while the engine takes requests.", not client.trouble),
            (_Counter, "engine_restarts", "Engine restarts.", client.num_restarts),
            (_Gauge, "requests_running", "Requests in the running batch.", stats.num_running),
            (_Gauge, "requests_waiting", "Requests in the queue.", stats.num_waiting),
            (_Counter, "preemptions", "Requests sent back to the queue.", stats.num_preemptions),
            (_Counter, "prefix_query_tokens", "Prompt tokens asked.", stats.prefix_query_tokens),
            (_Counter, "prefix_hit_tokens", "Of these, found cached.", stats.prefix_hit_tokens),
            (_Counter, "encoded_media_tokens", "Made by the towers.", stats.encoded_tokens),
            (_Counter, "reused_media_tokens", "Encoded before.", stats.reused_media_tokens),
        ):
            yield family(f"mimo_engine_{name}", text, value=value)
        for name, text, full, sliding in (
            ("used", "KV pages in use.", stats.full_pages_used, stats.sliding_pages_used),
            ("total", "KV pages.", stats.full_pages_total, stats.sliding_pages_total),
        ):
            pages = _Gauge(f"mimo_engine_kv_pages_{name}", text, labels=["group"])
            pages.add_metric(["full"], full)
            pages.add_metric(["sliding"], sliding)
            yield pages
        if stats.drafts is not None:
            yield from _draft_metrics(stats.drafts)


def _draft_metrics(drafts: DraftStats) -> Iterator[Metric]:
    for family, name, text, value in (
        (
            _Counter,
            "draft_verifications",
            "Steps of a request in which drafts were verified.",
            drafts.num_verifications,
        ),
        (_Counter, "draft_tokens", "Drafts that were verified.", drafts.num_drafted),
        (
            _Counter,
            "draft_tokens_accepted",
            "Of these, those that are in an output.",
            drafts.num_accepted,
        ),
        (_Gauge, "draft_depth", "Drafts of a request in the last step.", drafts.depth),
        (
            _Gauge,
            "draft_acceptance_length",
            "Tokens that a verification yields at present, the sampled one included.",
            drafts.acceptance_length,
        ),
    ):
        yield family(f"mimo_engine_{name}", text, value=value)
    if drafts.gain is not None:
        yield _Gauge(
            "mimo_engine_draft_estimated_gain",
            "Tokens a second at the present depth, as a multiple of those without drafts.",
            value=drafts.gain,
        )
    yield from _layer_metrics(drafts)


def _layer_metrics(drafts: DraftStats) -> Iterator[Metric]:
    """What was counted. A layer that has not been tested has no share."""
    labels = ["layer"]
    tested = _Counter(
        "mimo_engine_draft_layer_tested",
        "Drafts of a layer that were right or wrong, those before them being right.",
        labels=labels,
    )
    accepted = _Counter(
        "mimo_engine_draft_layer_accepted", "Of these, the right ones.", labels=labels
    )
    share = _Gauge(
        "mimo_engine_draft_layer_acceptance",
        "Accepted of tested drafts of a layer, since the start.",
        labels=labels,
    )
    for layer, (num_tested, num_right) in enumerate(
        zip(drafts.num_tested, drafts.num_right, strict=True)
    ):
        tested.add_metric([str(layer)], num_tested)
        accepted.add_metric([str(layer)], num_right)
        if num_tested:
            share.add_metric([str(layer)], num_right / num_tested)
    yield from (tested, accepted, share)
