// SPDX-License-Identifier: Apache-2.0
//
// The small kernels around attention: new rows into the cache, the paper's cosine, the record of an audit.
#include "cuda/append_parts.cuh"

namespace sr {

// ---- append ----

template <typename S> static __device__ __forceinline__ float source(const void *p, int64_t i) { return (float)((const S *)p)[i]; }

static __device__ __forceinline__ float source_of(const append_params &p, const void *x, int64_t i)
{
    if (p.a.src_type == SR_DTYPE_F32) return source<float>(x, i);
    return p.a.src_type == SR_DTYPE_F16 ? source<__half>(x, i) : source<__nv_bfloat16>(x, i);
}

// One block a head, of K or of V. NaN counts as nothing here; it shows where rows are read.
__global__ void scales_kernel(const __grid_constant__ scales_params p)
{
    wait_for_previous();
    let_next_start();
    __shared__ float most[8];
    const int lane = threadIdx.x % WARP, head = blockIdx.x / 2, d = p.head_dim;
    const float *rows = (blockIdx.x % 2 ? p.a.v : p.a.k) + head * d;
    float max = 0.0f;
    for (int64_t i = threadIdx.x; i < (int64_t)p.a.n * d; i += blockDim.x) max = fmaxf(max, fabsf(rows[i / d * p.a.stride + i % d]));
#pragma unroll
    for (int i = 1; i < WARP; i *= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, i));
    if (lane == 0) most[threadIdx.x / WARP] = max;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int i = 1; i < 8; i++) max = fmaxf(max, most[i]);
    (blockIdx.x % 2 ? p.a.v_scale : p.a.k_scale)[head] = scale_of_most(max);
}

// ---- found sinks: attention/sinks.c has the rule ----

// Norm of a row of `head` by one warp.
static __device__ __forceinline__ float norm_of(const append_params &p, const void *x, int64_t token, int head)
{
    float sum = 0.0f;
    for (int i = threadIdx.x % WARP; i < p.head_dim; i += WARP) {
        const float y = source_of(p, x, token * p.a.stride + head * p.head_dim + i);
        sum += y * y;
    }
    return norm_of_lanes(sum);
}

// The first warp notes rows [row, row + n): those before the last of the reference together, and the others one by one where
// they may be sinks or make the means.
static __device__ void note_rows(struct found_sinks &u, int row, int n, const float *k, const float *v)
{
    const int lane = (int)threadIdx.x, together = max(0, min(n, SR_SINKS_REFERENCE - 1 - row));
    for (int i = lane; i < together; i += WARP) u.k[row + i] = k[i], u.v[row + i] = v[i];
    if (lane == 0 && together > 0) u.n = 0;
    __syncwarp();
    for (int first = together; first < n; first += WARP) {
        const int i = first + lane;
        const bool asks = i < n && (row + first < SR_SINKS_REFERENCE || i == together || is_sink(u, k[i], v[i]));
        for (unsigned ask = __ballot_sync(~0u, asks); ask; ask &= ask - 1) {
            const int j = first + __ffs(ask) - 1;
            if (lane == 0) note_row(u, row + j, k[j], v[j]);
            __syncwarp();
        }
    }
}

// What append_kernel wrote of the norms; the record in shared memory meanwhile, since one thread goes through it row by row.
__global__ void __launch_bounds__(SINK_ROWS) sinks_kernel(const __grid_constant__ append_params p)
{
    __shared__ float k[SINK_ROWS], v[SINK_ROWS];
    __shared__ found_sinks u;
    constexpr int WORDS = sizeof(found_sinks) / 4;
    wait_for_previous();
    let_next_start();
    int32_t *from = (int32_t *)&p.a.found[blockIdx.x], *here = (int32_t *)&u;
    const float *norms = p.norms + (int64_t)blockIdx.x * 2 * p.n_rows;
    const int row0 = p.cache.kv_len[blockIdx.x / p.n_kv_heads] - p.a.n + p.row0;
    for (int i = threadIdx.x; i < WORDS; i += SINK_ROWS) here[i] = from[i];
    for (int at = 0; at < p.n_rows; at += SINK_ROWS) {
        const int i = threadIdx.x, n = min(SINK_ROWS, p.n_rows - at);
        if (i < n) k[i] = norms[at + i], v[i] = norms[p.n_rows + at + i];
        __syncthreads();
        if (i < WARP) note_rows(u, row0 + at, n, k, v);
        __syncthreads();
    }
    for (int i = threadIdx.x; i < WORDS; i += SINK_ROWS) from[i] = here[i];
}

