"""Errors that a person can act upon."""

from __future__ import annotations

import json

#: Longest text of a value in a message.
LONGEST = 200


class SkymillError(Exception):
    """Something went wrong that a person can mend; the message says where, what was found, what is allowed, what to do."""


class ConfigError(SkymillError):
    """The configuration, or a file that it names, is wrong."""


class PoisonedError(SkymillError):
    """A transaction holds something that cannot be trusted: it must be aborted, and what it has loaded be loaded again."""


def show(value: object) -> str:
    """A value of a configuration as it is written there, cut short if it is long."""
    if value is None:
        return "null (no value)"
    text = str(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
