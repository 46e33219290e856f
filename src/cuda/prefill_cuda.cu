/* SPDX-License-Identifier: Apache-2.0
 *
 * Prefill attention: exact, causal, blocked (FlashAttention-2, arXiv 2307.08691). A block takes 128 queries of one head,
 * 16 a warp, and goes over the pages of the cache, each of which is a tile of 64 keys: logits by m16n8k16 products, a
 * running maximum m and sum l per query, and o := o exp(m - m') + P V. Keys and values come to shared memory by
 * asynchronous copies, a tile ahead. Products in the cache's type (f16 for q8_0 and f8_e4m3), sums in f32.
 */
#include "cuda/prefill_parts.cuh"

#include <assert.h>

using namespace prefill;

enum { WARPS = 8, QUERIES = 16 * WARPS, KEYS = SR_PAGE_ROWS, THREADS = 32 * WARPS, PAD = 8 };

/* ---- the matrix unit ---- */

#define MMA(type)                                                                                                                     \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"  \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))

static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const __half *) { MMA("f16"); }
static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const __nv_bfloat16 *) { MMA("bf16"); }

/* Four 8 x 8 matrices; lane i gives the address of row i % 8 of matrix i / 8. */
static __device__ __forceinline__ void load4(uint32_t (&r)[4], const void *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((uint32_t)__cvta_generic_to_shared(p)) : "memory");
}
static __device__ __forceinline__ void load4_turned(uint32_t (&r)[4], const void *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((uint32_t)__cvta_generic_to_shared(p)) : "memory");
}

/* ---- tiles ---- */

/* Rows [0, n) of a page to [KEYS][STRIDE]; the others become 0, since 0 times what memory happens to hold may be NaN. */
template <typename T, int STRIDE>
static __device__ __forceinline__ void load_tile(T *dst, const void *page, int kv_type, int d, int n)
{
    const int per_row = d / 8;
    for (int i = threadIdx.x; i < KEYS * per_row; i += THREADS) {
        const int r = i / per_row, at = i % per_row * 8;
        T *to = dst + r * STRIDE + at;
        const uint8_t *codes = static_cast<const uint8_t *>(page);
        if (kv_type == SR_DTYPE_Q8_0) *reinterpret_cast<uint4 *>(to) = r < n ? widen8(codes, r, at, d) : make_uint4(0, 0, 0, 0);
        else if (kv_type == SR_DTYPE_F8_E4M3) *reinterpret_cast<uint4 *>(to) = r < n ? widen8_f8(codes, r, at, d) : make_uint4(0, 0, 0, 0);
        else copy16((uint32_t)__cvta_generic_to_shared(to), static_cast<const T *>(page) + r * d + at, r < n);
    }
}

template <typename T, int D>
struct tiles { T k[2][KEYS][D + PAD], v[2][KEYS][D + PAD]; };

template <typename T, int D>
static __device__ __forceinline__ void load_tiles(struct tiles<T, D> *s, const struct prefill_params &p, int group, int tile, int64_t kv_len)
{
    const int64_t at = (int64_t)group * p.max_pages + tile, left = kv_len - (int64_t)tile * KEYS;
    const int n = left < KEYS ? (int)left : KEYS;
    load_tile<T, D + PAD>(&s->k[tile & 1][0][0], p.k_page[at], p.kv_type, p.head_dim, n);
    load_tile<T, D + PAD>(&s->v[tile & 1][0][0], p.v_page[at], p.kv_type, p.head_dim, n);
    copies_end();
}

/* Columns of both buffers beyond the head's size. */
template <typename T, int D>
static __device__ void clear_margin(struct tiles<T, D> *s, int d)
{
    const int margin = D - d;
    for (int i = threadIdx.x; i < 4 * KEYS * margin; i += THREADS) {
        T *rows = &s->k[0][0][0];
        rows[i / margin * (D + PAD) + d + i % margin] = T(0.0f);
    }
}

/* ---- one warp's queries ---- */

template <typename T, int D>
static __device__ __forceinline__ void logits_of(const struct queries<D> &w, const T (*k)[D + PAD], int lane, float (&s)[KEYS / 8][4])
{
#pragma unroll
    for (int j = 0; j < KEYS / 8; j += 2) {
        for (int i = 0; i < 4; i++) s[j][i] = s[j + 1][i] = 0.0f;
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            uint32_t b[4];
            load4(b, &k[(j + lane / 16) * 8 + lane % 8][i * 16 + lane / 8 % 2 * 8]);
            mma(s[j], w.q[i], b[0], b[1], static_cast<const T *>(nullptr));
            mma(s[j + 1], w.q[i], b[2], b[3], static_cast<const T *>(nullptr));
        }
    }
}

