/* SPDX-License-Identifier: Apache-2.0
 *
 * Prefill attention by the products of warpgroups (wgmma), which run beside the softmax: the same arithmetic as
 * prefill_cuda.cu. A block takes 128 queries of one head, 64 a warpgroup, over tiles of 128 keys. Of a tile the logits S are
 * asked for first, then P V of the tile before it; while that runs S becomes weights (FlashAttention-3, arXiv 2407.08608).
 * Rows lie in shared memory as wgmma wants them, 128 bytes a row of 64 elements, 16 bytes at c of row r at c ^ r % 8.
 *
 * Why a file of its own: one H200, bf16, 32/8 heads of 128, 8,192 tokens: 488 TFLOP/s, with mma.sync 191.
 */
#include "cuda/prefill_parts.cuh"

#include <assert.h>

using namespace prefill;

enum { GROUPS = 2, QUERIES = 64 * GROUPS, KEYS = 2 * SR_PAGE_ROWS, THREADS = 128 * GROUPS, ROW = 128, BAND = KEYS * ROW };

/* ---- wgmma ---- */

/* Where a matrix of 16 in its inner size begins: swizzled in 128 bytes, 8 rows every 1024 bytes, bands of 64 elements BAND bytes
 * apart (which only the turned V has more than one of in a product). */
static __device__ __forceinline__ uint64_t matrix_at(uint32_t shared)
{
    return (uint64_t)1 << 62 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)(BAND >> 4) << 16 | (shared >> 4 & 0x3fff);
}

#define FOUR(c, i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define SIXTEEN(c, i) FOUR(c, i), FOUR(c, i + 1), FOUR(c, i + 2), FOUR(c, i + 3)
#define NAMES_32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64 NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

/* c (+)= a b, 64 rows; b [16 elements][width], `turned` where its width is what lies together. */
#define PRODUCT_128(type, turned)                                                                                                  \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"                                                                      \
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" NAMES_64 "}, {%64,%65,%66,%67}, %68, p, 1, 1, " \
                 turned ";\n}"                                                                                                     \
                 : SIXTEEN(c, 0), SIXTEEN(c, 4), SIXTEEN(c, 8), SIXTEEN(c, 12)                                                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds))
#define PRODUCT_64(type, turned)                                                                                                   \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"                                                                      \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" NAMES_32 "}, {%32,%33,%34,%35}, %36, p, 1, 1, "  \
                 turned ";\n}"                                                                                                     \
                 : SIXTEEN(c, 0), SIXTEEN(c, 4)                                                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds))

/* wgmma is the instruction set of 9.0a alone; code for others is there to link and never launched (has_wgmma). */
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
static __device__ __forceinline__ void times_k(float (&c)[16][4], const uint32_t (&a)[4], uint64_t b, int adds, const __half *) { PRODUCT_128("f16", "0"); }
static __device__ __forceinline__ void times_k(float (&c)[16][4], const uint32_t (&a)[4], uint64_t b, int adds, const __nv_bfloat16 *) { PRODUCT_128("bf16", "0"); }
static __device__ __forceinline__ void times_v(float (&c)[16][4], const uint32_t (&a)[4], uint64_t b, int adds, const __half *) { PRODUCT_128("f16", "1"); }
static __device__ __forceinline__ void times_v(float (&c)[16][4], const uint32_t (&a)[4], uint64_t b, int adds, const __nv_bfloat16 *) { PRODUCT_128("bf16", "1"); }
static __device__ __forceinline__ void times_v(float (&c)[8][4], const uint32_t (&a)[4], uint64_t b, int adds, const __half *) { PRODUCT_64("f16", "1"); }
static __device__ __forceinline__ void times_v(float (&c)[8][4], const uint32_t (&a)[4], uint64_t b, int adds, const __nv_bfloat16 *) { PRODUCT_64("bf16", "1"); }
static __device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
static __device__ __forceinline__ void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT>
static __device__ __forceinline__ void products_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory"); }
/* What this thread has put into shared memory is seen by products. */
static __device__ __forceinline__ void show_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
#else
template <int N, typename T>
static __device__ void times_k(float (&)[N][4], const uint32_t (&)[4], uint64_t, int, const T *) { __trap(); }
template <int N, typename T>
static __device__ void times_v(float (&)[N][4], const uint32_t (&)[4], uint64_t, int, const T *) { __trap(); }
static __device__ void products_begin() {}
static __device__ void products_end() {}
template <int LEFT>
static __device__ void products_wait() {}
static __device__ void show_products() {}
#endif

