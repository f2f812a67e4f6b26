/* Facts of rows: hashes, extremes, sums and counts of columns in one pass over their values, and pairs of points that are close together.
 * See fact_kernels.py, which calls it, and rowhash.py for the hash. Everything is exact, but for the squares of distances. */

#include <stdint.h>
#include <string.h>

/* Values that are worked on at a time: they and the sums of their rows stay in the processor's first cache. */
#define BLOCK 512
#define MASK 0xFFFFFFFFull
#define NULL_BITS 0x7FF8000000000001ull
#define SIGN (1ull << 63)

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_NEWER_PROCESSORS __attribute__((target_clones("avx2", "default")))
#else
#define FOR_NEWER_PROCESSORS
#endif

enum { I1, I2, I4, I8, U1, U2, U4, U8, F4, F8, STRING };

typedef struct {
    int64_t kind;
    const void *values;
    const uint8_t *null;         /* or 0 */
    const uint64_t *string_bits; /* of each code from -1 on, which is NULL */
    uint64_t factors[4];         /* low and high half in the first lane, then in the second */
    const double *edges;
    int64_t num_edges;
    int64_t *counts; /* num_edges + 1 of them, added to */
    int64_t nulls;
    int64_t filled; /* values that are not NULL */
    double low, high;
    int64_t least, greatest; /* of unsigned values of 64 bits with the first bit turned over */
    int64_t sum_low, sum_high;
} column_t;

FOR_NEWER_PROCESSORS static void add_keys(const uint64_t *bits, int64_t count, const uint64_t *factors, uint64_t *first,
                                          uint64_t *second) {
    uint64_t a = factors[0], b = factors[1], c = factors[2], d = factors[3];
    for (int64_t i = 0; i < count; i++) {
        uint64_t low = bits[i] & MASK, high = bits[i] >> 32;
        first[i] += ((low * a) & MASK) + ((high * b) & MASK);
        second[i] += ((low * c) & MASK) + ((high * d) & MASK);
    }
}

/* Extremes and bins of doubles. */
FOR_NEWER_PROCESSORS static void take_floats(column_t *column, const double *values, int64_t count) {
    double low[8], high[8];
    for (int k = 0; k < 8; k++) low[k] = high[k] = values[0];
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
        for (int k = 0; k < 8; k++) {
            low[k] = values[i + k] < low[k] ? values[i + k] : low[k];
            high[k] = values[i + k] > high[k] ? values[i + k] : high[k];
        }
    for (; i < count; i++) {
        low[0] = values[i] < low[0] ? values[i] : low[0];
        high[0] = values[i] > high[0] ? values[i] : high[0];
    }
    for (int k = 1; k < 8; k++) {
        low[0] = low[k] < low[0] ? low[k] : low[0];
        high[0] = high[k] > high[0] ? high[k] : high[0];
    }
    if (!column->filled || low[0] < column->low) column->low = low[0];
    if (!column->filled || high[0] > column->high) column->high = high[0];
    int64_t before = 0;
    for (int64_t e = 0; e < column->num_edges; e++) {
        double edge = column->edges[e];
        int64_t below = 0;
        if (edge > high[0])
            below = count;
        else if (edge > low[0])
            for (int64_t j = 0; j < count; j++) below += values[j] < edge;
        column->counts[e] += below - before;
        before = below;
    }
    column->counts[column->num_edges] += count - before;
}

/* Extremes and the exact sum of whole numbers. */
FOR_NEWER_PROCESSORS static void take_integers(column_t *column, const int64_t *values, int64_t count) {
    uint64_t turn = column->kind == U8 ? SIGN : 0;
    int64_t least = (int64_t)((uint64_t)values[0] ^ turn), greatest = least, low = 0, high = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t value = (int64_t)((uint64_t)values[i] ^ turn);
        least = value < least ? value : least;
        greatest = value > greatest ? value : greatest;
        low += (int64_t)((uint64_t)values[i] & MASK);
    }
    if (turn)
        for (int64_t i = 0; i < count; i++) high += (int64_t)((uint64_t)values[i] >> 32);
    else
        for (int64_t i = 0; i < count; i++) high += values[i] >> 32;
    if (!column->filled || least < column->least) column->least = least;
    if (!column->filled || greatest > column->greatest) column->greatest = greatest;
    column->sum_low += low;
    column->sum_high += high;
}

#define WIDEN(type) \
    for (int64_t i = 0; i < count; i++) whole[i] = ((const type *)column->values)[start + i]; \
    break