// ---- rows ----

// One warp a row, of K or of V. A single row is looked at by the warp of its key; of more the norms go to sinks_kernel.
__global__ void append_kernel(const __grid_constant__ append_params p)
{
    wait_for_previous();
    let_next_start();
    const int lane = threadIdx.x % WARP, d = p.head_dim;
    const int64_t n_rows = (int64_t)p.cache.n_seqs * p.n_rows * p.n_kv_heads * 2;
    const int64_t at = (int64_t)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (at >= n_rows) return;
    const bool is_v = at % 2;
    const int head = (int)(at / 2 % p.n_kv_heads), seq = (int)(at / 2 / p.n_kv_heads / p.n_rows), here = (int)(at / 2 / p.n_kv_heads % p.n_rows);
    const int64_t token = (int64_t)seq * p.a.n + p.row0 + here; // of all sequences
    const int row = p.cache.kv_len[seq] - p.a.n + p.row0 + here, slot = row % SR_PAGE_ROWS;
    if (row < 0) return;
    void *const *table = is_v ? p.cache.v_page : p.cache.k_page;
    uint8_t *page = (uint8_t *)table[((int64_t)seq * p.n_kv_heads + head) * p.cache.max_pages + row / SR_PAGE_ROWS];
    const void *src = is_v ? p.a.v : p.a.k;
    const float *scales = is_v ? p.cache.v_scale : p.cache.k_scale;
    float inverse = p.type == ELEM_F8 && scales ? 1.0f / scales[head] : 1.0f;
    if (row == 0 && p.a.n == 1 && p.a.k_scale) {
        float max = 0.0f;
        for (int i = lane; i < d; i += WARP) max = fmaxf(max, fabsf(source_of(p, src, token * p.a.stride + head * d + i)));
        inverse = begin_scale((is_v ? p.a.v_scale : p.a.k_scale) + head, max);
    }
    float sum = 0.0f;
    for (int i = lane; i < d; i += WARP) {
        const float y = source_of(p, src, token * p.a.stride + head * d + i);
        sum += y * y;
        store_element(p.type, page, slot, d, i, y, inverse);
    }
    if (!p.a.found) return;
    const int64_t unit = (int64_t)seq * p.n_kv_heads + head;
    const float norm = norm_of_lanes(sum);
    if (p.a.n > 1 && lane == 0) p.norms[(2 * unit + is_v) * p.n_rows + here] = norm;
    if (p.a.n > 1 || is_v) return;
    const float value = norm_of(p, p.a.v, token, head);
    if (lane == 0) note_row(p.a.found[unit], row, norm, value);
}

// ---- the paper's cosine ----

static __device__ __forceinline__ double sum_of_warp(double x)
{
#pragma unroll
    for (int i = 1; i < WARP; i *= 2) x += __shfl_xor_sync(~0u, x, i);
    return x;
}

static __device__ double tau_of(const struct attn_cuda_paper &a, int32_t kv_len)
{
    if (a.tau[1] == 0 && a.tau[2] == 0 && a.tau[3] == 0) return a.tau[0];
    double len = kv_len;
    if (len > a.tau_max_len) len = a.tau_max_len;
    if (len < a.tau_min_len) len = a.tau_min_len;
    const double x = len / a.tau_scale;
    return a.tau[0] + x * (a.tau[1] + x * (a.tau[2] + x * a.tau[3]));
}

