"""The short version of `make chaos`."""

from chaos import run_chaos


def test_five_kills_lose_nothing_and_load_nothing_twice(tmp_path):
    tally = run_chaos(tmp_path, kills=5, seed=7, chunks="0:1000", chunks_per_tile=3, cores=2)
    assert tally.kills.total() == 5 and tally.restarts >= 1
    assert tally.good, tally.lines()
