"""The C text of a step, written once for every granularity; ``@name@`` is what a rule gives.

dw = -alpha (u + kappa w);  w <- w + dw;  h <- gamma (1 - alpha kappa) h + dw  (paper, Algorithm 3).

A *row* of numbers shares a step size: a whole piece of a tensor, a unit, or one weight. A gradient
that is an outer product is given as its factors, whose products are formed on the way.
"""

from __future__ import annotations

import torch

C_TYPES = {torch.float32: "float", torch.float64: "double"}
INTS = {torch.float32: "int", torch.float64: "long"}

PRELUDE = """
#include <math.h>
typedef {T} T;
typedef {I} I; /* as wide as T, so that both fit the same vectors */
typedef T V __attribute__((vector_size(64), aligned({align})));
enum {{ LANES = 64 / sizeof(T) }};
static inline float signf(float x) {{ return (float)((x > 0) - (x < 0)); }}
static inline double sign(double x) {{ return (double)((x > 0) - (x < 0)); }}
/* Bit by bit: a choice would become a store under a condition, which is slow or not vectorised. */
static inline T pick(I mask, T one, T other)
{{
    const union {{ T t; I i; }} a = {{ one }}, b = {{ other }};
    return (union {{ I i; T t; }}) {{ b.i ^ ((a.i ^ b.i) & mask) }}.t;
}}
/* As torch's, and unlike fmax and fmin, these let no NaN get lost. */
static inline float maximumf(float a, float b) {{ return a > b || a != a ? a : b; }}
static inline double maximum(double a, double b) {{ return a > b || a != a ? a : b; }}
static inline float minimumf(float a, float b) {{ return a < b || a != a ? a : b; }}
static inline double minimum(double a, double b) {{ return a < b || a != a ? a : b; }}
"""

