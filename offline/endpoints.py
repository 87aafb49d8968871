"""Where an LLM answers: an endpoint that is there already, or a local one for the time of a command."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from openai import APIConnectionError, APIStatusError, OpenAI, OpenAIError

from offline.errors import ConfigurationError, EndpointError
from offline.llm_settings import LlmSettings, LocalGguf, RemoteLlm

PROBE_SECONDS = 30.0
"""For the list of models, which costs an endpoint nothing: a serverless one may have to wake up first."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an LLM answers."""

    url: str
    """Its base URL: requests go to URL/chat/completions."""
    model: str
    """Its name there."""
    slots: int | None = None
    """Requests it works on at once, if that is known: more in flight would only wait."""


@contextmanager
def opened(source: LocalGguf | RemoteLlm, settings: LlmSettings) -> Iterator[Endpoint]:
    """Yield an endpoint that answers. A model file is served by a child process while the block runs.

    Raises:
        EndpointError: nobody answers at the URL, or refuses the key.
        ConfigurationError: the endpoint has several models, and none is chosen.
        LocalLlmError: the model file cannot be served.

    """
    if isinstance(source, RemoteLlm):
        yield Endpoint(source.url, model_name(source, settings))
        return
    from offline.local_llm import serving

    with serving(source.path, settings.local_slots, settings.local_context) as url:
        yield Endpoint(url, model_name(source, settings), settings.local_slots)


def model_name(source: LocalGguf | RemoteLlm, settings: LlmSettings) -> str:
    """Return the model's name, which is part of every cache key. Nothing is started for it; raises as `opened` does."""
    if isinstance(source, RemoteLlm):
        found = _models(source.url, settings)
        return settings.model or _only(found, source.url)
    from offline.local_llm import fingerprint

    return fingerprint(source.path)


def _models(url: str, settings: LlmSettings) -> list[str]:
    """Return the names of an endpoint's models; none if it keeps no list."""
    key = settings.api_key.get_secret_value() or "none"
    try:
        with OpenAI(base_url=url, api_key=key, timeout=PROBE_SECONDS, max_retries=1) as api:
            return [model.id for model in api.models.list()]
    except APIConnectionError as error:
        raise EndpointError(f"nobody answers at {url} ({error.__cause__ or error}): is the address right?") from error
    except APIStatusError as error:
        if error.status_code in {401, 403}:
            raise EndpointError(
                f"{url} refuses the key (HTTP {error.status_code}): set PERSONA4REC_LLM_API_KEY"
            ) from error
        return []
    except (OpenAIError, ValueError, TypeError, AttributeError):
        return []  # no list, or one of another shape: the calls themselves will show what the endpoint is


def _only(models: list[str], url: str) -> str:
    if len(models) == 1:
        return models[0]
    known = f"has {', '.join(models[:10])}" if models else "names none"
    raise ConfigurationError(f"which model of {url}? It {known}: set PERSONA4REC_LLM_MODEL to one")
