/* Gram matrices of narrow layers, the sums over stimuli that go with them (`ndt_ray.grams`), sums of squares, and inner
 * products of kernels (`ndt_ray.velocity`).
 *
 * Each sum runs in an order that shapes alone decide, never the vectors' length: the same bits on every processor.
 */
#include <stdlib.h>
#include <string.h>

#include "vectors.h"

#define ROWS 4          /* of a tile of the product, by two vectors */
#define WIDE (2 * SLOTS)
#define PARTS 8         /* partial sums of a long sum */
#define NEAR 2048       /* doubles of rows that are passed over again and again: half of a first-level cache */

typedef float narrow __attribute__((vector_size(4 * SLOTS)));

static inline real load(const double *x) {
    real y;
    memcpy(&y, x, sizeof y);
    return y;
}
static inline real widen(const float *x) {
    narrow y;
    memcpy(&y, x, sizeof y);
    return __builtin_convertvector(y, real);
}

/* x'x of n rows of `width` numbers, a multiple of WIDE, of which `f` count, into out[f][width]; each entry is a sum from
 * the first row to the last, NEAR numbers of rows at a time. Tiles below the diagonal are mirrored: the same products in
 * the same order. */
static void product(const double *x, int n, int f, int width, double *out) {
    const int near = NEAR / width > 8 ? NEAR / width : 8;
    for (int from = 0; from == 0 || from < n; from += near)
        for (int i = 0; i < f; i += ROWS)
            for (int j = i / WIDE * WIDE; j < width; j += WIDE) {
                real sum[ROWS][2];
                double *to = out + (size_t)i * width + j;
                for (int r = 0; r < ROWS; r++) {
                    if (from && i + r < f) memcpy(sum[r], to + (size_t)r * width, sizeof sum[r]);
                    else sum[r][0] = sum[r][1] = every(0);
                }
                const double *row = x + (size_t)from * width;
                for (int a = from; a < n && a < from + near; a++, row += width) {
                    const real one = load(row + j), two = load(row + j + SLOTS);
                    for (int r = 0; r < ROWS; r++) {
                        const real by = every(row[i + r]);
                        sum[r][0] = sum[r][0] + by * one;
                        sum[r][1] = sum[r][1] + by * two;
                    }
                }
                for (int r = 0; r < ROWS && i + r < f; r++) memcpy(to + (size_t)r * width, sum[r], sizeof sum[r]);
            }
    for (int i = WIDE; i < f; i++)
        for (int j = 0; j < i / WIDE * WIDE; j++) out[(size_t)i * width + j] = out[(size_t)j * width + i];
}

/* A long sum's partial sums, of every PARTS-th number each, in order. */
struct parts { real of[PARTS / SLOTS]; };

static inline double joined(struct parts sum) {
    double total = 0;
    for (int h = 0; h < PARTS / SLOTS; h++)
        for (int k = 0; k < SLOTS; k++) total = total + sum.of[h][k];
    return total;
}

/* x.y of `width` numbers, of which those beyond a multiple of PARTS are zeros. */
static inline double dot(const double *x, const double *y, int width) {
    struct parts sum = {{every(0)}};
    for (int j = 0; j < width; j += SLOTS) {
        real *part = &sum.of[j / SLOTS % (PARTS / SLOTS)];
        *part = *part + load(x + j) * load(y + j);
    }
    return joined(sum);
}

/* Sums of x_ij y_ij and of x_ij^2: over the rows of every column, then over the columns, in order. */
static void dots(const double *x, const double *y, int rows, int width, double *xy, double *xx) {
    *xy = *xx = 0;
    for (int j = 0; j < width; j += WIDE) {
        real both[2] = {every(0), every(0)}, own[2] = {every(0), every(0)};
        for (int i = 0; i < rows; i++)
            for (int h = 0; h < 2; h++) {
                const size_t at = (size_t)i * width + j + h * SLOTS;
                const real u = load(x + at), v = load(y + at);
                both[h] = both[h] + u * v;
                own[h] = own[h] + u * u;
            }
        for (int h = 0; h < 2; h++)
            for (int k = 0; k < SLOTS; k++) {
                *xy = *xy + both[h][k];
                *xx = *xx + own[h][k];
            }
    }
}

