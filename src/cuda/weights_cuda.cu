/* SPDX-License-Identifier: Apache-2.0
 *
 * Weights to the device: float types as they are, quantized ones rearranged into records (planes_cuda.h) by a kernel, a
 * piece of the file's bytes at a time.
 */
#include "cuda/device_cuda.h"
#include "cuda/planes_cuda.h"

extern "C" {
#include "formats/quant.h"
}

enum { STAGE_BYTES = 32 << 20 };

static bool is_supported(sr_dtype t) { return sr_is_float_type(t) || sr_record(t).bytes > 0; }

/* Four bits of element e of a 32-element group, its high bits, in the file's order of each type. */
struct raw_code { uint32_t low, high; };

static __device__ raw_code raw_code_of(int type, const uint8_t *b, int group, int e)
{
    if (type == SR_DTYPE_Q4_K || type == SR_DTYPE_Q5_K) {
        const uint8_t *qs = b + (type == SR_DTYPE_Q5_K ? 48 : 16);
        const uint32_t high = type == SR_DTYPE_Q5_K ? b[16 + e] >> group & 1u : 0u;
        return {(uint32_t)qs[32 * (group / 2) + e] >> 4 * (group % 2) & 15u, high};
    }
    if (type == SR_DTYPE_Q6_K) {
        const int n = group / 4, k = group % 4;
        return {(uint32_t)b[64 * n + 32 * (k & 1) + e] >> (k >= 2 ? 4 : 0) & 15u, (uint32_t)b[128 + 32 * n + e] >> 2 * k & 3u};
    }
    const int head = type == SR_DTYPE_Q4_1 ? 4 : type == SR_DTYPE_Q5_0 ? 6 : type == SR_DTYPE_Q5_1 ? 8 : 2;
    uint32_t high = 0;
    if (type == SR_DTYPE_Q5_0 || type == SR_DTYPE_Q5_1) high = (uint32_t)b[head - 4 + e / 8] >> e % 8 & 1u;
    return {(uint32_t)b[head + e % 16] >> (e < 16 ? 0 : 4) & 15u, high};
}

struct split_params {
    const uint8_t *src;
    struct cuda_planes to;
    struct plane_record record;
    int type, block_bytes, per_block; /* groups of 32 per block of the file: 1 or 8 */
    int64_t n_groups, first;          /* of this piece; the groups before it */
};

static __device__ void split_scales(const struct split_params &p, const uint8_t *b, const plane_place &at, uint8_t *record)
{
    uint8_t *scales = record + p.record.scales;
    const int n = p.record.scale_bytes;
    if (sr_is_k45(p.type)) {
        for (int i = 0; i < 2; i++) scales[at.r * 16 + at.g * 2 + i] = b[2 * at.g + i];
        return;
    }
    const uint8_t *from = p.type == SR_DTYPE_Q6_K ? b + 192 + 2 * at.g : b;
    for (int i = 0; i < n; i++) scales[sr_place_index(at) * n + i] = from[i];
    if (p.type == SR_DTYPE_Q6_K && at.g == 0)
        reinterpret_cast<float *>(record + p.record.extra)[at.r] = __half2float(*reinterpret_cast<const __half *>(b + 208));
}

/* One thread per group. */
static __global__ void split_kernel(const __grid_constant__ struct split_params p)
{
    const int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= p.n_groups) return;
    const int64_t g = p.first + at;
    const plane_place place = sr_place(p.to, p.record, g / p.to.groups, g % p.to.groups);
    uint8_t *record = const_cast<uint8_t *>(place.record);
    const int in_block = (int)(at % p.per_block);
    const uint8_t *b = p.src + at / p.per_block * p.block_bytes;
    split_scales(p, b, place, record);
    if (p.type == SR_DTYPE_Q8_0) {
        for (int e = 0; e < 32; e++) record[sr_code_offset(place, p.record, e / 16) + e % 16] = b[2 + e];
        return;
    }
    uint32_t high[2] = {0, 0};
    const bool two_bits = p.type == SR_DTYPE_Q6_K;
    for (int e = 0; e < 32; e++) {
        const raw_code c = raw_code_of(p.type, b, in_block, e);
        if (e < 16) record[sr_code_offset(place, p.record, 0) + e] = (uint8_t)(c.low | raw_code_of(p.type, b, in_block, e + 16).low << 4);
        if (two_bits) high[e / 16] |= c.high << (8 * (e % 4) + 2 * (e % 16 / 4));
        else high[0] |= c.high << (8 * (e % 4) + e / 4);
    }
    uint32_t *words = reinterpret_cast<uint32_t *>(record + p.record.high + sr_place_index(place) * p.record.high_bytes);
    for (int i = 0; i < p.record.high_bytes / 4; i++) words[i] = high[i];
}

