"""The C programs' text; ``@name@`` stands for what a rule's formula gives."""

from __future__ import annotations

import torch

C_TYPES = {torch.float32: "float", torch.float64: "double"}

PRELUDE = """
#include <math.h>
typedef {T} T;
typedef T V __attribute__((vector_size(64), aligned({align})));
enum {{ LANES = 64 / sizeof(T) }};
static inline float signf(float x) {{ return (float)((x > 0) - (x < 0)); }}
static inline double sign(double x) {{ return (double)((x > 0) - (x < 0)); }}
/* As torch's, and unlike fmax and fmin, these let no NaN get lost. */
static inline float maximumf(float a, float b) {{ return a > b || a != a ? a : b; }}
static inline double maximum(double a, double b) {{ return a > b || a != a ? a : b; }}
static inline float minimumf(float a, float b) {{ return a < b || a != a ? a : b; }}
static inline double minimum(double a, double b) {{ return a < b || a != a ? a : b; }}
"""

#: z of pieces. A gradient that is an outer product is given as its first factor, with the second
#: one's length as the tensor's width; it is never formed.
PRODUCT = """
static double dot(const T *x, const T *y, long n)
{
    V s[4] = {0};
    long i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        for (int k = 0; k < 4; k++)
            s[k] += *(const V *)(x + i + k * LANES) * *(const V *)(y + i + k * LANES);
    double total = 0;
    for (int k = 0; k < 4; k++)
        for (int j = 0; j < LANES; j++) total += s[k][j];
    for (; i < n; i++) total += (double)x[i] * y[i];
    return total;
}

/* 0 where all numbers are finite, not a number otherwise; and the largest of their magnitudes. */
static double zero_if_finite(const T *x, long n, double *largest)
{
    V s[4] = {0};
    T most = 0;
    long i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        for (int k = 0; k < 4; k++) s[k] += *(const V *)(x + i + k * LANES) * (T)0;
    double total = 0;
    for (int k = 0; k < 4; k++)
        for (int j = 0; j < LANES; j++) total += s[k][j];
    for (; i < n; i++) total += x[i] * (T)0;
    if (largest) {
        for (i = 0; i < n; i++) {
            const T size = x[i] < 0 ? -x[i] : x[i];
            most = size > most ? size : most;
        }
        *largest = most;
    }
    return total;
}

/* Sums of h g over pieces; without h, of 0 g, which tells whether g is finite. */
static void product_of(long first, long last, const long (*piece)[3], T *const *h, T *const *g,
                       T *const *second, const long *width, double *out)
{
    for (long p = first; p < last; p++) {
        const long owner = piece[p][0], start = piece[p][1], n = piece[p][2];
        const long columns = width[owner];
        const T *a = g[owner] + (columns ? start / columns : start);
        if (!columns) {
            out[p] = h ? dot(h[owner] + start, a, n) : zero_if_finite(a, n, 0);
            continue;
        }
        double rows, along;
        double total = zero_if_finite(a, n / columns, &rows)
                       + zero_if_finite(second[owner], columns, &along);
        total += (T)rows * (T)along * (T)0; /* the largest of their products can overflow */
        if (h)
            for (long q = 0; q < n / columns; q++)
                total += a[q] * dot(h[owner] + start + q * columns, second[owner], columns);
        out[p] = total;
    }
}

void product(long first, long last, const long (*piece)[3], T *const *h, T *const *g,
             T *const *second, const long *width, double *out)
{
    product_of(first, last, piece, h, g, second, width, out);
}
"""

# Pieces are taken from the last to the first: the products' last ones are still in the cache.
# What is called here is static: another library's function of that name would be called instead.
MOVE = """
static void move_of(long first, long last, const long (*piece)[3], T *const *tensors, long count,
                    T *const *second, const long *width, const double *numbers, const double *c)
{
    for (long p = last - 1; p >= first; p--) {
        const long owner = piece[p][0], start = piece[p][1], n = piece[p][2];
        const long columns = width[owner];
        const double v_t = numbers[owner];
        const T alpha = (T)numbers[count + owner];
        const T shrink = (T)numbers[2 * count + owner];
        const T decay = (T)numbers[3 * count + owner];
        const T *restrict p_g = tensors[owner] + (columns ? start / columns : start);
@pointers@
@once@
        if (!columns)
            for (long i = 0; i < n; i++) {
                const T v_g = p_g[i];
@body@
            }
        else
            for (long q = 0; q < n / columns; q++) {
                const T factor = p_g[q], *restrict p_b = second[owner];
                for (long j = 0; j < columns; j++) {
                    const long i = q * columns + j;
                    const T v_g = factor * p_b[j];
@body@
                }
            }
    }
}

void move(long first, long last, const long (*piece)[3], T *const *tensors, long count,
          T *const *second, const long *width, const double *numbers, const double *c)
{
    move_of(first, last, piece, tensors, count, second, width, numbers, c);
}

/* Products and move of one learner after the other, while its trace is in the cache; z by block.
   A learner whose z is not finite is left as it is. */
void learners(long first, long last, const long (*piece)[3], const long *end, long blocks,
              const long *block, long each, T *const *tensors, long count, T *const *h,
              T *const *second, const long *width, const double *numbers, const double *c,
              double *sums, double *z, char *ok)
{
    for (long r = first; r < last; r++) {
        const long from = r ? end[r * each - 1] : 0, to = end[(r + 1) * each - 1];
        product_of(from, to, piece, h, tensors, second, width, sums);
        for (long b = 0; b < blocks; b++) z[r * blocks + b] = 0;
        for (long p = from; p < to; p++) z[r * blocks + block[piece[p][0]]] += sums[p];
        double all = 0;
        for (long b = 0; b < blocks; b++) all += z[r * blocks + b] * 0;
        ok[r] = all == 0;
        if (ok[r]) move_of(from, to, piece, tensors, count, second, width, numbers, c);
    }
}
"""

BODY = """
@load@
@each@
const T dw = -(alpha * @u@) - shrink * v_w;
p_w[i] = v_w + dw;
@store@
"""

META = """
void meta(long count, const char *active, const double *z, const double *eta, const double *low,
          const double *high, T *p_beta, T *p_t, @arguments@const double *c)
{
    for (long i = 0; i < count; i++) {
        if (!active[i]) continue;
        const double v_g = z[i], v_t = p_t[i] + 1.0;
@load@
@once@
@each@
        p_beta[i] = (T)minimum(maximum(p_beta[i] - eta[i] * @u@, low[i]), high[i]);
        p_t[i] = (T)v_t;
@store@
    }
}
"""


def lines(several: list[str], indent: int) -> str:
    """Lines of C, one below the other."""
    return "\n".join(" " * indent + line for line in several)


def fill(template: str, **parts: str) -> str:
    """A template with each ``@name@`` replaced."""
    for name, text in parts.items():
        template = template.replace(f"@{name}@", text)
    return template
