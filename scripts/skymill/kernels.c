/* The few loops that numpy cannot do well: rows of numbers as text, and rows of text that are moved.
 *
 * Compiled by kernels.py when it is first needed, with any C compiler, for any little-endian processor. Only integers are
 * computed with, so that the text is the same wherever and however it is compiled; textfile.py can do without, only slower.
 */
#include <stdint.h>
#include <string.h>

typedef unsigned __int128 uint128_t;

/* A column: its values, and what is written for them. The kinds are those of kernels.py. */
typedef struct {
    int64_t kind;
    const void *values;
    const uint8_t *null;      /* NULL, or 1 where the value is NULL */
    const char *texts;        /* of strings: all texts, one behind the other */
    const int64_t *text_ends; /* of strings: where each text ends */
} column_t;

enum { I1, I2, I4, I8, U1, U2, U4, U8, F4, F8, STRING };

/* Set by tests: whatever the processor, do as on one without vector instructions. */
int plain_only = 0;

/* A field is put together in a slot, its separator included. Longer strings stay where they are. */
#define SLOT 32
#define ELSEWHERE 255
/* Slots that are worked on at a time: small enough for the second cache. */
#define BLOCK_SLOTS 8192

#define ASCII_ZEROS 0x3030303030303030u

static inline void put8(char *to, uint64_t eight) { memcpy(to, &eight, 8); }

/* The 8 decimal digits of a number below 10^8, one a byte, the first one lowest. */
static inline uint64_t digits8(uint32_t number) {
    uint64_t x = number / 10000u;
    x |= (uint64_t)(number - 10000u * (uint32_t)x) << 32;
    uint64_t high = ((x * 5243u) >> 19) & 0x0000007f0000007fu;
    x = high | ((x - high * 100u) << 16);
    high = ((x * 103u) >> 10) & 0x000f000f000f000fu;
    return high | ((x - high * 10u) << 8);
}

/* How many of 8 digits are left without zeros at their end. */
static inline int used_digits(uint64_t digits) { return digits ? 8 - (__builtin_clzll(digits) >> 3) : 0; }

static inline int put_unsigned(char *to, uint64_t number) {
    int length = 0;
    uint32_t last = 0;
    uint64_t rest = number;
    if (number >= 10000000000000000u) {
        uint64_t top = number / 10000000000000000u; /* below 1845 */
        uint64_t digits = digits8((uint32_t)top);
        int zeros = __builtin_ctzll(digits) >> 3;
        put8(to, (digits | ASCII_ZEROS) >> (8 * zeros));
        length = 8 - zeros;
        rest = number - top * 10000000000000000u;
        put8(to + length, digits8((uint32_t)(rest / 100000000u)) | ASCII_ZEROS);
        length += 8;
        last = (uint32_t)(rest % 100000000u);
        put8(to + length, digits8(last) | ASCII_ZEROS);
        return length + 8;
    }
    if (number >= 100000000u) {
        uint64_t digits = digits8((uint32_t)(number / 100000000u));
        int zeros = __builtin_ctzll(digits) >> 3;
        put8(to, (digits | ASCII_ZEROS) >> (8 * zeros));
        length = 8 - zeros;
        put8(to + length, digits8((uint32_t)(number % 100000000u)) | ASCII_ZEROS);
        return length + 8;
    }
    uint64_t digits = digits8((uint32_t)number);
    int zeros = number ? __builtin_ctzll(digits) >> 3 : 7;
    put8(to, (digits | ASCII_ZEROS) >> (8 * zeros));
    return 8 - zeros;
}

static inline int put_signed(char *to, int64_t number) {
    *to = '-';
    int negative = number < 0;
    return negative + put_unsigned(to + negative, negative ? 0 - (uint64_t)number : (uint64_t)number);
}

static int put_scientific(char *to, int length, int exponent) {
    to[length++] = 'e';
    to[length++] = exponent < 0 ? '-' : '+';
    return length + put_unsigned(to + length, exponent < 0 ? -exponent : exponent);
}

