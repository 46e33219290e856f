/* SPDX-License-Identifier: Apache-2.0
 *
 * What a model says that a session's sketch will take: rows as they lie on the host, twice over where a next band is
 * made beside the one in use, or as a device says that they lie there, once. Of a model in parts each layer counts
 * where it lies.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/model.h"

#include "attention/basis.h"
#include "backend/device_attn.h"

enum { LAYERS = 3, HEADS = 12, KV = 2, DIM = 64, UNITS = LAYERS * KV, SHORT = 2048, LONG = 8192, DEVICE_EXTRA = 5,
       MIXED_RANK = 44, MIXED_BYTES = 2 + 8 /* groups of 6: mixed codes */ };

/* As no host lays them. */
static size_t device_row_bytes(int32_t rank, int32_t bits) { return (size_t)(rank * bits / 8 + DEVICE_EXTRA); }

static const struct device_attn_ops device_attn = {.sketch_row_bytes = device_row_bytes};
static const struct backend_ops device_ops = {.device_attn = &device_attn}, host_ops = {0};
static struct backend device = {.ops = &device_ops, .has_own_memory = 1}, host = {.ops = &host_ops};

static struct sr_model model_on(struct backend *b, enum rope_kind rope)
{
    return (struct sr_model){.backend = b, .has_config = 1,
                             .config = {.n_layers = LAYERS, .n_heads = HEADS, .n_kv_heads = KV, .head_dim = DIM, .rope = {.kind = rope}}};
}

static sr_route_options mass(int32_t rank, int32_t bits)
{
    sr_route_options r = sr_route_options_default();
    r.mode = SR_ROUTE_MASS;
    r.rank = rank;
    r.bits = bits;
    return r;
}

/* Bytes of a row of one unit; bases and moments are the same in both contexts. */
static double row_of(const struct sr_model *m, const sr_route_options *r)
{
    return (double)(sr_model_sketch_bytes(m, r, LONG) - sr_model_sketch_bytes(m, r, SHORT)) / (double)(UNITS * (LONG - SHORT));
}

static void rows_on_a_device(void **state)
{
    (void)state;
    struct sr_model m = model_on(&device, ROPE_NEOX);
    const sr_route_options by_default = mass(0, 4), eight = mass(16, 8);
    assert_int_equal(sr_model_sketch_rank(&m), DIM / 4);
    assert_float_equal(row_of(&m, &by_default), DIM / 4 * 4 / 8 + DEVICE_EXTRA, 0);
    assert_float_equal(row_of(&m, &eight), 16 + DEVICE_EXTRA, 0);
    m.n_lower = 1; /* of three layers */
    assert_int_equal(sr_model_sketch_rank(&m), MIXED_RANK);
    const double lower = 2 * (double)sr_sketch_host_row_bytes(16, 8), upper = 16 + DEVICE_EXTRA;
    assert_float_equal(row_of(&m, &eight), (lower + 2 * upper) / 3, 1e-9);
}

static void rows_on_the_host(void **state)
{
    (void)state;
    struct sr_model m = model_on(&host, ROPE_NONE);
    const sr_route_options by_default = mass(0, 4), eight = mass(16, 8);
    assert_int_equal(sr_model_sketch_rank(&m), MIXED_RANK);
    assert_float_equal(row_of(&m, &by_default), MIXED_BYTES, 0);
    m = model_on(&host, ROPE_NEOX);
    assert_float_equal(row_of(&m, &eight), 2 * (double)sr_sketch_host_row_bytes(16, 8), 0);
}

static void nothing_without_routing(void **state)
{
    (void)state;
    struct sr_model m = model_on(&host, ROPE_NEOX);
    sr_route_options r = mass(0, 4);
    assert_int_equal(sr_model_sketch_bytes(&m, &r, r.min_len - 1), 0);
    assert_int_not_equal(sr_model_sketch_bytes(&m, &r, r.min_len), 0);
    r.mode = SR_ROUTE_WINDOW;
    assert_int_equal(sr_model_sketch_bytes(&m, &r, LONG), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_on_a_device), cmocka_unit_test(rows_on_the_host), cmocka_unit_test(nothing_without_routing),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("memory need", tests, NULL, NULL);
}
