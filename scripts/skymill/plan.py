"""The plan: which transaction and tile each chunk belongs to, and what of it is still to do.

Selected chunks that no plan file holds yet are dealt to new transactions in a *wave*, which is written once, as
``plan_<wave>.json``, and never changes. Jobs read their chunks from it, never from the configuration. Whatever is
committed is final: it has no rule, so that nothing can do it again.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .config import Dataset, fingerprint_of, identity_changes
from .errors import ConfigError, SkymillError
from .felis_schema import file_hashes
from .files import read_json
from .retries import home_tile, plan_path, retry_path, with_retries
from .selection import Selection, expand_ranges, format_ranges, group_tiles


@dataclass(frozen=True)
class Transaction:
    """Tiles that are committed together.

    Attributes
    ----------
    name : `str`
        ``t000``, ``t001``, ... over all waves.
    wave : `int`
        The plan file that holds it.
    tiles : `dict` [`str`, `str`]
        Chunk ids of each tile, as ranges; with the retries of chunks that failed.
    regular : `bool`
        Whether it is planned to load the regular tables, too.
    attempt : `int`
        How often it has been poisoned; each attempt is a new transaction of the store.
    committed : `bool`
        Whether it is final in the store.
    partitioned : `bool`
        Whether all its chunks were found to be partitioned; the end of the way without a store.
    """

    name: str
    wave: int
    tiles: dict[str, str]
    regular: bool
    attempt: int
    committed: bool
    partitioned: bool

    def chunks(self) -> np.ndarray:
        """Its chunk ids (int64)."""
        return np.concatenate([expand_ranges(ranges) for ranges in self.tiles.values()])


@dataclass(frozen=True)
class State:
    """What there is and what is to do, from the selection and the files of earlier runs. Reading it changes nothing.

    Attributes
    ----------
    root : `pathlib.Path`
        ``results/<database>``.
    dataset : `Dataset`
    selection : `Selection`
    identity : `dict`
        The identity of the dataset, see `Dataset.identity`.
    transactions : `dict` [`str`, `Transaction`]
        All, those of the new wave included.
    pending : `dict` [`str`, `Transaction`]
        Those with work to do.
    new_wave : `dict` or `None`
        Content of the plan file that has to be written.
    is_report : `bool`
        Whether it only serves to tell what is finished, see `skymill.history`.
    """

    root: Path
    dataset: Dataset
    selection: Selection
    identity: dict
    transactions: dict[str, Transaction]
    pending: dict[str, Transaction] = field(repr=False)
    new_wave: dict | None
    is_report: bool = False

    @classmethod
    def read(cls, root: Path, dataset: Dataset) -> State:
        """Work out the state.

        Raises
        ------
        ConfigError
            If the folder holds another dataset of the same name, the selection is empty, or no transaction is left.
        """
        selection = dataset.selection()
        identity = dataset.identity()
        waves = read_waves(root, identity)
        transactions = {name: t for wave in waves for name, t in _transactions(root, wave).items()}
        assigned = [t.chunks() for t in transactions.values()]
        missing = np.setdiff1d(selection.chunks, np.concatenate(assigned)) if assigned else selection.chunks
        new_wave = None
        loads = dataset.config["ingest"]["store"] != "none"
        if len(missing):
            new_wave = _deal_wave(dataset, identity, len(waves), len(transactions), missing)
            transactions |= _transactions(root, new_wave)
        pending = {
            t.name: t
            for t in transactions.values()
            if not (t.committed or (t.partitioned and not loads))
            and (np.isin(t.chunks(), selection.chunks).any() or _holds_loads(root, t.name))
        }
        state = cls(root, dataset, selection, identity, transactions, pending, new_wave)
        state._refuse_other_store()
        state._refuse_growth()
        return state

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.identity)

    @property
    def store(self) -> str:
        return self.dataset.config["ingest"]["store"]

    def finished_records(self, names: Iterable[str] | None = None) -> list[str]:
        """The records that transactions are finished: committed, or partitioned if there is no store.

        By default of all that are finished, or will be by this run.
        """
        loads = self.store != "none"
        done = [
            t.name
            for t in self.transactions.values()
            if (t.committed if loads else t.partitioned) or (t.name in self.pending and not self.is_report)
        ]
        where = "ingest/transactions/{}.committed.json" if loads else "partitioned/{}.json"
        return [f"{self.root}/{where.format(name)}" for name in (done if names is None else names)]

    @functools.cached_property
    def regular_owner(self) -> str | None:
        """The transaction that loads the regular tables, or has loaded them: the planned one, unless its chunks are not wanted now."""
        loaded = [name for name in self.transactions if (self.root / "ingest" / name / "regular.json").exists()]
        planned = [t.name for t in self.pending.values() if t.regular]
        return next(iter([*loaded, *planned, *self.pending]), None)

    def needs_publish(self) -> bool:
        """Whether what is committed, or is going to be, differs from what was published, and is to be published."""
        if not self.dataset.config["ingest"]["publish"]:
            return False
        path = self.root / "ingest" / "published.json"
        if self.pending or not path.exists():
            return True
        published = read_json(path)
        committed = sorted(t.name for t in self.transactions.values() if t.committed)
        moved = published.get("absolute") not in (None, str(self.root.resolve()))
        lost = published.get("file") is not None and not (self.root / published["file"]).exists()
        return published["transactions"] != committed or moved or lost

    def plan_of(self, name: str, tile: str | None = None) -> Path:
        """The plan file that holds a transaction, or a tile of it."""
        if tile is not None and tile != home_tile(tile):
            return retry_path(self.root, name, tile)
        return plan_path(self.root, self.transactions[name].wave)

    def registration(self, name: str, tile: str) -> list[str]:
        """What must be there before a tile is generated: for Qserv the record that the server has taken the database.

        A tile that was generated before, for no store, is not made again for that.
        """
        path = self.root / "ingest" / "database.json"
        generated = self.root / "generated" / name / f"{tile}.json"
        return [str(path)] if self.store == "qserv" and (path.exists() or not generated.exists()) else []

    def missing_chunks(self, name: str, tile: str) -> int:
        """How many chunks of a tile in a pending transaction are not loaded yet, by the names of its sentinels."""
        chunks = expand_ranges(self.pending[name].tiles[tile])
        if home_tile(tile) not in self._begun[name]:
            return len(chunks)
        loaded = _names_in(self.root / "ingest" / name / home_tile(tile))
        return sum(f"chunk_{chunk}.json" not in loaded for chunk in chunks.tolist())

    @functools.cached_property
    def _begun(self) -> dict[str, set[str]]:
        """What there is of the loads of each pending transaction."""
        records = _names_in(self.root / "ingest" / "transactions")
        # Sentinels of an attempt before are removed when that is aborted, which comes before the next is started.
        return {
            t.name: _names_in(self.root / "ingest" / t.name)
            if f"{t.name}.{t.attempt}.started.json" in records
            else set()
            for t in self.pending.values()
        }

    def _refuse_growth(self) -> None:
        """A published database may be frozen."""
        path = self.root / "ingest" / "published.json"
        if self.pending and path.exists() and read_json(path).get("frozen"):
            chunks = sum(len(transaction.chunks()) for transaction in self.pending.values())
            raise ConfigError(
                f"chunks: {chunks} chunks of the selection are not loaded yet, but the database {self.dataset.database} is published, and "
                f"published tables of the store {self.store} are frozen. Load them as a new database (key database, with --directory if "
                "need be), or select only chunks that are there; with ingest.publish: false a database stays open"
            )

    def _refuse_other_store(self) -> None:
        """What was loaded into one store is not in another."""
        path = self.root / "ingest" / "database.json"
        if self.store != "none" and path.exists() and read_json(path)["store"] != self.store:
            raise ConfigError(
                f"ingest.store: {self.store}, but what {self.root} records was loaded into the store {read_json(path)['store']}; set it back, "
                f"or begin in another folder (--directory), or remove {self.root}"
            )

    def publication(self) -> str:
        """The record that tells that the database is published as it should be, relative to `root`."""
        if not self.needs_publish():
            return "ingest/published.json"
        number = sum(1 for _ in (self.root / "ingest" / "publications").glob("*.json"))
        return f"ingest/publications/{number}.json"


def read_waves(root: Path, identity: dict) -> list[dict]:
    """The plan files that exist, in order.

    Raises
    ------
    ConfigError
        If they were made for another identity; the message says what has changed.
    """
    waves = []
    while plan_path(root, len(waves)).exists():
        waves.append(read_json(plan_path(root, len(waves))))
    if waves and waves[0]["identity"] != identity:
        changes = "\n  ".join(list(identity_changes(waves[0]["identity"], identity))[:10])
        raise ConfigError(
            f"{root} holds another dataset with the name {identity['database']}; its rows would not match. What has changed:\n"
            f"  {changes}\n{_nothing_made(root)}Either undo the change, or remove {root} and begin anew, or give the new dataset another name "
            "(key database) or folder (--directory)"
        )
    return waves


def _nothing_made(root: Path) -> str:
    """A sentence that says so if no chunk was generated yet: then nothing is lost with what is there."""
    made = any(read_json(path)["chunks"] for path in root.glob("generated/*/s*.json"))
    made = made or next(root.glob("ingest/transactions/*.committed.json"), None)
    return "" if made else f"No chunk was generated yet: nothing is lost if you remove {root}. "


def _transactions(root: Path, wave: dict) -> dict[str, Transaction]:
    names = _names_in(root / "ingest" / "transactions")
    partitioned = _names_in(root / "partitioned")
    retried = _names_in(root / "ingest" / "retries")
    return {
        name: Transaction(
            name=name,
            wave=wave["wave"],
            tiles=with_retries(root, name, tiles)
            if name in retried and f"{name}.committed.json" not in names
            else tiles,
            regular=wave.get("regular") == name,
            attempt=_attempt(names, name),
            committed=f"{name}.committed.json" in names,
            partitioned=f"{name}.json" in partitioned,
        )
        for name, tiles in wave["transactions"].items()
    }


def _names_in(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _attempt(names: set[str], name: str) -> int:
    return next(attempt for attempt in itertools.count() if f"{name}.{attempt}.poisoned.json" not in names)


def present_id(root: Path, name: str) -> str | None:
    """The store's id of the present attempt of a transaction; None if that is not started."""
    folder = root / "ingest" / "transactions"
    path = folder / f"{name}.{_attempt(_names_in(folder), name)}.started.json"
    return read_json(path)["id"] if path.exists() else None


