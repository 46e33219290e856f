/* SPDX-License-Identifier: Apache-2.0
 *
 * Checks of the sketch kernels against double precision. Codes, kept rows and bins come from comparing a rounded value
 * with a boundary: only values within their own rounding error of a boundary may fall on either side.
 */
#include "check.h"
#include "check_rows.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const int32_t ranks[] = {1, 4, 5, 8, 16, 20, 32, 64}, widths[] = {4, 8, SR_SKETCH_MIXED};
enum { N_RANKS = sizeof(ranks) / sizeof(ranks[0]) };

static struct sketch_shape sketch_shape(int32_t rank, int32_t bits)
{
    return (struct sketch_shape){rank, bits, sr_sketch_host_row_bytes(rank, bits)};
}

/* By the layout as args.h has it: of n pairs of words the coordinates of 3 bits, of 2 and of 1 are 8 n, 8 n and 24 n. */
static uint32_t mixed_at(const uint8_t *words, int32_t n, int32_t rest)
{
    const int32_t twos = rest - 8 * n, ones = rest - 16 * n, i = rest < 8 * n ? rest : rest < 16 * n ? twos : ones, per_pair = rest < 16 * n ? 8 : 24;
    uint32_t two, one;
    memcpy(&two, words + i / per_pair * 2 * SR_SKETCH_RUN * 4, 4);
    memcpy(&one, words + (i / per_pair * 2 + 1) * SR_SKETCH_RUN * 4, 4);
    if (rest < 8 * n) return (two >> 2 * (i % 8) & 3) << 1 | (one >> i % 8 & 1);
    return rest < 16 * n ? two >> (16 + 2 * (i % 8)) & 3 : one >> (8 + i % 24) & 1;
}

static int32_t bits_at(const struct sketch_shape *s, int32_t j)
{
    const int32_t n = (s->rank - SR_SKETCH_FIRST + 39) / 40, rest = j - SR_SKETCH_FIRST;
    if (s->bits != SR_SKETCH_MIXED) return s->bits;
    return rest < 0 ? 4 : rest < 8 * n ? 3 : rest < 16 * n ? 2 : 1;
}

static uint32_t code_at(const uint8_t *chunk, const struct sketch_shape *s, int32_t row, int32_t j)
{
    const int32_t per_word = 32 / s->bits, rest = j - SR_SKETCH_FIRST, levels = 1 << bits_at(s, j);
    uint32_t word;
    if (rest < 0) return (uint32_t)(chunk[sr_sketch_first_at(s->bits, row) + (size_t)j] >> sr_sketch_first_shift(s->bits, row) & (levels - 1));
    if (s->bits == SR_SKETCH_MIXED) return mixed_at(chunk + sr_sketch_word_at(s, row, 0), (s->rank - SR_SKETCH_FIRST + 39) / 40, rest);
    memcpy(&word, chunk + sr_sketch_word_at(s, row, rest / per_word), 4);
    return word >> (rest % per_word * s->bits) & (uint32_t)(levels - 1);
}

/* ---- sketch_encode ----------------------------------------------------------------------------------------------- */

void sr_spoilt_sketch_encode(const struct sketch_rows *a)
{
    ((sr_sketch_encode_fn *)sr_check_now->real)(a);
    a->y_chunk[sr_sketch_first_at(a->sketch->bits, a->row0)] ^= (uint8_t)(3 << sr_sketch_first_shift(a->sketch->bits, a->row0)); /* two levels off */
}

static struct sketch_basis random_basis(struct check *c, int32_t d, int32_t rank)
{
    float *mu = sr_check_in(c, (size_t)d * 4), *analysis = sr_check_in(c, (size_t)(rank * d) * 4);
    float *step = sr_check_in(c, (size_t)rank * 4);
    sr_check_fill_normal(c, mu, d, 3.0);
    sr_check_fill_normal(c, analysis, rank * d, 1.0);
    for (int32_t j = 0; j < rank; j++) step[j] = (float)(sqrt(d) * (0.1 + 0.5 * sr_rng_unit(&c->rng)));
    return (struct sketch_basis){mu, analysis, NULL, step, NULL};
}

struct encode_ref { int64_t clipped, unsure; };

