/* SPDX-License-Identifier: Apache-2.0
 *
 * The matmul op. A few tokens: matvec_cuda.cu. Many: cuBLASLt on bf16 tiles, as the CPU's AMX kernels do: activations
 * are rounded once, weights that are not bf16 are expanded into a tile of rows at a time. Weights kept in f32 are kept
 * so for their accuracy and are multiplied in f32.
 */
#include "cuda/matvec_cuda.h"
#include "cuda/planes_cuda.h"

#include <assert.h>
#include <cuda_bf16.h>

/* From this many tokens on, expanding weights is cheaper than reading them once per 8 tokens. */
enum { GEMM_MIN_TOKENS = 16, N_PLANS = 64 };
#define TILE_BYTES ((size_t)128 << 20)
#define WORKSPACE_BYTES ((size_t)32 << 20)

/* What cuBLASLt found for a shape. */
struct plan { int64_t rows, n, n_in, ld_y; bool f32; cublasLtMatmulAlgo_t algo; };

struct matmul_cuda {
    cublasLtHandle_t lt;
    cublasLtMatmulDesc_t desc[2]; /* bf16, f32 */
    __nv_bfloat16 *x, *tile;      /* [max_n][max_in]; rows of weights */
    void *workspace;
    int64_t x_elems;
    struct plan plans[N_PLANS];
    int next; /* plans found so far; a new one takes the place of the oldest */
};

static sr_status lt_fail(cublasStatus_t st, sr_error *err) { return sr_fail(err, SR_ERR_RESOURCE, "cuBLASLt: status %d", (int)st); }

static cublasStatus_t make_desc(cublasLtMatmulDesc_t *d)
{
    const cublasOperation_t t = CUBLAS_OP_T;
    const cublasStatus_t st = cublasLtMatmulDescCreate(d, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    return st != CUBLAS_STATUS_SUCCESS ? st : cublasLtMatmulDescSetAttribute(*d, CUBLASLT_MATMUL_DESC_TRANSA, &t, sizeof t);
}

sr_status sr_cuda_matmul_init(struct backend_cuda *c, sr_error *err)
{
    struct matmul_cuda *m = static_cast<struct matmul_cuda *>(sr_alloc_zero(1, sizeof *m));
    if (!m) return sr_fail_memory(err, sizeof *m, "matmul");
    c->matmul = m;
    cublasStatus_t st = cublasLtCreate(&m->lt);
    for (int i = 0; i < 2 && st == CUBLAS_STATUS_SUCCESS; i++) st = make_desc(&m->desc[i]);
    return st == CUBLAS_STATUS_SUCCESS ? SR_OK : lt_fail(st, err);
}

void sr_cuda_matmul_fini(struct backend_cuda *c)
{
    struct matmul_cuda *m = c->matmul;
    sr_cuda_made_free(c);
    sr_cuda_delete(&c->base, c->many);
    c->many = NULL;
    if (!m) return;
    for (int i = 0; i < 2; i++)
        if (m->desc[i]) cublasLtMatmulDescDestroy(m->desc[i]);
    if (m->lt) cublasLtDestroy(m->lt);
    sr_cuda_delete(&c->base, m->x);
    sr_cuda_delete(&c->base, m->tile);
    sr_cuda_delete(&c->base, m->workspace);
    sr_free(m);
    c->matmul = NULL;
}

sr_status sr_cuda_matmul_reserve(struct backend *b, int32_t max_n, int64_t max_in, int64_t max_out, sr_error *err)
{
    struct backend_cuda *c = sr_cuda_of(b);
    struct matmul_cuda *m = c->matmul;
    (void)max_out;
    SR_TRY(sr_cuda_rope_reserve(c, max_n, err));
    SR_TRY(sr_cuda_made_reserve(c, max_in, err));
    if (max_n > 1) SR_TRY(sr_cuda_many_reserve(c, max_n < GEMM_MIN_TOKENS ? max_n : GEMM_MIN_TOKENS - 1, max_in, err));
    if (max_n < GEMM_MIN_TOKENS || max_n * max_in <= m->x_elems) return SR_OK;
    void *x;
    SR_TRY(sr_cuda_new(b, &x, (size_t)(max_n * max_in) * sizeof *m->x, "matmul scratch", err));
    sr_cuda_delete(b, m->x);
    m->x = static_cast<__nv_bfloat16 *>(x);
    m->x_elems = max_n * max_in;
    if (!m->tile) SR_TRY(sr_cuda_new(b, reinterpret_cast<void **>(&m->tile), TILE_BYTES, "matmul scratch", err));
    if (!m->workspace) SR_TRY(sr_cuda_new(b, &m->workspace, WORKSPACE_BYTES, "matmul scratch", err));
    return SR_OK;
}

/* ---- conversions ---- */

__nv_bfloat16 *sr_cuda_round_beside(struct backend_cuda *c, const float *x, int64_t n, int64_t d)
{
    if (n < GEMM_MIN_TOKENS || n * d > c->matmul->x_elems) return NULL;
    c->rounded.x = x;
    c->rounded.n = n;
    c->rounded.d = d;
    return c->matmul->x;
}

static __global__ void round_kernel(const float *x, int64_t x_stride, __nv_bfloat16 *out, int64_t d)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y;
    if (i < d) out[t * d + i] = __float2bfloat16_rn(x[t * x_stride + i]);
}

