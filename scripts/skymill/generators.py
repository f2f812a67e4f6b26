"""The generators that a configuration can name: ours, and those of a user's own module."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import re
import traceback
from pathlib import Path

from .columns import Choice, Column, Constant, Generator, Magnitude, Normal, Poisson, Position, Text, Uniform, UniqueId
from .errors import did_you_mean
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


def explain(error: Exception) -> str:
    """What the code of a generator has raised, in words: a ValueError is meant to be read, any other also says where it came from."""
    if type(error) is ValueError:
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = "" if isinstance(error, SyntaxError) else f" ({Path(place.filename).name}, line {place.lineno})"
    return f"{type(error).__name__}: {error}{where}"


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
            + did_you_mean(name, GENERATORS)
        )
    path = folder / f"{match[1]}.py"
    if not path.is_file():
        raise ValueError(f'generator "{name}": there is no file {path.name} beside the configuration ({folder})')
    spec = importlib.util.spec_from_file_location(f"skymill_user_{match[1]}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f'generator "{name}": {path.name} cannot be imported: {explain(error)}') from error
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
        if not allowed and options is not None:
            raise ValueError(f'generator "{name}" has no options; write generator: {name}')
        options = {next(iter(allowed)): options} if allowed else {}
    for option in options:
        if option not in allowed:
            raise ValueError(f'generator "{name}" has no option "{option}"; it has {", ".join(allowed) or "none"}')
    for option, required in allowed.items():
        if required and option not in options:
            raise ValueError(f'generator "{name}" needs the option "{option}"')
    try:
        generator = made(**options)
    except Exception as error:  # whatever the code of a user raises
        raise ValueError(f'generator "{name}": {explain(error)}') from error
    if type(generator).draw is Generator.draw:
        raise ValueError(f'generator "{name}": the class has no method draw, which makes the values')
    generator.columns = columns
    return generator
