/* Eigenvalues, and some leading eigenvectors, of many small symmetric matrices, one to a slot of vector registers.
 *
 * Householder tridiagonalisation and implicit QL with Wilkinson's shift (Golub & Van Loan, Matrix Computations, 8.3),
 * in lock-step: a slot that has converged, or is not yet at its block's end, is rotated by the identity. Only IEEE
 * additions, products, quotients and square roots in a written order, never contracted: what a matrix gives is the same
 * bits in every slot, beside any others, on every processor and from every compiler. It scales by powers of two, so
 * that a square neither overflows nor underflows where it matters.
 */
#include <stdlib.h>
#include <string.h>

#include "vectors.h"

#define SWEEPS 30          /* an eigenvalue, on average; 2 are usual */
#define MOST_LEADING 8
#define EPS 0x1p-53
#define NOTHING 0x1p-460   /* of entries at most 1 */
#define NOTHING_SQUARED 0x1p-920

static inline int any(mask x) {
    int64_t found = 0;
    for (int k = 0; k < SLOTS; k++) found |= x[k];
    return found != 0;
}
static inline real root(real x) {
    real y;
    for (int k = 0; k < SLOTS; k++) y[k] = __builtin_sqrt(x[k]);
    return y;
}

/* Those of QL, of `groups` groups: c and s of each at cs[2 * (t * groups + h)], of rows at[t] and at[t] + 1. */
struct rotations {
    size_t count, room;
    real *cs;
    int *at;
};

/* What one or two groups need; `a` holds column j of its group from row j on at a[j * n + i]; d, e as `ql` has them. */
struct space {
    int n;
    real *a[2], *tau[2], *d, *e, *p, *v, *w, *next, *y;
    struct rotations kept;
};

/* The other way round, in the slots that are meant, of x[0], x[step], ... */
static void reverse(real *x, int n, int step, mask which) {
    for (int i = 0, j = n - 1; i < j; i++, j--) {
        const real low = x[i * step], high = x[j * step];
        x[i * step] = pick(which, high, low);
        x[j * step] = pick(which, low, high);
    }
}

/* d, e of T = Q'AQ. Reflector k, of rows k + 1 on, is left in column k, its first entry 1 understood. */
static void tridiagonal(struct space *g, int groups, int h) {
    const int n = g->n;
    real *a = g->a[h], *d = g->d + h, *e = g->e + h, *tau_of = g->tau[h];
    real *p = g->p, *v = g->v, *w = g->w, *u = g->next;
    for (int i = 0; i < n; i++) v[i] = w[i] = every(0);
    for (int k = 0; k < n; k++) {
        real *col = a + (size_t)k * n;
        const real vk = v[k], wk = w[k];
        for (int i = k; i < n; i++) col[i] = col[i] - v[i] * wk - w[i] * vk;
        d[k * groups] = col[k];
        if (k == n - 1) break;
        real tail = every(0);
        for (int i = k + 2; i < n; i++) tail = tail + col[i] * col[i];
        const real alpha = col[k + 1];
        const mask some = tail > every(NOTHING_SQUARED);
        const real norm = root(pick(some, alpha * alpha + tail, every(1)));
        const real beta = pick(some, -signed_as(norm, alpha), alpha);
        const real tau = pick(some, (beta - alpha) / pick(some, beta, every(1)), every(0));
        const real scale = pick(some, every(1) / pick(some, alpha - beta, every(1)), every(0));
        e[k * groups] = beta;
        tau_of[k] = tau;
        u[k + 1] = every(1);
        p[k + 1] = every(0);
        for (int i = k + 2; i < n; i++) {
            col[i] = u[i] = col[i] * scale;
            p[i] = every(0);
        }
        /* One pass: the update that the last reflector left pending, and A u for this one. */
        int j = k + 1;
        for (; j + 1 < n; j += 2) {
            real *one = a + (size_t)j * n, *two = one + n;
            const real v1 = v[j], w1 = w[j], u1 = u[j], v2 = v[j + 1], w2 = w[j + 1], u2 = u[j + 1];
            const real top = one[j] - v1 * w1 - w1 * v1;
            const real side = one[j + 1] - v2 * w1 - w2 * v1;
            const real low = two[j + 1] - v2 * w2 - w2 * v2;
            one[j] = top;
            one[j + 1] = side;
            two[j + 1] = low;
            real sum1 = top * u1 + side * u2, sum2 = side * u1 + low * u2;
            for (int i = j + 2; i < n; i++) {
                const real vi = v[i], wi = w[i], ui = u[i];
                const real x = one[i] - vi * w1 - wi * v1, z = two[i] - vi * w2 - wi * v2;
                one[i] = x;
                two[i] = z;
                p[i] = p[i] + (x * u1 + z * u2);
                sum1 = sum1 + x * ui;
                sum2 = sum2 + z * ui;
            }
            p[j] = p[j] + sum1;
            p[j + 1] = p[j + 1] + sum2;
        }
        if (j < n) {
            real *one = a + (size_t)j * n;
            one[j] = one[j] - v[j] * w[j] - w[j] * v[j];
            p[j] = p[j] + one[j] * u[j];
        }
        real inner = every(0);
        for (int i = k + 1; i < n; i++) inner = inner + p[i] * u[i];
        const real half = every(0.5) * tau * tau * inner;
        for (int i = k + 1; i < n; i++) {
            w[i] = tau * p[i] - half * u[i];
            v[i] = u[i];
        }
    }
}

