"""What can go wrong online. The whole tree is drawn in `candidate_gen.errors`."""

from candidate_gen.errors import ConfigurationError, Persona4RecError

__all__ = [
    "ConfigurationError",
    "EmbeddingSpaceError",
    "HistoryStoreError",
    "IndexUnavailableError",
    "InvalidRequestError",
    "NotServedError",
    "Persona4RecError",
]


class InvalidRequestError(Persona4RecError):
    """A request field that breaks the contract: names field, value and limit. Becomes INVALID_ARGUMENT."""


class NotServedError(Persona4RecError):
    """A request this server is not set up for. Becomes FAILED_PRECONDITION."""


class IndexUnavailableError(Persona4RecError):
    """Milvus does not answer, or holds no index."""


class EmbeddingSpaceError(Persona4RecError):
    """Vectors of two embedding spaces were about to be mixed: names both."""


class HistoryStoreError(Persona4RecError):
    """The history store cannot be read or written."""
