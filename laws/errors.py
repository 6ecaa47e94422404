"""The error classes that mean: the user can fix this."""


class InputError(ValueError):
    """Bad input. The message is one line: it names the offending value and says what to do."""


class FitError(InputError):
    """A law cannot be fitted honestly to these runs: too few data, or the sampler's diagnostics refuse the result."""