/* Four codes, bytes of a word, as weights: a byte below the bits of 2^23 is 2^23 and that many. */
template <int TYPE>
static __device__ __forceinline__ uint2 weights_of(uint32_t codes, float scale, float offset)
{
    constexpr bool is_signed = TYPE == SR_DTYPE_Q8_0;
    const uint32_t word = is_signed ? codes ^ 0x80808080u : codes;
    float x[4];
#pragma unroll
    for (int b = 0; b < 4; b++)
        x[b] = fmaf(scale, __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7650u + b)) - (is_signed ? 8388736.0f : 8388608.0f), offset);
    const __nv_bfloat162 low = __floats2bfloat162_rn(x[0], x[1]), high = __floats2bfloat162_rn(x[2], x[3]);
    return make_uint2(*reinterpret_cast<const uint32_t *>(&low), *reinterpret_cast<const uint32_t *>(&high));
}

/* A block two times four groups of 16 rows, as they lie side by side in records; a thread the elements [8 h, 8 h + 8) of a group
 * and those 16 behind, so that two neighbours fill whole sectors. */
enum { EXPAND_THREADS = 2 * TILE_ROWS * QUAD * 2 };

template <int TYPE>
static __global__ void __launch_bounds__(EXPAND_THREADS) expand_kernel(const struct cuda_planes w, int64_t first, int64_t n_rows, __nv_bfloat16 *out)
{
    const int h = threadIdx.x % 2, r = threadIdx.x / (2 * QUAD) % TILE_ROWS;
    const int64_t g = (int64_t)blockIdx.y * 2 * QUAD + threadIdx.x / (2 * QUAD * TILE_ROWS) * QUAD + threadIdx.x / 2 % QUAD;
    const int64_t row = (int64_t)blockIdx.x * TILE_ROWS + r;
    if (row >= n_rows || g >= w.groups) return;
    const plane_place place = sr_place(w, sr_record(TYPE), first + row, g);
    const half_bits b = load_half<TYPE>(place, h);
    const group_scale s = load_scale<TYPE>(place);
    uint32_t codes[4];
    unpack_half<TYPE>(b, h, codes);
    uint4 *to = reinterpret_cast<uint4 *>(out + (row * w.groups + g) * 32) + h;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint2 x = weights_of<TYPE>(codes[2 * i], s.scale[i], s.offset[i]), y = weights_of<TYPE>(codes[2 * i + 1], s.scale[i], s.offset[i]);
        to[2 * i] = make_uint4(x.x, x.y, y.x, y.y);
    }
}

static __global__ void narrow_kernel(const __half *w, __nv_bfloat16 *out, int64_t n)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = __float2bfloat16_rn(__half2float(w[i]));
}

static __global__ void bias_kernel(float *y, int64_t y_stride, const float *bias, int64_t n_out)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n_out) y[blockIdx.y * y_stride + i] += bias[i];
}

static unsigned blocks_of(int64_t n) { return (unsigned)((n + SR_CUDA_THREADS - 1) / SR_CUDA_THREADS); }

