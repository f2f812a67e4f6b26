"""What several tests share: a small survey, the rows of its chunks, and bounds for tests of statistics.

Significance: with the bounds used here a correct program fails a test in less than 1 of 10^6 seeds; seeds are fixed.
"""

import functools
import math
from pathlib import Path
from statistics import NormalDist

import numpy as np

from skymill import schema
from skymill.columns import Rows, Strings
from skymill.config import Dataset
from skymill.rowmaker import BoxStreams, RowMaker, load_density
from skymill.visits import Visits, make_regular_table

# Read once for all tests: many of them make a dataset, and parsing the schema is most of the work.
schema.load_schema = functools.cache(schema.load_schema)

REPOSITORY = Path(__file__).resolve().parents[1]
FAKEDB = REPOSITORY / "configs" / "fakedb" / "config.yaml"
SKY_SQ_DEG = 129600 / math.pi
#: A correct program fails a test with this chance.
P_VALUE = 1e-6
#: Quantile of the normal distribution for `P_VALUE`, two-sided.
SIGMAS = NormalDist().inv_cdf(1 - P_VALUE / 2)

VISITS_TABLE = {
    "kind": "regular",
    "rows": 2000,
    "visit": {"id": "ccdVisitId", "filter": "filterName"},
    "position": ["ra", "decl"],
    "columns": [
        {"name": "ccdVisitId", "type": "BIGINT NOT NULL", "generator": "unique_id"},
        {"name": "filterName", "type": "CHAR(1)", "generator": {"choice": {"values": ["u", "g", "r"]}}},
        {"name": ["ra", "decl"], "type": "DOUBLE", "generator": "position"},
    ],
}
PLACE_COLUMNS = [
    {"name": "objectId", "type": "BIGINT NOT NULL", "generator": "unique_id"},
    {"name": ["psRa", "psDecl"], "type": "DOUBLE NOT NULL", "generator": "position"},
]
FLUX_COLUMNS = [{"name": "{u,g,r}PsFlux", "type": "DOUBLE", "generator": {"magnitude": {"max": 27.5}}}]
SOURCE_COLUMNS = [
    {"name": "objectId", "type": "BIGINT NOT NULL", "generator": {"director": "objectId"}},
    {"name": "ccdVisitId", "type": "BIGINT NOT NULL", "generator": {"visit": "ccdVisitId"}},
    {"name": "sourceId", "type": "BIGINT NOT NULL", "generator": "unique_id"},
    {
        "name": "psFlux",
        "type": "DOUBLE",
        "generator": {"forced_flux": {"flux": "{filter}PsFlux", "sigma": "psFlux_Sigma"}},
    },
    {"name": "psFlux_Sigma", "type": "DOUBLE", "generator": {"uniform": {"min": 0.05, "max": 0.5}}},
]


def small_config(density=1.0, columns=None, children=True, **keys) -> dict:
    """The configuration of a small sky: 368 chunks in 18 stripes, as a dictionary of its own.

    Parameters
    ----------
    density : `float` or `dict`
        Objects per square degree, or the whole value of the key ``density``.
    columns : `list` [`dict`], optional
        Columns of Object behind its key and position; three fluxes by default.
    children : `bool`
        Whether there are visits and ForcedSource.
    **keys
        Keys of the top level that replace or join those of the small sky.
    """
    tables = {}
    if children:
        tables["CcdVisit"] = {**VISITS_TABLE}
    tables["Object"] = {
        "kind": "director",
        "key": "objectId",
        "position": ["psRa", "psDecl"],
        "density": density if isinstance(density, dict) else {"per_sq_deg": density},
        "columns": [*PLACE_COLUMNS, *(FLUX_COLUMNS if columns is None else columns)],
    }
    if children:
        tables["ForcedSource"] = {
            "kind": "child",
            "director": "Object",
            "key": "objectId",
            "rows": {"visits": "CcdVisit", "radius_deg": 1.4},
            "columns": SOURCE_COLUMNS,
        }
    partitioning = {"num_stripes": 18, "num_sub_stripes": 4, "overlap_deg": 0.5}
    # A copy all through, so that a test can change what it likes.
    return _copy(
        {"database": "small", "seed": 1, "partitioning": partitioning, "chunks": "all", "tables": tables} | keys
    )


def _copy(value: object) -> object:
    if isinstance(value, dict):
        return {key: _copy(part) for key, part in value.items()}
    return [_copy(part) for part in value] if isinstance(value, list) else value


def small_dataset(density=1.0, columns=None, children=True, folder: Path = REPOSITORY, **keys) -> Dataset:
    """The dataset of `small_config`."""
    return Dataset.from_config(small_config(density, columns, children, **keys), folder)


def make_visits(dataset: Dataset) -> dict[str, Visits]:
    """The tables of visits of a dataset."""
    return {
        table.name: Visits(make_regular_table(dataset, table), table)
        for table in dataset.tables_of("regular")
        if table.visit is not None
    }


def row_maker(dataset: Dataset, visits: dict[str, Visits] | None = None) -> RowMaker:
    """A `RowMaker` that has made nothing yet."""
    densities = {table.name: load_density(table, dataset.folder) for table in dataset.tables_of("director")}
    return RowMaker(dataset, densities, make_visits(dataset) if visits is None else visits)