/* The compiler does not know that a product writes its registers until it has been waited for. */
template <int N>
static __device__ __forceinline__ void written(float (&c)[N][4])
{
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : FOUR(c, i)::"memory");
}

/* ---- tiles ---- */

template <sr_dtype KV> struct element { typedef __half type; };
template <> struct element<SR_DTYPE_BF16> { typedef __nv_bfloat16 type; };

/* KV types that are stored as codes, widened to f16 on the way. */
template <sr_dtype KV> constexpr bool is_coded = KV == SR_DTYPE_Q8_0 || KV == SR_DTYPE_F8_E4M3;

/* A thread's part of a tile: column chunk c of 8 elements of rows row, row + STEP, ... */
template <int D>
struct part {
    enum { CHUNKS = D / 8, STEP = THREADS / CHUNKS, N = KEYS / STEP };
    int c = threadIdx.x % CHUNKS, row = threadIdx.x / CHUNKS;
    /* STEP is a multiple of 8 */
    __device__ __forceinline__ uint32_t place(int i) const { return c / 8 * BAND + (row + i * STEP) * ROW + ((c % 8 ^ row % 8) << 4); }
};

/* Codes that have come but are not yet widened; each thread's own. */
template <int N, bool HAS_SCALES> struct slots { uint2 codes[N][THREADS]; uint32_t scales[HAS_SCALES ? N : 1][THREADS]; };

template <sr_dtype KV, int D, bool CODED = is_coded<KV>>
struct tiles {
    uint8_t k[2][D / 64][KEYS][ROW], v[2][D / 64][KEYS][ROW];
    float sums[THREADS];
};
template <sr_dtype KV, int D>
struct tiles<KV, D, true> : tiles<KV, D, false> { struct slots<part<D>::N, KV == SR_DTYPE_Q8_0> k_slots, v_slots; };

static __device__ __forceinline__ void copy_part(void *to, const void *from, bool there, int bytes)
{
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    if (bytes == 8) asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(at), "l"(from), "r"(there ? 8 : 0) : "memory");
    else asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at), "l"(from), "r"(there ? 4 : 0) : "memory");
}

/* The two pages of a tile of which `left` rows are there. */
struct page_pair {
    const uint8_t *of[2];
    __device__ __forceinline__ page_pair(void *const *page, int tile, int64_t left)
    {
        of[0] = static_cast<const uint8_t *>(page[2 * tile]);
        of[1] = left > SR_PAGE_ROWS ? static_cast<const uint8_t *>(page[2 * tile + 1]) : of[0];
    }
};

/* take(t, i, rows, at, there) for this thread's parts of tile number `tile` of a table of pages: the i-th is at element `at` of the
 * page `rows`. Rows from kv_len on are not there and become 0, since 0 times what memory happens to hold may be NaN; nor are
 * columns that a head has not. */
template <int D, typename F>
static __device__ __forceinline__ void each_part(void *const *page, int tile, int64_t kv_len, int d, F take)
{
    const struct part<D> t;
    const int64_t left = kv_len - (int64_t)tile * KEYS;
    const struct page_pair pages(page, tile, left);
#pragma unroll
    for (int i = 0; i < t.N; i++) {
        const int r = t.row + i * t.STEP;
        const bool there = r < left && t.c * 8 < d;
        take(t, i, pages.of[i * t.STEP / SR_PAGE_ROWS], r % SR_PAGE_ROWS * d + t.c * 8, there);
    }
}