static void compare_row(struct check *c, const struct sketch_rows *a, int32_t row, struct encode_ref *ref)
{
    const int32_t d = a->shape->head_dim;
    float k[SR_ATTN_MAX_DIM];
    sr_check_row_load(a->shape->k_type, a->k_chunk + (size_t)row * a->shape->k_row_bytes, k, d);
    for (int32_t i = 0; i < d; i++) k[i] *= a->k_scale;
    for (int32_t j = 0; j < a->sketch->rank; j++) {
        const int32_t levels = 1 << bits_at(a->sketch, j);
        double y = 0, abs_sum = 0;
        for (int32_t i = 0; i < d; i++) {
            y += (double)a->basis->analysis[j * d + i] * ((double)k[i] - (double)a->basis->mu[i]);
            abs_sum += fabs((double)a->basis->analysis[j * d + i]) * (fabs((double)k[i]) + fabs((double)a->basis->mu[i]));
        }
        const double at = y / (double)a->basis->step[j] + levels / 2, slack = (d + 6) * SR_CHECK_U * abs_sum / (double)a->basis->step[j];
        const double low = fmax(0, fmin(levels - 1, floor(at - slack))), high = fmax(0, fmin(levels - 1, floor(at + slack)));
        const double code = code_at(a->y_chunk, a->sketch, row, j);
        ref->clipped += at < 0 || at >= levels;
        ref->unsure += fabs(at) <= slack || fabs(at - levels) <= slack;
        if (code < low || code > high) sr_check_fail(c, "row %d code %d: %g, want %g", row, j, code, floor(at));
    }
}

static void check_encode(struct check *c, int32_t d, sr_dtype type, int32_t rank, int32_t bits)
{
    const struct attn_shape shape = sr_check_shape(d, 1, type, type);
    const struct sketch_shape sketch = sketch_shape(rank, bits);
    const struct sketch_basis basis = random_basis(c, d, rank);
    const size_t bytes = SR_CHUNK_ROWS * sketch.row_bytes;
    uint8_t *y = sr_check_out(c, bytes), *before = sr_check_in(c, bytes);
    int64_t k_rows = 0, clipped = 0;
    const int32_t row0 = (int32_t)sr_check_pick(c, 40), row1 = row0 + 1 + (int32_t)sr_check_pick(c, 80);
    uint8_t *k = sr_check_in(c, (size_t)row1 * shape.k_row_bytes);
    sr_check_fill_rows(c, type, k, row1, d, 1.0);
    memcpy(before, y, bytes);
    const struct sketch_rows a = {&shape, &sketch, &basis, k, y, row0, row1, &k_rows, &clipped, sr_kv_is_scaled(type) ? 0.5f : 1.0f};
    struct encode_ref ref = {0, 0};
    ((sr_sketch_encode_fn *)c->fn)(&a);
    for (int32_t i = row0; i < row1; i++) compare_row(c, &a, i, &ref);
    for (int32_t i = 0; i < SR_CHUNK_ROWS; i++)
        for (int32_t j = 0; (i < row0 || i >= row1) && j < rank; j++)
            if (code_at(y, &sketch, i, j) != code_at(before, &sketch, i, j)) sr_check_fail(c, "row %d outside the range, code %d", i, j);
    if (k_rows != row1 - row0) sr_check_fail(c, "counted %lld rows, want %d", (long long)k_rows, row1 - row0);
    if (clipped < ref.clipped - ref.unsure || clipped > ref.clipped + ref.unsure)
        sr_check_fail(c, "clipped %lld, want %lld", (long long)clipped, (long long)ref.clipped);
    sr_check_free_buffers(c);
}

struct encode_call { sr_sketch_encode_fn *fn; struct sketch_rows a; };

static void call_encode(void *ctx)
{
    const struct encode_call *e = ctx;
    e->fn(&e->a);
}

static void bench_encode(struct check *c, int32_t d, int32_t rank, int32_t bits)
{
    const struct attn_shape shape = sr_check_shape(d, 1, SR_DTYPE_F16, SR_DTYPE_F16);
    const struct sketch_shape sketch = sketch_shape(rank, bits);
    const struct sketch_basis basis = random_basis(c, d, rank);
    int64_t n = 0;
    char label[48];
    struct encode_call e = {(sr_sketch_encode_fn *)c->fn,
                            {&shape, &sketch, &basis, sr_check_in(c, 1024 * shape.k_row_bytes),
                             sr_check_out(c, 1024 * sketch.row_bytes), 0, 1024, &n, &n, 1.0f}};
    snprintf(label, sizeof(label), "d %d rank %d x %d, 1024 rows", d, rank, bits);
    sr_check_time(c, label, 1024.0 * (double)shape.k_row_bytes, 2.0 * 1024 * d * rank, call_encode, &e);
    sr_check_free_buffers(c);
}