static void split(struct backend_cuda *c, struct split_params *p, const struct weight *w, uint8_t *stage)
{
    const int64_t all = w->n_out * w->n_in / 32, most = STAGE_BYTES / p->block_bytes * p->per_block;
    const uint8_t *src = static_cast<const uint8_t *>(w->data);
    p->src = stage;
    for (p->first = 0; p->first < all; p->first += p->n_groups) {
        p->n_groups = all - p->first < most ? all - p->first : most;
        const size_t bytes = (size_t)(p->n_groups / p->per_block) * (size_t)p->block_bytes;
        sr_cuda_note(c, cudaMemcpyAsync(stage, src, bytes, cudaMemcpyHostToDevice, c->stream), "upload");
        split_kernel<<<(unsigned)((p->n_groups + 255) / 256), 256, 0, c->stream>>>(*p);
        sr_cuda_note(c, cudaGetLastError(), "weights");
        src += bytes;
    }
}

static sr_status check_weight(const struct weight *w, sr_error *err)
{
    const char *name = sr_dtype_name(w->dtype);
    if (!is_supported(w->dtype))
        return sr_fail(err, SR_ERR_UNSUPPORTED,
                       "CUDA: weights of type %s: want f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q4_K, q5_K or q6_K", name);
    if (w->n_in % 8) return sr_fail(err, SR_ERR_UNSUPPORTED, "CUDA: weights with rows of %lld: want a multiple of 8", (long long)w->n_in);
    return SR_OK;
}

static sr_status place_float(struct backend *b, const struct weight *w, struct cuda_weight *p, sr_error *err)
{
    const size_t bytes = (size_t)w->n_out * w->row_bytes;
    SR_TRY(sr_cuda_new(b, &p->block, bytes, "weights", err));
    b->ops->upload(b, p->block, w->data, bytes);
    p->planes.codes = static_cast<const uint8_t *>(p->block);
    return SR_OK;
}

static sr_status place_planes(struct backend *b, const struct weight *w, struct cuda_weight *p, sr_error *err)
{
    const struct dtype_traits *t = sr_dtype_find(w->dtype);
    struct split_params s = {};
    void *stage;
    s.record = sr_record(w->dtype);
    s.type = w->dtype;
    s.block_bytes = t->block_bytes;
    s.per_block = t->block_elems / 32;
    const int64_t in_record = s.record.quads * QUAD, groups = w->n_in / 32, steps = (groups + in_record - 1) / in_record;
    const size_t bytes = (size_t)((w->n_out + TILE_ROWS - 1) / TILE_ROWS * steps) * (size_t)s.record.bytes;
    SR_TRY(sr_cuda_new(b, &p->block, bytes, "weights", err));
    SR_TRY(sr_cuda_new(b, &stage, STAGE_BYTES, "loading weights", err));
    p->planes = s.to = cuda_planes{static_cast<const uint8_t *>(p->block), groups, steps};
    b->ops->mem_clear(b, p->block, bytes); /* what is padded */
    split(sr_cuda_of(b), &s, w, static_cast<uint8_t *>(stage));
    sr_cuda_delete(b, stage);
    return SR_OK;
}

sr_status sr_cuda_weight_prepare(struct backend *b, struct weight *w, sr_error *err)
{
    if (w->n_experts) return sr_cuda_experts_prepare(b, w, err);
    SR_TRY(check_weight(w, err));
    struct cuda_weight *p = static_cast<struct cuda_weight *>(sr_alloc_zero(1, sizeof *p));
    if (!p) return sr_fail_memory(err, sizeof *p, "weight");
    w->packed = p;
    const sr_status st = sr_is_float_type(w->dtype) ? place_float(b, w, p, err) : place_planes(b, w, p, err);
    if (st != SR_OK) sr_cuda_weight_release(b, w);
    return st;
}

void sr_cuda_weight_release(struct backend *b, struct weight *w)
{
    struct cuda_weight *p = static_cast<struct cuda_weight *>(w->packed);
    if (!p) return;
    sr_cuda_delete(b, p->block);
    sr_free(p);
    w->packed = NULL;
}
