"""The root of the project's exceptions, and the first stage's own.

The whole tree, one module a package and the client's own (imports run one way, so the root stands in the lowest)::

    Persona4RecError                what went wrong, where, with which value, and what to do
    +-- ConfigurationError          candidate_gen.errors   a setting or argument that cannot be used
    +-- CandidateModelError         candidate_gen.errors   a candidate model that is missing, torn or of another kind
    +-- InvalidRequestError         reranker.errors        a request field that breaks the contract (INVALID_ARGUMENT)
    +-- UnknownUserError            reranker.errors        a user that the history store does not know (NOT_FOUND)
    +-- DeadlineError               reranker.errors        a request that nobody waits for now (DEADLINE_EXCEEDED)
    +-- NotServedError              reranker.errors        a request this server is not set up for (FAILED_PRECONDITION)
    +-- IndexUnavailableError       reranker.errors        Milvus, or the index in it, cannot be read
    +-- IndexBusyError              reranker.errors        another publisher writes the index in Milvus
    +-- EmbeddingSpaceError         reranker.errors        two embedding spaces were about to be mixed
    +-- HistoryStoreError           reranker.errors        the history store cannot be read or written
    +-- CallError                   reranker.client        a call that the server refused or did not answer
    +-- BrokerUnavailableError      reranker.errors        no Kafka broker answers, or none accepts this client
    +-- InvalidEventError           reranker.errors        a record that breaks the contract of events (goes to the DLQ)
    +-- DatasetError                offline.errors         a dataset directory or file that cannot be used
    |   +-- TooManyRejectsError     offline.errors         more than the set share of a file's lines is bad
    +-- VerificationError           offline.errors         a rebuilt index that is not what was published
    +-- EncoderError                offline.errors         an encoder that cannot be loaded or used
    +-- AdapterError                offline.errors         an adapter that is missing, torn or of another format
    +-- WorkerStateError            offline.errors         the file with the worker's state cannot be read or written
    +-- LlmError                    offline.errors         an LLM that cannot be asked
    |   +-- BudgetExhaustedError    offline.errors         the next request might exceed the budget
    |   +-- EndpointError           offline.errors         an endpoint that is gone, or refuses every request
    |   +-- LocalLlmError           offline.errors         a local LLM that cannot be started
    |   +-- ResponseCacheError      offline.errors         the file with the LLM's replies cannot be used
"""


class Persona4RecError(Exception):
    """Base of every error that this project raises on purpose; its text is meant for the person who meets it."""


class ConfigurationError(Persona4RecError):
    """A setting or argument that cannot be used: names it, its value and what is accepted."""


class CandidateModelError(Persona4RecError):
    """A candidate model that is missing, torn or of another kind."""