/* Sum over rows r of (x_r.s)^2. */
static double along(const double *x, const double *s, int rows, int width) {
    double total = 0;
    for (int r = 0; r < rows; r++, x += width) {
        const double inner = dot(x, s, width);
        total = total + inner * inner;
    }
    return total;
}

static inline void store(double *to, real x) { memcpy(to, &x, sizeof x); }

/* to += by * x, of `width` numbers. */
static inline void add(double *to, double by, const double *x, int width) {
    for (int j = 0; j < width; j += SLOTS) store(to + j, load(to + j) + every(by) * load(x + j));
}

static void trim(const double *from, int rows, int width, int f, double *to) {
    for (int i = 0; i < rows; i++) memcpy(to + (size_t)i * f, from + (size_t)i * width, sizeof(double) * f);
}

static int padded(int f) { return (f + WIDE - 1) / WIDE * WIDE; }

/* Uncentred x'x [count, f, f] of matrices [count, n, f]. Returns 0, or -1 where memory ran out. */
int ndt_gram(const float *x, int count, int n, int f, double *out) {
    const int width = padded(f);
    double *rows = calloc((size_t)n * width + WIDE, sizeof(double)), *gram = malloc(sizeof(double) * f * width);
    const int failed = !rows || !gram;
    for (int m = 0; m < count && !failed; m++, x += (size_t)n * f, out += (size_t)f * f) {
        for (int a = 0; a < n; a++)
            for (int i = 0; i < f; i++) rows[(size_t)a * width + i] = x[(size_t)a * f + i];
        product(rows, n, f, width, gram);
        trim(gram, f, width, f, out);
    }
    free(rows), free(gram);
    return failed ? -1 : 0;
}

/* All of `grams.Sums` of matrices [count, n, f], one row a stimulus: see there. `stimulus` [count, blocks * q], where
 * q = ceil(n / blocks); `block` [count, 4, blocks]; `means` [count, n, f], block by block if blocks divides n. Returns
 * 0, or -1 where memory ran out. */
int ndt_sums(const float *x, int count, int n, int f, int blocks, double *centred, double *uncentred,
             double *mean_square, double *stimulus, double *k_k, double *block, double *means) {
    const int width = padded(f), q = (n + blocks - 1) / blocks, whole = n % blocks == 0;
    const size_t square = (size_t)f * width;
    const size_t size = (size_t)blocks * q * width + (blocks + 1) * square + 3 * (size_t)width;
    double *memory = calloc(size + WIDE, sizeof(double));
    if (!memory) return -1;
    double *rows = memory, *moment = rows + (size_t)blocks * q * width, *total = moment + blocks * square;
    double *mean = total + square, *shift = mean + width, *pulled = shift + width;
    for (int m = 0; m < count; m++, x += (size_t)n * f) {
        memset(mean, 0, sizeof(double) * width);
        for (int a = 0; a < n; a++) {
            double *row = rows + (size_t)(a % blocks * q + a / blocks) * width;
            for (int i = 0; i < f; i++) row[i] = x[(size_t)a * f + i];
            add(mean, 1, row, width);
        }
        mean_square[m] = 0;
        for (int i = 0; i < f; i++) mean[i] /= n;
        for (int i = 0; i < f; i++) mean_square[m] += mean[i] * mean[i];
        for (int a = 0; a < n; a++) {
            const int place = a % blocks * q + a / blocks;
            double *row = rows + (size_t)place * width;
            add(row, -1, mean, width);
            memcpy(means + ((size_t)m * n + (whole ? place : a)) * f, row, sizeof(double) * f);
        }
        for (int p = 0; p < blocks * q; p++) {
            stimulus[(size_t)m * blocks * q + p] = dot(rows + (size_t)p * width, rows + (size_t)p * width, width);
        }
        memset(total, 0, sizeof(double) * square);
        for (int b = 0; b < blocks; b++) {
            double *mine = moment + b * square;
            product(rows + (size_t)b * q * width, q, f, width, mine);
            for (size_t i = 0; i < square; i += SLOTS) store(total + i, load(total + i) + load(mine + i));
        }
        double unused;
        dots(total, total, f, width, &unused, k_k + m);
        double *cross = block + (size_t)m * 4 * blocks;
        for (int b = 0; b < blocks; b++) {
            const double *mine = moment + b * square, *first = rows + (size_t)b * q * width;
            memset(shift, 0, sizeof(double) * 2 * width);
            for (int r = 0; r < q; r++) add(shift, 1, first + (size_t)r * width, width);
            for (int i = 0; i < f; i++) add(pulled, shift[i], total + (size_t)i * width, width);
            dots(mine, total, f, width, cross + b, cross + blocks + b);
            cross[2 * blocks + b] = dot(pulled, shift, width) - along(first, shift, q, width);
            cross[3 * blocks + b] = dot(shift, shift, width);
        }
        trim(total, f, width, f, centred + (size_t)m * f * f);
        for (int i = 0; i < f; i++)
            for (int j = 0; j < f; j++)
                uncentred[((size_t)m * f + i) * f + j] = total[(size_t)i * width + j] + n * mean[i] * mean[j];
    }
    free(memory);
    return 0;
}

