"""Errors that a person can act upon."""


class SkymillError(Exception):
    """Something went wrong that a person can mend; the message says where, what was found, what is allowed, what to do."""


class ConfigError(SkymillError):
    """The configuration, or a file that it names, is wrong."""


class PoisonedError(SkymillError):
    """A transaction holds something that cannot be trusted: it must be aborted, and what it has loaded be loaded again."""
