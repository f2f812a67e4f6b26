"""Elementary functions whose float64 results have the same bits on every processor.

numpy picks its sin, exp, log, arcsin, ... by the instruction set it finds, and the versions differ in the last bit. The
functions here use only operations that IEEE 754 rounds in one way (+ - * / sqrt), exact ones (rint, comparisons,
copysign) and integers, in a fixed order and without fused multiply-add. The methods are those of fdlibm (Sun
Microsystems, 1993): reduce the argument exactly, carry the rounding error of the reduced argument along, add a
polynomial. The polynomials are minimax fits made for this module. The errors, compared with 80-bit arithmetic, are
below 1 unit in the last place.

All functions take a scalar, giving a float, or an array of any shape, giving an array of that shape. ValueError is
raised where an argument is nan or outside the range that a function is made for.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["asin_deg", "cos_deg", "exp", "exp10", "log", "sin_deg", "sincos_deg", "unit_vectors"]

FloatArray = NDArray[np.float64]

_BLOCK = 16384  # values worked on at a time, for the processor's cache; without influence on the results

# Constants as a sum high + low. The high parts have 26 bits (angles, ln 10) or 40 bits (the logarithms of 2), so that
# their product with a number of 26 bits, or with a whole number below 2**13, is exact.
_DEG_HIGH, _DEG_LOW = 57.29577922821045, 2.8487187165804814e-07  # 180 / pi
_RAD_HIGH, _RAD_LOW = 0.01745329238474369, 1.3519960527851425e-10  # pi / 180
_LN2_HIGH, _LN2_LOW = 0.6931471805592082, 7.371002565167799e-13
_LOG10_2_HIGH, _LOG10_2_LOW = 0.30102999566361177, 3.694239077158931e-13
_LN10_HIGH, _LN10_LOW = 2.3025850653648376, 2.7629208037533617e-08
_DEG, _RAD, _LN10 = 57.29577951308232, 0.017453292519943295, 2.302585092994046
_LOG2_E, _LOG2_10 = 1.4426950408889634, 3.321928094887362

# Coefficients, lowest power first. The comments say what is approximated, and the relative error of the function.
_SIN = (  # (sin t / t - 1) / z, z = t^2, |t| <= pi/4: 2^-58.0
    -0.16666666666666632,
    0.008333333333322425,
    -0.0001984126982981701,
    2.7557313695224646e-06,
    -2.505075864982753e-08,
    1.5896827574289002e-10,
)
_COS = (  # (cos t - 1 + z / 2) / z^2, z = t^2, |t| <= pi/4: 2^-64.2
    0.0416666666666666,
    -0.0013888888888874146,
    2.4801587289495974e-05,
    -2.755731435624532e-07,
    2.087572380126722e-09,
    -1.1359675154111236e-11,
)
_ASIN = (  # (asin s / s - 1) / w, w = s^2, 0 <= s <= 1/2: 2^-59.8
    0.16666666666666763,
    0.07499999999970262,
    0.044642857175119725,
    0.030381942683671784,
    0.02237221565877151,
    0.01735160011822132,
    0.013980961155337871,
    0.011397778218337595,
    0.010786517670549507,
    0.0036830808388894575,
    0.021763414036447513,
    -0.0210771839284461,
    0.03267682882292207,
)
_EXP = (  # (exp t - 1 - t) / t^2, |t| <= ln 2 / 2: 2^-57.9
    0.5000000000000012,
    0.16666666666666696,
    0.041666666666521864,
    0.008333333333308051,
    0.0013888888945571601,
    0.00019841269915767782,
    2.4801491262379313e-05,
    2.755721759909224e-06,
    2.763085570226901e-07,
    2.5117486102024012e-08,
)
_LOG = (  # (log((1 + s) / (1 - s)) / s - 2) / z, z = s^2, |s| <= 3 - 2 sqrt 2: 2^-58.5
    0.6666666666666734,
    0.39999999999414665,
    0.2857142874239001,
    0.2222219857301167,
    0.1818356433273752,
    0.15314050420415584,
    0.14795950803873323,
)

_MAX_FLOAT = float(np.finfo(np.float64).max)
_MIN_NORMAL = float(np.finfo(np.float64).tiny)
_BITS_SQRT_HALF = int(np.float64(0.7071067811865476).view(np.int64))
_LOW_27_BITS_CLEAR = np.int64(-1 << 27)


def sincos_deg(angle_deg: ArrayLike) -> tuple[FloatArray, FloatArray] | tuple[float, float]:
    """Sine and cosine of angles in degrees, |angle| <= 720; exact at multiples of 90 degrees.

    Parameters
    ----------
    angle_deg : float or array of any shape
        Angles in degrees.

    Returns
    -------
    sin, cos : float or arrays of the same shape
    """
    return _blockwise("sincos_deg", _sincos_deg, angle_deg, -720.0, 720.0, n_out=2)


def sin_deg(angle_deg: ArrayLike) -> FloatArray | float:
    """Sine of angles in degrees; see `sincos_deg`, which gives both for the price of one."""
    return sincos_deg(angle_deg)[0]


def cos_deg(angle_deg: ArrayLike) -> FloatArray | float:
    """Cosine of angles in degrees; see `sincos_deg`, which gives both for the price of one."""
    return sincos_deg(angle_deg)[1]


def asin_deg(z: ArrayLike) -> FloatArray | float:
    """Arc sine in degrees, [-90, 90], of numbers in [-1, 1]; exact at -1, 0 and 1."""
    return _blockwise("asin_deg", _asin_deg, z, -1.0, 1.0)


def exp(x: ArrayLike) -> FloatArray | float:
    """e to the power x; it becomes 0 below -745.1, and infinity (with numpy's warning) above 709.7."""
    return _blockwise("exp", _exp, x, -np.inf, np.inf)


def exp10(x: ArrayLike) -> FloatArray | float:
    """10 to the power x; it becomes 0 below -323.6, and infinity (with numpy's warning) above 308.2."""
    return _blockwise("exp10", _exp10, x, -np.inf, np.inf)


def log(x: ArrayLike) -> FloatArray | float:
    """Natural logarithm of positive normal numbers (2.3e-308 to 1.8e308)."""
    return _blockwise("log", _log, x, _MIN_NORMAL, _MAX_FLOAT)


def unit_vectors(ra_deg: ArrayLike, dec_deg: ArrayLike) -> tuple[FloatArray, ...] | tuple[float, ...]:
    """Cartesian unit vectors of positions on the sky.

    Parameters
    ----------
    ra_deg, dec_deg : float or arrays of one shape
        Positions in degrees.

    Returns
    -------
    x, y, z : float or arrays of that shape
        x points to (RA 0, Dec 0), y to (RA 90, Dec 0), z to the north pole.
    """
    sin_ra, cos_ra = sincos_deg(ra_deg)
    sin_dec, cos_dec = sincos_deg(dec_deg)
    return cos_dec * cos_ra, cos_dec * sin_ra, sin_dec


def _blockwise(name: str, kernel: Callable, x: ArrayLike, low: float, high: float, n_out: int = 1) -> Any:
    """Apply a kernel of 1-d arrays to x block by block, after a check that every value is in [low, high]."""
    x = np.asarray(x, dtype=np.float64)
    flat = x.reshape(-1)
    if flat.size:
        x_min, x_max = flat.min(), flat.max()
        if not (x_min >= low and x_max <= high):  # also if one is nan
            raise ValueError(
                f"{name}: found values from {x_min!s} to {x_max!s}; allowed are {low!s} to {high!s}, and no nan"
            )
    results = [np.empty(x.shape) for _ in range(n_out)]
    for start in range(0, flat.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        for result, values in zip(results, kernel(flat[block]), strict=True):
            result.reshape(-1)[block] = values
    if x.ndim == 0:
        results = [float(result) for result in results]
    return tuple(results) if n_out > 1 else results[0]


def _polynomial(coefficients: tuple[float, ...], z: FloatArray) -> FloatArray:
    """Horner's scheme, in place."""
    p = coefficients[-1] * z
    for coefficient in coefficients[-2:0:-1]:
        p += coefficient
        p *= z
    p += coefficients[0]
    return p


def _leading_26_bits(x: FloatArray) -> FloatArray:
    return (x.view(np.int64) & _LOW_27_BITS_CLEAR).view(np.float64)


def _times(x: FloatArray, high: float, low: float, both: float) -> tuple[FloatArray, FloatArray]:
    """x * (high + low) as an exact product and a small correction to it."""
    x_high = _leading_26_bits(x)
    correction = x - x_high
    correction *= both
    x_low = x_high * low
    correction += x_low
    x_high *= high
    return x_high, correction


def _sincos_deg(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    quarter = x / 90.0
    np.rint(quarter, out=quarter)
    rest = quarter * -90.0
    rest += x  # exact; |rest| <= 45
    high, low = _times(rest, _RAD_HIGH, _RAD_LOW, _RAD)
    t = high + low  # radians; t + low is the angle to more than float64
    high -= t
    low += high
    z = t * t

    # cos(t + low) = 1 - z/2 + (z^2 C(z) - t low), where (w - 1 + z/2) is the rounding error of w = 1 - z/2.
    half_z = 0.5 * z
    w = 1.0 - half_z
    cos = 1.0 - w
    cos -= half_z
    p = _polynomial(_COS, z)
    p *= z
    p *= z
    cos += p
    cos -= t * low
    cos += w

    # sin(t + low) = t + (t z S(z) + low (1 - z/2))
    sin = _polynomial(_SIN, z)
    sin *= z
    sin *= t
    low *= w
    sin += low
    sin += t

    # Turn by quarter * 90 degrees; adding 0 makes 0 of -0.
    turn = quarter.astype(np.int64)
    is_odd = (turn & 1).astype(bool)
    turned_sin = np.where(is_odd, cos, sin)
    turned_cos = np.where(is_odd, sin, cos)
    turned_sin *= 1 - (turn & 2)
    turned_cos *= 1 - ((turn + 1) & 2)
    turned_sin += 0.0
    turned_cos += 0.0
    return turned_sin, turned_cos


def _asin_deg(z: FloatArray) -> tuple[FloatArray]:
    # Up to 1/2: the series of asin(s) in w = s^2 with s = |z|. Above: 90 - 2 asin(s) with w = s^2 = (1 - |z|) / 2.
    s = np.abs(z)
    is_large = s > 0.5
    w = np.where(is_large, 0.5 - 0.5 * s, s * s)
    root = np.sqrt(w)
    s = np.where(is_large, root, s)
    p = _polynomial(_ASIN, w)
    p *= w
    p *= s
    p *= _DEG
    high, low = _times(s, _DEG_HIGH, _DEG_LOW, _DEG)
    # For large |z|, the rounding error of the square root: (w - s^2) / 2s, s^2 = s_high^2 + (s - s_high) (s + s_high).
    s_high = _leading_26_bits(s)
    error = w - s_high * s_high  # exact
    error -= (s - s_high) * (s + s_high)
    error /= np.maximum(s, _MIN_NORMAL)
    error *= 0.5 * _DEG
    low += p
    small = high + low

    # 90 - 2 (high + low + error), with the rounding error of 90 - 2 high carried along
    low += error
    low *= -2.0
    high *= 2.0
    large = 90.0 - high
    low += (90.0 - large) - high
    large += low
    return (np.copysign(np.where(is_large, large, small), z),)


def _exp(x: FloatArray) -> tuple[FloatArray]:
    x = np.clip(x, -746.0, 710.0)
    k = np.rint(x * _LOG2_E)
    high = k * -_LN2_HIGH
    high += x  # exact
    return (_exp_sum_times_power_of_2(high, k * -_LN2_LOW, k),)


def _exp10(x: FloatArray) -> tuple[FloatArray]:
    x = np.clip(x, -324.0, 309.0)
    k = np.rint(x * _LOG2_10)
    rest = k * -_LOG10_2_HIGH
    rest += x  # exact
    high, low = _times(rest, _LN10_HIGH, _LN10_LOW, _LN10)
    low -= k * (_LOG10_2_LOW * _LN10)
    return (_exp_sum_times_power_of_2(high, low, k),)


def _exp_sum_times_power_of_2(high: FloatArray, low: FloatArray, k: FloatArray) -> FloatArray:
    """exp(high + low) * 2**k with |high + low| <= ln 2 / 2."""
    t = high + low
    result = _polynomial(_EXP, t)
    result *= t
    result *= t
    result += low
    result += high
    result += 1.0
    # In two steps, because 2**k may be no normal number where the result is one.
    power = k.astype(np.int64)
    half = power >> 1
    power -= half
    result *= _power_of_2(half)
    result *= _power_of_2(power)
    return result


def _power_of_2(k: NDArray[np.int64]) -> FloatArray:
    return ((k + 1023) << 52).view(np.float64)


def _log(x: FloatArray) -> tuple[FloatArray]:
    # x = 2**k (1 + f) with 1 + f in [sqrt(1/2), sqrt 2), from the bits of x.
    bits = x.view(np.int64)
    power = (bits - _BITS_SQRT_HALF) >> 52
    f = (bits - (power << 52)).view(np.float64)
    f -= 1.0  # exact
    k = power.astype(np.float64)
    # log(1 + f) = f - (f^2 / 2 - s (f^2 / 2 + R)), s = f / (2 + f), R = s^2 L(s^2)
    s = f / (f + 2.0)
    z = s * s
    r = _polynomial(_LOG, z)
    r *= z
    half_square = f * f
    half_square *= 0.5
    r += half_square
    r *= s
    r += k * _LN2_LOW
    r -= half_square
    r += f
    k *= _LN2_HIGH  # exact
    r += k
    return (r,)