/* to += the sum of rows [n, f], or [f, n] if `across`, a column by partial sums. */
static void rows_total(const float *x, int n, int f, int across, double *to) {
    for (int a = 0; !across && a < n; a++)
        for (int i = 0; i < f; i++) to[i] = to[i] + x[(size_t)a * f + i];
    for (int i = 0; across && i < f; i++, x += n) {
        struct parts sum = {{every(0)}};
        int a = 0;
        for (; a + PARTS <= n; a += PARTS)
            for (int h = 0; h < PARTS / SLOTS; h++) sum.of[h] = sum.of[h] + widen(x + a + h * SLOTS);
        to[i] = joined(sum);
        for (; a < n; a++) to[i] = to[i] + x[a];
    }
}

/* Rows of one stimulus, [n, f] or [f, n] if `across`, as doubles less `mean`. */
static void centred_rows(const float *x, const double *mean, int n, int f, int across, int width, double *rows) {
    if (across)
        for (int i = 0; i < f; i++)
            for (int a = 0; a < n; a++) rows[(size_t)a * width + i] = x[(size_t)i * n + a] - mean[i];
    else
        for (int a = 0; a < n; a++)
            for (int i = 0; i < f; i++) rows[(size_t)a * width + i] = x[(size_t)a * f + i] - mean[i];
}

/* Sum of x_ij u_i u_j. */
static double bent(const double *x, const double *u, int f, int width) {
    double total = 0;
    for (int i = 0; i < f; i++) total = total + u[i] * dot(x + (size_t)i * width, u, width);
    return total;
}

/* All of `grams.Sums` of lanes [count, p, n, f] of p stimuli with n rows each, or [count, p, f, n] if `across`: see
 * there. `stimulus` [count, 5, blocks * q]; the rest as in ndt_sums, `means` of mean rows. Returns 0, or -1 where memory
 * ran out. */
