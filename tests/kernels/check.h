/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernel checker. The families and variants come from the manifest, so a new variant needs no new test; a new
 * function type `fn` needs one function, sr_check_<fn>, here. It is called for every variant of every family of that
 * type: the scalar variant is compared with double precision, each other one with scalar. In bench mode the same
 * function sets up one realistic shape and calls sr_check_time.
 *
 * c->fn is always what to call: in a run with a planted fault it is a wrapper that calls the real kernel and then
 * spoils one element, and the check must fail. Buffers come from sr_check_in (ends at an unreadable page) and
 * sr_check_out (between canaries, also ending at one); both die after the call. Tolerances are computed from the
 * operation, never chosen to fit.
 */
#ifndef SR_TESTS_KERNELS_CHECK_H
#define SR_TESTS_KERNELS_CHECK_H

#include "base/rng.h"
#include "cpu/kernels.h"

#define SR_CHECK_U 5.9604644775390625e-8 /* unit roundoff of f32 */

typedef void check_kernel(void); /* cast to the family's type before the call */

struct check {
    const char *family;           /* as in the manifest */
    enum cpu_isa isa;             /* of the variant */
    check_kernel *fn;             /* call this */
    check_kernel *scalar;         /* the specification */
    struct cpu_kernels k;         /* the best table without anything above `isa` */
    int bench;
    struct rng rng;
    uint64_t seed;
    /* the runner's own */
    check_kernel *real;           /* what a wrapper calls */
    int n_failed;
    char why[256];
    struct check_buffer *buffers;
};

/* ---- inputs ---------------------------------------------------------------------------------------------------- */

void *sr_check_in(struct check *c, size_t bytes);  /* zeroed */
void *sr_check_out(struct check *c, size_t bytes); /* filled with 0xa5; canaries are tested when the check returns */
double sr_check_normal(struct check *c);           /* mean 0, variance 1 */
void sr_check_fill_normal(struct check *c, float *x, int64_t n, double scale);
int64_t sr_check_pick(struct check *c, int64_t n); /* uniform in [0, n) */

/* Tests the canaries and frees all buffers; the runner calls it after each check. */
void sr_check_free_buffers(struct check *c);

/* ---- verdicts -------------------------------------------------------------------------------------------------- */

/* Records a failure (the first one is reported). */
void sr_check_fail(struct check *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* |got - want| <= tol; NaN and infinities must match exactly. Returns 0 and records a failure otherwise. */
int sr_check_near(struct check *c, const char *what, int64_t index, double got, double want, double tol);
/* Bits must be the same. */
int sr_check_same(struct check *c, const char *what, const void *got, const void *want, size_t bytes);

/* ---- bench ------------------------------------------------------------------------------------------------------ */

/* Times call(ctx): median of many runs, one line with GB/s of `bytes` and GFLOP/s of `flop` (0: left out). */
void sr_check_time(struct check *c, const char *label, double bytes, double flop, void (*call)(void *ctx), void *ctx);

/* ---- planted faults: one wrapper per function type ------------------------------------------------------------------ */

/* The check that is running: wrappers have the kernels' signatures and find it here. */
extern struct check *sr_check_now;
/* Adds a small error to one value. */
void sr_check_spoil(float *x);

/* X(fn): every function type of kernels.h. */
#define SR_CHECK_TYPES(X) X(quantize) X(matvec) X(dequant) X(gemm_pack) X(gemm) X(norm) X(rope) X(silu_mul) X(add) X(topk) \
    X(kv_store) X(attn_block) X(attn_flash) X(sketch_encode) X(sketch_scan) X(sketch_share) X(sketch_pick)

#define SR_CHECK_DECLARE(fn) void sr_check_##fn(struct check *c); sr_##fn##_fn sr_spoilt_##fn;
SR_CHECK_TYPES(SR_CHECK_DECLARE)

#endif
