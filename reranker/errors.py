"""What can go wrong online. The whole tree is drawn in `candidate_gen.errors`."""

from candidate_gen.errors import ConfigurationError, Persona4RecError

__all__ = [
    "BrokerUnavailableError",
    "ConfigurationError",
    "DeadlineError",
    "EmbeddingSpaceError",
    "HistoryStoreError",
    "IndexBusyError",
    "IndexUnavailableError",
    "InvalidEventError",
    "InvalidRequestError",
    "NotServedError",
    "Persona4RecError",
    "UnknownUserError",
]


class InvalidRequestError(Persona4RecError):
    """A request field that breaks the contract: names field, value and limit. Becomes INVALID_ARGUMENT."""


class UnknownUserError(Persona4RecError):
    """The history store does not know the user asked for. Becomes NOT_FOUND."""


class DeadlineError(Persona4RecError):
    """The caller stopped waiting before its request was begun. Becomes DEADLINE_EXCEEDED."""


class NotServedError(Persona4RecError):
    """A request this server is not set up for. Becomes FAILED_PRECONDITION."""


class IndexUnavailableError(Persona4RecError):
    """Milvus does not answer, or holds no index."""


class IndexBusyError(Persona4RecError):
    """Another publisher writes the index in Milvus: names it. Nothing was written that it could trip over."""


class EmbeddingSpaceError(Persona4RecError):
    """Vectors of two embedding spaces were about to be mixed: names both."""


class HistoryStoreError(Persona4RecError):
    """The history store cannot be read or written."""


class BrokerUnavailableError(Persona4RecError):
    """No Kafka broker answers, or none accepts this client."""


class InvalidEventError(Persona4RecError):
    """A record that breaks the contract of events.proto: names field and fault, never an id. Goes to the DLQ."""
