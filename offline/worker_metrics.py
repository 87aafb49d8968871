"""What Prometheus sees of the worker, beside what it sees of every member of a group."""

from prometheus_client import Counter, Gauge, Histogram

from offline.progress import Progress
from offline.rewriting import Why
from reranker.group_metrics import GroupMetrics

# From words alone to an LLM that is asked about 64 reviews, and about 16 items that came due; at the last one Kafka's
# patience with a busy consumer ends.
BATCH_SECONDS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 180.0, 300.0)
# From what an extractive rewrite takes to an LLM's answer on a few cores.
REFRESH_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0)


class WorkerMetrics(GroupMetrics):
    """The instruments, in a registry of their own."""

    def __init__(self) -> None:
        super().__init__("worker", BATCH_SECONDS)
        self.llm_calls = Counter(
            "worker_llm_calls",
            "Calls by stage and by what became of them: asked, cached, or rejected (asked or cached, and of no use).",
            ["stage", "outcome"],
            registry=self.registry,
        )
        self.llm_tokens = Counter(
            "worker_llm_tokens", "Tokens used, by stage, input and output.", ["stage", "side"], registry=self.registry
        )
        self.llm_cost = Counter(
            "worker_llm_cost", "Spent, in the currency of the prices that are set.", ["stage"], registry=self.registry
        )
        self.aspects = Counter(
            "worker_aspects",
            "Reviews whose aspects were extracted, by outcome: found, or why there are none.",
            ["outcome"],
            registry=self.registry,
        )
        self.aspects_sent = Counter(
            "worker_aspects_sent", "Events sent to the topic `aspects`.", registry=self.registry
        )
        self.personas = Counter(
            "worker_personas",
            "Items whose personas were rewritten, left alone or put off, and why.",
            ["outcome", "why"],
            registry=self.registry,
        )
        self.unusable = Counter(
            "worker_rewrites_unusable",
            "Rewrites of which no persona was left, an LLM's refusal or the checks': what was there before stayed.",
            registry=self.registry,
        )
        self.summaries = Counter("worker_summaries", "Item summaries that were written.", registry=self.registry)
        self.published = Counter(
            "worker_items_published", "Items written to the index, or deleted from it.", registry=self.registry
        )
        self.due = Gauge(
            "worker_items_due",
            "Items that something is to be done about. The workers of a host share them: take the max, not the sum.",
            registry=self.registry,
        )
        self.refresh_seconds = Histogram(
            "worker_refresh_seconds",
            "From due items to their place in the index, a handful at a time.",
            buckets=REFRESH_SECONDS,
            registry=self.registry,
        )
        self.text_changed = Histogram(
            "worker_persona_text_changed",
            "Of a rewrite, the share of personas, before and after, that are not in both.",
            buckets=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
            registry=self.registry,
        )

    def count_calls(self, stage: str, before: Progress, now: Progress) -> None:
        """Count what a run of calls has done since it was last looked at."""
        cached = now.cached - before.cached
        self.llm_calls.labels(stage, "cached").inc(cached)
        self.llm_calls.labels(stage, "asked").inc(now.done - before.done - cached)
        self.llm_calls.labels(stage, "rejected").inc(now.rejected - before.rejected)
        used = now.usage - before.usage
        self.llm_tokens.labels(stage, "input").inc(used.input_tokens)
        self.llm_tokens.labels(stage, "output").inc(used.output_tokens)
        self.llm_cost.labels(stage).inc(now.cost - before.cost)

    def count_verdict(self, why: Why, *, put_off: bool = False) -> None:
        outcome = "put off" if put_off else "rewritten" if why.rewrite else "left alone"
        self.personas.labels(outcome, why.value).inc()
