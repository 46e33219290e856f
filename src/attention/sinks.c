/* SPDX-License-Identifier: Apache-2.0
 *
 * See sinks.h. The marks were chosen on SmolLM2 and Qwen2.5-Coder (docs/routing.md): sinks have .1 to .35 of the mean
 * value norm, other rows hardly any below .4.
 */
#include "attention/sinks.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"

struct sinks {
    int32_t n_layers, n_kv_heads, head_dim;
    size_t bytes;              /* of units */
    struct found_sinks *units; /* [n_layers][n_kv_heads] */
};

sr_status sr_sinks_new(struct sinks **out, int32_t n_layers, int32_t n_kv_heads, int32_t head_dim, sr_error *err)
{
    size_t n = (size_t)n_layers * (size_t)n_kv_heads;
    struct sinks *s = sr_alloc_zero(1, sizeof *s);
    if (!s) return sr_fail_memory(err, sizeof *s, "sinks");
    *s = (struct sinks){n_layers, n_kv_heads, head_dim, n * sizeof *s->units, NULL};
    s->units = sr_alloc_zero(n, sizeof *s->units);
    if (!s->units) {
        sr_free(s);
        return sr_fail_memory(err, n * sizeof *s->units, "sinks");
    }
    *out = s;
    return SR_OK;
}

void sr_sinks_free(struct sinks *s)
{
    if (!s) return;
    sr_free(s->units);
    sr_free(s);
}

void sr_sinks_truncate(struct sinks *s, int32_t len)
{
    for (int32_t i = 0; i < s->n_layers * s->n_kv_heads; i++) {
        struct found_sinks *u = &s->units[i];
        while (u->n > 0 && (len < SR_SINKS_REFERENCE || u->rows[u->n - 1] >= len)) u->n--;
    }
}

static float norm(const float *x, int32_t n)
{
    float sum = 0;
    for (int32_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sqrtf(sum);
}

static void look(struct found_sinks *u, int32_t row, float k, float v)
{
    if (u->n < SR_SINKS_MOST && v <= SR_SINKS_VALUE * u->mean_v && k <= SR_SINKS_KEY * u->mean_k) u->rows[u->n++] = row;
}

/* The reference is complete: its own rows are looked at. */
static void begin(struct found_sinks *u)
{
    double k = 0, v = 0;
    for (int32_t i = SR_SINKS_FIRST; i < SR_SINKS_REFERENCE; i++) {
        k += (double)u->k[i];
        v += (double)u->v[i];
    }
    u->mean_k = (float)(k / (SR_SINKS_REFERENCE - SR_SINKS_FIRST));
    u->mean_v = (float)(v / (SR_SINKS_REFERENCE - SR_SINKS_FIRST));
    u->n = 0;
    for (int32_t i = 0; i < SR_SINKS_REFERENCE; i++) look(u, i, u->k[i], u->v[i]);
}

void sr_sinks_append(struct sinks *s, int32_t layer, const float *k, const float *v, int32_t n, int32_t pos0)
{
    for (int32_t t = 0; t < n; t++) {
        for (int32_t g = 0; g < s->n_kv_heads; g++) {
            struct found_sinks *u = &s->units[layer * s->n_kv_heads + g];
            size_t at = ((size_t)t * (size_t)s->n_kv_heads + (size_t)g) * (size_t)s->head_dim;
            float nk = norm(k + at, s->head_dim), nv = norm(v + at, s->head_dim);
            int32_t row = pos0 + t;
            if (row >= SR_SINKS_REFERENCE) {
                look(u, row, nk, nv);
                continue;
            }
            u->k[row] = nk;
            u->v[row] = nv;
            if (row == SR_SINKS_REFERENCE - 1) begin(u);
        }
    }
}

int32_t sr_sinks_get(const struct sinks *s, int32_t layer, int32_t kv_head, int32_t first, int32_t last,
                     const int32_t **rows)
{
    const struct found_sinks *u = &s->units[layer * s->n_kv_heads + kv_head];
    int32_t a = 0, b = u->n;
    while (a < b && u->rows[a] < first) a++;
    while (b > a && u->rows[b - 1] >= last) b--;
    *rows = u->rows + a;
    return b - a;
}

void *sr_sinks_piece(struct sinks *s, size_t *bytes)
{
    *bytes = s->bytes;
    return s->units;
}

int sr_sinks_check(const struct sinks *s, int32_t len)
{
    for (int32_t i = 0; i < s->n_layers * s->n_kv_heads; i++) {
        const struct found_sinks *u = &s->units[i];
        if (u->n < 0 || u->n > SR_SINKS_MOST) return -1;
        for (int32_t j = 0; j < u->n; j++) {
            if (u->rows[j] < 0 || u->rows[j] >= len || (j && u->rows[j] <= u->rows[j - 1])) return -1;
        }
    }
    return 0;
}