def loaded_chunks(root: Path, name: str, tile: str, transaction_id: str | None) -> dict[int, dict[str, int]]:
    """The chunks of a tile with a sentinel that counts, which is one of the present attempt: the rows of each table."""
    found = {}
    for path in (root / "ingest" / name / home_tile(tile)).glob("chunk_*.json") if transaction_id else ():
        with contextlib.suppress(SkymillError):  # one that an abort removes just now
            sentinel = read_json(path)
            if sentinel["transaction_id"] == transaction_id:
                found[sentinel["chunk"]] = sentinel["rows"]
    return found


def _deal_wave(dataset: Dataset, identity: dict, wave: int, used: int, chunks: np.ndarray) -> dict:
    """Deal chunks to new transactions: neighbouring tiles together, and at most half of the transactions that are left."""
    ingest = dataset.config["ingest"]
    left = ingest["max_transactions"] - used
    if left < 1:
        raise ConfigError(
            f"ingest.max_transactions = {ingest['max_transactions']}: all are used, and {len(chunks)} chunks of the selection have "
            "none yet; raise it, or select only chunks that were planned before"
        )
    tiles = group_tiles(dataset.chunker, chunks, dataset.config["chunks_per_tile"])
    wanted = -(-len(tiles) // ingest["tiles_per_transaction"])
    count = min(wanted, max(1, left // 2))
    names = list(tiles)
    bounds = [len(names) * i // count for i in range(count + 1)]
    content = {
        "wave": wave,
        "fingerprint": fingerprint_of(identity),
        "chunks": len(chunks),
        "transactions": {
            f"t{used + i:03d}": {name: format_ranges(tiles[name]) for name in names[bounds[i] : bounds[i + 1]]}
            for i in range(count)
        },
    }
    if wave == 0:
        content |= {"identity": identity, "regular": "t000"}
        content["schema_files"] = file_hashes(dataset.config, dataset.folder)
    return content


def _holds_loads(root: Path, name: str) -> bool:
    folder = root / "ingest" / name
    return (folder / "regular.json").exists() or next(folder.glob("*/chunk_*.json"), None) is not None


def jobs_at_once(settings) -> int:  # noqa: ANN001 - of Snakemake
    """How many jobs may run at a time by Snakemake's settings of resources: on local cores, or on a cluster."""
    return max(settings.cores or 1, settings.nodes or 1)


def poison_path(root: Path, name: str, attempt: int) -> Path:
    """The mark that an attempt of a transaction must be aborted."""
    return root / "ingest" / "transactions" / f"{name}.{attempt}.poisoned.json"


def tiles_with(state: State, chunks: np.ndarray) -> list[tuple[str, str]]:
    """The pending (transaction, tile) pairs that hold any of some chunks.

    Raises
    ------
    ConfigError
        If there is none.
    """
    pairs = [
        (t.name, tile)
        for t in state.pending.values()
        for tile, ranges in t.tiles.items()
        if np.isin(expand_ranges(ranges), chunks).any()
    ]
    if not pairs:
        raise ConfigError(
            "only: none of these chunks is selected and still to be loaded; `snakemake status` says which are"
        )
    return pairs