/* Take the facts of columns, and add them to the sums of their rows. */
void take_columns(column_t *columns, int64_t num_columns, int64_t rows, uint64_t *sums) {
    uint64_t *first = sums, *second = sums + rows;
    union {
        uint64_t bits[BLOCK];
        int64_t whole[BLOCK];
        double floats[BLOCK];
    } block;
    int64_t *whole = block.whole;
    for (int64_t start = 0; start < rows; start += BLOCK) {
        int64_t count = rows - start < BLOCK ? rows - start : BLOCK;
        for (column_t *column = columns; column < columns + num_columns; column++) {
            int is_float = column->kind == F4 || column->kind == F8;
            switch (column->kind) {
            case I1: WIDEN(int8_t);
            case I2: WIDEN(int16_t);
            case I4: WIDEN(int32_t);
            case I8:
            case U8: WIDEN(int64_t);
            case U1: WIDEN(uint8_t);
            case U2: WIDEN(uint16_t);
            case U4: WIDEN(uint32_t);
            case F4: /* the sum makes a negative zero positive */
                for (int64_t i = 0; i < count; i++) block.floats[i] = (double)((const float *)column->values)[start + i] + 0.0;
                break;
            case F8:
                for (int64_t i = 0; i < count; i++) block.floats[i] = ((const double *)column->values)[start + i] + 0.0;
                break;
            default:
                for (int64_t i = 0; i < count; i++)
                    block.bits[i] = column->string_bits[((const int32_t *)column->values)[start + i] + 1];
            }
            int64_t filled = count;
            if (column->null) {
                const uint8_t *null = column->null + start;
                union {
                    uint64_t bits[BLOCK];
                    int64_t whole[BLOCK];
                    double floats[BLOCK];
                } kept;
                filled = 0;
                for (int64_t i = 0; i < count; i++) {
                    kept.bits[filled] = block.bits[i];
                    filled += !null[i];
                    block.bits[i] = null[i] ? NULL_BITS : block.bits[i];
                }
                add_keys(block.bits, count, column->factors, first + start, second + start);
                if (filled && is_float) take_floats(column, kept.floats, filled);
                if (filled && !is_float && column->kind != STRING) take_integers(column, kept.whole, filled);
            } else {
                add_keys(block.bits, count, column->factors, first + start, second + start);
                if (is_float) take_floats(column, block.floats, count);
                if (!is_float && column->kind != STRING) take_integers(column, block.whole, count);
            }
            column->filled += filled;
            column->nulls += count - filled;
        }
    }
}

/* Mix the sums of rows, and add them up: rows in order, or those of an index; with a constant, and a column of small numbers. */
FOR_NEWER_PROCESSORS void hash_rows(const uint64_t *rows_sums, int64_t num_rows, const int64_t *index, int64_t rows,
                                    const uint64_t *constants, const int32_t *numbers, const uint64_t *factors,
                                    uint64_t *sums) {
    static const uint32_t mix[2][2] = {{0x2C1B3C6Du, 0x297A2D39u}, {0x31848BABu, 0x2D2816FDu}};
    uint64_t keys[BLOCK];
    for (int lane = 0; lane < 2; lane++) {
        const uint64_t *from = rows_sums + lane * num_rows;
        uint64_t sum = 0;
        for (int64_t start = 0; start < rows; start += BLOCK) {
            int64_t count = rows - start < BLOCK ? rows - start : BLOCK;
            for (int64_t i = 0; i < count; i++) keys[i] = from[index ? index[start + i] : start + i] + constants[lane];
            if (numbers)
                for (int64_t i = 0; i < count; i++)
                    keys[i] += (uint32_t)numbers[start + i] * factors[lane] & MASK;
            for (int64_t i = 0; i < count; i++) {
                uint32_t x = (uint32_t)(keys[i] ^ keys[i] >> 32);
                x *= mix[lane][0];
                x ^= x >> 12;
                x *= mix[lane][1];
                x ^= x >> 15;
                sum += x;
            }
        }
        sums[lane] += sum;
    }
}

/* Count, for each limit, the pairs of a point and another one of its range whose squared distance is below it. */
FOR_NEWER_PROCESSORS void count_near(const double *points, int64_t num_points, const double *others, int64_t num_others,
                                     const int64_t *point, const int64_t *start, const int64_t *stop, int64_t num_ranges,
                                     const double *limits, int64_t num_limits, int64_t *counts) {
    double squares[BLOCK];
    for (int64_t r = 0; r < num_ranges; r++) {
        const double *p = points + point[r];
        double x = p[0], y = p[num_points], z = p[2 * num_points];
        for (int64_t first = start[r]; first < stop[r]; first += BLOCK) {
            int64_t count = stop[r] - first < BLOCK ? stop[r] - first : BLOCK;
            const double *o = others + first;
            for (int64_t i = 0; i < count; i++) {
                double a = x - o[i], b = y - o[num_others + i], c = z - o[2 * num_others + i];
                squares[i] = a * a + b * b + c * c;
            }
            for (int64_t l = 0; l < num_limits; l++) {
                int64_t near = 0;
                for (int64_t i = 0; i < count; i++) near += squares[i] < limits[l];
                counts[l] += near;
            }
        }
    }
}
