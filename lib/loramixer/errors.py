"""The errors that a user may see: each carries one sentence that says what was given, what is allowed, what to do."""

from __future__ import annotations


class LoraMixerError(ValueError):
    """Base of all errors that this package raises on purpose; its text is fit to be shown to a user as it is."""


class BackboneError(LoraMixerError):
    """A backbone is unknown, cannot be fetched or fails its checksum."""


class HubError(LoraMixerError):
    """The Hugging Face Hub does not give or take a file.

    Attributes:
        reason: what went wrong.
        remedy: what to do.
        final: whether the Hub has said that this can never work, so that a copy in the cache is no remedy.
    """

    def __init__(self, reason: str, remedy: str, final: bool = False) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason, self.remedy, self.final = reason, remedy, final


class ExpertError(LoraMixerError):
    """A LoRA checkpoint cannot be read, or cannot be mixed exactly."""


class MixerError(LoraMixerError):
    """A mixture cannot be found, loaded or put on this backbone."""


class RoutingError(LoraMixerError):
    """A gate setting is impossible, such as k larger than the number of experts."""


class DataError(LoraMixerError):
    """A data file does not follow the schema, or holds no usable row."""


class TraceError(LoraMixerError):
    """A routing trace is incomplete, inconsistent or cannot be read."""


class FigureError(LoraMixerError):
    """A figure or an export cannot be drawn from what was given."""
