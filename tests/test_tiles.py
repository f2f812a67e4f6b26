"""Files do not depend on the size of tiles, the number of cores, or the instruction set of the processor."""

import pytest

from workflow import SMALL_SKY, partitioned_files, snakemake, write_config

#: A pole, a stripe with chunks on both sides of RA 0, and a neighbour above.
CHUNKS = "0,324:330,358,360:362"
SETTINGS = {
    "tiles of 1": (1, 2, {}),
    "tiles of 7": (7, 1, {}),
    "tiles of 64": (64, 2, {}),
    "no compiler": (64, 2, {"SKYMILL_KERNELS": "off"}),
    # numpy's own kernels, and those of the C library, for older processors.
    "older processor": (
        64,
        2,
        {
            "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
            "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX,-AVX2,-FMA,-FMA4",
        },
    ),
}


@pytest.mark.parametrize("setting", [name for name in SETTINGS if name != "tiles of 64"])
def test_partitioned_files_are_byte_identical(setting, tmp_path):
    made = []
    for name in (setting, "tiles of 64"):
        chunks_per_tile, cores, environment = SETTINGS[name]
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        config = {**SMALL_SKY, "chunks": CHUNKS, "chunks_per_tile": chunks_per_tile, "ingest": {"store": "none"}}
        snakemake(folder, "--quiet", config=write_config(folder, config), cores=cores, environment=environment)
        made.append(partitioned_files(folder / "results" / "smallsky"))
    assert len(made[0]) == 36
    assert made[0] == made[1]