def join(blocks: list[dict]) -> dict:
    """Columns of blocks, one behind the other; strings as an array of `str`, None for NULL."""
    return {name: _join([block[name] for block in blocks]) for name in (blocks[0] if blocks else ())}


def _join(parts: list) -> np.ndarray:
    if isinstance(parts[0], Strings):
        return np.concatenate([np.array([*part.values, None], dtype=object)[part.codes] for part in parts])
    return np.ma.concatenate(parts) if any(map(np.ma.isMaskedArray, parts)) else np.concatenate(parts)


def director_columns(maker: RowMaker, chunk: int, boxes: list[int] | None = None) -> dict:
    """The columns of Object in a chunk, and its home sub-chunks as ``#sub_chunk``; empty if there are no rows."""
    blocks = maker.director_blocks(maker.dataset.tables["Object"], chunk, boxes)
    return join([{**rows.columns, "#sub_chunk": rows.sub_chunk} for rows in blocks])


def chunk_columns(maker: RowMaker, chunk: int, boxes: list[int] | None = None) -> tuple[dict, dict]:
    """The columns of Object and of ForcedSource in a chunk, like `director_columns`."""
    child, objects, sources = maker.dataset.tables["ForcedSource"], [], []
    streams: dict[int, BoxStreams] = {}
    for rows in maker.director_blocks(maker.dataset.tables["Object"], chunk, boxes):
        objects.append({**rows.columns, "#sub_chunk": rows.sub_chunk})
        box = streams.setdefault(rows.box, BoxStreams(maker.dataset.seed, child, chunk, rows.box))
        sources += [{**part.columns, "#sub_chunk": part.sub_chunk} for part in maker.child_blocks(child, rows, box)]
    return join(objects), join(sources)


def drawn(generator, count: int, seed: int = 1, pieces: tuple[int, ...] = (), **rows) -> list:
    """The columns that a generator draws, if asked for it in blocks of some sizes (in one by default)."""
    random = np.random.Generator(np.random.PCG64DXSM(seed))
    sizes = [*pieces, count - sum(pieces)]
    blocks, first = [], 0
    for size in sizes:
        part = {name: values[first : first + size] for name, values in rows.items()}
        made = generator.draw(random, Rows(size, first, 0, 0, {}, **part))
        blocks.append(made if isinstance(made, (tuple, list)) else [made])
        first += size
    return [_join(list(columns)) for columns in zip(*blocks, strict=True)]


# -- statistics -------------------------------------------------------------------------------------------------------


def assert_ks(values: np.ndarray, cumulative) -> None:
    """Kolmogorov-Smirnov: values follow a continuous distribution with the function ``cumulative``."""
    n = len(values)
    assert n > 100, "too few values for the test to say anything"
    expected = cumulative(np.sort(np.asarray(values, dtype=np.float64)))
    steps = np.arange(n + 1) / n
    distance = max((steps[1:] - expected).max(), (expected - steps[:-1]).max())
    # Stephens (1970, JRSS B 32, 115); the first term of Kolmogorov's series is an upper bound of the p-value.
    scaled = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * distance
    p_value = 2 * math.exp(-2 * scaled * scaled)
    assert p_value > P_VALUE, f"KS distance {distance:.4g} of {n} values, p = {p_value:.2g}"


def assert_uniform(values: np.ndarray, low: float, high: float) -> None:
    """Values lie in [low, high] and are uniform in it, by `assert_ks`."""
    assert values.min() >= low and values.max() <= high
    assert_ks(values, lambda x: (x - low) / (high - low))


def normal_cdf(x: np.ndarray) -> np.ndarray:
    """Cumulative standard normal distribution."""
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in np.asarray(x).tolist()])


def assert_chi_square(counts: np.ndarray, expected: np.ndarray, fixed_total: bool = True) -> None:
    """Counts follow their expectation, one-sided, by the approximation of Wilson and Hilferty (1931, PNAS 17, 684)."""
    counts, expected = np.ravel(counts).astype(np.float64), np.ravel(expected).astype(np.float64)
    assert expected.min() > 5, "too few counts for the test to hold"
    k = len(expected) - fixed_total
    chi_square = ((counts - expected) ** 2 / expected).sum()
    z = ((chi_square / k) ** (1 / 3) - (1 - 2 / (9 * k))) / math.sqrt(2 / (9 * k))
    assert z < NormalDist().inv_cdf(1 - P_VALUE), f"chi-square {chi_square:.1f} with {k} degrees of freedom"


def assert_mean(found: float, expected: float, sigma: float) -> None:
    """A normal quantity of standard deviation ``sigma`` is not further from its expectation than chance allows."""
    assert abs(found - expected) <= SIGMAS * sigma, f"found {found}, expected {expected} +- {sigma}"


def correlation_bound(rows: int, pairs: int) -> float:
    """The largest |correlation| of independent columns, over all of some pairs."""
    return NormalDist().inv_cdf(1 - P_VALUE / (2 * pairs)) / math.sqrt(rows)