template <int D>
static __device__ __forceinline__ void load_tile(uint32_t to, void *const *page, int tile, int64_t kv_len, int d)
{
    each_part<D>(page, tile, kv_len, d,
                 [&](const struct part<D> &t, int i, const uint8_t *rows, int at, bool there) { copy16(to + t.place(i), rows + at * 2, there); });
}

template <sr_dtype KV, int D, typename S>
static __device__ __forceinline__ void fetch_codes(S *slot, void *const *page, int tile, int64_t kv_len, int d)
{
    each_part<D>(page, tile, kv_len, d, [&](const struct part<D> &, int i, const uint8_t *rows, int at, bool there) {
        copy_part(&slot->codes[i][threadIdx.x], rows + at, there, 8);
        if (KV == SR_DTYPE_Q8_0) copy_part(&slot->scales[i][threadIdx.x], rows + SR_PAGE_ROWS * d + at / 64 * 4, there, 4);
    });
}

/* Eight codes as f16. q8_0: byte b as 1024 + (b ^ 128) is an f16 with that byte below; 1152 less, times the scale. */
template <sr_dtype KV>
static __device__ __forceinline__ uint4 widen(uint2 codes, uint32_t scales, int odd)
{
    uint4 out;
    uint32_t *w = &out.x;
    const __half2 scale = __half2half2(__ushort_as_half((unsigned short)(scales >> 16 * odd)));
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t word = i < 2 ? codes.x : codes.y;
        if (KV == SR_DTYPE_F8_E4M3) {
            const __half2_raw h = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)(word >> 16 * (i & 1)), __NV_E4M3);
            w[i] = (uint32_t)h.x | (uint32_t)h.y << 16;
        } else {
            const uint32_t bytes = __byte_perm(word ^ 0x80808080u, 0x64646464u, i & 1 ? 0x4342 : 0x4140);
            const __half2 code = __hsub2(*reinterpret_cast<const __half2 *>(&bytes), __half2half2(__ushort_as_half(0x6480)));
            const __half2 x = __hmul2(code, scale);
            w[i] = *reinterpret_cast<const uint32_t *>(&x);
        }
    }
    return out;
}

template <sr_dtype KV, int D, typename S>
static __device__ __forceinline__ void widen_tile(uint32_t to, const S *slot, int d)
{
    const struct part<D> t;
#pragma unroll
    for (int i = 0; i < t.N; i++) {
        const int at = (t.row + i * t.STEP) % SR_PAGE_ROWS * d + t.c * 8;
        const uint4 x = widen<KV>(slot->codes[i][threadIdx.x], KV == SR_DTYPE_Q8_0 ? slot->scales[i][threadIdx.x] : 0, at / 32 & 1);
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to + t.place(i)), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
    }
}

/* ---- one warpgroup's queries ---- */

template <typename T, int D>
static __device__ __forceinline__ void ask_logits(const struct queries<D> &w, uint32_t k, float (&s)[KEYS / 8][4])
{
#pragma unroll
    for (int i = 0; i < D / 16; i++) times_k(s, w.q[i], matrix_at(k + i / 4 * BAND + i % 4 * 32), i > 0, static_cast<const T *>(nullptr));
    products_end();
}

template <typename T, int D>
static __device__ __forceinline__ void ask_values(struct queries<D> *w, const uint32_t (&weights)[KEYS / 16][4], uint32_t v)
{
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++) times_v(w->o, weights[i], matrix_at(v + i * 16 * ROW), 1, static_cast<const T *>(nullptr));
    products_end();
}

