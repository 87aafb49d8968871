"""How clients should call: what is asked again and when no longer, and the choice of a server.

In gRPC's own format, which its libraries for all languages read (grpc_service_config.proto; retries and their
throttling: gRFC A6). `deploy/service_config.json` is the same, for clients that are not Python.

It sets no `timeout`, though the format has one: gRPC's C core, and with it Python, Ruby, PHP and C++, takes up to a
second off it (grpc/grpc#34547), so that a call with one of a second fails at once. Give every call a deadline instead.
"""

import json

from reranker.v1 import reranker_pb2 as pb

RETRIED = ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"]
"""What another worker, or the same one a moment later, may answer: every method only reads, so asking again is safe.

UNAVAILABLE: no connection, or a server that drains. RESOURCE_EXHAUSTED: a worker with all the requests it may have.
CANCELLED: the same, of requests that gRPC's own queue held when it was full or the worker shut down; gRPC retries it
like the others when a server sends it, and never a call that its own caller cancels.
"""

_RETRIES = {
    # One call and three more, after about 20, 60 and 180 ms: the second goes to another server soon, and the last has
    # most of a second to be answered. gRPC allows five in all.
    "maxAttempts": 4,
    "initialBackoff": "0.02s",
    "maxBackoff": "0.2s",
    "backoffMultiplier": 3,
    "retryableStatusCodes": RETRIED,
}

# A failure costs a token, ten answers earn one, and at half of them nothing is asked again: under overload or with the
# service away clients stop multiplying their requests after five failures, and then retry once for ten answers.
_THROTTLING = {"maxTokens": 10, "tokenRatio": 0.1}

SERVICE_CONFIG = {
    # Over all addresses that the name has; the default takes the first one that answers for everything.
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {"name": [{"service": pb.DESCRIPTOR.services_by_name["Reranker"].full_name}], "retryPolicy": _RETRIES}
    ],
    "retryThrottling": _THROTTLING,
}

CHANNEL_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    # Otherwise all channels of a process share a connection, and with it one worker of the server's.
    ("grpc.use_local_subchannel_pool", 1),
    # A peer that vanished without a word is noticed by a ping: TCP alone takes a quarter of an hour. Not more often
    # than every 10 s, which the server takes for an attack.
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    # Explained, a thousand items with long personas are more than gRPC's own 4 MB; a thousand items' personas, ten
    # times that.
    ("grpc.max_receive_message_length", 64 << 20),
    # A server that was away is tried every other second; gRPC's own patience grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]
"""Of a channel: the service config, and what it has no words for."""