void sr_check_sketch_encode(struct check *c)
{
    static const sr_dtype types[] = {SR_DTYPE_F32, SR_DTYPE_F16, SR_DTYPE_BF16, SR_DTYPE_Q8_0, SR_DTYPE_Q4_0, SR_DTYPE_F8_E4M3};
    static const int32_t dims[] = {24, 64, 72, 96, 128};
    if (c->bench) {
        bench_encode(c, 64, 20, 4);
        bench_encode(c, 64, 44, SR_SKETCH_MIXED);
        bench_encode(c, 128, 36, 4);
        return;
    }
    for (int t = 0; t < 6; t++)
        for (int i = 0; i < 5; i++)
            for (int r = 0; r < N_RANKS; r++) {
                if (ranks[r] > dims[i] || (sr_kv_is_blocked(types[t]) && dims[i] % SR_KV_BLOCK)) continue;
                check_encode(c, dims[i], types[t], ranks[r], widths[(r + i) % 3]);
            }
}

/* ---- sketch_scan ------------------------------------------------------------------------------------------------- */

void sr_spoilt_sketch_scan(struct sketch_scan *a)
{
    ((sr_sketch_scan_fn *)sr_check_now->real)(a);
    if (a->row0 % 2) sr_check_spoil(&a->logits[a->row0]);
    else sr_check_spoil(&a->sum[a->group - 1]);
}

/* open: 0 no run, 1 about half of them, 2 all, 3 all since the near part is NaN; cut: of the rows kept, from floors of two standard deviations */
struct scan_case { int32_t rank, bits, group, row0, row1; double scale; int open; float cut; };

/* What sums are relative to lies where the largest logits probably are. */
static void scan_levels(struct check *c, const struct scan_case *s, const float *base, float *open, float *from, float *floor_log)
{
    const double levels = s->scale * (s->bits == 8 ? 256 : 16) / sqrt(12.0), all = s->bits == SR_SKETCH_MIXED ? sqrt(SR_SKETCH_FIRST + s->rank * .02) : sqrt(s->rank);
    for (int32_t g = 0; g < s->group; g++) {
        const double first = levels * sqrt(SR_SKETCH_FIRST); /* of the first plane's sum: one row in 16 or so is above */
        open[g] = s->open == 0 ? INFINITY : s->open == 2 ? -INFINITY : s->open == 3 ? NAN : (float)((double)base[g] + first * (s->group > 3 ? 2.2 : 1.8));
        from[g] = (float)((double)base[g] + 3 * levels * all + 3 * sr_check_normal(c));
        floor_log[g] = (float)((double)base[g] + 2 * levels * (s->open ? all : sqrt(SR_SKETCH_FIRST)));
        if (sr_check_pick(c, 40) == 0) floor_log[g] = -INFINITY; /* everything is kept */
    }
}

/* The place of a coordinate's factor among the fields'; of 3 bits that of the lowest, the upper two's lies 16 before it. */
static int32_t field_of(const struct sketch_shape *s, int32_t j)
{
    const int32_t n = (s->rank - SR_SKETCH_FIRST + 39) / 40, rest = j - SR_SKETCH_FIRST, twos = rest - 8 * n, ones = rest - 16 * n;
    if (s->bits != SR_SKETCH_MIXED || rest < 0) return j;
    return SR_SKETCH_FIRST + (twos < 0 ? rest / 8 * 48 + 16 + rest % 8 : ones < 0 ? twos / 8 * 48 + 8 + twos % 8 : ones / 24 * 48 + 24 + ones % 24);
}

static void fill_factors(struct check *c, const struct sketch_shape *s, float *w, double scale)
{
    float x[SR_ATTN_MAX_DIM];
    memset(w, 0, (size_t)sr_sketch_padded(s) * sizeof(*w));
    sr_check_fill_normal(c, x, s->rank, scale);
    for (int32_t j = 0; j < s->rank; j++) {
        float *field = w + field_of(s, j);
        *field = x[j];
        if (bits_at(s, j) == 3) field[-16] = 2 * x[j];
    }
}