/* The shortest decimal number that reads back exactly, and of those the nearest: Schubfach (Raffaele Giulietti, The Schubfach
 * way to render doubles, 2021). `powers` holds floor(10^k 2^-r) + 1, scaled to 64 bits for FLOAT and to 128 for DOUBLE. */

static inline int floor_log10_of_power_of_2(int exponent) { return (exponent * 1262611) >> 22; }
static inline int floor_log10_of_three_quarters(int exponent) { return (exponent * 1262611 - 524031) >> 22; }
static inline int floor_log2_of_power_of_10(int exponent) { return (exponent * 1741647) >> 19; }

static inline uint32_t round_to_odd_4(uint64_t power, uint32_t number) {
    uint64_t product = (uint64_t)(((uint128_t)power * number) >> 32);
    return (uint32_t)(product >> 32) | ((uint32_t)product > 1);
}

static inline uint64_t round_to_odd_8(uint64_t high, uint64_t low, uint64_t number) {
    uint128_t product = (uint128_t)high * number + (uint64_t)(((uint128_t)low * number) >> 64);
    return (uint64_t)(product >> 64) | ((uint64_t)product > 1);
}

#define MIN_POWER_4 (-31)
#define MIN_POWER_8 (-292)

static const uint32_t POWERS_OF_10[] = {1, 10, 100, 1000, 10000, 100000, 1000000, 10000000, 100000000, 1000000000};

static inline int count_digits_4(uint32_t number) {
    int guess = ((32 - __builtin_clz(number)) * 1233) >> 12;
    return guess + (number >= POWERS_OF_10[guess]);
}

static int put_float(char *to, uint32_t bits, const uint64_t *powers) {
    uint32_t fraction = bits & 0x7fffffu;
    int exponent = (bits >> 23) & 0xff;
    int sign = bits >> 31;
    *to = '-';
    to += sign;
    if (exponent == 0 && fraction == 0) {
        memcpy(to, "0.0", 4);
        return sign + 3;
    }
    uint32_t significand = exponent ? fraction | 0x800000u : fraction;
    int power_of_2 = exponent ? exponent - 150 : -149;
    int narrow = fraction == 0 && exponent > 1;
    uint32_t odd = significand & 1;
    int power = narrow ? floor_log10_of_three_quarters(power_of_2) : floor_log10_of_power_of_2(power_of_2);
    int shift = power_of_2 + floor_log2_of_power_of_10(-power) + 1;
    uint64_t scale = powers[-power - MIN_POWER_4];
    uint32_t middle = round_to_odd_4(scale, (4 * significand) << shift);
    uint32_t lower = round_to_odd_4(scale, (4 * significand - 2 + narrow) << shift) + odd;
    uint32_t upper = round_to_odd_4(scale, (4 * significand + 2) << shift) - odd;
    uint32_t number = middle >> 2;
    uint32_t tenth = number / 10;
    int below_fits = lower <= 40 * tenth;
    int above_fits = 40 * tenth + 40 <= upper;
    if (number >= 10 && below_fits != above_fits) {
        number = tenth + above_fits;
        power++;
    } else {
        below_fits = lower <= 4 * number;
        above_fits = 4 * number + 4 <= upper;
        uint32_t half = 4 * number + 2;
        int nearer = middle > half || (middle == half && (number & 1));
        number += below_fits != above_fits ? above_fits : nearer;
    }
    int count = count_digits_4(number);
    int first = power + count - 1; /* the power of 10 of the first digit */
    number *= POWERS_OF_10[9 - count];
    uint32_t leading = number / 100000000u;
    uint64_t digits = digits8(number - leading * 100000000u);
    count = 1 + used_digits(digits);
    digits |= ASCII_ZEROS;
    if (first < 0 && first >= -6) {
        memcpy(to, "0.000000", 8);
        char *at = to + 1 - first;
        *at = (char)('0' + leading);
        put8(at + 1, digits);
        return sign + 1 - first + count;
    }
    *to = (char)('0' + leading);
    if (first >= 0 && first <= 12) {
        put8(to + 1, digits);
        if (count > first + 1) {
            to[first + 1] = '.';
            put8(to + first + 2, digits >> (8 * first));
            return sign + count + 1;
        }
        put8(to + 9, ASCII_ZEROS);
        to[first + 1] = '.';
        to[first + 2] = '0';
        return sign + first + 3;
    }
    to[1] = '.';
    put8(to + 2, digits);
    return sign + put_scientific(to, count > 1 ? count + 1 : 1, first);
}

