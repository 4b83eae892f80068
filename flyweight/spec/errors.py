"""The errors a user can meet. Each message says what, the value, and the way out."""


class FlyweightError(Exception):
    """A user's mistake or a broken input: shown as one message, exit status 1."""

    exit_code = 1


class ConfigurationError(FlyweightError):
    """A configuration that is wrong: an unknown key, a bad value, a contradiction."""


class Interrupted(FlyweightError):  # noqa: N818 (it is no error)
    """Ctrl-C, answered: the message says what was saved and how to go on."""

    exit_code = 130


class CorruptFileError(FlyweightError):
    """A file whose content is not what its format or its recorded digest says."""
