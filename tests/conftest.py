"""Fixtures that many tests share, and how tests are dealt to processes."""

#: Modules whose tests share servers that are dear to start: one process takes all tests of such a module.
SHARED_SERVERS = {"test_qserv_server.py", "test_qserv_store.py", "test_qserv_workflow.py", "test_verify_qserv.py"}


def pytest_xdist_make_scheduler(config, log):
    """Deal tests one by one, but the modules of `SHARED_SERVERS` as a whole, and those first, for they take longest."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.split("::", 1)[0]
            return path if path.rsplit("/", 1)[-1] in SHARED_SERVERS else nodeid

    return Scheduling(config, log)