static int put_double(char *to, uint64_t bits, const uint64_t *powers) {
    uint64_t fraction = bits & 0xfffffffffffffu;
    int exponent = (bits >> 52) & 0x7ff;
    int sign = (int)(bits >> 63);
    *to = '-';
    to += sign;
    if (exponent == 0 && fraction == 0) {
        memcpy(to, "0.0", 4);
        return sign + 3;
    }
    uint64_t significand = exponent ? fraction | 0x10000000000000u : fraction;
    int power_of_2 = exponent ? exponent - 1075 : -1074;
    int narrow = fraction == 0 && exponent > 1;
    uint64_t odd = significand & 1;
    int power = narrow ? floor_log10_of_three_quarters(power_of_2) : floor_log10_of_power_of_2(power_of_2);
    int shift = power_of_2 + floor_log2_of_power_of_10(-power) + 1;
    const uint64_t *scale = powers + 2 * (-power - MIN_POWER_8);
    uint64_t middle = round_to_odd_8(scale[0], scale[1], (4 * significand) << shift);
    uint64_t lower = round_to_odd_8(scale[0], scale[1], (4 * significand - 2 + narrow) << shift) + odd;
    uint64_t upper = round_to_odd_8(scale[0], scale[1], (4 * significand + 2) << shift) - odd;
    uint64_t number = middle >> 2;
    uint64_t tenth = number / 10;
    /* Masks, since it is a matter of chance which way it goes. */
    uint64_t above_fits = 40 * tenth + 40 <= upper;
    uint64_t is_tens = -(uint64_t)((lower <= 40 * tenth) != above_fits);
    uint64_t by_tens = 10 * (tenth + above_fits);
    above_fits = 4 * number + 4 <= upper;
    uint64_t is_clear = -(uint64_t)((lower <= 4 * number) != above_fits);
    uint64_t nearer = middle > 4 * number + 2 - (number & 1);
    number += (above_fits & is_clear) | (nearer & ~is_clear);
    number = (by_tens & is_tens) | (number & ~is_tens);
    /* To 17 digits, of which the first is not 0. */
    int first = power + 16;
    if (__builtin_expect(number < 1000000000000000u, 0)) {
        while (number < 1000000000000000u) {
            number *= 10;
            first--;
        }
    }
    uint64_t is_short = -(uint64_t)(number < 10000000000000000u);
    number += 9 * number & is_short;
    first += (int)is_short;
    uint64_t leading = number / 10000000000000000u;
    number -= leading * 10000000000000000u;
    uint32_t upper8 = (uint32_t)(number / 100000000u);
    uint64_t digits = digits8(upper8), more = digits8((uint32_t)(number - upper8 * (uint64_t)100000000u));
    int count = more ? 9 + used_digits(more) : 1 + used_digits(digits);
    digits |= ASCII_ZEROS;
    more |= ASCII_ZEROS;
    if (first < 0 && first >= -5) {
        memcpy(to, "0.000000", 8);
        char *at = to + 1 - first;
        *at = (char)('0' + leading);
        put8(at + 1, digits);
        put8(at + 9, more);
        return sign + 1 - first + count;
    }
    *to = (char)('0' + leading);
    put8(to + 1, digits);
    put8(to + 9, more);
    if (first >= 0 && first <= 15) {
        if (count > first + 1) {
            if (first < 8) {
                put8(to + first + 2, first ? (digits >> (8 * first)) | (more << (64 - 8 * first)) : digits);
                put8(to + first + 10, more >> (8 * first));
            } else {
                put8(to + first + 2, more >> (8 * (first - 8)));
            }
            to[first + 1] = '.';
            return sign + count + 1;
        }
        to[first + 1] = '.';
        to[first + 2] = '0';
        return sign + first + 3;
    }
    to[1] = '.';
    put8(to + 2, digits);
    put8(to + 10, more);
    return sign + put_scientific(to, count > 1 ? count + 1 : 1, first);
}