template <typename T, int D>
static __device__ __forceinline__ void add_values(struct queries<D> *w, const T (*v)[D + PAD], int lane, const float (&s)[KEYS / 8][4])
{
    const T *t = nullptr;
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) {
        const uint32_t a[4] = {pack(s[2 * k][0], s[2 * k][1], t), pack(s[2 * k][2], s[2 * k][3], t), pack(s[2 * k + 1][0], s[2 * k + 1][1], t),
                               pack(s[2 * k + 1][2], s[2 * k + 1][3], t)};
#pragma unroll
        for (int i = 0; i < D / 8; i += 2) {
            uint32_t b[4];
            load4_turned(b, &v[k * 16 + lane / 8 % 2 * 8 + lane % 8][(i + lane / 16) * 8]);
            mma(w->o[i], a, b[0], b[1], t);
            mma(w->o[i + 1], a, b[2], b[3], t);
        }
    }
}

template <typename T, int D>
static __device__ __forceinline__ void attend_tile(struct queries<D> *w, const struct tiles<T, D> *t, int tile, int lane)
{
    float s[KEYS / 8][4], shrink[2];
    const int64_t first = (int64_t)tile * KEYS;
    if (first > w->pos + 15) return; /* all of it is in the future */
    logits_of<T, D>(*w, t->k[tile & 1], lane, s);
    if (first + KEYS - 1 > w->pos) hide_future(*w, first, lane, s);
    soften(w, s, shrink);
    shrink_outputs(w, shrink);
    add_values<T, D>(w, t->v[tile & 1], lane, s);
}

template <typename T, int D>
static __global__ void __launch_bounds__(THREADS, 1) prefill_kernel(const __grid_constant__ struct prefill_params p)
{
    extern __shared__ __align__(16) uint8_t shared[];
    struct tiles<T, D> *t = reinterpret_cast<struct tiles<T, D> *>(shared);
    const int lane = threadIdx.x % 32, head = blockIdx.y, group = head / p.group;
    const int64_t block = (int64_t)(gridDim.x - 1 - blockIdx.x) * QUERIES, row = block + threadIdx.x / 32 * 16; /* the longest first */
    const int64_t kv_len = p.pos0 + p.n, last = p.pos0 + (block + QUERIES < p.n ? block + QUERIES : p.n) - 1;
    struct queries<D> w;
    load_queries<T, D>(&w, p, head, row, lane);
    clear_margin<T, D>(t, p.head_dim);
    load_tiles<T, D>(t, p, group, 0, kv_len);
    const int n_tiles = (int)(last / KEYS) + 1;
    for (int i = 0; i < n_tiles; i++) {
        if (i + 1 < n_tiles) {
            load_tiles<T, D>(t, p, group, i + 1, kv_len);
            copies_wait<1>();
        } else {
            copies_wait<0>();
        }
        __syncthreads();
        attend_tile<T, D>(&w, t, i, lane);
        __syncthreads();
    }
    store_outputs<D>(w, p, head, row, lane);
}

template <typename T, int D>
static void launch(struct backend_cuda *c, const struct prefill_params *p)
{
    const size_t shared = sizeof(struct tiles<T, D>);
    sr_cuda_note(c, cudaFuncSetAttribute(prefill_kernel<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared), "prefill");
    const dim3 grid((unsigned)((p->n + QUERIES - 1) / QUERIES), (unsigned)(p->n_kv_heads * p->group));
    prefill_kernel<T, D><<<grid, THREADS, shared, c->stream>>>(*p);
    sr_cuda_note(c, cudaGetLastError(), "prefill");
}

template <typename T>
static void launch_of(struct backend_cuda *c, const struct prefill_params *p)
{
    assert(p->head_dim % 8 == 0 && p->head_dim <= 256);
    if (p->head_dim <= 64) launch<T, 64>(c, p);
    else if (p->head_dim <= 128) launch<T, 128>(c, p);
    else launch<T, 256>(c, p);
}

void sr_cuda_prefill_mma(struct backend_cuda *c, const struct prefill_params *p)
{
    if (p->kv_type == SR_DTYPE_BF16) launch_of<__nv_bfloat16>(c, p);
    else launch_of<__half>(c, p);
}

void sr_cuda_prefill(struct backend_cuda *c, const struct prefill_params *p)
{
    if (sr_cuda_prefill_has_wgmma(p)) sr_cuda_prefill_wgmma(c, p);
    else sr_cuda_prefill_mma(c, p);
}