/* Room for so many more rotations; what is kept moves. 0, or -1 without memory. */
static int make_room(struct rotations *r, size_t more, int groups) {
    if (r->count + more <= r->room) return 0;
    const size_t room = 2 * (r->count + more), size = sizeof(real) * 2 * groups;
    real *cs = aligned_alloc(64, room * size);
    int *at = malloc(room * sizeof(int));
    if (cs && at && r->count) {
        memcpy(cs, r->cs, r->count * size);
        memcpy(at, r->at, r->count * sizeof(int));
    }
    free(r->cs), free(r->at);
    r->cs = cs, r->at = at, r->room = room;
    return cs && at ? 0 : -1;
}

/* Eigenvalues into d, in no order, of `groups` groups taken together, so that one's square roots and quotients run
 * while the other's are waited for. Rotations are kept if there is somewhere to keep them. 0, or -1 without memory;
 * `bad` where it finds no end. */
static inline __attribute__((always_inline)) int ql(int n, const int groups, real *d, real *e, struct rotations *kept,
                                                    mask *bad) {
    mask spent[2] = {every_int(0), every_int(0)};
    for (int h = 0; h < groups; h++) {
        bad[h] = every_int(0);
        e[(n - 1) * groups + h] = every(0);
    }
    for (int l = 0; l < n - 1; l++) {
        for (;;) {
            mask end[2], going[2];
            int most = l;
            for (int h = 0; h < groups; h++) {
                mask m = every_int(n - 1);
                for (int i = n - 2; i >= l; i--) {
                    const real x = size(e[i * groups + h]);
                    const real near = every(EPS) * (size(d[i * groups + h]) + size(d[(i + 1) * groups + h]));
                    const mask small = (x <= near) | (x <= every(NOTHING));
                    m = (small & every_int(i)) | (~small & m);
                }
                end[h] = m;
                bad[h] |= (m > every_int(l)) & (spent[h] > every_int(SWEEPS * (int64_t)n));
                going[h] = (m > every_int(l)) & ~bad[h];
                spent[h] -= going[h];
                for (int k = 0; k < SLOTS; k++)
                    if (going[h][k] && m[k] > most) most = (int)m[k];
            }
            if (most == l) break;
            if (kept && make_room(kept, most - l, groups)) return -1;
            real bulge[2], s[2], c[2], p[2];
            for (int h = 0; h < groups; h++) {
                real last;
                for (int k = 0; k < SLOTS; k++) last[k] = d[end[h][k] * groups + h][k];
                const real first = d[l * groups + h], low = pick(going[h], e[l * groups + h], every(1));
                const real t = (d[(l + 1) * groups + h] - first) / (every(2) * low);
                bulge[h] = last - first + low / (t + signed_as(root(t * t + every(1)), t));
                s[h] = c[h] = every(1);
                p[h] = every(0);
            }
            for (int i = most - 1; i >= l; i--) {
                for (int h = 0; h < groups; h++) {
                    real *di = d + i * groups + h, *ei = e + i * groups + h;
                    const mask active = going[h] & (end[h] > every_int(i));
                    const real f = s[h] * *ei, b = c[h] * *ei;
                    const real square = f * f + bulge[h] * bulge[h];
                    const mask some = square > every(NOTHING_SQUARED);
                    const real r = root(square);
                    const real by = every(1) / pick(some, r, every(1));
                    const real sn = pick(some, f * by, every(0)), cn = pick(some, bulge[h] * by, every(1));
                    const real down = di[groups] - p[h];
                    const real q = (*di - down) * sn + every(2) * cn * b;
                    const real pn = sn * q;
                    ei[groups] = pick(active, pick(some, r, every(0)), ei[groups]);
                    di[groups] = pick(active, down + pn, di[groups]);
                    bulge[h] = pick(active, cn * q - b, bulge[h]);
                    s[h] = pick(active, sn, s[h]);
                    c[h] = pick(active, cn, c[h]);
                    p[h] = pick(active, pn, p[h]);
                    if (kept) {
                        real *cs = kept->cs + 2 * (kept->count * groups + h);
                        cs[0] = pick(active, cn, every(1));
                        cs[1] = pick(active, sn, every(0));
                    }
                }
                if (kept) kept->at[kept->count++] = i;
            }
            for (int h = 0; h < groups; h++) {
                real *dl = d + l * groups + h, *el = e + l * groups + h;
                *dl = pick(going[h], *dl - p[h], *dl);
                *el = pick(going[h], bulge[h], *el);
                for (int k = 0; k < SLOTS; k++)
                    if (going[h][k]) e[end[h][k] * groups + h][k] = 0;
            }
        }
    }
    return 0;
}