/* FLOAT, many at a time: the same steps without a branch, in loops that the compiler turns into vector instructions. What is
 * rare (zeros, powers of 2, tiny, huge and long numbers) is left to put_float. The digits are put in their places by one shuffle. */
#if defined(__x86_64__)
#include <immintrin.h>
#define BATCH 64
#define MIN_FIRST (-6)
#define NUM_FIRST 19

/* Where the bytes of a text come from: 0 to 7 are the digits behind the leading one, which is 8; then 0 . - and the separator. */
static uint8_t shuffles[2 * NUM_FIRST * 9][16];
static uint8_t shuffle_lengths[2 * NUM_FIRST * 9]; /* 0: too long */
static uint64_t scale_of_exponent[256];
static uint64_t shift_of_exponent[256];
static uint64_t first_of_exponent[256];
static int tables_are_filled = 0;

static void fill_tables(const uint64_t *powers) {
    for (int exponent = 1; exponent < 255; exponent++) {
        int power = floor_log10_of_power_of_2(exponent - 150);
        scale_of_exponent[exponent] = powers[-power - MIN_POWER_4];
        shift_of_exponent[exponent] = exponent - 150 + floor_log2_of_power_of_10(-power) + 1;
        first_of_exponent[exponent] = (uint64_t)(power + 6 - MIN_FIRST);
    }
    for (int sign = 0; sign < 2; sign++)
        for (int first = 0; first < NUM_FIRST; first++)
            for (int count = 1; count <= 9; count++) {
                int row = (sign * NUM_FIRST + first) * 9 + count - 1, at = 0, power = first + MIN_FIRST;
                uint8_t text[32];
                if (sign) text[at++] = 11;
                for (int i = power < 0 ? power : 0; i < count || i <= power; i++) {
                    text[at++] = i < 0 || i >= count ? 9 : i == 0 ? 8 : i - 1;
                    if (i == power) text[at++] = 10;
                }
                if (power >= count - 1) text[at++] = 9;
                text[at++] = 12;
                for (int i = 0; i < 16; i++) shuffles[row][i] = i < at ? text[i] : 12;
                shuffle_lengths[row] = at <= 16 ? at : 0;
            }
    tables_are_filled = 1;
}

typedef struct {
    uint64_t digits[BATCH];  /* the digits behind the leading one, one a byte */
    uint64_t leading[BATCH]; /* the leading digit */
    uint64_t first[BATCH];   /* the power of 10 of the leading digit, from MIN_FIRST; large if put_float must do it */
} decimals_t;

typedef uint64_t lanes_t __attribute__((vector_size(32)));
typedef int64_t signed_lanes_t __attribute__((vector_size(32)));

/* The product of the lower halves. */
#define TIMES(a, b) ((lanes_t)_mm256_mul_epu32((__m256i)(a), (__m256i)(b)))
#define ALL(x) ((lanes_t){x, x, x, x})
/* All bits of a lane where it holds; numbers are below 2^63. */
#define LESS(a, b) ((lanes_t)((signed_lanes_t)(a) < (signed_lanes_t)(b)))
#define CHOOSE(mask, a, b) (((mask) & (a)) | (~(mask) & (b)))

