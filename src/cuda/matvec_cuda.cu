/* SPDX-License-Identifier: Apache-2.0
 *
 * Launches of the products of a few tokens (matvec_kernel.cuh): which products go together, and how much shared memory a
 * block is given.
 *
 * A block's shared memory decides who runs beside whom. Two kernels in a row should share every SM, so that the second one
 * fills its rings while the first one ends; two blocks of one kernel should not, or other SMs would have none. So
 * sizes take turns: a large block leaves room for a small one and for no second large one.
 */
#include "cuda/matvec_kernel.cuh"

#include <assert.h>

enum {
    LARGE_BYTES = 118 * 1024,
    LARGE_FLOATS = 116 * 1024, /* of float types: a step more under way makes them slower */
    SMALL_BYTES = 108 * 1024,
};

/* ---- codes that products make for products ---- */

sr_status sr_cuda_made_reserve(struct backend_cuda *c, int64_t n, sr_error *err)
{
    const int64_t elems = (n + 255) / 256 * 256;
    void *made;
    if (elems <= c->made_elems) return SR_OK;
    SR_TRY(sr_cuda_new(&c->base, &made, (size_t)(2 * elems + elems / 2), "activations", err)); /* two bytes each, 16 for each 32 */
    sr_cuda_made_free(c);
    c->made = made;
    c->made_elems = elems;
    return SR_OK;
}

void sr_cuda_made_free(struct backend_cuda *c)
{
    sr_cuda_delete(&c->base, c->made);
    c->made = NULL;
    c->made_elems = 0;
}

static struct made_acts made_of(const struct backend_cuda *c)
{
    uint8_t *at = static_cast<uint8_t *>(c->made);
    return made_acts{at, reinterpret_cast<float4 *>(at + 2 * c->made_elems)};
}

/* ---- codes of several tokens ---- */

/* One block a token; each of a product's would otherwise make the codes of all tokens for itself, one token after another. */
struct many_params { struct act_source acts; int64_t x_stride; uint8_t *to; int32_t quads, act_bytes; };

static __global__ void __launch_bounds__(ACT_THREADS) many_kernel(const __grid_constant__ struct many_params p)
{
    __shared__ float staging[ACT_STAGING / sizeof(float)], part[ACT_WARPS];
    struct act_source from = p.acts;
    uint8_t *to = p.to + (int64_t)blockIdx.x * p.act_bytes;
    act_pieces ones;
    from.x += blockIdx.x * p.x_stride;
    first_weights(from, ones);
    sr_grid_begin();
    clear_padding<true>(to, p.quads, p.acts.n_in, 0);
    make_acts<true>(from, ones, to, p.quads, part, staging);
}

sr_status sr_cuda_many_reserve(struct backend_cuda *c, int32_t max_n, int64_t n_in, sr_error *err)
{
    const size_t bytes = (size_t)max_n * (size_t)sr_act_bytes(true, (int32_t)((n_in + 255) / 256 * 2), 0);
    void *many;
    if (bytes <= c->many_bytes) return SR_OK;
    SR_TRY(sr_cuda_new(&c->base, &many, bytes, "activations", err));
    sr_cuda_delete(&c->base, c->many);
    c->many = static_cast<uint8_t *>(many);
    c->many_bytes = bytes;
    c->base.generation++;
    return SR_OK;
}

/* Codes of all tokens of a, unless they were made for the product before of the same. */
static void make_many(struct backend_cuda *c, const struct matmul_args *a, int32_t quads)
{
    const int32_t n_in = (int32_t)a->w[0]->n_in;
    const struct many_params p = {{a->x, NULL, NULL, 0, n_in}, a->x_stride, c->many, quads, sr_act_bytes(true, quads, 0)};
    if (c->many_quads == quads) return;
    assert((size_t)a->n * (size_t)p.act_bytes <= c->many_bytes);
    sr_cuda_launch(c, "activations", many_kernel, dim3((unsigned)a->n), dim3(ACT_THREADS), 0, p);
    c->many_quads = quads;
}

/* ---- launches ---- */

struct matvec_choice { matvec_kernel *kernel; int step_bytes, per_step, quads /* of a step; float types: 0 */; bool quantized; };

