"""What can go wrong offline. The whole tree is drawn in `candidate_gen.errors`."""

from candidate_gen.errors import ConfigurationError, Persona4RecError

__all__ = [
    "AdapterError",
    "BudgetExhaustedError",
    "ConfigurationError",
    "DatasetError",
    "EncoderError",
    "EndpointError",
    "LlmError",
    "LocalLlmError",
    "Persona4RecError",
    "ResponseCacheError",
    "TooManyRejectsError",
    "VerificationError",
    "WorkerStateError",
]


class DatasetError(Persona4RecError):
    """A dataset directory or file that cannot be used: names it and what was expected."""


class TooManyRejectsError(DatasetError):
    """More than the set share of a file's lines is bad, so the file itself is probably not what it was taken for."""


class VerificationError(Persona4RecError):
    """A rebuilt index that is not what was published, so that it was not put in use: names what differs."""


class EncoderError(Persona4RecError):
    """An encoder that cannot be loaded or used."""


class AdapterError(Persona4RecError):
    """An adapter that is missing, torn or of another format."""


class LlmError(Persona4RecError):
    """An LLM that cannot be asked. What was answered before is cached, so a further run goes on from there."""


class BudgetExhaustedError(LlmError):
    """The next request might exceed the budget of the run."""


class EndpointError(LlmError):
    """An endpoint that does not answer at all, or refuses every request: names its address and what it said."""


class LocalLlmError(LlmError):
    """A local LLM that cannot be started: names the model file and why."""


class ResponseCacheError(LlmError):
    """The file with the LLM's replies cannot be read or written."""


class WorkerStateError(Persona4RecError):
    """The file with the worker's state cannot be read or written."""
