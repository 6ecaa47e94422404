"""The one error class that means: the user can fix this."""


class InputError(ValueError):
    """Bad input. The message is one line: it names the offending value and says what to do."""


def require(ok: bool, message: str) -> None:
    """Raises InputError(message) unless ok."""
    if not ok:
        raise InputError(message)
