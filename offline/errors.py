"""What can go wrong offline. The whole tree is drawn in `candidate_gen.errors`."""

from candidate_gen.errors import ConfigurationError, Persona4RecError

__all__ = ["ConfigurationError", "DatasetError", "EncoderError", "Persona4RecError", "TooManyRejectsError"]


class DatasetError(Persona4RecError):
    """A dataset directory or file that cannot be used: names it and what was expected."""


class TooManyRejectsError(DatasetError):
    """More than the set share of a file's lines is bad, so the file itself is probably not what it was taken for."""


class EncoderError(Persona4RecError):
    """An encoder that cannot be loaded or used."""
