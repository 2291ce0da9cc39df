"""Errors that a user can cause: each message is one line that says what is wrong and what to do."""


class VVAEError(ValueError):
    """A bad file, shape or setting."""


class CheckpointError(VVAEError):
    """Weights that cannot be read, or that belong to another model. Its report may have several lines."""


class VideoFileError(VVAEError):
    """A video or image that cannot be read or written."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


def said_by(error: BaseException) -> str:
    """What an error of a library or of the system says, in one short line; its type where it says nothing."""
    text = getattr(error, "strerror", None) or error
    return " ".join(str(text).split())[:200] or type(error).__name__