__attribute__((target("avx2"))) static inline lanes_t round_to_odd_lanes(lanes_t high, lanes_t low, lanes_t number) {
    lanes_t product = TIMES(high, number) + (TIMES(low, number) >> 32);
    return (product >> 32) | (LESS(ALL(1), product & 0xffffffff) & 1);
}

__attribute__((target("avx2"))) static void find_decimals(const uint32_t *floats, int64_t count, decimals_t *out) {
    for (int64_t i = 0; i < count; i += 4) {
        lanes_t bits = {floats[i], floats[i + 1], floats[i + 2], floats[i + 3]};
        lanes_t exponent = (bits >> 23) & 0xff, fraction = bits & 0x7fffff;
        lanes_t significand = (fraction | 0x800000) << 2, odd = fraction & 1;
        lanes_t scale, shift, first;
        for (int k = 0; k < 4; k++) {
            scale[k] = scale_of_exponent[exponent[k]];
            shift[k] = shift_of_exponent[exponent[k]];
            first[k] = first_of_exponent[exponent[k]];
        }
        lanes_t high = scale >> 32;
        lanes_t middle = round_to_odd_lanes(high, scale, significand << shift);
        lanes_t lower = round_to_odd_lanes(high, scale, (significand - 2) << shift) + odd;
        lanes_t upper = round_to_odd_lanes(high, scale, (significand + 2) << shift) - odd;
        lanes_t number = middle >> 2;
        lanes_t tenth = TIMES(number, ALL(3435973837u)) >> 35;
        lanes_t forty = (tenth << 5) + (tenth << 3);
        lanes_t outside = LESS(forty, lower), above_fits = ~LESS(upper, forty + 40);
        lanes_t is_tens = ~(outside ^ above_fits); /* just one of the neighbours with a digit less is near enough */
        lanes_t by_tens = (tenth << 3) + (tenth << 1) + (above_fits & 10);
        lanes_t four = number << 2;
        outside = LESS(four, lower), above_fits = ~LESS(upper, four + 4);
        lanes_t nearer = LESS(four + 2 - (number & 1), middle);
        lanes_t up = CHOOSE(outside ^ above_fits, nearer, above_fits);
        number = CHOOSE(is_tens, by_tens, number - up);
        /* 7 to 9 digits: to 9. */
        lanes_t has_8 = LESS(ALL(9999999), number), has_9 = LESS(ALL(99999999), number);
        lanes_t times_10 = (number << 3) + (number << 1), times_100 = (times_10 << 3) + (times_10 << 1);
        number = CHOOSE(has_9, number, CHOOSE(has_8, times_10, times_100));
        lanes_t leading = TIMES(number, ALL(1441151881u)) >> 57;
        number -= TIMES(leading, ALL(100000000u));
        lanes_t upper4 = TIMES(number, ALL(3518437209u)) >> 45;
        lanes_t lower4 = number - TIMES(upper4, ALL(10000u));
        lanes_t hundreds = (TIMES(upper4, ALL(5243u)) >> 19) | ((TIMES(lower4, ALL(5243u)) >> 19) << 32);
        lanes_t x = upper4 | (lower4 << 32);
        x = hundreds | ((x - ((hundreds << 6) + (hundreds << 5) + (hundreds << 2))) << 16);
        lanes_t tens = (((x << 6) + (x << 5) + (x << 2) + (x << 1) + x) >> 10) & 0x000f000f000f000fu;
        x = tens | ((x - ((tens << 3) + (tens << 1))) << 8);
        lanes_t rare = (lanes_t)(((signed_lanes_t)fraction == 0) | ((signed_lanes_t)exponent == 0));
        memcpy(out->digits + i, &x, 32);
        memcpy(out->leading + i, &leading, 32);
        first = (first - has_8 - has_9) | rare;
        memcpy(out->first + i, &first, 32);
    }
}

