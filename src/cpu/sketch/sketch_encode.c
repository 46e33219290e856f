/* SPDX-License-Identifier: Apache-2.0
 *
 * sketch_encode: K rows into sketch rows, dealt in short runs of rows that stay within a chunk.
 */
#include "cpu/attn/kv_row.h"
#include "cpu/ops_cpu.h"

#include <assert.h>
#include <stdatomic.h>

/* Rows per task, dividing SR_CHUNK_ROWS and of whole words that two rows share; and the number of rows above which the pool is worth its start. */
enum { ENCODE_ROWS = 128, ENCODE_SERIAL = 32 };

struct encode_job { const struct sketch_encode_args *a; const struct backend_cpu *c; int32_t n_blocks; };

/* Rows [row0, row1), which lie in one chunk. Counters are added atomically: sums of integers have no order. */
static void encode_run(const struct encode_job *j, int32_t u, int32_t row0, int32_t row1)
{
    const struct sketch_encode_args *a = j->a;
    const int32_t chunk = row0 / SR_CHUNK_ROWS, base = chunk * SR_CHUNK_ROWS;
    int64_t k_rows = 0, clipped = 0;
    const struct sketch_rows r = {
        .shape = a->shape, .sketch = a->sketch, .basis = &a->basis[u],
        .k_chunk = a->units[u].k.chunk[chunk], .y_chunk = a->units[u].y.chunk[chunk],
        .row0 = row0 - base, .row1 = row1 - base, .k_rows = &k_rows, .clipped = &clipped,
        .k_scale = sr_kv_scale(&a->units[u].k, a->shape->k_type),
    };
    j->c->k.sketch_encode(&r);
    __atomic_fetch_add(&a->clipped[u], clipped, __ATOMIC_RELAXED);
    if (a->touched) __atomic_fetch_add(&a->touched[u].k_rows, k_rows, __ATOMIC_RELAXED);
}

static int32_t min_i32(int32_t a, int32_t b) { return a < b ? a : b; }
static int32_t max_i32(int32_t a, int32_t b) { return a > b ? a : b; }

/* Block i of a unit: rows [i, i + 1) * ENCODE_ROWS counted from the start of row0's block. */
static void encode_block(const struct encode_job *j, int32_t u, int32_t i)
{
    const int32_t start = (j->a->row0[u] / ENCODE_ROWS + i) * ENCODE_ROWS;
    const int32_t row0 = max_i32(start, j->a->row0[u]), row1 = min_i32(start + ENCODE_ROWS, j->a->row1[u]);
    if (row0 < row1) encode_run(j, u, row0, row1);
}

static void encode_task(void *ctx, int32_t task, int32_t thread)
{
    const struct encode_job *j = ctx;
    (void)thread;
    encode_block(j, task / j->n_blocks, task % j->n_blocks);
}

void sr_cpu_sketch_encode(struct backend *b, const struct sketch_encode_args *a)
{
    struct encode_job job = {a, sr_cpu_of(b), 0};
    int32_t most = 0;
    assert(a->sketch->row_bytes == sr_sketch_host_row_bytes(a->sketch->rank, a->sketch->bits) && (a->sketch->bits == 4 || a->sketch->bits == 8 || a->sketch->bits == SR_SKETCH_MIXED));
    for (int32_t u = 0; u < a->n_units; u++) most = max_i32(most, a->row1[u] - a->row0[u]);
    if (most <= 0) return;
    job.n_blocks = most / ENCODE_ROWS + 2;
    const int32_t n_tasks = job.n_blocks * a->n_units;
    if (most > ENCODE_SERIAL)
        sr_pool_run(job.c->pool, n_tasks, encode_task, &job);
    else
        for (int32_t i = 0; i < n_tasks; i++) encode_task(&job, i, 0);
}
