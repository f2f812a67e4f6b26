"""The generators that a configuration can name: ours, and those of a user's own module."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import re
from pathlib import Path

from .columns import Choice, Column, Constant, Generator, Magnitude, Normal, Poisson, Position, Text, Uniform, UniqueId
from .linked_columns import DetectorNumber, DirectorColumn, ForcedFlux, Jitter, Linear, Lookup, Time, VisitColumn

GENERATORS: dict[str, type[Generator]] = {
    "unique_id": UniqueId,
    "position": Position,
    "uniform": Uniform,
    "normal": Normal,
    "poisson": Poisson,
    "magnitude": Magnitude,
    "choice": Choice,
    "constant": Constant,
    "text": Text,
    "time": Time,
    "linear": Linear,
    "lookup": Lookup,
    "director": DirectorColumn,
    "visit": VisitColumn,
    "forced_flux": ForcedFlux,
    "jitter": Jitter,
    "detector": DetectorNumber,
}


def generator_class(name: str, folder: Path) -> type[Generator]:
    """The class of a generator: one of ours, or ``module:Class`` of the user's own, from a file beside the configuration.

    Raises
    ------
    ValueError
        If there is no such generator, file or class.
    """
    if name in GENERATORS:
        return GENERATORS[name]
    match = re.match(r"^([A-Za-z_]\w*):([A-Za-z_]\w*)$", name)
    if not match:
        raise ValueError(
            f'unknown generator "{name}"; there are {", ".join(GENERATORS)}, and module:Class of a module.py beside the configuration'
        )
    path = folder / f"{match[1]}.py"
    if not path.is_file():
        raise ValueError(f'generator "{name}": there is no file {path.name} beside the configuration ({folder})')
    spec = importlib.util.spec_from_file_location(f"skymill_user_{match[1]}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(
            f'generator "{name}": {path.name} cannot be imported: {type(error).__name__}: {error}'
        ) from error
    found = getattr(module, match[2], None)
    if not (isinstance(found, type) and issubclass(found, Generator)):
        raise ValueError(
            f'generator "{name}": {path.name} has no class {match[2]} that derives from skymill.columns.Generator'
        )
    return found


@functools.cache
def _options_of(made: type[Generator]) -> dict[str, bool]:
    """The options of a generator, and whether each is required."""
    parameters = inspect.signature(made).parameters.items()
    return {name: parameter.default is parameter.empty for name, parameter in parameters}


def make_generator(entry: str | dict, columns: list[Column], folder: Path) -> Generator:
    """Make the generator that an entry of the configuration names, with its options.

    Raises
    ------
    ValueError
        If the generator or an option is unknown, or one is missing.
    """
    name, options = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
    made = generator_class(name, folder)
    allowed = _options_of(made)
    if not isinstance(options, dict):
        # {constant: 0.1} is short for {constant: {value: 0.1}}.
        options = {next(iter(allowed)): options} if allowed else {}
    for option in options:
        if option not in allowed:
            raise ValueError(f'generator "{name}" has no option "{option}"; it has {", ".join(allowed) or "none"}')
    for option, required in allowed.items():
        if required and option not in options:
            raise ValueError(f'generator "{name}" needs the option "{option}"')
    generator = made(**options)
    generator.columns = columns
    return generator
