"""exactmath: accuracy against 80-bit arithmetic, exact values, and the same bits whatever the processor can do."""

import hashlib
import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

from skymill import exactmath

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
# Of the results of `bits_of_all_functions`. It must be found on every machine and with every version of numpy.
SHA256 = "79e017b2863570f4d5658e9bd640c92137e6ad41932570fd76d7470303909de9"

needs_long_double = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 63, reason="long double is no longer than double"
)


def long(x):
    return np.asarray(x, dtype=np.longdouble)


PI = long("3.14159265358979323846264338327950288")


def max_error_ulp(got, reference):
    """Largest error in units of the last place of the reference (which is long double)."""
    return float(np.max(np.abs((got - reference) / np.spacing(np.abs(reference.astype(np.float64))))))


@pytest.fixture
def rng():
    return np.random.default_rng(20)


@needs_long_double
def test_sincos_deg_is_within_1_ulp(rng):
    angle = np.concatenate(
        [rng.uniform(-45, 45, 50_000), rng.uniform(-720, 720, 50_000), 10 ** rng.uniform(-9, 1, 5_000)]
    )
    turn = np.rint(angle / 90)
    rest = long(angle - 90 * turn) * PI / 180
    s, c = np.sin(rest), np.cos(rest)
    turn = turn.astype(int) % 4
    sin, cos = exactmath.sincos_deg(angle)
    assert max_error_ulp(sin, np.choose(turn, [s, c, -s, -c])) < 1
    assert max_error_ulp(cos, np.choose(turn, [c, -s, -c, s])) < 1


@needs_long_double
def test_asin_deg_is_within_1_ulp(rng):
    z = np.concatenate(
        [
            rng.uniform(-1, 1, 50_000),
            rng.uniform(0.49, 0.6, 20_000),
            1 - 10 ** rng.uniform(-16, -1, 20_000),
            10 ** rng.uniform(-30, 0, 10_000),
        ]
    )
    assert max_error_ulp(exactmath.asin_deg(z), np.arcsin(long(z)) * 180 / PI) < 1


@needs_long_double
def test_exp_is_within_1_ulp(rng):
    x = np.concatenate([rng.uniform(-745, 709.7, 50_000), rng.uniform(-1, 1, 50_000), 10 ** rng.uniform(-18, 0, 5_000)])
    assert max_error_ulp(exactmath.exp(x), np.exp(long(x))) < 1


@needs_long_double
def test_exp10_is_within_1_ulp(rng):
    x = np.concatenate([rng.uniform(-323, 308.2, 50_000), rng.uniform(-1, 1, 50_000), rng.uniform(-20, 20, 50_000)])
    assert max_error_ulp(exactmath.exp10(x), np.power(long(10), long(x))) < 1


@needs_long_double
def test_log_is_within_1_ulp(rng):
    x = np.concatenate(
        [10 ** rng.uniform(-307, 308, 50_000), rng.uniform(0.5, 2, 50_000), 1 + rng.uniform(-1e-6, 1e-6, 9_000)]
    )
    x = x[x != 1]
    assert max_error_ulp(exactmath.log(x), np.log(long(x))) < 1


def test_agrees_with_the_math_module():
    for x in (-359.5, -100.25, -1e-5, 12.5, 44.99999, 45.00001, 269.75, 719.0):
        assert exactmath.sin_deg(x) == pytest.approx(math.sin(math.radians(x)), rel=1e-14, abs=1e-14)
        assert exactmath.cos_deg(x) == pytest.approx(math.cos(math.radians(x)), rel=1e-14, abs=1e-14)
    for x in (-0.99, -0.5, -1e-9, 0.1, 0.50001, 0.75, 1 - 1e-12):
        assert exactmath.asin_deg(x) == pytest.approx(math.degrees(math.asin(x)), rel=4e-16)
    for x in (-700.0, -1.5, 1e-8, 0.3, 20.0, 308.0):
        assert exactmath.exp(x) == pytest.approx(math.exp(x), rel=4e-16)
        assert exactmath.exp10(x / 2.5) == pytest.approx(10.0 ** (x / 2.5), rel=4e-16)
        assert exactmath.log(abs(x)) == pytest.approx(math.log(abs(x)), rel=4e-16)


def test_exact_values():
    right_angles = np.arange(-720, 721, 90)
    sin, cos = exactmath.sincos_deg(right_angles)
    assert sin.tolist() == [0, 1, 0, -1] * 4 + [0]
    assert cos.tolist() == [1, 0, -1, 0] * 4 + [1]
    assert exactmath.sin_deg([30, 150, 210, -30]).tolist() == [0.5, 0.5, -0.5, -0.5]
    assert exactmath.cos_deg([60, 120, 300]).tolist() == [0.5, -0.5, 0.5]
    assert exactmath.asin_deg([-1, -0.5, 0, 0.5, 1]).tolist() == [-90, -30, 0, 30, 90]
    assert exactmath.exp(0) == exactmath.exp10(0) == 1
    assert exactmath.log(1) == 0
    assert exactmath.exp10(np.arange(23.0)).tolist() == [float(10**k) for k in range(23)]


def test_symmetries(rng):
    angle, z = rng.uniform(0, 720, 10_000), rng.uniform(0, 1, 10_000)
    np.testing.assert_array_equal(exactmath.sin_deg(-angle), -exactmath.sin_deg(angle))
    np.testing.assert_array_equal(exactmath.cos_deg(-angle), exactmath.cos_deg(angle))
    np.testing.assert_array_equal(exactmath.asin_deg(-z), -exactmath.asin_deg(z))
    whole = np.round(angle)
    np.testing.assert_array_equal(exactmath.sin_deg(whole - 360), exactmath.sin_deg(whole))


