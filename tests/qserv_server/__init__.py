"""A small Qserv ingest server for tests.

One controller and two workers that speak the Replication/Ingest REST API, version 55, over HTTP on loopback, and store
what they are sent into a private MariaDB with the table layout of the real workers. Run it with
``python -m qserv_server --datadir DIR`` (from ``tests/``) or use :class:`qserv_server.fixture.QservCluster`.

The behaviour is that of the real server (github.com/lsst/qserv), its oddities included; services that a client of an
ingest does not use answer HTTP 404.
"""
