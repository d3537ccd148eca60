"""What /metrics tells: times and counts that the server sees, and the engine's latest snapshot."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mimo_engine.engine.client import AsyncEngineClient

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
        self.requests = Counter(
            "mimo_engine_requests",
            "Ended engine requests (each choice of an HTTP request is one).",
            ["finish_reason"],
            registry=self._registry,
        )
        self.prompt_tokens = Counter(
            "mimo_engine_prompt_tokens", "Tokens of prompts.", registry=self._registry
        )
        self.output_tokens = Counter(
            "mimo_engine_output_tokens", "Tokens generated.", registry=self._registry
        )

    def render(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """Reads the client at each scrape. Counters of the engine start again with its process."""

    def __init__(self, client: AsyncEngineClient) -> None:
        self._client = client

    def collect(self) -> Iterator[Metric]:
        stats = self._client.stats
        yield _gauge("engine_up", "1 while the engine takes requests.", not self._client.trouble)
        yield _counter("engine_restarts", "Engine restarts.", self._client.num_restarts)
        yield _gauge("requests_running", "Requests in the running batch.", stats.num_running)
        yield _gauge("requests_waiting", "Requests in the queue.", stats.num_waiting)
        yield _counter("preemptions", "Requests sent back to the queue.", stats.num_preemptions)
        yield _by_group(
            "kv_pages_used", "KV pages in use.", stats.full_pages_used, stats.sliding_pages_used
        )
        yield _by_group(
            "kv_pages_total", "KV pages.", stats.full_pages_total, stats.sliding_pages_total
        )
        yield _counter("prefix_query_tokens", "Prompt tokens looked up.", stats.prefix_query_tokens)
        yield _counter(
            "prefix_hit_tokens", "Of these, found in the prefix cache.", stats.prefix_hit_tokens
        )


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"mimo_engine_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"mimo_engine_{name}", text, value=value)


def _by_group(name: str, text: str, full: int, sliding: int) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"mimo_engine_{name}", text, labels=["group"])
    family.add_metric(["full"], full)
    family.add_metric(["sliding"], sliding)
    return family