# Functions but the entry points are static: another library's of that name would be called instead.
STEP = """
/* In the order of clmeta/native/table.py. */
typedef struct {
    const long tensors, each, blocks; /* tensors in all; of a learner: tensors, and blocks */
    const long (*piece)[3];           /* tensor, first number, numbers */
    const long *end;                  /* number of pieces up to each tensor's last */
    const long *block;                /* of each tensor, among the blocks of all learners */
    const long *row;                  /* numbers that share a step size; 0: all of a block */
    const long *width;                /* length of the gradient's second factor; 0: there is none */
    T *const *array;                  /* g of each tensor, then w, then slots ..., h */
    T *const *second;                 /* second factors of g */
    T *const *unit;                   /* alpha of each tensor's units, beta, meta slots ... */
    long *const *step;                /* number of updates of each tensor */
    T *alpha;                         /* of each block, as all below */
    const double *gamma, *kappa, *eta, *low, *high;
    const double *c, *meta_c;         /* the rules' options */
    double *sum, *z;                  /* <h, g> of each piece, and of each block */
    char *ok;                         /* of each learner: all its z are finite */
    char *held;                       /* of each block: something of it was not finite */
} Job;

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

/* <h, g> of pieces; without h, <0, g>, which tells whether g is finite. */
static void products_of(long first, long last, const Job *j)
{
    for (long p = first; p < last; p++) {
        const long owner = j->piece[p][0], start = j->piece[p][1], n = j->piece[p][2];
        const long width = j->width[owner];
        const T *h = @traced@ ? j->array[@h@ * j->tensors + owner] + start : 0;
        const T *a = j->array[owner] + (width ? start / width : start), *b = j->second[owner];
        if (!width) {
            j->sum[p] = h ? dot(h, a, n) : zero_if_finite(a, n, 0);
            continue;
        }
        double rows, along;
        double total = zero_if_finite(a, n / width, &rows) + zero_if_finite(b, width, &along);
        total += (T)rows * (T)along * (T)0; /* the largest of their products can overflow */
        if (h)
            for (long q = 0; q < n / width; q++) total += a[q] * dot(h + q * width, b, width);
        j->sum[p] = total;
    }
}

/* z by block, and the counts, of learners; one whose z is not finite will be left as it is. */
static void settle_of(long first, long last, const Job *j)
{
    for (long r = first; r < last; r++) {
        const long from = r ? j->end[r * j->each - 1] : 0, to = j->end[(r + 1) * j->each - 1];
        double *z = j->z + r * j->blocks;
        for (long b = 0; b < j->blocks; b++) z[b] = 0;
        for (long p = from; p < to; p++) j->z[j->block[j->piece[p][0]]] += j->sum[p];
        j->ok[r] = 1;
        for (long b = 0; b < j->blocks; b++)
            if ((j->held[r * j->blocks + b] = z[b] * 0 != 0)) j->ok[r] = 0;
        for (long i = 0; i < j->each && j->ok[r]; i++) ++*j->step[r * j->each + i];
    }
}

/* Of each number all that is new is written, or, where that is not finite, nothing: then this is
 * not 0. The inner loops run over the index within the piece: shifted ones are not vectorised as
 * well. */
static inline __attribute__((always_inline)) I rows(
    const int outer, const long n, const long row, const T *restrict a, const T *restrict b,
    @arguments@, const double v_t, const double gamma, const double kappa,
    const double eta, const double low, const double high, const double *c, const double *meta_c)
{
    const double meta_v_t = v_t;
    I held = 0;
@once@
@weights@
    for (long k = 0; k < n / row; k++) {
        const T alpha = p_alpha[@fine@ ? k : 0];
        const T shrink = alpha * kappa, decay = gamma * (1 - alpha * kappa);
        const T factor = outer ? a[k] : 0, *restrict g = outer ? b - k * row : a;
        const long from = k * row, to = from + row;
        const T meta_v_g = @dot@;
        for (long i = from; i < to; i++) {
            const T v_g = outer ? factor * g[i] : g[i];
@body@
        }
@meta@
    }
    return held;
}

/* From the last to the first: the products' last ones are still in the cache. */
static void moves_of(long first, long last, const Job *j)
{
    for (long p = last - 1; p >= first; p--) {
        const long owner = j->piece[p][0], start = j->piece[p][1], n = j->piece[p][2];
        const long block = j->block[owner], width = j->width[owner], count = j->tensors;
        if (!n || !j->ok[owner / j->each]) continue;
        const long row = @fine@ ? j->row[owner] : width ? width : n;
        const double v_t = *j->step[owner];
        const T *a = j->array[owner] + (width ? start / width : start), *b = j->second[owner];
@pointers@
        const I held = width ? rows(1, n, row, a, b, @passed@, v_t, @numbers@)
                             : rows(0, n, row, a, b, @passed@, v_t, @numbers@);
        if (held) __atomic_store_n(j->held + block, 1, __ATOMIC_RELAXED); /* threads share blocks */
    }
}

/* One learner after the other, while its trace is in the cache. */
void learners(long first, long last, const Job *j)
{
    for (long r = first; r < last; r++) {
        const long from = r ? j->end[r * j->each - 1] : 0, to = j->end[(r + 1) * j->each - 1];
        products_of(from, to, j);
        settle_of(r, r + 1, j);
        moves_of(from, to, j);
    }
}

void products(long first, long last, const Job *j) { products_of(first, last, j); }
void settle(long first, long last, const Job *j) { settle_of(first, last, j); }
void moves(long first, long last, const Job *j) { moves_of(first, last, j); }
"""

#: A step size per weight: rows of one number, in one loop.
WEIGHTS = """
    if (row == 1 && !outer) {
        for (long i = 0; i < n; i++) {
            const long k = i;
            const T alpha = p_alpha[k], shrink = alpha * (T)kappa;
            const T decay = (T)gamma * (1 - shrink);
            const T v_g = a[i], meta_v_g = @product@;
@body@
@meta@
        }
        return held;
    }
"""

BODY = """
@load@
@each@
const T dw = -(alpha * @u@) - shrink * v_w;
@new@
@store@
"""

#: beta <- beta - eta u(z), within its bounds, at index k.
BETA = """
@load@
@each@
const K moved = meta_v_beta - (K)eta * @u@, raised = moved < (K)low ? (K)low : moved;
@new@
@store@
"""

META = """
typedef double K;
void meta(long count, long blocks, const char *active, const char *ok, const double *z,
          const double *etas, const double *lows, const double *highs, char *all_held,
          T *p_t, @arguments@const double *meta_c)
{
    for (long k = 0; k < count; k++) {
        if (!active[k] || !ok[k / blocks]) continue;
        const double meta_v_g = z[k], meta_v_t = p_t[k] + 1.0;
        const double eta = etas[k], low = lows[k], high = highs[k];
        I held = 0;
@once@
@beta@
        if (held)
            all_held[k] = 1;
        else
            p_t[k] = (T)meta_v_t;
    }
}
"""


def fill(template: str, **parts: str) -> str:
    """A template with each ``@name@`` replaced."""
    for name, text in parts.items():
        template = template.replace(f"@{name}@", text)
    return template