static struct sketch_scan scan_setup(struct check *c, const struct scan_case *s, const struct sketch_shape *sketch, struct attn_touched *touched)
{
    const int32_t padded = sr_sketch_padded(sketch);
    const size_t bytes = SR_CHUNK_ROWS * sketch->row_bytes, heads = (size_t)s->group * 4;
    float *w = sr_check_in(c, (size_t)(s->group * padded) * 4), *base = sr_check_in(c, heads), *more = sr_check_in(c, heads);
    float *open = sr_check_in(c, heads), *from = sr_check_in(c, heads), *floor_log = sr_check_in(c, heads);
    int32_t *skip = sr_check_in(c, SR_CHUNK_ROWS * 4), n_skip = 0;
    for (int32_t i = s->row0; i < s->row1 && !c->bench && sr_check_pick(c, 2); i += 1 + (int32_t)sr_check_pick(c, 300)) skip[n_skip++] = 3 * SR_CHUNK_ROWS + i;
    uint8_t *y = sr_check_in(c, bytes);
    for (size_t i = 0; i < bytes; i++) y[i] = (uint8_t)sr_check_pick(c, 256);
    for (int32_t g = 0; g < s->group; g++) fill_factors(c, sketch, w + g * padded, s->scale);
    sr_check_fill_normal(c, base, s->group, 4.0);
    sr_check_fill_normal(c, more, s->group, 1.0);
    scan_levels(c, s, base, open, from, floor_log);
    return (struct sketch_scan){.sketch = sketch, .y_chunk = y, .next = sr_check_pick(c, 2) ? y : NULL, .group = s->group,
                                .row0 = s->row0, .row1 = s->row1, .w = w, .base = base, .more = more, .open = open, .from = from,
                                .floor = floor_log, .cut = s->cut, .first_row = 3 * SR_CHUNK_ROWS, .skip = skip, .n_skip = n_skip, .touched = touched,
                                .logits = sr_check_out(c, (size_t)(s->group * SR_SKETCH_STRIDE) * 4),
                                .max = sr_check_out(c, heads), .sum = sr_check_out(c, heads),
                                .kept_rows = sr_check_out(c, SR_CHUNK_ROWS * 4),
                                .kept = sr_check_out(c, (size_t)(s->group * SR_SKETCH_STRIDE) * 4)};
}

/* A sum over coordinates [from, to) with its error. */
struct score_sum { double x, tol; };

static struct score_sum sum_of(const struct check *c, const struct sketch_scan *a, int32_t g, int32_t row, int is_rest)
{
    const int32_t rank = a->sketch->rank;
    const int32_t from = is_rest ? SR_SKETCH_FIRST : 0, to = is_rest || rank < SR_SKETCH_FIRST ? rank : SR_SKETCH_FIRST;
    const float *w = a->w + g * sr_sketch_padded(a->sketch);
    double most = 0, want = is_rest ? (double)a->more[g] : (double)a->base[g], abs_sum = fabs(want);
    double all_levels = 0;
    for (int32_t j = from; j < to; j++) {
        const int32_t levels = 1 << bits_at(a->sketch, j);
        const double factor = (double)w[field_of(a->sketch, j)];
        most = fmax(most, fabs(factor) * (levels == 8 ? 2 : 1)); /* in two pieces */
        const double x = factor * ((double)code_at(a->y_chunk, a->sketch, row, j) - levels / 2 + 0.5);
        want += x;
        all_levels += levels;
        abs_sum += fabs(x) + fabs(factor) * levels; /* a variant may sum codes and levels apart */
    }
    double tol = (rank + 6) * SR_CHECK_U * abs_sum;
    /* the integer variant: factors of the second plane to half an s, beside levels of at most half their number */
    const int is_whole = c->isa == ISA_AVX2 ? a->sketch->bits != 8 : c->isa >= ISA_VNNI && c->isa != ISA_NEON;
    if (is_rest && is_whole) tol += all_levels / 2 * most / (a->sketch->bits == 8 ? 32512 : 127) / 2;
    return (struct score_sum){want, tol};
}