template <typename T>
static __device__ __forceinline__ void pack_weights(const float (&s)[KEYS / 8][4], uint32_t (&weights)[KEYS / 16][4])
{
    const T *t = nullptr;
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++) {
        weights[i][0] = pack(s[2 * i][0], s[2 * i][1], t);
        weights[i][1] = pack(s[2 * i][2], s[2 * i][3], t);
        weights[i][2] = pack(s[2 * i + 1][0], s[2 * i + 1][1], t);
        weights[i][3] = pack(s[2 * i + 1][2], s[2 * i + 1][3], t);
    }
}

/* Tiles of one group as a block goes over them. K of a tile comes while the tile before it is worked on, V while the tile
 * itself is, codes one tile earlier; one barrier a tile says that both are there and that nobody reads what they replace. */
template <sr_dtype KV, int D>
struct feed {
    struct tiles<KV, D> *t;
    void *const *k_page, *const *v_page;
    int64_t kv_len;
    int n_tiles, d;

    __device__ __forceinline__ uint32_t k_of(int tile) const { return (uint32_t)__cvta_generic_to_shared(t->k[tile % 2]); }
    __device__ __forceinline__ uint32_t v_of(int tile) const { return (uint32_t)__cvta_generic_to_shared(t->v[tile % 2]); }
    /* K of tile i + 1 and V of tile i. */
    __device__ __forceinline__ void ask(int i) const
    {
        if constexpr (is_coded<KV>) {
            if (i + 1 < n_tiles) widen_tile<KV, D>(k_of(i + 1), &t->k_slots, d);
            if (i >= 0) widen_tile<KV, D>(v_of(i), &t->v_slots, d);
            if (i + 2 < n_tiles) fetch_codes<KV, D>(&t->k_slots, k_page, i + 2, kv_len, d);
            if (i + 1 < n_tiles) fetch_codes<KV, D>(&t->v_slots, v_page, i + 1, kv_len, d);
        } else {
            if (i + 1 < n_tiles) load_tile<D>(k_of(i + 1), k_page, i + 1, kv_len, d);
            if (i >= 0) load_tile<D>(v_of(i), v_page, i, kv_len, d);
        }
        copies_end();
    }
    __device__ __forceinline__ void begin() const
    {
        if constexpr (is_coded<KV>) {
            fetch_codes<KV, D>(&t->k_slots, k_page, 0, kv_len, d);
            copies_end();
            copies_wait<0>();
        }
        ask(-1);
    }
    __device__ __forceinline__ void wait() const
    {
        copies_wait<0>();
        show_products();
        __syncthreads();
    }
};

template <typename T, int D>
static __device__ __forceinline__ void weigh(struct queries<D> *w, int tile, int lane, uint32_t anywhere, float (&s)[KEYS / 8][4], float (&shrink)[2])
{
    const int64_t first = (int64_t)tile * KEYS;
    written(s);
    if (first + KEYS - 1 > w->pos) hide_future(*w, first, lane, s);
    soften(w, s, shrink);
    /* The assembler would move all of this behind the next wait, but no store: it wants the sums, and they all weights. */
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(anywhere), "f"(w->l[0] + w->l[1]) : "memory");
}

