// SPDX-License-Identifier: Apache-2.0
//
// Launchers of the sketch's kernels.
#include "cuda/sketch_prepare.cuh"

using namespace sr;

static sr_status check_sketch(const struct attn_cuda_sketch *s, const struct attn_cuda_cache *cache, int32_t head_dim, sr_error *err)
{
    if (s->bits != 4 && s->bits != 8) return sr_fail(err, SR_ERR_UNSUPPORTED, "CUDA sketch: %d bits: want 4 or 8", s->bits);
    if (s->rank < 1 || s->rank > head_dim) return sr_fail(err, SR_ERR_UNSUPPORTED, "CUDA sketch: rank %d: want 1..%d", s->rank, head_dim);
    if (!cache->y_page) return sr_fail(err, SR_ERR_USAGE, "CUDA sketch: no pages");
    return SR_OK;
}

sr_status sr_attn_cuda_encode(const struct attn_cuda *c, const struct attn_cuda_cache *cache, const struct attn_cuda_encode *a, sr_error *err)
{
    SR_TRY(check_sketch(&a->sketch, cache, c->shape.head_dim, err));
    const int64_t pages = (int64_t)a->n_last / SR_PAGE_ROWS + 2;
    const encode_params p = {*a, *cache, c->shape.head_dim, c->shape.n_kv_heads, elem_of(c->shape.kv_type),
                             a->n_last == 1 ? 1 : (int32_t)(pages < cache->max_pages ? pages : cache->max_pages)};
    const size_t smem = sr_attn_cuda_sketch_page_bytes(a->sketch.rank, a->sketch.bits);
    return launched(launch(encode_kernel, n_units_of(c, cache) * p.n_pages, 8 * WARP, smem, c, p), "encode", err);
}

// All blocks of a unit run at once: the launch says so where there are several.
static cudaError_t launch_choose(const struct attn_cuda *c, const choose_params &p, const choose_plan &plan)
{
    cudaLaunchAttribute attrs[2] = {};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)plan.n_parts, (unsigned)p.n_units);
    config.blockDim = dim3((unsigned)sr_choose_threads());
    config.dynamicSmemBytes = plan.smem;
    config.stream = (cudaStream_t)c->stream;
    config.attrs = attrs;
    attrs[config.numAttrs].id = cudaLaunchAttributeCooperative;
    attrs[config.numAttrs++].val.cooperative = plan.n_parts > 1;
    attrs[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attrs[config.numAttrs].val.programmaticStreamSerializationAllowed = 1;
    config.numAttrs += c->card.capability >= 90;
    return cudaLaunchKernelEx(&config, plan.kernel, p);
}

// As many blocks a unit as the card has SMs for.
static sr_status plan_choose(const struct attn_cuda *c, choose_params *p, choose_plan *plan, sr_error *err)
{
    int device, room;
    SR_TRY(launched(cudaGetDevice(&device), "no usable device", err));
    SR_TRY(launched(cudaDeviceGetAttribute(&room, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "shared memory of a block", err));
    const int at_once = c->card.n_sms / p->n_units;
    // a block of the kernel before stays beside this one's
    *plan = sr_choose_plan(*p, at_once < 1 ? 1 : at_once < CHOOSE_PARTS ? at_once : CHOOSE_PARTS, p->a.sketch.bits, (size_t)room - PREPARE_STATIC - 1024 - sr_prepare_smem(*p));
    if (!plan->kernel) return sr_fail(err, SR_ERR_UNSUPPORTED, "CUDA choice: %d heads a group: %d bytes of shared memory are too few", p->group, room);
    p->ring = plan->ring, p->rings_at = plan->rings_at, p->levels = plan->levels, p->stacks_at = plan->stacks_at, p->bits_at = plan->bits_at;
    return launched(cudaFuncSetAttribute(plan->kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)plan->smem), "shared memory of choose", err);
}

static sr_status launch_prepare(const struct attn_cuda *c, const choose_params &p, const struct attn_cuda_turn *turn, sr_error *err)
{
    prepare_code *const kernel = sr_prepare_code(p.type);
    cudaLaunchAttribute attr = {};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(CHOOSE_PARTS, (unsigned)p.n_units);
    config.blockDim = dim3(PREPARE_THREADS);
    config.dynamicSmemBytes = sr_prepare_smem(p);
    config.stream = (cudaStream_t)c->stream;
    config.attrs = &attr;
    config.numAttrs = c->card.capability >= 90;
    attr.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attr.val.programmaticStreamSerializationAllowed = 1;
    // divided as for the choice, whose blocks come beside these
    SR_TRY(launched(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared), "shared memory of prepare", err));
    const turn_params t = turn_params_of(turn, &p.cache, p.n_kv_heads, p.group, p.head_dim, p.type);
    return launched(cudaLaunchKernelEx(&config, kernel, p, t), "prepare", err);
}

sr_status sr_cuda_turn_and_choose(const struct attn_cuda *c, const struct attn_cuda_cache *cache, const struct attn_cuda_choose *a, const struct attn_cuda_turn *turn,
                                  sr_error *err)
{
    SR_TRY(check_sketch(&a->sketch, cache, c->shape.head_dim, err));
    choose_params p = {};
    p.a = *a, p.cache = *cache, p.head_dim = c->shape.head_dim, p.n_kv_heads = c->shape.n_kv_heads, p.group = c->shape.group;
    p.n_units = n_units_of(c, cache), p.type = elem_of(c->shape.kv_type);
    sr_attn_work_place(&p.w, c->workspace, &c->card, &c->limits);
    choose_plan plan;
    SR_TRY(plan_choose(c, &p, &plan, err));
    if (p.w.max_len / plan.n_parts > MAX_REST_ROWS) return sr_fail(err, SR_ERR_UNSUPPORTED, "CUDA choice: %d rows: at most %d", p.w.max_len, MAX_REST_ROWS * plan.n_parts);
    SR_TRY(launch_prepare(c, p, turn, err));
    return launched(launch_choose(c, p, plan), "choose", err);
}

sr_status sr_attn_cuda_choose(const struct attn_cuda *c, const struct attn_cuda_cache *cache, const struct attn_cuda_choose *a, sr_error *err)
{
    return sr_cuda_turn_and_choose(c, cache, a, NULL, err);
}