static int is_skipped(const struct sketch_scan *a, int32_t row)
{
    for (int32_t i = 0; i < a->n_skip; i++)
        if (a->skip[i] == a->first_row + row) return 1;
    return row < a->row0 || row >= a->row1;
}

/* 1: the run of the row is to be read whole, 0: not, -1: a logit is within its error of the threshold. */
static int is_open(const struct check *c, const struct sketch_scan *a, int32_t row)
{
    int open = 0;
    for (int32_t i = row / SR_SKETCH_RUN * SR_SKETCH_RUN, end = i + SR_SKETCH_RUN; i < end; i++)
        for (int32_t g = 0; !is_skipped(a, i) && g < a->group; g++) {
            const struct score_sum s = sum_of(c, a, g, i, 0);
            if (isnan(a->open[g]) || s.x - s.tol >= (double)a->open[g]) return 1;
            if (s.x + s.tol >= (double)a->open[g]) open = -1;
        }
    return open;
}

/* Rows of open runs, and of those that may be open or not. */
struct open_rows { int32_t sure, unsure; };

static void compare_block(struct check *c, const struct sketch_scan *a, int32_t row, struct open_rows *n)
{
    const int open = is_skipped(a, row) ? 0 : is_open(c, a, row);
    n->sure += open == 1;
    n->unsure += open < 0;
    for (int32_t g = 0; g < a->group; g++) {
        const double got = a->logits[g * SR_SKETCH_STRIDE + row];
        struct score_sum s = sum_of(c, a, g, row, 0), rest = sum_of(c, a, g, row, 1);
        if (open == 1 || (open < 0 && fabs(got - s.x) > s.tol)) s = (struct score_sum){s.x + rest.x, s.tol + rest.tol + SR_CHECK_U * (fabs(s.x) + fabs(rest.x))};
        if (is_skipped(a, row)) s.x = -INFINITY;
        if (!sr_check_near(c, "logit", row, got, s.x, s.tol)) return;
    }
}

/* A row is kept if its score is at or above the cut; one within rounding of it may go either way. */
static void compare_kept(struct check *c, const struct sketch_scan *a)
{
    int32_t n = 0;
    for (int32_t i = a->row0; i < a->row1; i++) {
        double t = -INFINITY, slack = 0;
        for (int32_t g = 0; g < a->group; g++) {
            const double x = a->logits[g * SR_SKETCH_STRIDE + i], f = a->floor[g];
            t = fmax(t, x - f);
            slack = fmax(slack, isfinite(f) ? 2 * SR_CHECK_U * (fabs(x) + fabs(f)) : 0);
        }
        if (is_skipped(a, i)) t = -INFINITY;
        const int kept = n < a->n_kept && a->kept_rows[n] == a->first_row + i;
        if (fabs(t - (double)a->cut) > slack && kept != (t >= (double)a->cut))
            sr_check_fail(c, "row %d: %s at %.9g, cut %.9g", i, kept ? "kept" : "dropped", t, (double)a->cut);
        for (int32_t g = 0; kept && g < a->group; g++)
            sr_check_near(c, "kept logit", n, a->kept[g * SR_SKETCH_STRIDE + n], a->logits[g * SR_SKETCH_STRIDE + i], 0);
        n += kept;
    }
    if (n != a->n_kept) sr_check_fail(c, "%d rows listed, %d found", a->n_kept, n);
}

static void compare_sums(struct check *c, const struct sketch_scan *a)
{
    for (int32_t g = 0; g < a->group; g++) {
        double max = -INFINITY, sum = 0;
        for (int32_t i = a->row0; i < a->row1; i++) {
            const double x = a->logits[g * SR_SKETCH_STRIDE + i];
            max = fmax(max, x);
            sum += exp(x - (double)a->from[g]);
        }
        sr_check_near(c, "max", g, a->max[g], max, 0);
        if (max - (double)a->from[g] > SR_SCAN_ABOVE) continue;
        /* n roundings of the sum, the exponential's 2^-17, and its argument's, relative to x and from; below e^-87 it may be 0 */
        const double at = (isfinite(max) ? fabs(max) : 0) + fabs((double)a->from[g]) + 100;
        sr_check_near(c, "sum", g, a->sum[g], sum, sum * ((a->row1 - a->row0 + 2 * at) * SR_CHECK_U + 0x1p-17) + (a->row1 - a->row0) * 0x1p-125);
    }
}