/* Eigenvectors of what stands at where[slot * n + r], r < leading, of group h's slots into y[i * leading + r]: rotations,
 * then reflectors, backwards; all vectors at once, since each waits for its own last step. */
static void vectors_of(struct space *g, int groups, int h, const int *where, mask turned, const int leading) {
    const int n = g->n;
    const struct rotations *kept = &g->kept;
    real *y = g->y, inner[MOST_LEADING];
    for (int i = 0; i < n * leading; i++) y[i] = every(0);
    for (int k = 0; k < SLOTS; k++)
        for (int r = 0; r < leading; r++) y[where[k * n + r] * leading + r][k] = 1;
    for (size_t t = kept->count; t-- > 0;) {
        const real *cs = kept->cs + 2 * (t * groups + h), c = cs[0], s = cs[1];
        real *x = y + kept->at[t] * leading;
        for (int r = 0; r < leading; r++) {
            const real low = x[r], high = x[leading + r];
            x[r] = c * low + s * high;
            x[leading + r] = c * high - s * low;
        }
    }
    for (int r = 0; r < leading; r++) reverse(y + r, n, leading, turned);
    for (int k = n - 3; k >= 0; k--) {
        const real *u = g->a[h] + (size_t)k * n, tau = g->tau[h][k];
        real *x = y + (k + 1) * leading;
        for (int r = 0; r < leading; r++) inner[r] = x[r];
        for (int i = k + 2; i < n; i++)
            for (int r = 0; r < leading; r++) inner[r] = inner[r] + u[i] * y[i * leading + r];
        for (int r = 0; r < leading; r++) {
            inner[r] = inner[r] * tau;
            x[r] = x[r] - inner[r];
        }
        for (int i = k + 2; i < n; i++)
            for (int r = 0; r < leading; r++) y[i * leading + r] = y[i * leading + r] - inner[r] * u[i];
    }
}

/* Upper triangles of `count` matrices into the slots, over the power of two above their largest entry, which goes into
 * `scale`; NaN there, and zeros in the slot, where an entry is not finite. */
static void fill(real *a, int n, const double *matrices, int count, double *scale) {
    static const double nothing[1];
    const double *from[SLOTS];
    size_t step[SLOTS];
    for (int k = 0; k < SLOTS; k++) {
        from[k] = k < count ? matrices + (size_t)k * n * n : nothing;
        step[k] = k < count;
    }
    real largest = every(0), by;
    mask finite = every_int(-1);
    for (int j = 0; j < n; j++)
        for (int i = j; i < n; i++) {
            real x;
            for (int k = 0; k < SLOTS; k++) x[k] = from[k][step[k] * ((size_t)j * n + i)];
            a[(size_t)j * n + i] = x;
            finite &= size(x) <= every(0x1.fffffffffffffp+1023);
            largest = pick(size(x) > largest, size(x), largest);
        }
    for (int k = 0; k < SLOTS; k++) {
        int exponent = 0;
        if (finite[k] && largest[k] > 0) __builtin_frexp(largest[k], &exponent);
        /* Neither the power nor its inverse may leave the range. */
        exponent = exponent > 1022 ? 1022 : exponent < -1021 ? -1021 : exponent;
        scale[k] = finite[k] ? __builtin_ldexp(1, exponent) : __builtin_nan("");
        by[k] = __builtin_ldexp(1, -exponent);
    }
    for (int j = 0; j < n; j++)
        for (int i = j; i < n; i++) a[(size_t)j * n + i] = pick(finite, a[(size_t)j * n + i] * by, every(0));
}