__attribute__((target("avx2"))) static void fill_floats(const uint32_t *floats, int64_t rows, int64_t columns, char end,
                                                         char *slot, uint8_t *length, const uint64_t *powers) {
    decimals_t found;
    uint32_t padded[BATCH] = {0};
    for (int64_t start = 0; start < rows; start += BATCH) {
        int64_t count = rows - start < BATCH ? rows - start : BATCH;
        memcpy(padded, floats + start, 4 * count); /* four at a time may be more than there are */
        find_decimals(padded, count, &found);
        for (int64_t i = 0; i < count; i++, slot += SLOT * columns, length += columns) {
            uint32_t bits = floats[start + i];
            uint64_t digits = found.digits[i], first = found.first[i];
            uint64_t row = ((bits >> 31) * NUM_FIRST + first) * 9 + used_digits(digits);
            if (__builtin_expect(first < NUM_FIRST && shuffle_lengths[row], 1)) {
                uint64_t rest = (found.leading[i] | 0x2d2e3030u) | (uint64_t)(uint8_t)end << 32;
                __m128i bytes = _mm_set_epi64x((int64_t)rest, (int64_t)(digits | ASCII_ZEROS));
                bytes = _mm_shuffle_epi8(bytes, _mm_loadu_si128((const __m128i *)shuffles[row]));
                _mm_storeu_si128((__m128i *)slot, bytes);
                *length = shuffle_lengths[row];
            } else {
                int used = put_float(slot, bits, powers);
                slot[used] = end;
                *length = (uint8_t)(used + 1);
            }
        }
    }
}
#endif

/* Fill the slots of a column for some rows; slots of a row lie side by side. */
#define FILL(type, put)                                                                  \
    for (int64_t i = 0; i < rows; i++, slot += SLOT * columns, length += columns) {      \
        int used = put;                                                                  \
        slot[used] = end;                                                                \
        *length = (uint8_t)(used + 1);                                                   \
    }                                                                                    \
    break;
static const int64_t SIZES[] = {1, 2, 4, 8, 1, 2, 4, 8, 4, 8, 4};
#define VALUE(type) (((const type *)column->values)[first + i])

static void fill_slots(const column_t *column, int64_t first, int64_t rows, int64_t columns, char end, char *slot,
                       uint8_t *length, const uint64_t *powers_4, const uint64_t *powers_8, int fast) {
    char *first_slot = slot;
    uint8_t *first_length = length;
    /* The values of the next rows: far too many streams for the processor to see by itself. */
    const char *next = (const char *)column->values + SIZES[column->kind] * (first + rows);
    for (int64_t at = 0; at < SIZES[column->kind] * rows; at += 64) __builtin_prefetch(next + at);
    switch (column->kind) {
    case I1: FILL(int8_t, put_signed(slot, VALUE(int8_t)))
    case I2: FILL(int16_t, put_signed(slot, VALUE(int16_t)))
    case I4: FILL(int32_t, put_signed(slot, VALUE(int32_t)))
    case I8: FILL(int64_t, put_signed(slot, VALUE(int64_t)))
    case U1: FILL(uint8_t, put_unsigned(slot, VALUE(uint8_t)))
    case U2: FILL(uint16_t, put_unsigned(slot, VALUE(uint16_t)))
    case U4: FILL(uint32_t, put_unsigned(slot, VALUE(uint32_t)))
    case U8: FILL(uint64_t, put_unsigned(slot, VALUE(uint64_t)))
    case F4:
#if defined(__x86_64__)
        if (fast) {
            fill_floats((const uint32_t *)column->values + first, rows, columns, end, slot, length, powers_4);
            break;
        }
#endif
        FILL(float, put_float(slot, VALUE(uint32_t), powers_4))
    case F8: FILL(double, put_double(slot, VALUE(uint64_t), powers_8))
    default:
        for (int64_t i = 0; i < rows; i++, slot += SLOT * columns, length += columns) {
            int32_t code = VALUE(int32_t);
            int64_t start = code > 0 ? column->text_ends[code - 1] : 0;
            int64_t size = code < 0 ? 2 : column->text_ends[code] - start;
            const char *text = code < 0 ? "\\N" : column->texts + start;
            if (size < SLOT) {
                memcpy(slot, text, size);
                slot[size] = end;
                *length = (uint8_t)(size + 1);
            } else {
                memcpy(slot, &text, 8);
                memcpy(slot + 8, &size, 8);
                slot[16] = end;
                *length = ELSEWHERE;
            }
        }
    }
    if (column->null)
        for (int64_t i = 0; i < rows; i++)
            if (column->null[first + i]) {
                char *at = first_slot + SLOT * columns * i;
                at[0] = '\\';
                at[1] = 'N';
                at[2] = end;
                first_length[columns * i] = 3;
            }
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_NEWER_PROCESSORS __attribute__((target_clones("avx2", "default")))
#else
#define FOR_NEWER_PROCESSORS
#endif

/* Put the fields of rows behind each other; returns where the text ends. Writes up to SLOT bytes more. */
FOR_NEWER_PROCESSORS static char *join_slots(char *to, const char *out, const char *slot, const uint8_t *length,
                                             int64_t rows, int64_t columns, int64_t *ends) {
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t c = 0; c < columns; c++, slot += SLOT, length++) {
            if (__builtin_expect(*length != ELSEWHERE, 1)) {
                memcpy(to, slot, SLOT);
                to += *length;
            } else {
                const char *text;
                int64_t size;
                memcpy(&text, slot, 8);
                memcpy(&size, slot + 8, 8);
                memcpy(to, text, size);
                to[size] = slot[16];
                to += size + 1;
            }
        }
        ends[i] = to - out;
    }
    return to;
}

