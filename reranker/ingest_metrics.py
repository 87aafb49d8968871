"""What Prometheus sees of ingest."""

from reranker.group_metrics import GroupMetrics


class IngestMetrics(GroupMetrics):
    """The instruments, in a registry of their own."""

    def __init__(self) -> None:
        super().__init__("ingest")
