"""Loading into Qserv: pushes to the test server, against MariaDB's own client on the same files, and the memory of who pushes.

The test server stores into a MariaDB as Qserv's workers do, so that what is measured besides MariaDB is HTTP and
ourselves. Times are by the clock: both sides work in several processes.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import PROJECT, figure, run_command

PARALLEL = (1, 4, 8)
RUNS = 3
FILE_BYTES = 32 << 20
LARGE_BYTES = 1 << 30
#: Files that are loaded at a time, each into a chunk of its own; all at the same worker.
FILES = 8
_ROW = "{id}\t{visit}\t" + "\t".join(["-12.345678", "23.456789", "0.0123456", "987.65432", "\\N"] * 4)
_PUSH = """
import json, sys
from pathlib import Path
sys.path.insert(0, {scripts!r})
from skymill.config import Dataset
from skymill.stores import Contribution
from skymill.stores.qserv import QservStore
dataset = Dataset.from_config(json.loads({config!r}), Path())
file = Contribution(dataset.tables["Source"], {chunk}, False, Path({path!r}), {rows}, {bytes})
assert sum(rows for _, rows in QservStore(dataset, Path()).contribute({transaction!r}, "tile", [file])) == {rows}
"""


def measure_loading(folder: Path) -> Iterator[tuple[str, dict]]:
    """MB/s of pushes into the test server, and their ratio to those of MariaDB's client; peak memory for a file of 1 GB."""
    client = shutil.which("mariadb")
    if client is None or shutil.which("mariadbd", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin") is None:
        reason = "not measured: MariaDB is not installed (Debian: apt-get install mariadb-server)"
        yield "loading into Qserv", {"value": 0.0, "unit": reason, "target": "", "ok": True}
        return
    sys.path.insert(0, str(PROJECT / "tests"))
    from qserv_server.fixture import QservCluster

    # Its socket needs a short path.
    with QservCluster(folder / "q") as cluster:
        bench = _Bench(folder, cluster, client)
        for parallel in PARALLEL:
            rates: dict[str, list[float]] = {"push": [], "client": []}
            for _ in range(RUNS):  # in turns, so that a busy machine is busy for both
                rates["push"].append(bench.push(parallel))
                rates["client"].append(bench.load_with_client(parallel))
            push, own = (statistics.median(found) for found in rates.values())
            yield f"loading, {parallel} pushes at a time", figure(push, "MB/s")
            yield (
                f"loading, {parallel} at a time: pushes / client of MariaDB",
                figure(push / own, "ratio", at_least=0.7),
            )
        yield "loading, memory for a file of 1 GB", figure(bench.peak_mb(), "MB", at_most=300)


class _Bench:
    """A database in the test server, and files to load into chunks of one of its workers."""

    def __init__(self, folder: Path, cluster, client: str):  # noqa: ANN001 - of the tests
        from skymill.config import Dataset
        from skymill.stores.qserv import QservStore

        self.folder, self.cluster, self.client = folder, cluster, client
        self.config = _config(cluster.url)
        self.dataset = Dataset.from_config(self.config, folder)
        self.store = QservStore(self.dataset, folder)
        self.store.register(self.dataset, "bench")
        self.runs = 0
        place = self.store.client.call("POST", "/ingest/chunks", {"database": "bench", "chunks": list(range(324, 348))})
        self.worker = place["locations"][0]["worker"]
        self.chunks = [found["chunk"] for found in place["locations"] if found["worker"] == self.worker][:FILES]
        self.files = [self._write(chunk, FILE_BYTES) for chunk in self.chunks]

    def _write(self, chunk: int, size: int):  # noqa: ANN202 - a Contribution, whose module is imported late
        from skymill.stores import Contribution

        block = "".join(f"{_ROW.format(id=i, visit=7 * i)}\t{chunk}\t1\n" for i in range(1000)).encode()
        path = self.folder / f"chunk_{chunk}_{size}.txt"
        with open(path, "wb") as file:
            for _ in range(-(-size // len(block))):
                file.write(block)
        times = path.stat().st_size // len(block)
        return Contribution(self.dataset.tables["Source"], chunk, False, path, 1000 * times, path.stat().st_size)

    def _begin(self) -> str:
        self.runs += 1
        context = {"workflow": "skymill", "fingerprint": "bench", "transaction": f"t{self.runs}", "attempt": 0}
        return self.store.start_transaction(f"t{self.runs}", 0, context)

    @property
    def _megabytes(self) -> float:
        return sum(file.bytes for file in self.files) / 1e6

    def push(self, parallel: int) -> float:
        """Push all files, so many at a time [MB/s]."""
        self.store.options["parallel"] = parallel
        transaction = self._begin()
        start = time.monotonic()
        rows = dict(self.store.contribute(transaction, "tile", self.files))
        seconds = time.monotonic() - start
        if rows != {file.chunk: file.rows for file in self.files}:
            raise RuntimeError(f"the server has the rows {rows}")
        self.store.abort(transaction)
        return self._megabytes / seconds

    def load_with_client(self, parallel: int) -> float:
        """Load all files into tables of the same kind with the client, so many at a time [MB/s]."""
        transaction = self._begin()
        schema = f"{self.worker}_bench"
        columns = ", ".join(column.name for column in self.dataset.tables["Source"].stored_columns)
        self.cluster.sql("CREATE DATABASE IF NOT EXISTS client")
        for chunk in self.chunks:
            table = f"client.Source_{chunk}"
            self.cluster.sql(f"DROP TABLE IF EXISTS {table}")
            self.cluster.sql(f"CREATE TABLE {table} LIKE {schema}.Source")
            part = f"PARTITION p{transaction} VALUES IN ({transaction})"
            self.cluster.sql(f"ALTER TABLE {table} ADD PARTITION IF NOT EXISTS ({part})")

        def load(file) -> None:  # noqa: ANN001 - a Contribution
            statement = (
                f"LOAD DATA LOCAL INFILE '{file.path}' INTO TABLE client.Source_{file.chunk} CHARACTER SET 'latin1' "
                r"FIELDS TERMINATED BY '\t' ESCAPED BY '\\' LINES TERMINATED BY '\n' "
                f"({columns}) SET qserv_trans_id = {transaction}"
            )
            command = [
                self.client,
                "--no-defaults",
                f"--socket={self.cluster.socket}",
                "--user=root",
                "--local-infile=1",
            ]
            subprocess.run([*command, "--execute", statement], check=True, capture_output=True, timeout=1800)

        start = time.monotonic()
        with ThreadPoolExecutor(parallel) as pool:
            list(pool.map(load, self.files))
        seconds = time.monotonic() - start
        loaded = sum(self.cluster.sql(f"SELECT COUNT(*) FROM client.Source_{chunk}")[0][0] for chunk in self.chunks)
        if loaded != sum(file.rows for file in self.files):
            raise RuntimeError(f"the client has loaded {loaded} rows")
        self.cluster.sql("DROP DATABASE client")
        self.store.abort(transaction)
        return self._megabytes / seconds

    def peak_mb(self) -> float:
        """The peak of memory of a process that pushes 1 GB."""
        file = self._write(self.chunks[0], LARGE_BYTES)
        code = _PUSH.format(
            scripts=str(PROJECT / "scripts"),
            config=json.dumps(self.config),
            chunk=file.chunk,
            path=str(file.path),
            rows=file.rows,
            bytes=file.bytes,
            transaction=self._begin(),
        )
        usage = run_command([sys.executable, "-c", code], self.folder)
        file.path.unlink()
        return usage.peak_mb


def _config(url: str) -> dict:
    """A dataset with a child table of some width."""
    place = {"name": ["ra", "dec"], "type": "DOUBLE NOT NULL", "generator": "position"}
    key = {"name": "objectId", "type": "BIGINT NOT NULL"}
    return {
        "database": "bench",
        "partitioning": {"num_stripes": 18, "num_sub_stripes": 4, "overlap_deg": 0.5},
        "chunks": "324:347",
        "ingest": {"store": "qserv", "qserv": {"url": url, "timeout_s": 1800}},
        "tables": {
            "Visit": {
                "kind": "regular",
                "rows": 1,
                "visit": {"id": "visitId", "filter": "band"},
                "position": ["ra", "dec"],
                "columns": [
                    {"name": "visitId", "type": "BIGINT NOT NULL", "generator": "unique_id"},
                    {"name": "band", "type": "CHAR(1)", "generator": {"choice": {"values": ["g"]}}},
                    place,
                ],
            },
            "Object": {
                "kind": "director",
                "key": "objectId",
                "position": ["ra", "dec"],
                "density": {"per_sq_deg": 1},
                "columns": [{**key, "generator": "unique_id"}, place],
            },
            "Source": {
                "kind": "child",
                "director": "Object",
                "key": "objectId",
                "rows": {"visits": "Visit", "radius_deg": 1},
                "columns": [
                    {**key, "generator": {"director": "objectId"}},
                    {"name": "visitId", "type": "BIGINT NOT NULL", "generator": {"visit": "visitId"}},
                    {"name": "x{0..19}", "type": "DOUBLE", "generator": "uniform"},
                ],
            },
        },
    }
