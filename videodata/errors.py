"""Errors that a user can cause: each message is one line that says what is wrong and what to do."""


class UserError(Exception):
    """A problem outside the code: a bad file, flag or environment. Scripts print its one line and exit with 2."""


class VideoError(UserError):
    """A video, frame folder or array that cannot be read, or cannot be read as asked."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple:  # so that it survives the trip from a worker process
        return type(self), (self.path, self.reason)
