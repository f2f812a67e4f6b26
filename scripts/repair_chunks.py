"""Repair what verification has found: make the chunks that differ again, and replace them in the store.

Reads ``verify.json``, and the truth and manifests of the tiles; chunks of which the files of the embedded store have
lost rows are found without verification. Each chunk is generated and partitioned anew in ``repair/``, and each of its
files must have the SHA-256 that it had. In the embedded store the Parquet files that hold the chunk are written anew,
and the database is published again. What is committed in Qserv is frozen: there the new files stay, and
``repair/<worker>.sql`` says what an administrator must do.

Fails if there is no verification of this dataset, or a chunk does not come out as it was.
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from generate_tile import generate_tile, make_maker
from ingest_tile import chunk_contributions
from partition_tile import partition_chunk
from skymill.config import Dataset, Table
from skymill.errors import SkymillError, counted
from skymill.files import read_json, write_json, write_text
from skymill.plan import loaded_chunks
from skymill.rowmaker import RowMaker
from skymill.selection import expand_ranges
from skymill.step import Stopwatch, log, start_step
from skymill.stores import Contribution, open_store
from skymill.stores.asking import loaded_names
from skymill.truth import TileTruth, truth_path
from skymill.verification import bad_chunks


def read_verification(root: Path, fingerprint: str) -> dict:
    """The record of the last verification.

    Raises
    ------
    SkymillError
        If there is none, or it belongs to another dataset.
    """
    path = root / "verify.json"
    if not path.exists():
        raise SkymillError(f"there is no {path}; run `snakemake verify` first, it says which chunks differ")
    record = read_json(path)
    if record["fingerprint"] != fingerprint:
        raise SkymillError(f"{path} belongs to another dataset of this name; run `snakemake verify` again")
    return record


def find_tiles(root: Path) -> dict[int, tuple[str, str]]:
    """The transaction and tile of every committed chunk."""
    found: dict[int, tuple[str, str]] = {}
    for path in sorted((root / "ingest").glob("plan_*.json")):
        for name, tiles in read_json(path)["transactions"].items():
            if (root / "ingest" / "transactions" / f"{name}.committed.json").exists():
                for tile, ranges in tiles.items():
                    found |= dict.fromkeys(expand_ranges(ranges).tolist(), (name, tile))
    return found


def make_again(dataset: Dataset, maker: RowMaker, chunk: int, root: Path, tile: tuple[str, str], folder: Path) -> dict:
    """Generate and partition a chunk anew, and see that its files are what they were.

    Parameters
    ----------
    dataset : `Dataset`
    maker : `RowMaker`
    chunk : `int`
    root : `pathlib.Path`
        ``results/<database>``.
    tile : `tuple` [`str`, `str`]
        Its transaction and tile.
    folder : `pathlib.Path`
        Where the partitioned files go.

    Returns
    -------
    entry : `dict`
        As in the manifest of partitioning.

    Raises
    ------
    SkymillError
        If a file has another SHA-256 than it had.
    """
    shutil.rmtree(folder, ignore_errors=True)
    generated = folder / "generated"
    made = {"generated": generate_tile(dataset, maker, [chunk], generated)[str(chunk)]}
    for table in dataset.tables_of("director", "child"):
        (folder / table.name).mkdir(parents=True, exist_ok=True)
    made["partitioned"] = partition_chunk(dataset, chunk, made["generated"], generated, folder)
    shutil.rmtree(generated)
    expected = {"generated": TileTruth.read(truth_path(root, *tile)).hashes.get(chunk, {})}
    manifest = root / "partitioned" / tile[0] / f"{tile[1]}.json"
    # It lacks chunks of a tile that was made in several goes; then the hashes of generation must do.
    entry = read_json(manifest)["chunks"].get(str(chunk), {}) if manifest.exists() else {}
    expected["partitioned"] = {name: file["sha256"] for name, file in entry.items()}
    for stage, known in expected.items():
        for name, digest in known.items():
            if made[stage][name]["sha256"] != digest:
                raise SkymillError(
                    f"chunk {chunk}, {name}: made again its {stage} file has the SHA-256 {made[stage][name]['sha256']}, when it was loaded "
                    f"it had {digest}; nothing was replaced. Was it made with another version of skymill or numpy?"
                )
    return made["partitioned"]


def regular_file(table: Table, root: Path) -> Contribution:
    """The file of a regular table."""
    path = root / "visits" / f"{table.name}.csv"
    with open(path, "rb") as file:
        rows = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    return Contribution(table, None, False, path, rows, path.stat().st_size)


class Repair:
    """The chunks that differ, by tile, and what is known of them.

    Parameters
    ----------
    dataset : `Dataset`
    root : `pathlib.Path`
        ``results/<database>``.
    record : `dict`
        The record of a verification.
    damaged : `Mapping` [`str`, `list`]
        Further chunks, by table; of regular tables None.
    """

    def __init__(self, dataset: Dataset, root: Path, record: Mapping, damaged: Mapping[str, list]):
        self.dataset, self.root, self.record = dataset, root, record
        self.maker = make_maker(dataset, root / "visits", root / "density")
        self.homes = find_tiles(root)
        self.bad = bad_chunks(record["differences"])
        for name, chunks in damaged.items():
            self.bad[name] = sorted(
                {*self.bad.get(name, []), *chunks}, key=lambda chunk: -1 if chunk is None else chunk
            )
        names = loaded_names(dataset)
        self.regular = [dataset.tables[name] for name in self.bad if name not in names]
        chunks = sorted({chunk for name in names for chunk in self.bad.get(name, [])})
        self.chunks = [chunk for chunk in chunks if chunk in self.homes]
        self.strangers = {
            name: [chunk for chunk in self.bad.get(name, []) if chunk not in self.homes] for name in names
        }
        self.ids = {
            name: read_json(root / "ingest" / "transactions" / f"{name}.committed.json")["id"]
            for name in {home[0] for home in self.homes.values()}
        }

    def tiles(self) -> dict[tuple[str, str], list[int]]:
        """The chunks that differ, by transaction and tile."""
        found: dict[tuple[str, str], list[int]] = {}
        for chunk in self.chunks:
            found.setdefault(self.homes[chunk], []).append(chunk)
        return found

    def files(self, chunks: Iterable[int]) -> list[Contribution]:
        """Make chunks anew, and return their files."""
        files = []
        for chunk in chunks:
            folder = self.root / "repair" / f"chunk_{chunk}"
            entry = make_again(self.dataset, self.maker, chunk, self.root, self.homes[chunk], folder)
            files += chunk_contributions(self.dataset, chunk, entry, folder)
            log.info("chunk %d was made again: every file has its SHA-256", chunk)
        return files


def find_damaged(dataset: Dataset, root: Path) -> dict[str, list]:
    """The chunks of which the files of the embedded store have lost rows, by table; of regular tables None."""
    from skymill.stores.repair_embedded import damaged_chunks, is_damaged

    store, found = open_store(dataset, root), {}
    for name, tile in sorted(set(find_tiles(root).values())):
        transaction_id = read_json(root / "ingest" / "transactions" / f"{name}.committed.json")["id"]
        rows = loaded_chunks(root, name, tile, transaction_id)
        for table, chunks in damaged_chunks(store, transaction_id, tile, rows).items():
            found.setdefault(table, []).extend(chunks)
        regular = root / "ingest" / name / "regular.json"
        for table, count in read_json(regular)["rows"].items() if regular.exists() else ():
            if is_damaged(store, transaction_id, table, count):
                found[table] = [None]
    return found


def repair_embedded(repair: Repair) -> list[str]:
    """Replace the chunks in the embedded store, and publish it again; says what was written."""
    from skymill.stores.repair_embedded import remove_strays, replace_chunks, replace_regular

    store, root = open_store(repair.dataset, repair.root), repair.root
    written = []
    for (name, tile), chunks in repair.tiles().items():
        written += replace_chunks(store, repair.ids[name], tile, set(chunks), repair.files(chunks))
        for chunk in chunks:
            shutil.rmtree(root / "repair" / f"chunk_{chunk}")
    first = next(iter(sorted(repair.ids)))
    written += [replace_regular(store, repair.ids[first], regular_file(table, root)) for table in repair.regular]
    places = {chunk: (repair.ids[home[0]], home[1]) for chunk, home in repair.homes.items()}
    names = loaded_names(repair.dataset)
    written += remove_strays(
        store, {name: {chunk: places.get(chunk) for chunk in repair.bad[name]} for name in names if name in repair.bad}
    )
    if (root / "ingest" / "published.json").exists():
        published = read_json(root / "ingest" / "published.json")
        records = root / "ingest" / "transactions"
        answer = store.publish([read_json(records / f"{name}.committed.json") for name in published["transactions"]])
        write_json(root / "ingest" / "published.json", {**published, **answer})
    return sorted({str(path.relative_to(root)) for path in written})


def repair_qserv(repair: Repair) -> dict[str, str]:
    """Write the statements with which an administrator replaces the chunks; returns the text of each file by its name."""
    from skymill.stores.repair_mysql import chunk_statements, regular_statements, stranger_statements

    database = repair.dataset.database
    statements: dict[str, list[str]] = {}
    places: dict[int, set[str]] = {}
    for part in repair.record["differences"]:
        if part["chunk"] in repair.homes:
            places.setdefault(part["chunk"], set()).add(part["place"])
        elif part["chunk"] is not None:
            held = statements.setdefault(part["place"], [])
            held += [text for text in stranger_statements({part["table"]: [part["chunk"]]}) if text not in held]
    names = loaded_names(repair.dataset)
    for chunks in repair.tiles().values():
        for chunk in chunks:
            files = repair.files([chunk])
            # All of its tables: a row of one may belong into another.
            wanted = chunk_statements(names, chunk, repair.ids[repair.homes[chunk][0]], files)
            for place in sorted(places[chunk]):
                statements.setdefault(place, []).extend(wanted)
    first = next(iter(sorted(repair.ids)))
    for table in repair.regular:
        wanted = regular_statements(regular_file(table, repair.root), repair.ids[first])
        hit = {part["place"] for part in repair.record["differences"] if part["table"] == table.name}
        for place in sorted(hit):
            statements.setdefault(place, []).extend(wanted)
    texts = {}
    for place, lines in statements.items():
        head = (
            f"-- On the worker {place}"
            if place
            else "-- On the worker that Qserv has given the chunk to; none has its tables now"
        )
        head += f", in its database of {database}. The files must be readable where MySQL's client runs, with --local-infile."
        texts[f"{place or 'no_worker'}.sql"] = "\n".join([head, *lines]) + "\n"
    return texts


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``repair``."""
    watch = Stopwatch()
    dataset = start_step(snakemake)
    root = dataset.results
    is_embedded = dataset.config["ingest"]["store"] == "embedded"
    damaged = find_damaged(dataset, root) if is_embedded else {}
    if damaged and not (root / "verify.json").exists():
        record = {"differences": []}
    else:
        record = read_verification(root, snakemake.params.fingerprint)
    if not record["differences"] and not damaged:
        print(f"repair: there is nothing to repair: in the last verification, {root}/verify.md, nothing differed")
        return
    repair = Repair(dataset, root, record, damaged)
    again = f"{counted(len(repair.chunks), 'chunk')} {_were(len(repair.chunks))} made again, byte for byte"
    done = {"chunks": repair.chunks, "regular": [table.name for table in repair.regular], "strangers": repair.strangers}
    if is_embedded:
        done["written"] = repair_embedded(repair)
        text = f"{again}, and replaced; {counted(len(done['written']), 'Parquet file')} {_were(len(done['written']))} written. "
        text += "Run `snakemake`, and `snakemake verify` again"
    else:
        texts = repair_qserv(repair)
        for name, content in texts.items():
            write_text(root / "repair" / name, content)
        done["written"] = sorted(texts)
        text = (
            f"{again}; what is new is in {root}/repair. What is committed in Qserv is frozen: an "
            f"administrator must run, on each worker, the statements of {root}/repair/<worker>.sql ({', '.join(sorted(texts))}), then have the "
            "director's index rebuilt (POST /ingest/index/secondary with rebuild: 1) and the rows counted again (POST /ingest/table-stats "
            "with force_rescan: 1). Then run `snakemake verify` again"
        )
    write_json(root / "repair" / "repair.json", {**done, **watch.read()})
    log.info(text)
    print(f"repair: {text}")


if "snakemake" in globals():
    main(globals()["snakemake"])
