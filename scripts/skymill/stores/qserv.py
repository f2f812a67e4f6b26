"""The Qserv store: registers, loads, commits and publishes through the REST API of Qserv's ingest system, version 55.

The server knows more than our files do, so each step asks it first and does what is left. A commit of the server does
not look at what the contributions became; here it does. Rows are never sent to a table that was published once: no
abort could take them back.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..config import Dataset
from ..derived import database_config, index_configs, loaded_tables, table_config
from ..errors import ConfigError, PoisonedError, SkymillError
from . import Contribution
from .qserv_fit import (
    IDENTITY,
    REMEDY,
    able_workers,
    check_server,
    refuse_misfits,
    refuse_strangers,
)
from .qserv_http import LONG_S, QservClient, QservNoAnswer, QservRefusal, find_database, growing_delays
from .qserv_load import Loader, contents_fault, rows_in, store_names, worker_totals

log = logging.getLogger("skymill.qserv")

#: States of a transaction from which it can be aborted; a call waits for another one that is ending it.
ABORTABLE = ("STARTED", "IS_STARTING", "IS_FINISHING", "IS_ABORTING", "START_FAILED", "FINISH_FAILED", "ABORT_FAILED")


class QservStore:
    """The store in a Qserv cluster; see `skymill.stores.Store` for what its methods do.

    Parameters
    ----------
    dataset : `Dataset`
    root : `pathlib.Path`
        ``results/<database>``.

    Raises
    ------
    SkymillError
        If the configuration does not say where the cluster is, or a key cannot be had.
    """

    def __init__(self, dataset: Dataset, root: Path):
        self.dataset = dataset
        self.root = root
        self.name = dataset.database
        self.options = options = dataset.config["ingest"].get("qserv", {})
        for key in ("url", *(["base_url"] if options.get("send") == "http" else [])):
            if key not in options:
                raise ConfigError(f"ingest.qserv.{key}: the key is missing; add it, docs/configuration.md describes it")
        keys = [_read_key(key, options.get(key), dataset.folder) for key in ("auth_key", "admin_auth_key")]
        self.client = QservClient(options["url"], *keys, options["timeout_s"])

    # -- database ---------------------------------------------------------------------------------------------------

    def register(self, dataset: Dataset, fingerprint: str) -> dict:
        tables = [table_config(dataset, table) for table in loaded_tables(dataset)]
        index_configs(dataset)  # what is wrong there is to be said now, not when all is published
        version = self.client.check_version()
        server = self.client.server()
        refuse_misfits(server, dataset)
        found = find_database(server, self.name)
        known: list[str] = []
        if found is None:
            self.client.call("POST", "/ingest/database", database_config(dataset))
        elif found["is_published"]:
            raise SkymillError(f"the Qserv database {self.name} is published, and so frozen; {REMEDY}")
        else:
            transactions = self.client.transactions(self.name, include_context=1)
            refuse_strangers(transactions, self.name, fingerprint)
            known = [table["name"] for table in found["tables"]]
            if not transactions:
                # An earlier run did not come to its end here. Of a table whose registration was broken off, part may be
                # missing for good.
                known = [
                    table["table"] for table in reversed(tables) if table["table"] in known and not self._drop(table)
                ]
        for table in tables:
            if table["table"] not in known:
                self._register_table(table)
        refuse_misfits(self.client.server(), dataset)
        return {"database": self.name, "api_version": version, "workers": list(able_workers(server))}

    def _drop(self, table: Mapping) -> bool:
        """Delete a table in which there are no rows; returns whether the server did it."""
        try:
            self.client.call("DELETE", f"/ingest/table/{self.name}/{table['table']}", timeout_s=LONG_S)
        except QservRefusal as error:
            if error.is_for_key:
                raise
            log.warning("%s; the table stays as it is", error)
            return False
        return True

    def _register_table(self, table: Mapping) -> None:
        try:
            self.client.call("POST", "/ingest/table", table)
        except QservRefusal as error:
            # It stays registered when a worker could not make it, and nothing could be loaded into it.
            if "already exists" not in str(error):
                with contextlib.suppress(SkymillError):
                    self._drop(table)
            raise

    def delete_database(self) -> None:
        """Delete the database, published or not, and all that is in it. What is not there is no error."""
        if self.client.database(self.name) is not None:
            key = self.client.key_names[-1]
            self.client.call("DELETE", f"/ingest/database/{self.name}", key=key, timeout_s=LONG_S)

    # -- transactions -----------------------------------------------------------------------------------------------

    def start_transaction(self, name: str, attempt: int, context: dict) -> str:
        self.client.check_version()
        found = self._started(context)
        if found is not None:
            return found
        try:
            answer = self.client.call("POST", "/ingest/trans", {"database": self.name, "context": context})
        except QservNoAnswer as error:
            found = self._started(context)
            if found is None:
                raise error
            return found
        return str(answer["databases"][self.name]["transactions"][0]["id"])

    def _started(self, context: Mapping) -> str | None:
        """The transaction with a context that can be loaded, or is committed; one that failed is aborted."""
        for transaction in self.client.transactions(self.name, include_context=1):
            is_same = all(transaction["context"].get(key) == context.get(key) for key in IDENTITY)
            transaction_id, state = str(transaction["id"]), transaction["state"]
            if is_same and state in ("STARTED", "FINISHED"):
                return transaction_id
            if is_same and state != "ABORTED":
                self.abort(transaction_id)
        return None

    def contribute(
        self, transaction_id: str, tile: str, contributions: Sequence[Contribution]
    ) -> Iterator[tuple[int | None, int]]:
        if not contributions:
            return
        may_send = self._takes_rows(transaction_id)
        rows: dict[int | None, int] = {}
        for contribution in contributions:
            rows[contribution.chunk] = rows.get(contribution.chunk, 0) + contribution.rows
        loader = Loader(self.client, self.name, transaction_id, self.options)
        for chunk in loader.load(contributions, may_send):
            yield chunk, rows[chunk]

    def _takes_rows(self, transaction_id: str) -> bool:
        """Whether a transaction is open; if not, it is committed."""
        state = self.client.transaction(self.name, transaction_id)["state"]
        if state == "FINISHED":
            return False
        if state != "STARTED":
            kind = SkymillError if state.startswith("IS_") else PoisonedError
            raise kind(
                f"transaction {transaction_id} of {self.name} takes no rows: its state is {state}, somebody has ended it"
            )
        database = self.client.database(self.name)
        published = [table["name"] for table in database["tables"] if table["is_published"]]
        if database["is_published"] or published:
            raise SkymillError(
                f"the tables {', '.join(published)} of the Qserv database {self.name} are or were published; rows could not be taken back "
                f"from them: {REMEDY}"
            )
        return True

    def commit(self, transaction_id: str, rows: Mapping[str, int]) -> dict:
        transaction = self.client.transaction(self.name, transaction_id, contrib=1, contrib_long=1)
        state = transaction["state"]
        if state in ("STARTED", "IS_FINISHING", "FINISHED"):
            fault = contents_fault(self.dataset, transaction["contrib"], rows)
            if not fault and state == "STARTED":
                fault = self._regular_fault(transaction["contrib"]["files"])
            if fault and state == "FINISHED":
                raise SkymillError(
                    f"transaction {transaction_id} of {self.name}: {fault}; it is committed and cannot be taken back: {REMEDY}"
                )
            if fault:
                raise PoisonedError(f"transaction {transaction_id} of {self.name}: {fault}")
        answer = self._end(transaction_id, abort=False)
        if self.options["auto_build_secondary_index"] and not answer.get("secondary-index-build-success", 1):
            log.warning("the director index of transaction %s was not built; publishing has it rebuilt", transaction_id)
        return {"workers": worker_totals(transaction["contrib"]["files"])}

    def _regular_fault(self, files: Sequence[Mapping]) -> str:
        """What is wrong with the places of regular tables; empty if each is at every worker, or nowhere."""
        regular = {table.name for table in self.dataset.tables_of("regular")}
        held: dict[str, set[str]] = {}
        for file in files:
            if file["table"] in regular:
                held.setdefault(file["table"], set()).add(file["worker"])
        if not held:
            return ""
        locations = self.client.call("GET", "/ingest/regular", {"database": self.name})["locations"]
        workers = {place["worker"] for place in locations}
        for name, places in held.items():
            if places != workers:
                return (
                    f"{name} was sent to {', '.join(sorted(places))}, now the workers are {', '.join(sorted(workers))}"
                )
        return ""

    def abort(self, transaction_id: str) -> None:
        self._end(transaction_id, abort=True)

    def _end(self, transaction_id: str, abort: bool) -> dict:
        """Commit or abort a transaction."""
        goal, allowed = ("ABORTED", ABORTABLE) if abort else ("FINISHED", ("STARTED", "IS_FINISHING"))
        text = f"transaction {transaction_id} of {self.name}"

        def is_ended(reason: SkymillError | None) -> bool:
            state = self.client.transaction(self.name, transaction_id)["state"]
            if state != goal and state not in allowed:
                remedy = f"; {REMEDY}" if state == "FINISHED" else ""
                raise (SkymillError if abort else PoisonedError)(
                    f"{text} cannot become {goal}, its state is {state}: {reason or 'somebody else has ended it'}{remedy}"
                )
            # The call has waited for whoever is at it. Who was at it has died if the state is still the same.
            if isinstance(reason, QservRefusal) and reason.is_for_state and state.startswith("IS_"):
                died = f"{text} is {state} for good: Qserv's controller was stopped while it did that"
                if abort and state == "IS_ABORTING":
                    raise SkymillError(f"{died}, and takes no order for it any more; {REMEDY}")
                if not abort:
                    raise PoisonedError(died)
            return state == goal

        path = f"/ingest/trans/{transaction_id}"
        call = functools.partial(self.client.call, "PUT", path, query={"abort": int(abort)}, timeout_s=LONG_S)
        return self._insist(is_ended, call, (QservRefusal, QservNoAnswer))

    def _insist(
        self, is_done: Callable[[SkymillError | None], bool], call: Callable[[], dict], errors: tuple[type, ...]
    ) -> dict:
        """Look, call, and after certain errors look and call again; returns the answer, if there was any."""
        reason, deadline = None, math.inf
        for delay in growing_delays():
            if is_done(reason):
                break
            if reason:
                if time.monotonic() > deadline or (isinstance(reason, QservRefusal) and reason.is_for_key):
                    raise reason
                log.warning("%s; trying again in %.1f s", reason, delay)
                time.sleep(delay)
            try:
                return call()
            except errors as error:
                # The call may have taken hours: what counts is the time since it first failed.
                deadline = deadline if reason else time.monotonic() + self.client.patience_s
                reason = error
        return {}

    # -- publishing -------------------------------------------------------------------------------------------------

    def publish(self, committed: Sequence[Mapping]) -> dict:
        self._refuse_other_rows(committed)

        def is_published(reason: SkymillError | None) -> bool:
            return self.client.database(self.name)["is_published"]

        path = f"/ingest/database/{self.name}"
        call = functools.partial(self.client.call, "PUT", path, timeout_s=LONG_S)
        self._insist(is_published, call, (QservNoAnswer,))
        self._rebuild_index()
        counting = {"row_counters_state_update_policy": "ENABLED", "row_counters_deploy_at_qserv": 1, "force_rescan": 1}
        for table in loaded_tables(self.dataset) if self.options["row_counters"] else ():
            body = {"database": self.name, "table": table.name, **counting}
            self.client.call("POST", "/ingest/table-stats", body, timeout_s=LONG_S, repeat=True)
        for index in index_configs(self.dataset):
            kind = self.dataset.tables[index["table"]].kind
            for overlap in (0,) if kind == "regular" else (0, 1):
                # A row is in an overlap table once for each sub-chunk: nothing is unique there.
                body = {**index, **({"spec": "DEFAULT"} if overlap else {}), "overlap": overlap}
                self.client.call("POST", "/replication/sql/index", body, timeout_s=LONG_S, repeat=True)
        return {"database": self.name, "frozen": True, "rows": self.count_rows()}

    def _refuse_other_rows(self, committed: Sequence[Mapping]) -> None:
        """Refuse to publish anything but what was committed: it would be for good."""
        wanted = {entry["id"]: entry["rows"] for entry in committed}
        for transaction in self.client.transactions(self.name, contrib=1):
            transaction_id, state = str(transaction["id"]), transaction["state"]
            if state == "ABORTED":
                continue
            if state != "FINISHED" or transaction_id not in wanted:
                raise SkymillError(
                    f"the Qserv database {self.name} cannot be published: its transaction {transaction_id} ({state}) was not committed by "
                    f"this workflow; abort it if it is open, else {REMEDY}"
                )
            fault = contents_fault(self.dataset, transaction["contrib"], wanted.pop(transaction_id))
            if fault:
                raise SkymillError(f"transaction {transaction_id} of {self.name}: {fault}; {REMEDY}")
        if wanted:
            raise SkymillError(
                f"the Qserv database {self.name} has no transaction {', '.join(wanted)}, which this workflow has committed; {REMEDY}"
            )
        regular = {table.name for table in self.dataset.tables_of("regular")}
        if not any(rows for entry in committed for name, rows in entry["rows"].items() if name not in regular):
            raise SkymillError(
                "no chunk of the selection has any row, and Qserv publishes no database without chunks; select others (key chunks)"
            )

    def _rebuild_index(self) -> None:
        """Rebuild the director index if a commit could not add to it, which the server tells in the transaction's log only."""
        if not self.options["auto_build_secondary_index"]:
            return
        events = [
            event
            for transaction in self.client.transactions(self.name, include_log=1, trans_state="FINISHED")
            for event in transaction["log"]
        ]
        failed = {e["data"]["table"] for e in events if e["name"] == "end bld dir idx" and not e["data"].get("success")}
        for name in sorted(failed):
            body = {"database": self.name, "director_table": name, "rebuild": 1}
            self.client.call("POST", "/ingest/index/secondary", body, timeout_s=LONG_S, repeat=True)

    def count_rows(self) -> dict[str, int]:
        tables = loaded_tables(self.dataset)
        counts = {name: 0 for table in tables for name in store_names(table)}
        if not self.options["row_counters"]:
            for transaction in self.client.transactions(self.name, contrib=1, trans_state="FINISHED"):
                for name, rows in rows_in(self.dataset, transaction["contrib"]["summary"]).items():
                    counts[name] = counts.get(name, 0) + rows
            return counts
        for table in tables:
            for entry in self.client.call("GET", f"/ingest/table-stats/{self.name}/{table.name}")["entries"]:
                name = table.overlap_name if entry["is_overlap"] and table.kind != "regular" else table.name
                if name in counts or entry["num_rows"]:
                    counts[name] = counts.get(name, 0) + entry["num_rows"]
        return counts

    def check(self) -> list[tuple[str, bool, str]]:
        return check_server(self.client, self.dataset, self.root)


def _read_key(name: str, source: Mapping | None, folder: Path) -> str | None:
    """A key from the environment or a file; it must never get into a message."""
    if source is None:
        return None
    if "env" in source:
        where = f"ingest.qserv.{name}.env: the environment variable {source['env']}"
        key = os.environ.get(source["env"])
        if key is None:
            raise SkymillError(f"{where} is not set; say `export {source['env']}=...`, or name another")
    else:
        where = f"ingest.qserv.{name}.file: {folder / source['file']}"
        try:
            key = (folder / source["file"]).read_text("utf-8")
        except OSError as error:
            raise SkymillError(f"{where} cannot be read: {error.strerror}; correct the path or the rights") from None
        except UnicodeDecodeError:
            raise SkymillError(f"{where} is no text in UTF-8; it must hold the key and nothing else") from None
    if not key.strip().isprintable():
        raise SkymillError(
            f"{where} holds more than one line, or a control character; it must hold the key and nothing else"
        )
    return key.strip()