static void check_scan(struct check *c, const struct scan_case *s)
{
    const struct sketch_shape sketch = sketch_shape(s->rank, s->bits);
    const int64_t n = s->row1 - s->row0, first = (int64_t)sr_sketch_first_bytes(&sketch), rest = (int64_t)sketch.row_bytes - first;
    struct attn_touched touched = {0};
    struct open_rows open = {0, 0};
    int any = 0;
    struct sketch_scan a = scan_setup(c, s, &sketch, &touched);
    ((sr_sketch_scan_fn *)c->fn)(&a);
    for (int32_t i = a.row0 & ~15; i < ((a.row1 + 15) & ~15); i++) compare_block(c, &a, i, &open);
    compare_sums(c, &a);
    compare_kept(c, &a);
    if (touched.y_rows != n) sr_check_fail(c, "counted %lld rows, want %lld", (long long)touched.y_rows, (long long)n);
    const int64_t least = n * first + open.sure * rest;
    if (touched.y_bytes < least || touched.y_bytes > least + open.unsure * rest)
        sr_check_fail(c, "counted %lld bytes, want %lld and %lld at most more", (long long)touched.y_bytes, (long long)least, (long long)(open.unsure * rest));
    if (s->open == 1 && n > 980 && (open.sure < n / 32 || open.sure > n - n / 64)) sr_check_fail(c, "%d of %lld rows in open runs: no test", open.sure, (long long)n);
    for (int32_t g = 0; g < a.group && n == SR_CHUNK_ROWS; g++) any |= isinf(a.floor[g]) != 0;
    if (n == SR_CHUNK_ROWS && !any && (a.n_kept == 0 || a.n_kept == n)) sr_check_fail(c, "%d of %lld rows kept: no test", a.n_kept, (long long)n);
    sr_check_free_buffers(c);
}

struct scan_call { sr_sketch_scan_fn *fn; struct sketch_scan a; };

static void call_scan(void *ctx)
{
    struct scan_call *s = ctx;
    s->fn(&s->a);
}

static void bench_scan(struct check *c, int32_t rank, int32_t bits, int32_t group, int open)
{
    const struct scan_case s = {rank, bits, group, 0, SR_CHUNK_ROWS, 0.1, open, 0};
    const struct sketch_shape sketch = sketch_shape(rank, bits);
    struct attn_touched touched = {0};
    char label[64];
    struct scan_call call = {(sr_sketch_scan_fn *)c->fn, scan_setup(c, &s, &sketch, &touched)};
    call_scan(&call);
    const double first = SR_CHUNK_ROWS * (double)sr_sketch_first_bytes(&sketch), all = SR_CHUNK_ROWS * (double)sketch.row_bytes;
    snprintf(label, sizeof(label), "rank %d x %d g %d, %.0f %% open, %.0f %% kept", rank, bits, group, 100 * ((double)touched.y_bytes - first) / (all - first),
             100.0 * call.a.n_kept / SR_CHUNK_ROWS);
    sr_check_time(c, label, (double)SR_CHUNK_ROWS * (double)sketch.row_bytes, 2.0 * SR_CHUNK_ROWS * rank * group, call_scan, &call);
    sr_check_free_buffers(c);
}

