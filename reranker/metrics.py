"""What Prometheus sees of the server. No label holds a user or an item."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# From 100 us, since a rerank takes about 1 ms; doubling and halving around the latency objectives of 1, 2.5 and 10 ms.
SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Metrics:
    """The server's instruments, in a registry of their own so that two servers of one process do not mix."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "reranker_requests",
            "Requests answered, by method and gRPC status code.",
            ["method", "code"],
            registry=registry,
        )
        self.seconds = Histogram(
            "reranker_request_seconds",
            "From the parsed request to the built answer.",
            ["method"],
            buckets=SECONDS,
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "reranker_stage_seconds", "Of a ranked answer, by stage.", ["stage"], buckets=SECONDS, registry=registry
        )
        self.degraded = Counter(
            "reranker_degraded",
            "Ranked answers that had to do without something, by what.",
            ["reason"],
            registry=registry,
        )
        self.candidates = Counter(
            "reranker_candidates",
            "Candidates scored, by what for: persona, summary, or nothing.",
            ["by"],
            registry=registry,
        )
        self.in_flight = Gauge("reranker_requests_in_flight", "Requests being answered.", registry=registry)
        self.index_generation = Gauge(
            "reranker_index_generation", "Of the newest manifest in the index.", registry=registry
        )
        self.index_items = Gauge("reranker_index_items", "Items in the index.", registry=registry)
        self.index_personas = Gauge("reranker_index_personas", "Personas in the index.", registry=registry)
        self.index_checked = Gauge(
            "reranker_index_checked_timestamp_seconds", "When Milvus last answered a refresh.", registry=registry
        )
        self.refresh_failures = Counter(
            "reranker_index_refresh_failures", "Refreshes that Milvus did not answer.", registry=registry
        )