// One warp a unit.
__global__ void paper_kernel(const __grid_constant__ paper_params p)
{
    wait_for_previous();
    let_next_start();
    const int lane = threadIdx.x % WARP, d = p.head_dim, u = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (u >= p.n_units) return;
    const uint8_t *page = (const uint8_t *)p.cache.k_page[(int64_t)u * p.cache.max_pages];
    float k[8];
    double kk = 0, sum = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        k[i] = lane + i * WARP < d ? element_of(p.type, page, 0, d, lane + i * WARP) : 0.0f;
        kk += (double)k[i] * k[i];
    }
    const double k_norm = sqrt(sum_of_warp(kk));
    for (int g = 0; g < p.group; g++) {
        const float *q = p.a.q + ((int64_t)u * p.group + g) * d;
        double qk = 0, qq = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float x = lane + i * WARP < d ? q[lane + i * WARP] : 0.0f;
            qk += (double)x * k[i];
            qq += (double)x * x;
        }
        const double norms = sqrt(sum_of_warp(qq)) * k_norm;
        qk = sum_of_warp(qk);
        sum += norms == 0 ? 0 : qk / norms; // a zero vector has no direction
    }
    if (lane != 0) return;
    const int32_t len = p.cache.kv_len[u / p.n_kv_heads];
    const float score = (float)(sum / p.group);
    const bool routed = len >= p.a.min_len;
    if (p.a.score) p.a.score[u] = score;
    p.a.kinds[u] = routed && (double)score > tau_of(p.a, len) ? CUDA_READ_NONE : CUDA_READ_ALL;
    if (p.a.counters && routed) p.a.counters[u].k_rows++;
}

// ---- audits ----

static __device__ __forceinline__ uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9ull;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

enum audited { AUDIT_NONE, AUDIT_WATCHED /* counted and told only */, AUDIT_DRAWN };

static __device__ bool is_routed(const audit_params &p, int32_t len)
{
    return p.a.is_routed && len >= p.a.min_len && !(p.a.keeps_near && len <= p.a.n_sinks + p.a.window);
}

static __device__ audited audited_of(const audit_params &p, int u)
{
    const int32_t len = p.cache.kv_len[u / p.n_kv_heads];
    const audited else_ = p.a.is_watched ? AUDIT_WATCHED : AUDIT_NONE;
    if (!is_routed(p, len)) return else_;
    if (p.a.trust && p.a.trust[u] == CUDA_TRIAL) return AUDIT_DRAWN;
    uint64_t h = mix(p.a.seed + 0x9e3779b97f4a7c15ull);
    h = mix(h ^ (uint64_t)(uint32_t)p.a.layer << 32 ^ (uint32_t)(u % p.n_kv_heads));
    h = mix(h ^ (uint64_t)(uint32_t)(len - 1));
    return (double)(h >> 11) * 0x1p-53 < (double)p.a.fraction[u / p.n_kv_heads] ? AUDIT_DRAWN : else_;
}

// With everything read the routed state is the dense one.
static __device__ bool is_whole(const audit_params &p, int u)
{
    return (p.a.routed ? p.a.routed[u] : p.a.kind) == CUDA_READ_ALL || !is_routed(p, p.cache.kv_len[u / p.n_kv_heads]);
}

__global__ void audit_mark_kernel(const __grid_constant__ audit_params p)
{
    wait_for_previous();
    let_next_start();
    const int u = blockIdx.x * blockDim.x + threadIdx.x;
    if (u < p.n_units) p.a.kinds[u] = audited_of(p, u) && !is_whole(p, u) ? CUDA_READ_ALL : CUDA_READ_NONE;
}

// True unread share of a head and the error of its output; by one warp.
static __device__ void compare_head(const audit_params &p, int64_t h, double &unread, double &error)
{
    const double l_all = p.a.dense.l[h], l_read = p.a.state.l[h];
    double diff = 0, norm = 0;
    for (int i = threadIdx.x % WARP; i < p.head_dim; i += WARP) {
        const double dense = p.a.dense.o[h * p.head_dim + i] / l_all, e = p.a.out[h * p.head_dim + i] - dense;
        diff += e * e;
        norm += dense * dense;
    }
    diff = sum_of_warp(diff);
    norm = sum_of_warp(norm);
    unread = l_read > 0 ? 1 - l_read / l_all * exp((double)p.a.state.m[h] - (double)p.a.dense.m[h]) : 1;
    unread = unread < 0 ? 0 : unread;
    error = norm > 0 ? sqrt(diff / norm) : diff > 0;
}

