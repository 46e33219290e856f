/* SPDX-License-Identifier: Apache-2.0
 *
 * Which layers lie where: the last ones, with the output, on the device; the first ones, with the embedding, on the CPU.
 * K and V of a layer lie with its weights. Counts bytes, allocates nothing.
 */
#include "engine/placement.h"

#include "model/forward.h"

/* Scratch of products and of attention on a device, and what the driver takes when kernels are loaded. */
#define DEVICE_SCRATCH ((uint64_t)512 << 20)

sr_status sr_placement_need(const struct sr_model *m, const sr_session_options *o, int32_t n_lower, struct placement_need *out,
                            sr_error *err)
{
    const struct model_config *c = &m->config;
    sr_session_options s = *o;
    sr_memory_need n;
    SR_TRY(sr_model_memory_need(m, o, &n, err));
    SR_TRY(sr_session_options_check(m, &s, err));
    const uint64_t rows = n.kv + n.sketch, lower = rows / (uint64_t)c->n_layers * (uint64_t)n_lower;
    const int on_host = !m->backend->has_own_memory;
    *out = (struct placement_need){.device = on_host ? 0 : rows - lower + sr_forward_bytes(c, m->backend, s.n_batch),
                                   .host = on_host ? rows + n.scratch : lower};
    if (n_lower) out->host += sr_forward_bytes(c, NULL, s.n_batch);
    return SR_OK;
}

int32_t sr_placement_fit(const struct sr_model *m, const sr_session_options *o, uint64_t have)
{
    const int32_t n_layers = m->config.n_layers;
    for (int32_t n_lower = 0; n_lower < n_layers; n_lower++) {
        struct placement_need need;
        if (sr_placement_need(m, o, n_lower, &need, NULL) != SR_OK) return 0;
        if (need.device + sr_weights_upper_bytes(m->file, &m->config, n_lower) + DEVICE_SCRATCH <= have) return n_layers - n_lower;
    }
    return 0;
}