/* WHOLE: the head's size is D; else it is less. */
template <sr_dtype KV, int D, bool WHOLE>
static __global__ void __launch_bounds__(THREADS, 1) wgmma_kernel(const __grid_constant__ struct prefill_params p)
{
    typedef typename element<KV>::type T;
    extern __shared__ __align__(1024) uint8_t shared[];
    struct tiles<KV, D> *t = reinterpret_cast<struct tiles<KV, D> *>(shared);
    const int lane = threadIdx.x % 32, n_heads = p.n_kv_heads * p.group, head = blockIdx.x % n_heads, group = head / p.group;
    const int64_t block = (int64_t)(gridDim.x / n_heads - 1 - blockIdx.x / n_heads) * QUERIES; /* the longest first */
    const int64_t row = block + threadIdx.x / 32 * 16, last = p.pos0 + (block + QUERIES < p.n ? block + QUERIES : p.n) - 1;
    const int64_t pages = (int64_t)group * p.max_pages;
    const struct feed<KV, D> f = {t, p.k_page + pages, p.v_page + pages, p.pos0 + p.n, (int)(last / KEYS) + 1, WHOLE ? D : p.head_dim};
    const uint32_t anywhere = (uint32_t)__cvta_generic_to_shared(t->sums + threadIdx.x);
    struct queries<D> w;
    uint32_t weights[KEYS / 16][4];
    float s[KEYS / 8][4], shrink[2];
    f.begin();
    load_queries<T, D>(&w, p, head, row, lane);
    f.wait();
    products_begin();
    ask_logits<T, D>(w, f.k_of(0), s);
    f.ask(0);
    products_wait<0>();
    weigh<T, D>(&w, 0, lane, anywhere, s, shrink);
    pack_weights<T>(s, weights);
    for (int i = 1; i < f.n_tiles; i++) {
        f.wait();
        products_begin();
        ask_logits<T, D>(w, f.k_of(i), s);
        ask_values<T, D>(&w, weights, f.v_of(i - 1));
        f.ask(i);
        products_wait<1>();
        weigh<T, D>(&w, i, lane, anywhere, s, shrink);
        products_wait<0>();
        written(w.o);
        shrink_outputs(&w, shrink);
        pack_weights<T>(s, weights);
    }
    f.wait();
    products_begin();
    ask_values<T, D>(&w, weights, f.v_of(f.n_tiles - 1));
    products_wait<0>();
    written(w.o);
    store_outputs<D>(w, p, head, row, lane);
}

/* ---- launch ---- */

template <sr_dtype KV, int D, bool WHOLE>
static void launch(struct backend_cuda *c, const struct prefill_params *p)
{
    const size_t shared = sizeof(struct tiles<KV, D>);
    sr_cuda_note(c, cudaFuncSetAttribute(wgmma_kernel<KV, D, WHOLE>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared), "prefill");
    const unsigned n_blocks = (unsigned)((p->n + QUERIES - 1) / QUERIES) * (unsigned)(p->n_kv_heads * p->group);
    wgmma_kernel<KV, D, WHOLE><<<n_blocks, THREADS, shared, c->stream>>>(*p);
    sr_cuda_note(c, cudaGetLastError(), "prefill");
}

template <sr_dtype KV>
static void launch_of(struct backend_cuda *c, const struct prefill_params *p)
{
    if (p->head_dim == 64) launch<KV, 64, true>(c, p);
    else if (p->head_dim == 128) launch<KV, 128, true>(c, p);
    else launch<KV, 128, false>(c, p);
}

static bool has_size(const struct prefill_params *p) { return p->head_dim >= 64 && p->head_dim <= 128 && p->head_dim % 8 == 0; }

void sr_cuda_prefill_wgmma(struct backend_cuda *c, const struct prefill_params *p)
{
    assert(has_size(p));
    switch (p->kv_type) {
    case SR_DTYPE_BF16: launch_of<SR_DTYPE_BF16>(c, p); break;
    case SR_DTYPE_F8_E4M3: launch_of<SR_DTYPE_F8_E4M3>(c, p); break;
    case SR_DTYPE_Q8_0: launch_of<SR_DTYPE_Q8_0>(c, p); break;
    default: launch_of<SR_DTYPE_F16>(c, p); break;
    }
}

bool sr_cuda_prefill_has_wgmma(const struct prefill_params *p)
{
    static const bool is_there = [] { /* code made from PTX of 8.0 has none, whatever runs it */
        cudaFuncAttributes f;
        return cudaFuncGetAttributes(&f, wgmma_kernel<SR_DTYPE_F16, 128, true>) == cudaSuccess && f.ptxVersion >= 90;
    }();
    return is_there && has_size(p);
}