template <class F, int N> static struct matvec_choice choice_of(int quads)
{
    return matvec_choice{matvec_kernel_of<F, N>, F::STAGE, F::PER_STEP, quads, F::QUANTIZED};
}

#define QUANT(type) \
    case type: return choice_of<quant_format<type>, N>(sr_record(type).quads)
#define FLOAT(type, T) \
    case type: return choice_of<float_format<T>, N>(0)

template <int N> static struct matvec_choice kernel_for(sr_dtype type)
{
    switch (type) {
        QUANT(SR_DTYPE_Q8_0);
        QUANT(SR_DTYPE_Q4_0);
        QUANT(SR_DTYPE_Q4_1);
        QUANT(SR_DTYPE_Q5_0);
        QUANT(SR_DTYPE_Q5_1);
        QUANT(SR_DTYPE_Q4_K);
        QUANT(SR_DTYPE_Q5_K);
        QUANT(SR_DTYPE_Q6_K);
        FLOAT(SR_DTYPE_F32, float);
        FLOAT(SR_DTYPE_F16, __half);
    default: return choice_of<float_format<__nv_bfloat16>, N>(0);
    }
}

/* Two types in one launch, where there is a kernel for it. */
static bool mixed_kernel_for(sr_dtype a, sr_dtype b, struct matvec_choice *out)
{
    if (a == SR_DTYPE_Q4_K && b == SR_DTYPE_Q6_K) *out = choice_of<mixed_format<SR_DTYPE_Q4_K, SR_DTYPE_Q6_K>, 1>(2);
    else if (a == SR_DTYPE_Q5_K && b == SR_DTYPE_Q6_K) *out = choice_of<mixed_format<SR_DTYPE_Q5_K, SR_DTYPE_Q6_K>, 1>(2);
    else return false;
    return true;
}

/* Products [from, from + *count) of a go into one launch for n tokens. */
static struct matvec_choice choose(const struct matmul_args *a, int from, int32_t n, int *count)
{
    const sr_dtype type = a->w[from]->dtype;
    struct matvec_choice c = n > MATVEC_FEW ? kernel_for<MATVEC_TOKENS>(type) : n > 1 ? kernel_for<MATVEC_FEW>(type) : kernel_for<1>(type);
    int same = 1, rest = 0;
    while (from + same < a->n_weights && a->w[from + same]->dtype == type) same++;
    *count = same;
    while (from + same + rest < a->n_weights && a->w[from + same + rest]->dtype == a->w[from + same]->dtype) rest++;
    if (n == 1 && rest && mixed_kernel_for(type, a->w[from + same]->dtype, &c)) *count = same + rest;
    return c;
}

/* What of a block's memory does not depend on the ring. */
static size_t fixed_bytes(const struct matvec_choice *k, const struct matvec_params *p, int32_t n)
{
    const bool makes = k->quantized && !p->takes.codes;
    const size_t space = n > MATVEC_FEW ? sr_space_bytes<MATVEC_TOKENS>(makes) : n > 1 ? sr_space_bytes<MATVEC_FEW>(makes) : sr_space_bytes<1>(makes);
    return space + (size_t)(n > MATVEC_FEW ? MATVEC_TOKENS : n > 1 ? MATVEC_FEW : 1) * (size_t)p->act_bytes;
}

/* Bytes of a block; p->depth is set. 0: they do not suffice. */
static size_t place_ring(struct backend_cuda *c, const struct matvec_choice *k, struct matvec_params *p, int32_t n)
{
    const size_t fixed = fixed_bytes(k, p, n), stage = (size_t)ACT_WARPS * (size_t)k->step_bytes, most = c->shared_bytes;
    size_t room = c->after_matvec == SR_CUDA_LARGE ? SMALL_BYTES : k->quantized ? LARGE_BYTES : LARGE_FLOATS;
    if (room > most) room = most;
    if (fixed + 2 * stage > room) room = most; /* alone, then */
    if (fixed + 2 * stage > room) return 0;
    p->depth = (int)((room - fixed) / stage);
    if (p->depth > MOST_DEPTH) p->depth = MOST_DEPTH;
    return room;
}

