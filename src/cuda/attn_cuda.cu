// SPDX-License-Identifier: Apache-2.0
//
// Launchers of the attention kernels: arguments checked, grids chosen, nothing waited for.
#include "cuda/sketch_parts.cuh"

using namespace sr;

// ---- what does not change ----

sr_status sr_attn_cuda_card(struct attn_cuda_card *out, sr_error *err)
{
    int device, sms, major, minor;
    cudaError_t e = cudaGetDevice(&device);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    if (e != cudaSuccess) return launched(e, "no usable device", err);
    if (major < 8)
        return sr_fail(err, SR_ERR_UNSUPPORTED, "GPU of compute capability %d.%d: want 8.0 or more", major, minor);
    cudaFuncAttributes code;
    SR_TRY(launched(cudaFuncGetAttributes(&code, append_kernel), "code of attention", err));
    const int32_t card = 10 * major + minor;
    *out = attn_cuda_card{sms, card < code.ptxVersion ? card : code.ptxVersion};
    return SR_OK;
}

static int head_blocks(int d, int group) { return group > 8 && d < 256 ? 2 : 1; }

static attend_code code_of(const struct attn_cuda_shape *s, int32_t capability)
{
    const int nt = head_blocks(s->head_dim, s->group);
    const bool has_ring = capability >= 90;
    switch (elem_of(s->kv_type)) {
    case ELEM_BF16: return attend_bf16(s->head_dim, nt, has_ring);
    case ELEM_F16: return attend_f16(s->head_dim, nt, has_ring);
    case ELEM_F8: return attend_f8(s->head_dim, nt, has_ring);
    case ELEM_Q8: return attend_q8(s->head_dim, nt, has_ring);
    default: return attend_code{};
    }
}

sr_status sr_attn_cuda_check(const struct attn_cuda_shape *s, sr_error *err)
{
    if (s->group < 1 || s->group > 16)
        return sr_fail(err, SR_ERR_UNSUPPORTED, "CUDA attention: %d query heads per KV head: want 1..16", s->group);
    if (elem_of(s->kv_type) < 0) {
        const char *name = sr_dtype_name(s->kv_type);
        return sr_fail(err, SR_ERR_UNSUPPORTED, "CUDA attention: K/V type %s: want f16, bf16, f8_e4m3 or q8_0", name ? name : "(unknown)");
    }
    if (code_of(s, 80).kernel) return SR_OK;
    return sr_fail(err, SR_ERR_UNSUPPORTED, "CUDA attention: head size %d with K/V type %s: want 64, 80 (not q8_0), 96, 128 or 256",
                   s->head_dim, sr_dtype_name(s->kv_type));
}

size_t sr_attn_cuda_page_bytes(const struct attn_cuda_shape *s)
{
    const size_t elems = (size_t)SR_PAGE_ROWS * (size_t)s->head_dim;
    switch (elem_of(s->kv_type)) {
    case ELEM_F8: return elems;
    case ELEM_Q8: return elems / 32 * 34;
    default: return elems * 2;
    }
}

size_t sr_attn_cuda_sketch_page_bytes(int32_t rank, int32_t bits)
{
    return (size_t)((rank + 15) / 16) * 16 * SR_PAGE_ROWS * (size_t)bits / 8;
}

// ---- workspace ----

static void *take(void *base, size_t *used, size_t n, size_t bytes)
{
    void *p = base ? (char *)base + *used : NULL;
    *used += (n * bytes + 255) / 256 * 256;
    return p;
}

size_t sr_attn_work_place(struct attn_work *w, void *base, const struct attn_cuda_card *card, const struct attn_cuda_limits *l)
{
    size_t used = 0;
    const size_t slots = 4 * (size_t)card->n_sms, units = (size_t)l->n_units;
    w->slots = (int32_t)slots;
    w->done = (unsigned *)take(base, &used, WORK_UNITS, 4);
    w->done_1 = (unsigned *)take(base, &used, slots, 4);
    w->part_o = (float *)take(base, &used, 2 * slots * WORK_HEAD_WORDS, 4);
    w->part_ml = (float *)take(base, &used, slots * WORK_PART_SLICES * 2, 4);
    w->spare_o = (float *)take(base, &used, slots * WORK_HEAD_WORDS, 4);
    w->spare_ml = (float *)take(base, &used, slots * 16 * 2, 4);
    const size_t shared = units < (size_t)card->n_sms / 2 ? units : (size_t)card->n_sms / 2;
    w->queries = take(base, &used, units, sizeof(choose_query));
    w->exchange = take(base, &used, shared, sizeof(choose_exchange));
    w->n_exchanges = (int32_t)shared;
    w->max_len = (l->max_len + SR_PAGE_ROWS - 1) / SR_PAGE_ROWS * SR_PAGE_ROWS;
    w->weighty = take(base, &used, units, sizeof(weighty_rows));
    w->rests = take(base, &used, units, sizeof(choose_rest));
    w->left = (float *)take(base, &used, units * CHOOSE_BINS * (size_t)heads_room(l->group), sizeof(float));
    w->chosen = (uint32_t *)take(base, &used, units * (size_t)w->max_len / 32, 4);
    w->codes = (uint32_t *)take(base, &used, units * (size_t)w->max_len, 4);
    return used;
}