#define EXPAND(type) \
    case type: expand_kernel<type><<<grid, EXPAND_THREADS, 0, c->stream>>>(*sr_planes_of(w), row, n, c->matmul->tile); break

/* Rows [row, row + n) of w into the tile; row is a multiple of TILE_ROWS. */
static void expand_rows(struct backend_cuda *c, const struct weight *w, int64_t row, int64_t n)
{
    const dim3 grid((unsigned)((n + TILE_ROWS - 1) / TILE_ROWS), (unsigned)((w->n_in / 32 + 2 * QUAD - 1) / (2 * QUAD)));
    switch (w->dtype) {
        EXPAND(SR_DTYPE_Q8_0);
        EXPAND(SR_DTYPE_Q4_0);
        EXPAND(SR_DTYPE_Q4_1);
        EXPAND(SR_DTYPE_Q5_0);
        EXPAND(SR_DTYPE_Q5_1);
        EXPAND(SR_DTYPE_Q4_K);
        EXPAND(SR_DTYPE_Q5_K);
        EXPAND(SR_DTYPE_Q6_K);
    default:
        assert(w->dtype == SR_DTYPE_F16);
        narrow_kernel<<<blocks_of(n * w->n_in), SR_CUDA_THREADS, 0, c->stream>>>(
            reinterpret_cast<const __half *>(sr_planes_of(w)->codes) + row * w->n_in, c->matmul->tile, n * w->n_in);
    }
    sr_cuda_note(c, cudaGetLastError(), "expand");
}

/* ---- products ---- */

struct gemm { const void *w, *x; float *y; int64_t rows, n, n_in, ld_x, ld_y; bool f32; };

/* Column by column: y^T [rows][n] = (w as [n_in][rows])^T x^T [n_in][n]. */
struct layouts { cublasLtMatrixLayout_t w, x, y; };

static cublasStatus_t make_layouts(const struct gemm *g, struct layouts *l)
{
    const cudaDataType_t type = g->f32 ? CUDA_R_32F : CUDA_R_16BF;
    cublasStatus_t st = cublasLtMatrixLayoutCreate(&l->w, type, (uint64_t)g->n_in, (uint64_t)g->rows, g->n_in);
    if (st == CUBLAS_STATUS_SUCCESS) st = cublasLtMatrixLayoutCreate(&l->x, type, (uint64_t)g->n_in, (uint64_t)g->n, g->ld_x);
    if (st == CUBLAS_STATUS_SUCCESS) st = cublasLtMatrixLayoutCreate(&l->y, CUDA_R_32F, (uint64_t)g->rows, (uint64_t)g->n, g->ld_y);
    return st;
}

static void free_layouts(struct layouts *l)
{
    if (l->w) cublasLtMatrixLayoutDestroy(l->w);
    if (l->x) cublasLtMatrixLayoutDestroy(l->x);
    if (l->y) cublasLtMatrixLayoutDestroy(l->y);
}

static cublasStatus_t search(struct matmul_cuda *m, const struct gemm *g, const struct layouts *l, cublasLtMatmulAlgo_t *algo)
{
    cublasLtMatmulPreference_t want;
    cublasLtMatmulHeuristicResult_t found;
    const size_t room = WORKSPACE_BYTES;
    int n = 0;
    cublasStatus_t st = cublasLtMatmulPreferenceCreate(&want);
    if (st != CUBLAS_STATUS_SUCCESS) return st;
    st = cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &room, sizeof room);
    if (st == CUBLAS_STATUS_SUCCESS) st = cublasLtMatmulAlgoGetHeuristic(m->lt, m->desc[g->f32], l->w, l->x, l->y, l->y, want, 1, &found, &n);
    cublasLtMatmulPreferenceDestroy(want);
    if (st == CUBLAS_STATUS_SUCCESS && n == 0) st = CUBLAS_STATUS_NOT_SUPPORTED;
    if (st == CUBLAS_STATUS_SUCCESS) *algo = found.algo;
    return st;
}

