/* SPDX-License-Identifier: Apache-2.0
 *
 * Fixture and runner of the op tests.
 */
#include "ops_units.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static size_t whole_pages(size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (bytes + page - 1) / page * page;
}

static void *map_pages(size_t bytes)
{
    void *p = mmap(NULL, whole_pages(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p != MAP_FAILED) return p;
    puts("Bail out! no memory for test rows");
    exit(1);
}

static int32_t rows_in(const struct ops_units *u, int32_t unit, int32_t chunk)
{
    const int32_t left = u->unit[unit].kv_len - chunk * SR_CHUNK_ROWS;
    return left < 0 ? 0 : left < SR_CHUNK_ROWS ? left : SR_CHUNK_ROWS;
}

void sr_ops_units_init(struct ops_units *u, struct check *c, const struct attn_shape *shape, const int32_t *kv_len, int32_t n,
                       size_t y_row_bytes)
{
    const int32_t width = shape->group * shape->head_dim;
    *u = (struct ops_units){.shape = *shape, .n = n, .y_bytes = SR_CHUNK_ROWS * y_row_bytes};
    u->q = malloc((size_t)(n * width) * sizeof(float));
    sr_check_fill_normal(c, u->q, n * width, 2.0 / sqrt(shape->head_dim));
    for (int32_t i = 0; i < n; i++) {
        u->unit[i] = (struct attn_unit){u->q + i * width, {u->k[i], i % 2 ? 0.5f : 4.0f}, {u->v[i], i % 2 ? 2.0f : 0.25f}, {u->y[i], 1}, kv_len[i]};
        for (int32_t j = 0; rows_in(u, i, j) > 0; j++) {
            u->k[i][j] = map_pages(SR_CHUNK_ROWS * shape->k_row_bytes);
            u->v[i][j] = map_pages(SR_CHUNK_ROWS * shape->v_row_bytes);
            if (y_row_bytes) u->y[i][j] = map_pages(u->y_bytes);
            sr_check_fill_rows(c, shape->k_type, u->k[i][j], rows_in(u, i, j), shape->head_dim, 1.0);
            sr_check_fill_rows(c, shape->v_type, u->v[i][j], rows_in(u, i, j), shape->head_dim, 1.0);
        }
    }
}

void sr_ops_units_fini(struct ops_units *u)
{
    for (int32_t i = 0; i < u->n; i++)
        for (int32_t j = 0; j < SR_OPS_CHUNKS; j++) {
            if (u->k[i][j]) munmap(u->k[i][j], whole_pages(SR_CHUNK_ROWS * u->shape.k_row_bytes));
            if (u->v[i][j]) munmap(u->v[i][j], whole_pages(SR_CHUNK_ROWS * u->shape.v_row_bytes));
            if (u->y[i][j]) munmap(u->y[i][j], whole_pages(u->y_bytes));
        }
    free(u->q);
}

uint8_t *sr_ops_k_row(const struct ops_units *u, int32_t unit, int64_t row)
{
    return (uint8_t *)u->k[unit][row / SR_CHUNK_ROWS] + (size_t)(row % SR_CHUNK_ROWS) * u->shape.k_row_bytes;
}

uint8_t *sr_ops_v_row(const struct ops_units *u, int32_t unit, int64_t row)
{
    return (uint8_t *)u->v[unit][row / SR_CHUNK_ROWS] + (size_t)(row % SR_CHUNK_ROWS) * u->shape.v_row_bytes;
}

/* Rows of one chunk: `read` holds the flags of its first n rows, none of the others. */
static void hide_chunk(const struct ops_units *u, sr_dtype type, uint8_t *rows, size_t row_bytes, const uint8_t *read, int32_t n)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = whole_pages(SR_CHUNK_ROWS * row_bytes);
    uint8_t *needed = calloc(bytes / page + 1, 1);
    for (int32_t i = 0; i < n; i++) {
        if (!read[i])
            for (int32_t j = 0; j < u->shape.head_dim; j++) sr_check_row_set(type, rows + (size_t)i * row_bytes, j, NAN);
        else
            for (size_t at = (size_t)i * row_bytes; at < (size_t)(i + 1) * row_bytes; at++) needed[at / page] = 1;
    }
    for (size_t p = 0; p < bytes / page; p++)
        if (!needed[p]) mprotect(rows + p * page, page, PROT_NONE);
    free(needed);
}

void sr_ops_units_hide(struct ops_units *u, uint8_t *const *read)
{
    for (int32_t i = 0; i < u->n; i++)
        for (int32_t j = 0; rows_in(u, i, j) > 0; j++) {
            hide_chunk(u, u->shape.k_type, u->k[i][j], u->shape.k_row_bytes, read[i] + j * SR_CHUNK_ROWS, rows_in(u, i, j));
            hide_chunk(u, u->shape.v_type, u->v[i][j], u->shape.v_row_bytes, read[i] + j * SR_CHUNK_ROWS, rows_in(u, i, j));
        }
}

struct backend *sr_ops_backend(enum cpu_isa isa, int n_threads)
{
    struct backend *b = NULL;
    sr_error err;
    setenv("SR_ISA", sr_cpu_isa_name(isa), 1);
    if (sr_backend_cpu_open(&b, n_threads, &err) == SR_OK) return b;
    printf("Bail out! %s\n", err.text);
    exit(1);
}

int sr_ops_main(const struct ops_test *tests, int n_tests, int argc, char **argv)
{
    const uint32_t mask = sr_cpu_isa_mask();
    const char *filter = argc > 1 ? argv[1] : "";
    int number = 0, passed = 0, skipped = 0;
    for (int t = 0; t < n_tests; t++)
        for (int isa = 0; isa < ISA_COUNT; isa++) {
            if (!strstr(tests[t].name, filter) || !(mask >> isa & 1u)) continue;
            struct check c = {.family = tests[t].name, .isa = (enum cpu_isa)isa, .seed = 1};
            sr_rng_seed(&c.rng, c.seed);
            tests[t].run(&c, (enum cpu_isa)isa);
            sr_check_free_buffers(&c);
            printf("%sok %d - %s %s\n", c.n_failed ? "not " : "", ++number, tests[t].name, sr_cpu_isa_name((enum cpu_isa)isa));
            if (c.n_failed) printf("# %s\n", c.why);
            passed += !c.n_failed;
        }
    printf("1..%d\n%d passed, %d failed, %d skipped\n", number, passed, number - passed, skipped);
    return passed != number;
}