/* Units of `count` products, and where each is. */
static void place_products(struct matvec_params *p, const struct matmul_args *a, int from, int count, int32_t t0)
{
    for (int i = 0; i < count; i++) {
        const struct weight *w = a->w[from + i];
        p->n_units += (int32_t)((w->n_out + TILE_ROWS - 1) / TILE_ROWS);
        p->p[i] = matvec_product{sr_planes_of(w)->codes, a->bias[from + i], a->y[from + i] + t0 * a->y_stride[from + i], a->y_stride[from + i],
                                 w->n_out, (int64_t)w->row_bytes, p->n_units, w->dtype != a->w[from]->dtype};
    }
    p->n_products = count;
}

static struct act_source source_of(const struct matmul_args *a, const struct matvec_extra *extra, int32_t t0)
{
    const int64_t n_in = a->w[0]->n_in;
    if (extra->norms) return act_source{extra->norm.x, extra->norm.w, extra->norm.y, extra->norm.eps, (int32_t)n_in};
    return act_source{a->x + t0 * a->x_stride, NULL, NULL, 0, (int32_t)n_in};
}

/* Products [from, from + count) of a for n tokens; false if a block has no room for that many. */
static bool launch(struct backend_cuda *c, const struct matmul_args *a, const struct matvec_extra *extra, int from, int *count, int32_t t0, int32_t n)
{
    const struct matvec_choice k = choose(a, from, n, count);
    const int32_t n_in = (int32_t)a->w[from]->n_in;
    struct matvec_params p = {};
    place_products(&p, a, from, *count, t0);
    p.parts = extra->silu ? 2 : 1;
    p.n_units /= p.parts;
    p.steps = (n_in + k.per_step - 1) / k.per_step;
    p.n_tokens = n;
    p.acts = source_of(a, extra, t0);
    p.x_stride = a->x_stride;
    p.quads = p.steps * k.quads;
    p.clears = !k.quantized && n_in % k.per_step != 0;
    p.act_bytes = sr_act_bytes(k.quantized, p.quads, p.steps * k.per_step);
    p.add_to = extra->add_to;
    p.late = extra->late;
    if (extra->takes && k.quantized) p.takes = made_of(c);
    if (extra->makes) p.makes = made_of(c);
    if (n > 1 && k.quantized) p.takes.codes = c->many + (size_t)t0 * (size_t)p.act_bytes;
    const size_t shared = place_ring(c, &k, &p, n);
    if (!shared) return false;
    if (n > 1 && k.quantized) make_many(c, a, p.quads);
    const unsigned blocks = p.n_units < c->n_sms ? (unsigned)p.n_units : (unsigned)c->n_sms;
    sr_cuda_note(c, cudaFuncSetAttribute((const void *)k.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared), "matvec");
    sr_cuda_note(c, cudaFuncSetAttribute((const void *)k.kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared), "matvec");
    const enum sr_cuda_room before = c->after_matvec;
    sr_cuda_launch(c, "matvec", k.kernel, dim3(blocks), dim3(ACT_THREADS), shared, p);
    c->after_matvec = before == SR_CUDA_LARGE && shared <= SMALL_BYTES ? SR_CUDA_SMALL : SR_CUDA_LARGE;
    return true;
}

/* Where a block has no room for many tokens, half as many and the other half: two or more, which all go the same way. */
static bool launch_half(struct backend_cuda *c, const struct matmul_args *a, const struct matvec_extra *extra, int from, int *count, int32_t t0, int32_t n)
{
    const int32_t half = (n + 1) / 2;
    return n > MATVEC_FEW && launch(c, a, extra, from, count, t0, half) && launch(c, a, extra, from, count, t0 + half, n - half);
}

void sr_cuda_matvec(struct backend_cuda *c, const struct matmul_args *a, const struct matvec_extra *extra, int32_t t0, int32_t n)
{
    for (int from = 0, count; from < a->n_weights; from += count) {
        if (launch(c, a, extra, from, &count, t0, n) || launch_half(c, a, extra, from, &count, t0, n)) continue;
        bool fits = n > 1;
        for (int32_t t = 0; t < n && fits; t++) fits = launch(c, a, extra, from, &count, t0 + t, 1);
        if (fits) continue;
        sr_error err;
        sr_fail(&err, SR_ERR_UNSUPPORTED, "CUDA: products with rows of %lld: a block's shared memory is too small", (long long)a->w[from]->n_in);
        sr_cuda_note_status(c, &err);
        return;
    }
}
