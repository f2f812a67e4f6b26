"""Questions in SQL that a sharded sky answers chunk by chunk."""

from .config import Table


def count_per_chunk(table: Table, limit: int = 5) -> str:
    """Rows of each chunk, the fullest first."""
    return f'SELECT chunkId, count(*) AS "rows" FROM "{table.name}"\nGROUP BY chunkId ORDER BY 2 DESC, 1 LIMIT {limit}'


def count_neighbours(director: Table, radius_deg: float) -> str:
    """Ordered pairs of a director's rows that are closer than a radius, which must not exceed the overlap.

    A row is paired with those of its own sub-chunk and those in the sub-chunk's overlap, so that no pair is missed at a
    border and none is counted twice. Separations come from differences of unit vectors: an arc cosine of nearly 1 has
    lost its digits.
    """
    key, (ra, dec) = director.key, director.position
    columns = f'"{key}" AS id, "{dec}" AS lat, chunkId, subChunkId, {_unit_vector(ra, dec)}'
    # Pairs are sought in the same or the next band of Dec, as high as the radius, so that the join is by equality.
    return (
        f'WITH home AS (SELECT {columns} FROM "{director.name}"),\n'
        f'near AS (SELECT * FROM home UNION ALL SELECT {columns} FROM "{director.overlap_name}"),\n'
        f"banded AS (SELECT *, unnest([-1, 0, 1]) + floor(lat / {radius_deg!r})::INT AS band FROM near)\n"
        "SELECT count(*) AS pairs FROM home AS a JOIN banded AS b\n"
        f"ON a.chunkId = b.chunkId AND a.subChunkId = b.subChunkId AND floor(a.lat / {radius_deg!r})::INT = b.band\n"
        f"WHERE a.id <> b.id AND (a.x - b.x)^2 + (a.y - b.y)^2 + (a.z - b.z)^2 < (2 * sin(radians({radius_deg!r}) / 2))^2"
    )


def _unit_vector(ra: str, dec: str) -> str:
    return (
        f'cos(radians("{dec}")) * cos(radians("{ra}")) AS x, cos(radians("{dec}")) * sin(radians("{ra}")) AS y, '
        f'sin(radians("{dec}")) AS z'
    )