/* Places of the eigenvalues of one slot in descending order, by insertion: QL leaves them nearly so. */
static void sort(const double *d, int n, int step, double *values, int *places) {
    for (int i = 0; i < n; i++) {
        const double x = d[i * step];
        int j = i;
        for (; j > 0 && values[j - 1] < x; j--) {
            values[j] = values[j - 1];
            places[j] = places[j - 1];
        }
        values[j] = x;
        places[j] = i;
    }
}

/* As many matrices as one or two groups hold; `places` is room for n numbers a slot. */
static int solve(struct space *g, const int groups, const double *matrices, int count, int leading, int *places,
                 double *values, double *vectors) {
    const int n = g->n;
    const size_t square = (size_t)n * n;
    double scale[2 * SLOTS];
    mask bad[2], turned[2];
    g->kept.count = 0;
    for (int h = 0; h < groups; h++) {
        const int first = h * SLOTS, here = count - first < SLOTS ? count - first : SLOTS;
        fill(g->a[h], n, matrices + first * square, here, scale + first);
        tridiagonal(g, groups, h);
        /* QL wants the small end first; of a graded matrix, the reflectors leave it last. */
        turned[h] = size(g->d[h]) > size(g->d[(n - 1) * groups + h]);
        reverse(g->d + h, n, groups, turned[h]);
        reverse(g->e + h, n - 1, groups, turned[h]);
    }
    struct rotations *kept = leading ? &g->kept : 0;
    if (groups == 2 ? ql(n, 2, g->d, g->e, kept, bad) : ql(n, 1, g->d, g->e, kept, bad)) return -1;
    for (int k = 0; k < count; k++) {
        const int h = k / SLOTS, slot = k % SLOTS;
        double *mine = values + (size_t)k * n;
        sort((const double *)(g->d + h) + slot, n, groups * SLOTS, mine, places + k * n);
        if (bad[h][slot]) scale[k] = __builtin_nan("");
        for (int i = 0; i < n; i++) mine[i] *= scale[k];
    }
    for (int h = 0; h < groups && leading; h++) {
        const int first = h * SLOTS, here = count - first < SLOTS ? count - first : SLOTS;
        for (int i = here * n; i < SLOTS * n; i++) places[first * n + i] = 0;
        vectors_of(g, groups, h, places + first * n, turned[h], leading);
        for (int k = 0; k < here; k++) {
            double *mine = vectors + (size_t)(first + k) * n * leading;
            for (int i = 0; i < n * leading; i++) mine[i] = scale[first + k] == scale[first + k] ? g->y[i][k] : 0;
        }
    }
    return 0;
}

/* Of `count` matrices [n, n], of which the upper triangle is read: eigenvalues [count, n], descending; eigenvectors of
 * the first `leading` (at most 8, and n) of them [count, n, leading], or none for 0. A matrix that is not finite (or does not converge)
 * gives NaN, and vectors of 0. Returns 0, or -1 where memory ran out. */
int ndt_eigen(const double *matrices, int count, int n, int leading, double *values, double *vectors) {
    struct space g = {.n = n};
    const size_t square = (size_t)n * n;
    real *memory = aligned_alloc(64, sizeof(real) * (2 * square + (10 + MOST_LEADING) * (size_t)n));
    int *places = malloc(sizeof(int) * 2 * SLOTS * n);
    int failed = memory && places ? 0 : -1;
    if (!failed) {
        real *rest = memory + 2 * square, **parts[] = {&g.d, 0, &g.e, 0, &g.tau[0], &g.tau[1], &g.p, &g.v, &g.w, &g.next, &g.y};
        g.a[0] = memory, g.a[1] = memory + square;
        for (int i = 0; i < 11; i++)
            if (parts[i]) *parts[i] = rest + (size_t)i * n;
    }
    for (int done = 0, here; done < count && !failed; done += here) {
        const int groups = count - done > SLOTS ? 2 : 1;
        here = count - done < groups * SLOTS ? count - done : groups * SLOTS;
        failed = solve(&g, groups, matrices + done * square, here, leading, places, values + (size_t)done * n,
                       leading ? vectors + (size_t)done * n * leading : 0);
    }
    free(memory), free(places), free(g.kept.cs), free(g.kept.at);
    return failed;
}
