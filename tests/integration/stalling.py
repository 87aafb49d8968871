"""A client that speaks HTTP/2 frame by frame, to stop where no gRPC client would."""

import socket
import struct
from types import TracebackType
from typing import Self

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes

RERANK = "/reranker.v1.Reranker/Rerank"


class SlowReader:
    """Asks, and lets the server send not one byte of an answer: its flow-control window is 0 (RFC 9113, 6.9.2)."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self._authority = address
        self._socket = socket.create_connection((host, int(port)))
        self._http = H2Connection(H2Configuration(client_side=True))
        self._http.local_settings.update({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        self._http.initiate_connection()
        self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def ask(self, body: bytes, path: str = RERANK) -> None:
        """Send one whole request."""
        stream = self._http.get_next_available_stream_id()
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": self._authority,
            "te": "trailers",
            "content-type": "application/grpc",
        }
        self._http.send_headers(stream, list(headers.items()))
        # gRPC over HTTP/2, "Length-Prefixed-Message".
        self._http.send_data(stream, struct.pack(">BI", 0, len(body)) + body, end_stream=True)
        self._flush()

    def _flush(self) -> None:
        self._socket.sendall(self._http.data_to_send())