/* A shape is searched once, as long as its plan is kept. */
static cublasStatus_t find_plan(struct matmul_cuda *m, const struct gemm *g, const struct layouts *l, cublasLtMatmulAlgo_t *algo)
{
    for (int i = 0; i < N_PLANS && i < m->next; i++) {
        const struct plan *p = &m->plans[i];
        if (p->rows != g->rows || p->n != g->n || p->n_in != g->n_in || p->ld_y != g->ld_y || p->f32 != g->f32) continue;
        *algo = p->algo;
        return CUBLAS_STATUS_SUCCESS;
    }
    const cublasStatus_t st = search(m, g, l, algo);
    if (st == CUBLAS_STATUS_SUCCESS) m->plans[m->next++ % N_PLANS] = plan{g->rows, g->n, g->n_in, g->ld_y, g->f32, *algo};
    return st;
}

static void multiply(struct backend_cuda *c, const struct gemm *g)
{
    struct matmul_cuda *m = c->matmul;
    struct layouts l = {};
    cublasLtMatmulAlgo_t algo;
    const float one = 1.0f, zero = 0.0f;
    cublasStatus_t st = make_layouts(g, &l);
    if (st == CUBLAS_STATUS_SUCCESS) st = find_plan(m, g, &l, &algo);
    if (st == CUBLAS_STATUS_SUCCESS)
        st = cublasLtMatmul(m->lt, m->desc[g->f32], &one, g->w, l.w, g->x, l.x, &zero, g->y, l.y, g->y, l.y, &algo, m->workspace,
                            WORKSPACE_BYTES, c->stream);
    free_layouts(&l);
    if (st == CUBLAS_STATUS_SUCCESS) return;
    sr_error err;
    lt_fail(st, &err);
    sr_cuda_note_status(c, &err);
}

/* y[i] of all tokens; x as bf16 lies in the scratch. */
static void product_many(struct backend_cuda *c, const struct matmul_args *a, int i)
{
    const struct weight *w = a->w[i];
    const bool f32 = w->dtype == SR_DTYPE_F32, as_is = f32 || w->dtype == SR_DTYPE_BF16;
    const int64_t most = as_is ? w->n_out : (int64_t)(TILE_BYTES / sizeof(__nv_bfloat16)) / w->n_in / TILE_ROWS * TILE_ROWS;
    for (int64_t row = 0, n; row < w->n_out; row += n) {
        n = w->n_out - row < most ? w->n_out - row : most;
        if (!as_is) expand_rows(c, w, row, n);
        const struct gemm g = {as_is ? (const void *)(sr_planes_of(w)->codes + (size_t)row * w->row_bytes) : c->matmul->tile,
                               f32 ? (const void *)a->x : c->matmul->x,
                               a->y[i] + row, n, a->n, w->n_in, f32 ? a->x_stride : w->n_in, a->y_stride[i], f32};
        multiply(c, &g);
    }
    if (!a->bias[i]) return;
    bias_kernel<<<dim3(blocks_of(w->n_out), (unsigned)a->n), SR_CUDA_THREADS, 0, c->stream>>>(a->y[i], a->y_stride[i], a->bias[i], w->n_out);
    sr_cuda_note(c, cudaGetLastError(), "bias");
}

void sr_cuda_matmul(struct backend *b, const struct matmul_args *a)
{
    struct backend_cuda *c = sr_cuda_of(b);
    const int64_t n_in = a->w[0]->n_in;
    if (a->n == 1) {
        sr_cuda_hold_product(c, a);
        return;
    }
    const bool is_rounded = c->rounded.x == a->x && c->rounded.n >= a->n && c->rounded.d == n_in && a->x_stride == n_in;
    sr_cuda_flush(c);
    if (a->n < GEMM_MIN_TOKENS) {
        const struct matvec_extra none = {};
        c->many_quads = 0;
        for (int32_t t = 0, n; t < a->n; t += n) {
            n = a->n - t < MATVEC_TOKENS ? a->n - t : MATVEC_TOKENS;
            sr_cuda_matvec(c, a, &none, t, n);
        }
        return;
    }
    assert(a->n * n_in <= c->matmul->x_elems);
    if (!is_rounded) round_kernel<<<dim3(blocks_of(n_in), (unsigned)a->n), SR_CUDA_THREADS, 0, c->stream>>>(a->x, a->x_stride, c->matmul->x, n_in);
    sr_cuda_note(c, cudaGetLastError(), "round");
    for (int i = 0; i < a->n_weights; i++) product_many(c, a, i);
}
