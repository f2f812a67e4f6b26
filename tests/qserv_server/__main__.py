"""Run the servers: ``python -m qserv_server --datadir DIR``; stop them with SIGTERM."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from .cluster import Cluster
from .protocol import Keys


def _key(path: Path | None) -> str:
    return path.read_text().strip() if path else ""


def _wait_for_eof(stop: threading.Event) -> None:
    while os.read(0, 1024):
        pass
    stop.set()


def main() -> int:
    """Start, print one JSON line with ports, socket and process ids, and serve until told to stop."""
    parser = argparse.ArgumentParser(prog="qserv_server", description=__doc__)
    parser.add_argument("--datadir", type=Path, required=True, help="folder of everything that is stored")
    parser.add_argument("--controller-port", type=int, default=0, help="port of the controller (default: any)")
    parser.add_argument("--auth-key-file", type=Path, help="file with the authorization key (default: empty key)")
    parser.add_argument("--admin-auth-key-file", type=Path, help="file with the administrator's key")
    parser.add_argument("--until-eof", action="store_true", help="stop when the standard input ends, too")
    args = parser.parse_args()
    datadir = args.datadir.resolve()
    datadir.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        filename=datadir / "server.log", level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    cluster = Cluster(datadir, args.controller_port, Keys(_key(args.auth_key_file), _key(args.admin_auth_key_file)))
    try:
        report = cluster.start()
    except Exception:
        logging.exception("the servers did not start")
        cluster.stop()
        raise
    print(json.dumps(report), flush=True)
    if args.until_eof:
        # The one who started us has died if its end of the pipe closes: do not outlive it.
        threading.Thread(target=_wait_for_eof, args=(stop,), daemon=True).start()
    stop.wait()
    cluster.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
