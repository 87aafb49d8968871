"""What Prometheus sees of the server, added up over its workers. No label holds a user or an item.

Workers write their numbers to files of one folder (prometheus_client's multiprocess mode, chosen by the environment
variable PROMETHEUS_MULTIPROC_DIR before that library is imported); the supervisor serves their sum.
"""

from functools import cache

from prometheus_client import Counter, Gauge, Histogram

# From 100 us, since a rerank takes about 1 ms; doubling and halving around the latency objectives of 1, 2.5 and 10 ms.
SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

# From a tap just now to a user who comes back after a year.
HISTORY_AGES = (1.0, 10.0, 60.0, 600.0, 3600.0, 86400.0, 7 * 86400.0, 30 * 86400.0, 365 * 86400.0)


class Metrics:
    """The instruments of one worker."""

    def __init__(self) -> None:
        self.requests = Counter(
            "reranker_requests", "Requests answered, by method and gRPC status.", ["method", "code"]
        )
        self.seconds = Histogram(
            "reranker_request_seconds",
            "From the received body to the reply's bytes.",
            ["method"],
            buckets=SECONDS,
        )
        self._stage_seconds = Histogram(
            "reranker_stage_seconds", "Of a ranked answer, by stage.", ["stage"], buckets=SECONDS
        )
        self.degraded = Counter(
            "reranker_degraded", "Ranked answers that had to do without something, by what.", ["reason"]
        )
        self._candidates = Counter(
            "reranker_candidates", "Candidates ranked, by what scored them: persona, summary, or nothing.", ["by"]
        )
        self.by_persona = self._candidates.labels("persona")
        self.by_summary = self._candidates.labels("summary")
        self.by_nothing = self._candidates.labels("nothing")
        self.in_flight = Gauge(
            "reranker_requests_in_flight",
            "Requests begun and not yet taken by the client.",
            multiprocess_mode="livesum",
        )
        self.unauthenticated = Counter("reranker_unauthenticated", "Calls refused for want of a known token.")
        self.history_age = Histogram(
            "reranker_history_age_seconds", "Age of a profile's newest event, sampled.", buckets=HISTORY_AGES
        )
        self.loop_lag = Histogram(
            "reranker_event_loop_lag_seconds", "How late a worker's loop gets to what is due.", buckets=SECONDS
        )
        self.busy = Counter(
            "reranker_busy_seconds", "Processor time of workers: a second a second each, and requests have to wait."
        )
        self.switched_off = Gauge(
            "reranker_switched_off", "1 while the kill switch is on in a worker, else 0.", multiprocess_mode="livemax"
        )
        self.index_stale = Gauge(
            "reranker_index_stale",
            "1 while a worker marks its answers INDEX_STALE, else 0.",
            multiprocess_mode="livemax",
        )
        self.certificate_expiry = Gauge(
            "reranker_certificate_expiry_timestamp_seconds",
            "When what is in use expires, by file; of the worker with the oldest.",
            ["file"],
            multiprocess_mode="livemin",
        )
        self.served_log = Counter(
            "reranker_served_log_records", "Sampled answers: written, dropped (queue full), or failed.", ["outcome"]
        )
        self.index_generation = Gauge(
            "reranker_index_generation",
            "Of the newest manifest in the index; of the worker that is furthest behind.",
            multiprocess_mode="livemin",
        )
        self.index_items = Gauge("reranker_index_items", "Items in the index.", multiprocess_mode="livemax")
        self.index_personas = Gauge("reranker_index_personas", "Personas in the index.", multiprocess_mode="livemax")
        self.stage = cache(self._stage_seconds.labels)