void sr_check_sketch_scan(struct check *c)
{
    if (c->bench) {
        for (int open = 0; open < 3; open++) {
            bench_scan(c, 20, 4, 3, open);
            bench_scan(c, 28, 4, 7, open);
            bench_scan(c, 44, SR_SKETCH_MIXED, 7, open);
            bench_scan(c, 44, SR_SKETCH_MIXED, 3, open);
            bench_scan(c, 36, 4, 4, open);
            bench_scan(c, 84, SR_SKETCH_MIXED, 7, open);
            bench_scan(c, 20, 8, 3, open);
        }
        return;
    }
    for (int32_t group = 1; group <= 16; group++)
        for (int r = 0; r < N_RANKS; r++) {
            const int32_t row0 = (int32_t)sr_check_pick(c, 60), row1 = row0 + 1 + (int32_t)sr_check_pick(c, r == 3 ? 900 : 60);
            const float cut = r % 4 == 0 ? INFINITY : r % 4 == 1 ? -11.0f : -1e-3f;
            check_scan(c, &(struct scan_case){ranks[r], widths[(r + group) % 3], group, row0, row1, r % 3 == 0 ? 10 : 0.1, (r + group / 2) % 3, cut});
        }
    for (int open = 0; open < 4; open++) {
        check_scan(c, &(struct scan_case){20, 4, 3, 0, SR_CHUNK_ROWS, 0.3, open, -1});
        check_scan(c, &(struct scan_case){28, 4, 7, 0, SR_CHUNK_ROWS, 0.3, open, -1});
        check_scan(c, &(struct scan_case){44, SR_SKETCH_MIXED, 7, 0, SR_CHUNK_ROWS, 0.3, open, -1});
        check_scan(c, &(struct scan_case){84, SR_SKETCH_MIXED, 5, 3, SR_CHUNK_ROWS - 5, 0.3, open, -1});
        check_scan(c, &(struct scan_case){256, SR_SKETCH_MIXED, 2, 3, 600, 0.3, open, -1});
        check_scan(c, &(struct scan_case){20, 8, 7, 5, SR_CHUNK_ROWS - 3, 1, open, -2});
        check_scan(c, &(struct scan_case){36, 4, 11, 17, 1003, 1, open, -4});
        check_scan(c, &(struct scan_case){16, 4, 2, 250, 530, 1, open, -3});
    }
}

/* ---- sketch_share ------------------------------------------------------------------------------------------------- */

void sr_spoilt_sketch_share(const struct sketch_share *a)
{
    ((sr_sketch_share_fn *)sr_check_now->real)(a);
    if (a->n == 0) return;
    const int32_t bin = a->bin[0] < SR_SKETCH_BINS ? a->bin[0] : 0; /* that row may be in none */
    sr_check_spoil(&a->sums[bin * sr_sketch_width(a->group)]);
}

/* The bin of row i; one within rounding of a boundary may fall on either side of it. */
static void compare_bin(struct check *c, const struct sketch_share *a, int32_t i)
{
    double t = -INFINITY;
    for (int32_t g = 0; g < a->group; g++)
        t = fmax(t, (double)a->kept[g * SR_SKETCH_STRIDE + i] - (double)a->log_total[g]);
    const double at = fmin(SR_SKETCH_BINS - 1, fmax(0, -t * (double)a->bins_per_nat)), slack = 8 * SR_CHECK_U * (at + 1);
    const int near_cut = fabs(t - (double)a->cut) <= 4 * SR_CHECK_U * fabs(t);
    const int low = (int)fmax(0, floor(at - slack)), high = (int)floor(at + slack);
    const int ok = a->bin[i] >= low && a->bin[i] <= high;
    const int dropped = a->bin[i] == SR_SKETCH_BINS;
    if (near_cut ? !ok && !dropped : t >= (double)a->cut ? !ok : !dropped)
        sr_check_fail(c, "bin of row %d: %d, want %d, log share %.9g", i, a->bin[i], low, t);
}

static void check_share(struct check *c, int32_t group, int32_t n)
{
    const int32_t width = sr_sketch_width(group);
    float *kept = sr_check_in(c, (size_t)(group * SR_SKETCH_STRIDE) * 4), *log_total = sr_check_in(c, (size_t)group * 4);
    float *sums = aligned_alloc(64, (size_t)(SR_SKETCH_BINS * width) * 4);
    const struct sketch_share a = {group, n, kept, log_total, -9.5f, SR_SKETCH_BINS / 9.5f, sr_check_out(c, (size_t)n * 2), sums};
    memset(sums, 0, (size_t)(SR_SKETCH_BINS * width) * 4);
    sr_check_fill_normal(c, kept, group * SR_SKETCH_STRIDE, 4);
    for (int32_t g = 0; g < group; g++) log_total[g] = (float)(14 + sr_check_normal(c));
    ((sr_sketch_share_fn *)c->fn)(&a);
    for (int32_t i = 0; i < n; i++) compare_bin(c, &a, i);
    for (int32_t b = 0; b < SR_SKETCH_BINS; b++)
        for (int32_t g = 0; g < group; g++) {
            double sum = 0, most = 0;
            for (int32_t i = 0; i < n; i++) {
                const double x = (double)kept[g * SR_SKETCH_STRIDE + i] - (double)log_total[g];
                if (a.bin[i] != b) continue;
                sum += exp(x);
                most = fmax(most, fabs(x));
            }
            sr_check_near(c, "sum of a bin", b * width + g, sums[b * width + g], sum, sum * (most + n + 16) * SR_CHECK_U);
        }
    free(sums);
    sr_check_free_buffers(c);
}