int ndt_stimulus_sums(const float *x, int count, int p, int n, int f, int across, int blocks, double *centred,
                      double *uncentred, double *mean_square, double *stimulus, double *k_k, double *block,
                      double *means) {
    const int width = padded(f), q = (p + blocks - 1) / blocks, whole = p % blocks == 0, places = blocks * q;
    const size_t square = (size_t)f * width, one = (size_t)n * f;
    const size_t size = (size_t)n * width + (blocks + 3) * square + ((size_t)places + 2) * width;
    double *memory = malloc(sizeof(double) * (size + WIDE));
    if (!memory) return -1;
    double *rows = memory, *own = rows + (size_t)n * width, *moment = own + square, *total = moment + blocks * square;
    double *inner = total + square, *u = inner + square, *mean = u + (size_t)places * width, *shift = mean + width;
    for (int m = 0; m < count; m++, x += one * p) {
        memset(memory, 0, sizeof(double) * (size + WIDE));
        double *t = stimulus + (size_t)m * 5 * places, *k = t + places, *w = k + places, *bend = w + places;
        double *pull = bend + places;
        memset(t, 0, sizeof(double) * 5 * places);
        for (int a = 0; a < p; a++) { /* the sum of a stimulus' rows in u, for now */
            double *row = u + (size_t)(a % blocks * q + a / blocks) * width;
            const float *from = x + a * one;
            rows_total(x + a * one, n, f, across, row);
            add(mean, 1, row, width);
        }
        mean_square[m] = 0;
        for (int i = 0; i < f; i++) mean[i] /= (double)p * n;
        for (int i = 0; i < f; i++) mean_square[m] += mean[i] * mean[i];
        for (int a = 0; a < p; a++) {
            const int place = a % blocks * q + a / blocks;
            double *row = u + (size_t)place * width, *sum = moment + (size_t)(a % blocks) * square;
            for (int i = 0; i < f; i++) row[i] = row[i] / n - mean[i];
            memcpy(means + ((size_t)m * p + (whole ? place : a)) * f, row, sizeof(double) * f);
            centred_rows(x + a * one, mean, n, f, across, width, rows);
            product(rows, n, f, width, own);
            for (int i = 0; i < f; i++) t[place] = t[place] + own[(size_t)i * width + i];
            t[place] /= n;
            k[place] = dot(row, row, width);
            double unused;
            dots(own, own, f, width, &unused, w + place);
            w[place] /= (double)n * n;
            bend[place] = bent(own, row, f, width) / n;
            for (size_t i = 0; i < square; i += SLOTS) store(sum + i, load(sum + i) + load(own + i));
        }
        for (int b = 0; b < blocks; b++) {
            const double *mine = moment + b * square;
            for (size_t i = 0; i < square; i += SLOTS) store(total + i, load(total + i) + load(mine + i));
        }
        for (int place = 0; place < places; place++) pull[place] = bent(total, u + (size_t)place * width, f, width) / n;
        product(u, places, f, width, inner);
        double unused;
        dots(inner, inner, f, width, &unused, k_k + m);
        double *cross = block + (size_t)m * 4 * blocks;
        for (int b = 0; b < blocks; b++) {
            const double *mine = moment + b * square;
            memset(shift, 0, sizeof(double) * width);
            for (int r = 0; r < q; r++) add(shift, n, u + ((size_t)b * q + r) * width, width);
            dots(mine, total, f, width, cross + b, cross + blocks + b);
            cross[2 * blocks + b] = bent(total, shift, f, width) - bent(mine, shift, f, width);
            cross[3 * blocks + b] = dot(shift, shift, width);
        }
        trim(total, f, width, f, centred + (size_t)m * f * f);
        for (int i = 0; i < f; i++)
            for (int j = 0; j < f; j++)
                *uncentred++ = total[(size_t)i * width + j] + (double)p * n * mean[i] * mean[j];
    }
    free(memory);
    return 0;
}

/* Sum of (x - y)^2, or of x^2 without y. */
static double squares(const float *x, const float *y, size_t n) {
    struct parts sum = {{every(0)}};
    double tail[PARTS] = {0}, total = 0;
    size_t i = 0;
    for (; i + PARTS <= n; i += PARTS)
        for (int h = 0; h < PARTS / SLOTS; h++) {
            real d = widen(x + i + h * SLOTS);
            if (y) d = d - widen(y + i + h * SLOTS);
            sum.of[h] = sum.of[h] + d * d;
        }
    memcpy(tail, sum.of, sizeof tail);
    for (int k = 0; i < n; i++, k++) {
        const double d = y ? (double)x[i] - y[i] : x[i];
        tail[k] = tail[k] + d * d;
    }
    for (int k = 0; k < PARTS; k++) total = total + tail[k];
    return total;
}

