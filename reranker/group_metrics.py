"""What Prometheus sees of a member of a consumer group. No label holds a user or an item."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# Around the objective of 250 ms from produced to readable; the upper ones tell a backlog from an outage.
FRESHNESS_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0)
# Of histories: a commit to disk takes a few milliseconds, a full batch about a hundred.
BATCH_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
BATCH_EVENTS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2000)


class GroupMetrics:
    """The instruments, in a registry of their own."""

    def __init__(self, name: str, batch_seconds: Sequence[float] = BATCH_SECONDS) -> None:
        """`name` begins all their names; `batch_seconds`: the buckets of what a batch takes."""
        registry = self.registry = CollectorRegistry()
        self.events = Counter(
            f"{name}_events",
            "Records handled, by topic and by what became of them: applied, or dead (to the DLQ).",
            ["topic", "outcome"],
            registry=registry,
        )
        self.dated_ahead = Counter(
            f"{name}_events_dated_ahead", "Events dated after they were sent, by topic.", ["topic"], registry=registry
        )
        self.retries = Counter(
            f"{name}_retries",
            "Attempts that failed and are made again, by class of error: polls, batches, commits, replays, refreshes.",
            ["error"],
            registry=registry,
        )
        self.batch_seconds = Histogram(
            f"{name}_batch_seconds",
            "From the polled records to the durable write, once it succeeds.",
            buckets=batch_seconds,
            registry=registry,
        )
        self.batch_events = Histogram(
            f"{name}_batch_events", "Records of a batch.", buckets=BATCH_EVENTS, registry=registry
        )
        self.freshness = Histogram(
            f"{name}_freshness_seconds",
            "From the record's timestamp to its durable write, by topic.",
            ["topic"],
            buckets=FRESHNESS_SECONDS,
            registry=registry,
        )
        self.lag_events = Gauge(
            f"{name}_lag_events",
            "Records still to be written, as far as is known: while writes fail, nobody asks whether there are more.",
            ["topic", "partition"],
            registry=registry,
        )
        self.lag_seconds = Gauge(
            f"{name}_lag_seconds",
            "Age of the first record at hand that is not written, else of the last one that is; 0 where none is left.",
            ["topic", "partition"],
            registry=registry,
        )
        self.rebalances = Counter(
            f"{name}_rebalances",
            "Changes of this process's partitions: assigned, revoked, lost.",
            ["what"],
            registry=registry,
        )
        self.commit_failures = Counter(
            f"{name}_commit_failures", "Commits of offsets that failed; the next one covers them.", registry=registry
        )
        self.dlq_depth = Gauge(
            f"{name}_dlq_depth", "Dead letters that nobody has settled, by input topic.", ["topic"], registry=registry
        )
        self.healthy = Gauge(
            f"{name}_healthy", "1 while events are taken in, 0 while something is stuck.", registry=registry
        )

    def forget_lag(self) -> None:
        """Drop the lag of partitions that may have gone to another process; those that stay are shown again."""
        self.lag_events.clear()
        self.lag_seconds.clear()