static __device__ void count_case(struct attn_cuda_counters *c, double eps, double unread, double error, float estimate)
{
    c->cases++;
    c->above_eps += !(unread <= eps);
    c->broken += !(unread <= 2 * eps);
    c->unread_sum += unread;
    c->output_error_sum += error;
    c->unread_max = unread > c->unread_max ? unread : c->unread_max;
    c->output_error_max = error > c->output_error_max ? error : c->output_error_max;
    if (!isnan(estimate)) c->estimate_sum += (double)estimate;
}

// What a watcher is told of row 0: its true share, that of the total which what was read and the estimate of the rest make, and the mean cosine; by one warp.
static __device__ void probe_first(const audit_params &p, int u, const struct attn_state &all, struct attn_cuda_case *c)
{
    const int lane = threadIdx.x % WARP, d = p.head_dim;
    const uint8_t *page = (const uint8_t *)p.cache.k_page[(int64_t)u * p.cache.max_pages];
    const float scale = p.type == ELEM_F8 && p.cache.k_scale ? p.cache.k_scale[u % p.n_kv_heads] : 1.0f;
    double k_norm = 0, sum = 0;
    for (int i = lane; i < d; i += WARP) k_norm += (double)element_of(p.type, page, 0, d, i) * element_of(p.type, page, 0, d, i);
    k_norm = sqrt(sum_of_warp(k_norm));
    for (int g = 0; g < p.group; g++) {
        const int64_t h = (int64_t)u * p.group + g;
        double qk = 0, qq = 0;
        for (int i = lane; i < d; i += WARP) {
            const float x = p.a.q[h * d + i];
            qk += (double)x * element_of(p.type, page, 0, d, i);
            qq += (double)x * x;
        }
        qk = sum_of_warp(qk);
        const double norms = sqrt(sum_of_warp(qq)) * k_norm, logit = qk * scale * p.a.scale;
        sum += norms == 0 ? 0 : qk / norms;
        if (lane != 0) continue;
        const double share = exp(logit - (double)all.m[h]) / all.l[h];
        c->sink[g] = share > 1 ? 1.0f : (float)share; // attention rounds the query, this does not
        c->sink_estimate[g] = p.a.unread ? (float)(exp(logit - (double)p.a.state.m[h]) / p.a.state.l[h] * (1 - (double)p.a.unread[h])) : CUDART_NAN_F;
    }
    if (lane == 0) c->cosine = (float)(sum / p.group);
}

// One warp a unit: its heads one after another.
__global__ void audit_record_kernel(const __grid_constant__ audit_params p)
{
    wait_for_previous();
    let_next_start();
    const int lane = threadIdx.x % WARP, u = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, seq = u / p.n_kv_heads;
    const audited why = u < p.n_units ? audited_of(p, u) : AUDIT_NONE;
    if (why == AUDIT_NONE) return;
    const bool whole = is_whole(p, u), routed = is_routed(p, p.cache.kv_len[seq]);
    struct attn_cuda_counters *c = p.a.counters + u;
    struct attn_cuda_case *told = p.a.cases ? p.a.cases + u : NULL;
    if (lane == 0 && routed) c->audits++;
    if (lane == 0 && p.a.n_chosen && why == AUDIT_DRAWN && !(p.a.trust && p.a.trust[u] == CUDA_WHOLE)) {
        c->far_rows += p.a.n_chosen[2 * u];
        c->far_rows_uncorrected += p.a.n_chosen[2 * u + 1];
    }
    for (int g = 0; g < p.group; g++) {
        const int64_t h = (int64_t)u * p.group + g;
        const float estimate = p.a.unread ? p.a.unread[h] : CUDART_NAN_F;
        double unread = 0, error = 0;
        if (!whole) compare_head(p, h, unread, error);
        if (lane != 0) continue;
        if (routed) count_case(c, p.a.eps[seq], unread, error, estimate);
        if (told) told->unread[g] = (float)unread, told->estimate[g] = estimate;
    }
    if (!told) return;
    if (p.a.is_watched) probe_first(p, u, whole ? p.a.state : p.a.dense, told);
    if (lane == 0) told->is_drawn = why == AUDIT_DRAWN, told->kv_len = p.cache.kv_len[seq];
}

} // namespace sr
