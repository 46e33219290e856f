/* SPDX-License-Identifier: Apache-2.0
 *
 * Units with K/V rows for the tests of whole attention ops, each chunk in pages of its own, so that what must not be
 * read can be made NaN or taken away.
 */
#ifndef SR_TESTS_KERNELS_OPS_UNITS_H
#define SR_TESTS_KERNELS_OPS_UNITS_H

#include "backend/backend.h"
#include "check_rows.h"

#define SR_OPS_UNITS 4
#define SR_OPS_CHUNKS 8

struct ops_units {
    struct attn_shape shape;
    int32_t n;
    struct attn_unit unit[SR_OPS_UNITS];
    float *q;                                        /* [n][group][head_dim] */
    void *k[SR_OPS_UNITS][SR_OPS_CHUNKS], *v[SR_OPS_UNITS][SR_OPS_CHUNKS], *y[SR_OPS_UNITS][SR_OPS_CHUNKS];
    size_t y_bytes;
};

/* Random q and rows; y chunks of y_row_bytes per row if that is not 0. */
void sr_ops_units_init(struct ops_units *u, struct check *c, const struct attn_shape *shape, const int32_t *kv_len, int32_t n,
                       size_t y_row_bytes);
void sr_ops_units_fini(struct ops_units *u);
/* NaN into every K and V row whose flag is 0, and no access to pages without any flagged row. read [n][kv_len]. */
void sr_ops_units_hide(struct ops_units *u, uint8_t *const *read);
uint8_t *sr_ops_k_row(const struct ops_units *u, int32_t unit, int64_t row);
uint8_t *sr_ops_v_row(const struct ops_units *u, int32_t unit, int64_t row);

/* A backend of `isa` with n_threads threads; ends the program if it cannot be had. */
struct backend *sr_ops_backend(enum cpu_isa isa, int n_threads);

/* Runs test(c, isa) for every ISA of the machine: TAP lines "name isa", then the plan and the last line. */
struct ops_test { const char *name; void (*run)(struct check *c, enum cpu_isa isa); };
int sr_ops_main(const struct ops_test *tests, int n_tests, int argc, char **argv);

#endif
