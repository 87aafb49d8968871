"""What the worker's metrics can tell apart."""

import pytest

from offline.worker_metrics import WorkerMetrics


@pytest.mark.parametrize(("seconds", "bucket", "below"), [(20, "30.0", "10.0"), (200, "300.0", "180.0")])
def test_batches_that_wait_for_an_llm_are_told_apart(seconds: float, bucket: str, below: str) -> None:
    metrics = WorkerMetrics()
    metrics.batch_seconds.observe(seconds)
    counted = {
        le: metrics.registry.get_sample_value("worker_batch_seconds_bucket", {"le": le}) for le in (below, bucket)
    }
    assert counted == {below: 0, bucket: 1}