/* Sums of squares by layer, [rows, 4, layers]: of the gradient, the last update, the weights, and the way from the
 * start, each rows of `width` floats of which those in `chosen` are wanted; layer l is from starts[l] to before
 * starts[l + 1]. Without a gradient or an update, NaN. Returns 0. */
int ndt_squares(const float *grad, const float *before, const float *weights, const float *start, int64_t width,
                 const int64_t *chosen, int rows, const int64_t *starts, int layers, double *out) {
    for (int r = 0; r < rows; r++, out += 4 * layers) {
        for (int l = 0; l < layers; l++) {
            const int64_t at = chosen[r] * width + starts[l], n = starts[l + 1] - starts[l];
            const float *w = weights + at;
            out[l] = grad ? squares(grad + at, 0, n) : __builtin_nan("");
            out[layers + l] = before ? squares(w, before + at, n) : __builtin_nan("");
            out[2 * layers + l] = squares(w, 0, n);
            out[3 * layers + l] = squares(w, start + at, n);
        }
    }
    return 0;
}

/* ---- |x'y|^2 in single precision ---- */

#define SINGLES (2 * SLOTS) /* floats of a vector */
#define TALL 8              /* columns of x in a tile, by two vectors of columns of y */

typedef float singles __attribute__((vector_size(8 * SLOTS)));

static inline singles load_singles(const float *x) {
    singles y;
    memcpy(&y, x, sizeof y);
    return y;
}

static int rounded(int n, int by) { return (n + by - 1) / by * by; }

/* n rows of f numbers as rows of `width`, the rest zeros; they themselves where they are that wide. */
static const float *widened(const float *x, int n, int f, int width, float *room) {
    if (f == width) return x;
    for (int a = 0; a < n; a++) {
        memcpy(room + (size_t)a * width, x + (size_t)a * f, sizeof(float) * f);
        memset(room + (size_t)a * width + f, 0, sizeof(float) * (width - f));
    }
    return room;
}

/* x'y of n rows of `tall` and of `wide` numbers, multiples of TALL and of two vectors, into out[tall][wide]; each entry
 * is a sum from the first row to the last. */
static void single_product(const float *x, const float *y, int n, int tall, int wide, float *out) {
    for (int i = 0; i < tall; i += TALL)
        for (int j = 0; j < wide; j += 2 * SINGLES) {
            singles sum[TALL][2];
            for (int r = 0; r < TALL; r++) sum[r][0] = sum[r][1] = (singles){0};
            const float *left = x + i, *right = y + j;
            for (int a = 0; a < n; a++, left += tall, right += wide) {
                const singles one = load_singles(right), two = load_singles(right + SINGLES);
                for (int r = 0; r < TALL; r++) {
                    const singles by = left[r] - (singles){0};
                    sum[r][0] = sum[r][0] + by * one;
                    sum[r][1] = sum[r][1] + by * two;
                }
            }
            for (int r = 0; r < TALL; r++) memcpy(out + (size_t)(i + r) * wide + j, sum[r], sizeof sum[r]);
        }
}

/* |x'y|^2 [count] of matrices x [count, n, d] and y [count, n, e], or one y [n, e] for all if `shared`. Returns 0, or -1
 * where memory ran out. */
int ndt_cross(const float *x, const float *y, int count, int n, int d, int e, int shared, double *out) {
    const int tall = rounded(d, TALL), wide = rounded(e, 2 * SINGLES);
    const size_t left = (size_t)n * tall, right = (size_t)n * wide, product = (size_t)tall * wide;
    float *room = malloc(sizeof(float) * (left + right + product));
    if (!room) return -1;
    float *made = room + left + right;
    const float *other = 0;
    for (int m = 0; m < count; m++) {
        if (!m || !shared) other = widened(y + (shared ? 0 : (size_t)m * n * e), n, e, wide, room + left);
        single_product(widened(x + (size_t)m * n * d, n, d, tall, room), other, n, tall, wide, made);
        out[m] = 0;
        for (int i = 0; i < d; i++) out[m] = out[m] + squares(made + (size_t)i * wide, 0, e);
    }
    free(room);
    return 0;
}