/* Write rows of columns as text, from row `first` on, until there are `rows` or the next ones might not fit; returns how many.
 * A row has at most `row_bytes`; `out` holds `size` bytes, at least two rows and SLOT. `ends` gets the offset behind each row. */
int64_t format_rows(const column_t *columns, int64_t num_columns, int64_t first, int64_t rows, int64_t row_bytes, char *out,
                    int64_t size, int64_t *ends, const uint64_t *powers_4, const uint64_t *powers_8) {
    static _Thread_local char slots[BLOCK_SLOTS * SLOT];
    static _Thread_local uint8_t lengths[BLOCK_SLOTS];
    int fast = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    fast = !plain_only && __builtin_cpu_supports("avx2");
    if (fast && !tables_are_filled) fill_tables(powers_4);
#endif
    if (num_columns > BLOCK_SLOTS) return -1;
    char *to = out;
    int64_t done = 0;
    while (done < rows) {
        int64_t count = BLOCK_SLOTS / num_columns, fit = (size - SLOT - (to - out)) / row_bytes;
        if (count > rows - done) count = rows - done;
        if (count > fit) {
            if (done) break;
            count = fit;
        }
        if (count <= 0) return -1;
        for (int64_t c = 0; c < num_columns; c++)
            fill_slots(columns + c, first + done, count, num_columns, c + 1 < num_columns ? '\t' : '\n', slots + SLOT * c,
                       lengths + c, powers_4, powers_8, fast);
        to = join_slots(to, out, slots, lengths, count, num_columns, ends + done);
        done += count;
    }
    return done;
}

/* A part of each row: where it begins, from an address, and how many bytes it has. */
typedef struct {
    const char *base;
    const int64_t *starts;
    const int64_t *lengths;
} part_t;

/* Join the parts of each row, one behind the other, and the rows; returns the bytes. */
int64_t join_parts(const part_t *parts, int64_t num_parts, int64_t rows, char *out) {
    char *to = out;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t p = 0; p < num_parts; p++) {
            int64_t size = parts[p].lengths[i];
            memcpy(to, parts[p].base + parts[p].starts[i], (size_t)size);
            to += size;
        }
    return to - out;
}