size_t sr_attn_cuda_workspace_bytes(const struct attn_cuda_card *card, const struct attn_cuda_limits *l)
{
    struct attn_work w;
    return sr_attn_work_place(&w, NULL, card, l);
}

// ---- launches ----

sr_status sr_attn_cuda_append(const struct attn_cuda *c, const struct attn_cuda_cache *cache, const struct attn_cuda_append *a, sr_error *err)
{
    append_params p = {*a, *cache, c->shape.head_dim, c->shape.n_kv_heads, elem_of(c->shape.kv_type), 0, a->n, NULL};
    struct attn_work w;
    int32_t most = a->n; // rows whose norms have room
    const bool finds = a->found && a->n > 1;
    if (finds) {
        sr_attn_work_place(&w, c->workspace, &c->card, &c->limits);
        p.norms = w.spare_o;
        most = w.slots * WORK_HEAD_WORDS / 2 / n_units_of(c, cache);
    }
    for (; p.row0 < a->n; p.row0 += p.n_rows) {
        p.n_rows = a->n - p.row0 < most ? a->n - p.row0 : most;
        const int64_t rows = (int64_t)cache->n_seqs * p.n_rows * c->shape.n_kv_heads * 2;
        SR_TRY(launched(launch(append_kernel, (int)((rows + 3) / 4), 4 * WARP, 0, c, p), "append", err));
        if (finds) SR_TRY(launched(launch(sinks_kernel, n_units_of(c, cache), SINK_ROWS, 0, c, p), "sinks", err));
    }
    return SR_OK;
}

sr_status sr_attn_cuda_scales(const struct attn_cuda *c, const struct attn_cuda_scales *a, sr_error *err)
{
    const scales_params p = {*a, c->shape.head_dim};
    return launched(launch(scales_kernel, 2 * c->shape.n_kv_heads, 8 * WARP, 0, c, p), "scales", err);
}

attend_params sr::sr_attend_params(const struct attn_cuda *c, const struct attn_cuda_cache *cache, const struct attn_cuda_attend *a)
{
    struct attn_work w;
    sr_attn_work_place(&w, c->workspace, &c->card, &c->limits);
    const int heads = 8 * head_blocks(c->shape.head_dim, c->shape.group);
    attend_params p = {};
    p.q = a->q;
    p.scale = a->scale;
    p.kinds = a->kinds;
    p.kind = a->kind;
    p.list = a->list;
    p.n_list = a->n_list;
    p.list_stride = a->list_stride;
    p.n_sinks = a->n_sinks;
    p.window = a->window;
    p.cache = *cache;
    p.n_sms = c->card.n_sms;
    p.n_units = n_units_of(c, cache);
    p.n_kv_heads = c->shape.n_kv_heads;
    p.group = c->shape.group;
    p.n_sub = (c->shape.group + heads - 1) / heads;
    p.out = a->out;
    p.o = a->state.o;
    p.m = a->state.m;
    p.l = a->state.l;
    p.merge = a->merge;
    p.audit = a->audit;
    p.after_append = a->after_append;
    p.counters = a->counters;
    p.part_o = w.part_o;
    p.part_ml = w.part_ml;
    p.n_slots = w.slots;
    p.done = w.done;
    p.done_1 = w.done_1;
    return p;
}

