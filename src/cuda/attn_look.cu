// SPDX-License-Identifier: Apache-2.0
//
// The second look of `mass` behind attention, by a kernel of its own; look_parts.cuh has what it does. While attention still runs a unit's blocks
// fetch what the choice left: the unread shares by bin, one or two bins a thread, the rows that may be added and where their pages are.
//
// With a trail the last block of a unit takes, before attention is over, the exact logits of the rows that may be worth noting, and
// with the state notes them.
#include "cuda/attn_list.cuh"

namespace sr {

template <int T, int H> __global__ void __launch_bounds__(LOOK_THREADS, 2) look_kernel_for(const __grid_constant__ look_params p)
{
    extern __shared__ __align__(16) char space[];
    look_space<H> &s = *(look_space<H> *)space;
    float *q = (float *)(space + sizeof(look_space<H>));
    let_next_start();
    const int32_t u = (int32_t)blockIdx.x / p.n_parts;
    const stretch x = stretch_of<H>(p, u, (int32_t)blockIdx.x % p.n_parts, p.n_parts, rest_words_of(p, u));
    const int end = p.a.only_notes ? (int)CHOOSE_BINS : __ldcg(&p.rests[x.u].end), lane = threadIdx.x % WARP;
    const bool notes = p.a.trail && x.part == x.n_parts - 1 && __ldcg(p.a.kinds + x.u) == CUDA_READ_NEAR_LIST;
    // what the choice left is there already: attention waited for it
    candidate<H> noted;
    noted.row = -1;
    if (notes) {
        copy_q<H>(p, x.u, q);
        noted = find_candidate<T, H>(p, x.u, q, s);
    }
    if (end == CHOOSE_BINS) {
        wait_for_previous();
        if (notes) note(p, x.u, noted, state_of(p, x.u));
        if (x.part == 0 && !p.a.only_notes) count_more(p, x, 0);
        return;
    }
    const known before = recall(p, x.u, end, H);
    copy_rest(x, x.from, s);
    copy_left(p, x.u, s);
    copy_pages(p, x, s);
    if (!notes) copy_q<H>(p, x.u, q);
    wait_for_previous();
    const float2 state = state_of(p, x.u);
    const seen now = see(p, before, state);
    if (notes) note(p, x.u, noted, state);
    if (!__any_sync(~0u, lane < p.group && before.unread > now.limit)) { // alike in all warps
        if (x.part == 0) report(p, x.u, now, before.unread), count_more(p, x, 0);
        return;
    }
    if ((int)threadIdx.x < H) s.m[threadIdx.x] = -CUDART_INF_F, s.l[threadIdx.x] = 0, s.m0[threadIdx.x] = now.m, s.l0[threadIdx.x] = now.l;
    if (threadIdx.x == 0) s.total = 0;
    await_copies();
    const int last = new_end(s, now, end);
    if (x.part == 0) report(p, x.u, now, lane < H ? s.left[last - 1][lane] : 0.0f);
    read_on<T, H, false>(p, x, last, q, s);
}

// ---- launch ----

struct look_code { void (*kernel)(look_params); size_t smem; };

template <int T, int H> static look_code code_for(int d) { return look_code{look_kernel_for<T, H>, sizeof(look_space<H>) + (size_t)H * (size_t)d * sizeof(float)}; }

template <int T> static look_code code_of(int d, int group) { return group <= 4 ? code_for<T, 4>(d) : group <= 8 ? code_for<T, 8>(d) : code_for<T, 16>(d); }

static look_code code_of(const struct attn_cuda_shape *s)
{
    switch (elem_of(s->kv_type)) {
    case ELEM_BF16: return code_of<ELEM_BF16>(s->head_dim, s->group);
    case ELEM_F16: return code_of<ELEM_F16>(s->head_dim, s->group);
    case ELEM_F8: return code_of<ELEM_F8>(s->head_dim, s->group);
    default: return code_of<ELEM_Q8>(s->head_dim, s->group);
    }
}

} // namespace sr

using namespace sr;

static sr_status check_rest(const struct attn_cuda *c, sr_error *err)
{
    SR_TRY(sr_attn_cuda_check(&c->shape, err));
    if (c->limits.max_len <= MAX_REST_ROWS) return SR_OK;
    return sr_fail(err, SR_ERR_UNSUPPORTED, "CUDA second look: %d rows: at most %d (--route-look off)", c->limits.max_len, MAX_REST_ROWS);
}

static look_params params_of(const struct attn_cuda *c, const struct attn_cuda_cache *cache, const struct attn_cuda_look *a, int32_t n_parts)
{
    struct attn_work w;
    sr_attn_work_place(&w, c->workspace, &c->card, &c->limits);
    return look_params{*a, *cache, (choose_rest *)w.rests, (const weighty_rows *)w.weighty, w.left, w.spare_o, w.spare_ml, w.done, c->shape.head_dim, c->shape.n_kv_heads,
                       c->shape.group, n_parts};
}

sr_status sr_attn_cuda_look(const struct attn_cuda *c, const struct attn_cuda_cache *cache, const struct attn_cuda_look *a, sr_error *err)
{
    SR_TRY(check_rest(c, err));
    const int32_t n_units = n_units_of(c, cache), at_once = c->card.n_sms / n_units;
    const look_code code = code_of(&c->shape);
    const look_params p = params_of(c, cache, a, at_once < 1 ? 1 : at_once < LOOK_PARTS ? at_once : LOOK_PARTS);
    SR_TRY(launched(cudaFuncSetAttribute(code.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)code.smem), "shared memory of look", err));
    // divided as for attention, beside whose blocks these begin
    SR_TRY(launched(cudaFuncSetAttribute(code.kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared), "shared memory of look", err));
    return launched(launch(code.kernel, n_units * p.n_parts, LOOK_THREADS, code.smem, c, p), "look", err);
}

static list_code list_code_of(const struct attn_cuda *c, const struct attn_cuda_cache *cache)
{
    const int32_t n = n_units_of(c, cache), d = c->shape.head_dim, group = c->shape.group;
    if (c->card.capability < 90 || cache->n_seqs != 1 || n > WARP || 2 * n > c->card.n_sms || c->card.n_sms > LIST_PARTS) return list_code{};
    switch (elem_of(c->shape.kv_type)) {
    case ELEM_BF16: return list_bf16(d, group);
    case ELEM_F16: return list_f16(d, group);
    case ELEM_F8: return list_f8(d, group);
    default: return list_code{};
    }
}

sr_status sr_attn_cuda_attend_and_look(const struct attn_cuda *c, const struct attn_cuda_cache *cache, const struct attn_cuda_attend *a, const struct attn_cuda_look *l, sr_error *err)
{
    const list_code code = list_code_of(c, cache);
    if (!code.kernel) {
        SR_TRY(sr_attn_cuda_attend(c, cache, a, err));
        return sr_attn_cuda_look(c, cache, l, err);
    }
    SR_TRY(check_rest(c, err));
    const attend_params p = sr_attend_params(c, cache, a);
    const look_params look = params_of(c, cache, l, LOOK_PARTS);
    SR_TRY(launched(cudaFuncSetAttribute(code.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, code.smem), "shared memory of lists", err));
    SR_TRY(launched(cudaFuncSetAttribute(code.kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared), "shared memory of lists", err));
    return launched(launch(code.kernel, c->card.n_sms, LIST_THREADS, (size_t)code.smem, c, p, look), "lists", err);
}