/* Offsets of the bytes that are one of two values, ascending, each plus `base`; returns how many. `out` must hold 8 more. */
FOR_NEWER_PROCESSORS int64_t find_bytes(const uint8_t *data, int64_t size, int64_t one, int64_t other, int64_t base,
                                        int64_t *out) {
    int64_t *to = out, at = 0;
#if defined(__x86_64__)
    __m128i first = _mm_set1_epi8((char)one), second = _mm_set1_epi8((char)other);
    for (; at + 64 <= size; at += 64) {
        uint64_t found = 0;
        for (int i = 0; i < 4; i++) {
            __m128i bytes = _mm_loadu_si128((const __m128i *)(data + at + 16 * i));
            bytes = _mm_or_si128(_mm_cmpeq_epi8(bytes, first), _mm_cmpeq_epi8(bytes, second));
            found |= (uint64_t)(uint32_t)_mm_movemask_epi8(bytes) << (16 * i);
        }
        int64_t *next = to + __builtin_popcountll(found);
        /* Eight at a time, whether or not there are so many: a loop that ends somewhere costs more. */
        while (found) {
            for (int i = 0; i < 8; i++) {
                to[i] = base + at + (found ? __builtin_ctzll(found) : 0);
                found &= found - 1;
            }
            to += 8;
        }
        to = next;
    }
#endif
    for (; at < size; at++) {
        *to = base + at;
        to += data[at] == one || data[at] == other;
    }
    return to - out;
}

/* Uniform random numbers, the same as numpy draws and scales, straight into their place. What follows is numpy's state of the
 * generator PCG64-DXSM (numpy/random/src/pcg64/pcg64.h, O'Neill 2014), which goes on from here to there and back; kernels.py
 * looks whether numpy still has it so. */
typedef struct {
    uint128_t state;
    uint128_t increment;
} pcg_t;

typedef struct {
    pcg_t *pcg;
    int has_half; /* whether the higher half of the last word has not been used yet */
    uint32_t half;
} pcg_state_t;

static inline uint64_t next_word(uint128_t *state, uint128_t increment) {
    uint64_t high = (uint64_t)(*state >> 64), low = (uint64_t)*state | 1;
    high ^= high >> 32;
    high *= 0xda942042e4dd58b5u;
    high ^= high >> 48;
    high *= low;
    *state = *state * 0xda942042e4dd58b5u + increment;
    return high;
}

static inline float as_float(uint32_t word, float width, float low) {
    float drawn = (float)(int32_t)(word >> 8) * 0x1p-24f;
    drawn *= width;
    drawn += low;
    return drawn;
}

/* `generator` points to numpy's bitgen_t, whose first member is the state. */
void fill_floats_uniform(void *const *generator, int64_t count, double width, double low, float *out) {
    pcg_state_t *random = *generator;
    uint128_t state = random->pcg->state, increment = random->pcg->increment;
    float width_4 = (float)width, low_4 = (float)low;
    int64_t i = 0;
    if (random->has_half && count) {
        out[i++] = as_float(random->half, width_4, low_4);
        random->has_half = 0;
    }
    uint64_t word = (uint64_t)random->half << 32;
    for (; i + 2 <= count; i += 2) {
        word = next_word(&state, increment);
        out[i] = as_float((uint32_t)word, width_4, low_4);
        out[i + 1] = as_float((uint32_t)(word >> 32), width_4, low_4);
    }
    if (i < count) {
        word = next_word(&state, increment);
        out[i] = as_float((uint32_t)word, width_4, low_4);
        random->has_half = 1;
    }
    random->half = (uint32_t)(word >> 32);
    random->pcg->state = state;
}

void fill_doubles_uniform(void *const *generator, int64_t count, double width, double low, double *out) {
    pcg_state_t *random = *generator;
    uint128_t state = random->pcg->state, increment = random->pcg->increment;
    for (int64_t i = 0; i < count; i++) {
        double drawn = (double)(int64_t)(next_word(&state, increment) >> 11) * 0x1p-53;
        drawn *= width;
        drawn += low;
        out[i] = drawn;
    }
    random->pcg->state = state;
}