sr_status sr_attn_cuda_attend(const struct attn_cuda *c, const struct attn_cuda_cache *cache, const struct attn_cuda_attend *a, sr_error *err)
{
    const attend_code code = code_of(&c->shape, c->card.capability);
    if (!code.kernel) return sr_attn_cuda_check(&c->shape, err);
    attend_params p = sr_attend_params(c, cache, a);
    const int n = p.n_units * p.n_sub;
    if (n > MAX_UNITS)
        return sr_fail(err, SR_ERR_UNSUPPORTED, "CUDA attention: %d sequences of %d KV heads: at most %d units a launch", cache->n_seqs,
                       c->shape.n_kv_heads, MAX_UNITS / p.n_sub);
    const bool has_plain_kind = a->kinds || a->kind == CUDA_READ_ALL || a->kind == CUDA_READ_NEAR;
    const bool is_one = cache->n_seqs == 1 && n <= WARP && 2 * n <= p.n_sms;
    const bool is_plain = code.plain && has_plain_kind && !a->list && (is_one || !a->kinds);
    const auto kernel = is_plain ? code.plain : code.kernel;
    const unsigned blocks = (unsigned)((is_plain ? 1 : code.blocks) * c->card.n_sms);
    if (is_plain && a->kinds) p.after_append = 0;
    p.in_line = is_plain && !is_one;
    cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, code.smem);
    // What a ring has under way lives in shared memory; without one it lives in L1.
    if (e == cudaSuccess && code.plain) e = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
    if (e != cudaSuccess) return launched(e, "shared memory of attend", err);
    const dim3 grid = is_plain && is_one ? dim3((unsigned)n, blocks / (unsigned)n) : dim3(blocks);
    return launched(launch(kernel, grid, code.threads, (size_t)code.smem, c, p), "attend", err);
}

int sr_attn_cuda_joins(const struct attn_cuda *c) { return code_of(&c->shape, c->card.capability).seqs != NULL; }

sr_status sr_attn_cuda_attend_seqs(const struct attn_cuda *c, const struct attn_cuda_seq *seqs, int32_t n, const struct attn_cuda_attend *a, sr_error *err)
{
    const attend_code code = code_of(&c->shape, c->card.capability);
    const struct attn_cuda_cache none = {NULL, NULL, NULL, NULL, NULL, NULL, 0, n};
    seqs_params p = {};
    if (!code.seqs || n < 1 || n > ATTN_CUDA_SEQS)
        return sr_fail(err, SR_ERR_UNSUPPORTED, "CUDA attention: %d sequences of K/V type %s in one launch", n, sr_dtype_name(c->shape.kv_type));
    static_cast<attend_params &>(p) = sr_attend_params(c, &none, a);
    for (int32_t i = 0; i < n; i++) p.seq[i] = seqs[i];
    p.in_line = 1;
    cudaError_t e = cudaFuncSetAttribute(code.seqs, cudaFuncAttributeMaxDynamicSharedMemorySize, code.smem);
    if (e == cudaSuccess) e = cudaFuncSetAttribute(code.seqs, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
    if (e != cudaSuccess) return launched(e, "shared memory of attend", err);
    return launched(launch(code.seqs, c->card.n_sms, code.threads, (size_t)code.smem, c, p), "attend", err);
}

sr_status sr_attn_cuda_paper(const struct attn_cuda *c, const struct attn_cuda_cache *cache, const struct attn_cuda_paper *a, sr_error *err)
{
    const paper_params p = {*a, *cache, c->shape.head_dim, c->shape.n_kv_heads, c->shape.group, n_units_of(c, cache), elem_of(c->shape.kv_type)};
    return launched(launch(paper_kernel, p.n_units, WARP, 0, c, p), "paper", err);
}

sr_status sr_attn_cuda_audit(const struct attn_cuda *c, const struct attn_cuda_cache *cache, const struct attn_cuda_audit *a, sr_error *err)
{
    const audit_params p = {*a, *cache, c->shape.head_dim, c->shape.n_kv_heads, c->shape.group, n_units_of(c, cache), elem_of(c->shape.kv_type)};
    SR_TRY(launched(launch(audit_mark_kernel, (p.n_units + 127) / 128, 128, 0, c, p), "audit", err));
    struct attn_cuda_attend dense = {};
    dense.q = a->q;
    dense.scale = a->scale;
    dense.kinds = a->kinds;
    dense.state = a->dense;
    dense.counters = a->counters;
    dense.audit = 1;
    SR_TRY(sr_attn_cuda_attend(c, cache, &dense, err));
    return launched(launch(audit_record_kernel, p.n_units, WARP, 0, c, p), "audit", err);
}