def test_ends_of_the_range():
    assert exactmath.exp([-np.inf, -1e300, -746]).tolist() == [0, 0, 0]
    assert exactmath.exp10([-np.inf, -324]).tolist() == [0, 0]
    assert exactmath.exp(-745.1) == exactmath.exp10(-323.5) == 5e-324  # the smallest number there is
    with np.errstate(over="ignore"):
        assert exactmath.exp([709.8, 1e300, np.inf]).tolist() == [np.inf] * 3
        assert exactmath.exp10([308.3, np.inf]).tolist() == [np.inf] * 2
    assert exactmath.log(np.finfo(float).max) == pytest.approx(709.782712893384, rel=4e-16)
    assert exactmath.log(np.finfo(float).tiny) == pytest.approx(-708.3964185322641, rel=4e-16)


@pytest.mark.parametrize(
    ("function", "bad"),
    [
        (exactmath.sin_deg, 720.1),
        (exactmath.sincos_deg, [0.0, np.nan]),
        (exactmath.asin_deg, 1.0000000000000002),
        (exactmath.exp, np.nan),
        (exactmath.exp10, [np.nan, 1.0]),
        (exactmath.log, [1.0, 0.0]),
        (exactmath.log, -1.0),
        (exactmath.log, np.inf),
    ],
)
def test_arguments_out_of_range_are_refused(function, bad):
    with pytest.raises(ValueError, match="allowed are"):
        function(bad)


def test_shapes_and_blocks(rng):
    assert type(exactmath.sin_deg(10)) is float
    assert [type(x) for x in exactmath.sincos_deg(np.float64(10))] == [float, float]
    assert exactmath.log(np.ones((3, 0, 2))).shape == (3, 0, 2)
    x = rng.uniform(0.1, 0.9, (3, 2 * exactmath._BLOCK + 5))
    for function in (exactmath.sin_deg, exactmath.asin_deg, exactmath.exp, exactmath.exp10, exactmath.log):
        result = function(x.T)  # neither contiguous nor a multiple of the block
        assert result.shape == x.T.shape
        np.testing.assert_array_equal(result[::997, 1], function(x[1, ::997]))
        assert function(x[2, 7]) == result[7, 2]


def test_unit_vectors(rng):
    x, y, z = exactmath.unit_vectors([0, 90, 180, 270, 12], [0, 0, 0, 0, 90])
    np.testing.assert_array_equal(np.transpose([x, y, z]), [[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0], [0, 0, 1]])
    x, y, z = exactmath.unit_vectors(rng.uniform(0, 360, 1000), rng.uniform(-90, 90, 1000))
    np.testing.assert_allclose(x * x + y * y + z * z, 1, rtol=1e-15)
    assert exactmath.unit_vectors(45.0, 30.0) == pytest.approx((0.375**0.5, 0.375**0.5, 0.5), rel=4e-16)


def test_constants_are_exact_to_double_the_precision():
    pi = Fraction("3.14159265358979323846264338327950288419716939937511")
    ln2 = Fraction("0.69314718055994530941723212145817656807550013436026")
    ln10 = Fraction("2.30258509299404568401799145468436420760110148862877")
    for name, exact, bits in (
        ("_DEG", 180 / pi, 26),
        ("_RAD", pi / 180, 26),
        ("_LN10", ln10, 26),
        ("_LN2", ln2, 40),
        ("_LOG10_2", ln2 / ln10, 40),
    ):
        high, low = (Fraction(getattr(exactmath, f"{name}_{part}")) for part in ("HIGH", "LOW"))
        assert high.numerator < 2**bits
        assert abs(high + low - exact) < exact / 2 ** (53 + bits - 2)


def bits_of_all_functions():
    """sha256 of the results at 10^5 points that are the same everywhere."""
    k = np.arange(100_000.0)
    results = [
        *exactmath.sincos_deg(k * 0.0144 - 720),
        exactmath.asin_deg((k - 50_000) / 50_000),
        exactmath.exp(k * 0.0145 - 745),
        exactmath.exp10(k * 0.0063 - 323),
        exactmath.log((k + 1) * 1.25e-4),
        *exactmath.unit_vectors(k * 0.0036, k * 0.0018 - 90),
    ]
    digest = hashlib.sha256()
    for result in results:
        digest.update(result.astype("<f8").tobytes())
    return digest.hexdigest()


def test_bits_are_the_same_on_every_machine():
    assert bits_of_all_functions() == SHA256


def test_bits_do_not_depend_on_the_instruction_set():
    enabled = [name for name in __cpu_dispatch__ if __cpu_features__[name]]
    code = (
        "from numpy._core._multiarray_umath import __cpu_features__ as has; import test_exactmath\n"
        f"assert not any(has[name] for name in {enabled}), 'still enabled'\n"
        "print(test_exactmath.bits_of_all_functions())"
    )
    environment = os.environ | {
        "NPY_DISABLE_CPU_FEATURES": " ".join(enabled),
        # Where numpy leaves a function to the C library: this one changes np.sin, exp, log and arcsin on x86.
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX,-AVX2,-FMA,-FMA4",
        "PYTHONPATH": os.pathsep.join([str(SCRIPTS), str(Path(__file__).parent)]),
    }
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == SHA256
