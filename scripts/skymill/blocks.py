"""Blocks of complete rows: some rows of one, and small ones joined.

A block costs some calls of numpy and of the kernels for each of its columns. A chunk with few rows has a block for each
of its boxes and of the boxes around it, so that joined blocks are several times cheaper there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .columns import Rows, Strings, Values

#: Rows that are worth the calls; smaller blocks wait for others.
ENOUGH_ROWS = 1 << 11


class Joiner:
    """Takes blocks of rows in order and gives them on: those with enough rows as they are, small ones joined.

    Parameters
    ----------
    take : callable
        Is given each block.
    """

    def __init__(self, take: Callable[[Rows], None]):
        self._take = take
        self._waiting: list[Rows] = []

    def add(self, rows: Rows) -> None:
        """Take a block."""
        if rows.count >= ENOUGH_ROWS:
            self.flush()  # it came before
        self._waiting.append(rows)
        if sum(part.count for part in self._waiting) >= ENOUGH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Give on what waits, if there is anything."""
        if self._waiting:
            parts, self._waiting = self._waiting, []
            self._take(join_rows(parts))


def some_rows(rows: Rows, indices: np.ndarray) -> Rows:
    """Some complete rows of a director, without their overlap."""
    columns = {name: values[indices] for name, values in rows.columns.items()}
    ra, dec, sub_chunk = (values[indices] for values in (rows.ra_deg, rows.dec_deg, rows.sub_chunk))
    return Rows(len(indices), rows.first, rows.chunk, rows.box, columns, ra, dec, sub_chunk)


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Complete rows one behind the other: their columns, places, and the filters of their visits; ``chunk`` is that of each row."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]

    def joined(name: str) -> np.ndarray | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else np.concatenate(values)

    columns = {name: concatenate([part.columns[name] for part in parts]) for name in first.columns}
    counts = [part.count for part in parts]
    rows = Rows(sum(counts), first.first, np.repeat([part.chunk for part in parts], counts), first.box, columns)
    rows.ra_deg, rows.dec_deg, rows.sub_chunk = joined("ra_deg"), joined("dec_deg"), joined("sub_chunk")
    if first.visits:
        rows.visits = {"#filter": np.concatenate([part.visits["#filter"] for part in parts])}
        rows.filters = first.filters
    return rows


def concatenate(parts: Sequence[Values]) -> Values:
    """Parts of a column one behind the other."""
    if isinstance(parts[0], Strings):
        values = parts[0].values
        if all(part.values == values for part in parts):
            return Strings(np.concatenate([part.codes for part in parts]), values)
        values = tuple(dict.fromkeys(text for part in parts for text in part.values))
        index = {text: i for i, text in enumerate(values)}
        # The entry behind the last one maps the code -1, NULL, to itself.
        lookups = [np.array([*(index[text] for text in part.values), -1], dtype=np.int32) for part in parts]
        return Strings(np.concatenate([look[part.codes] for look, part in zip(lookups, parts, strict=True)]), values)
    if any(isinstance(part, np.ma.MaskedArray) for part in parts):
        return np.ma.concatenate(parts)
    return np.concatenate(parts)