struct share_call { sr_sketch_share_fn *fn; struct sketch_share a; };

static void call_share(void *ctx)
{
    struct share_call *s = ctx;
    s->fn(&s->a);
}

void sr_check_sketch_share(struct check *c)
{
    if (c->bench) {
        float *kept = sr_check_in(c, 3 * SR_SKETCH_STRIDE * 4), *sums = aligned_alloc(64, SR_SKETCH_BINS * 16);
        struct share_call s = {(sr_sketch_share_fn *)c->fn,
                               {3, SR_CHUNK_ROWS, kept, sr_check_in(c, 12), -9, 50, sr_check_out(c, SR_CHUNK_ROWS * 2), sums}};
        sr_check_fill_normal(c, kept, 3 * SR_SKETCH_STRIDE, 3);
        memset(sums, 0, SR_SKETCH_BINS * 16);
        sr_check_time(c, "g 3, 1024 rows", 0, 0, call_share, &s);
        free(sums);
        return;
    }
    for (int32_t group = 1; group <= 16; group++)
        for (int32_t n = 0; n < 40; n += 7) check_share(c, group, n);
    check_share(c, 3, SR_CHUNK_ROWS);
}

int32_t sr_spoilt_sketch_pick(const struct sketch_pick *a)
{
    const int32_t n = ((sr_sketch_pick_fn *)sr_check_now->real)(a);
    if (n) a->list[n - 1]++;
    return n;
}

static void check_pick(struct check *c, int32_t n, int32_t first, int32_t end)
{
    uint16_t *bin = sr_check_in(c, (size_t)n * 2);
    int32_t *rows = sr_check_in(c, (size_t)n * 4), want = 0;
    for (int32_t i = 0; i < n; i++) {
        bin[i] = (uint16_t)sr_check_pick(c, SR_SKETCH_BINS + 1);
        rows[i] = 5 * i + (int32_t)sr_check_pick(c, 5);
        want += bin[i] >= first && bin[i] < end;
    }
    const struct sketch_pick a = {n, first, end, bin, rows, sr_check_out(c, (size_t)want * 4)};
    const int32_t got = ((sr_sketch_pick_fn *)c->fn)(&a);
    if (got != want) sr_check_fail(c, "%d rows, want %d", got, want);
    for (int32_t i = 0, k = 0; i < n && got == want; i++)
        if (bin[i] >= first && bin[i] < end && a.list[k++] != rows[i]) sr_check_fail(c, "entry %d is row %d, want %d", k - 1, a.list[k - 1], rows[i]);
    sr_check_free_buffers(c);
}

struct pick_call { sr_sketch_pick_fn *fn; struct sketch_pick a; };

static void call_pick(void *ctx)
{
    struct pick_call *p = ctx;
    p->fn(&p->a);
}

void sr_check_sketch_pick(struct check *c)
{
    if (c->bench) {
        uint16_t *bin = sr_check_in(c, SR_CHUNK_ROWS * 2);
        for (int32_t i = 0; i < SR_CHUNK_ROWS; i++) bin[i] = (uint16_t)sr_check_pick(c, SR_SKETCH_BINS);
        struct pick_call p = {(sr_sketch_pick_fn *)c->fn,
                              {SR_CHUNK_ROWS, 0, 100, bin, sr_check_in(c, SR_CHUNK_ROWS * 4), sr_check_out(c, SR_CHUNK_ROWS * 4)}};
        sr_check_time(c, "1024 rows, 1 of 5", 0, 0, call_pick, &p);
        return;
    }
    for (int32_t n = 0; n < 80; n++) {
        const int32_t end = (int32_t)sr_check_pick(c, SR_SKETCH_BINS + 1);
        check_pick(c, n, n % 3 ? (int32_t)sr_check_pick(c, (uint32_t)end + 1) : 0, end);
    }
    check_pick(c, SR_CHUNK_ROWS, 0, 300);
    check_pick(c, SR_CHUNK_ROWS, 100, SR_SKETCH_BINS);
}
