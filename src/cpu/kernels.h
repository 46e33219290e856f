/* SPDX-License-Identifier: Apache-2.0
 *
 * The CPU's kernel table. A kernel *family* is one operation on one combination of types. kernels.def names each
 * family once (SR_FAMILY: the field of the table and its scalar variant) and each faster variant on one line
 * (SR_KERNEL, slowest first, later lines win). Variant `isa` of family `name` is the function sr_<name>_<isa>, in a
 * file that ends in _<isa>.c, so that the Makefile gives it the ISA's flags. Families with one contract share one
 * function type, sr_<fn>_fn below.
 *
 * Including the manifest declares the prototypes and the table; kernels.c includes it again to fill a table under an
 * ISA mask. Kernels return void (or counts), cannot fail, assert at most, and test no CPU features.
 */
#ifndef SR_CPU_KERNELS_H
#define SR_CPU_KERNELS_H

#include "backend/args.h"

/* Ordered: a larger value implies the smaller ones of the same family of machines. */
enum cpu_isa { ISA_SCALAR, ISA_AVX2, ISA_AVX512, ISA_VNNI, ISA_BF16, ISA_AMX, ISA_NEON, ISA_COUNT };

/* ---- matrix products (src/cpu/matmul) ------------------------------------------------------------------------ */

/* Elements that share one scale of a quantized activation row. */
#define SR_ACT_BLOCK 32
/* Rows of activations are padded with zeros to a multiple of this many elements; kernels may read all of it. */
#define SR_ACT_PAD 512

/* Activations of up to n tokens. Float weights read x; quantized weights read x ~ d * q with sums ready for types
 * that have offsets: s32[b] = d * sum of q over block b of 32, s16[h] = the same over half blocks of 16. */
struct acts {
    const float *x;       /* [n][x_stride]; not padded */
    int64_t x_stride;
    const int8_t *q;      /* [n][pad]; pad = n_in rounded up to SR_ACT_PAD */
    const float *d, *s32; /* [n][pad / 32] */
    const float *s16;     /* [n][pad / 16] */
    int64_t pad;
};

/* One token: q, d, s32, s16 of x[n], n a multiple of 32; all outputs filled up to `pad` elements (zeros). d = max |x|
 * of the block / 127, q = x / d rounded to nearest, ties to even. The four outputs do not overlap. */
struct quantize_args { const float *x; int64_t n, pad; int8_t *q; float *d, *s32, *s16; };
typedef void sr_quantize_fn(const struct quantize_args *a);

/* y[t][r] = row r . activation t (+ bias[r]) for n_rows rows that start at w and n = 1..SR_MATVEC_TOKENS tokens. Never
 * reads past the last byte of the last row. The value of y[t][r] depends on neither n nor n_rows. */
#define SR_MATVEC_TOKENS 8
struct matvec_args {
    const uint8_t *w;
    size_t row_bytes;
    int64_t n_rows, n_in;
    const struct acts *acts;
    int32_t n;
    const float *bias;    /* [n_rows] or NULL */
    float *y;             /* [n][y_stride] */
    int64_t y_stride;
};
typedef void sr_matvec_fn(const struct matvec_args *a);

/* dst[n] = values of a stored row; n a multiple of the type's block. Bit-equal to sr_dequantize_row. */
typedef void sr_dequant_fn(const uint8_t *src, float *dst, int64_t n);

/* Many tokens. Activations are packed once (gemm_pack, blocks of SR_GEMM_TOKENS tokens in parallel), then panels of
 * SR_GEMM_ROWS weight rows are multiplied with all of them. The packed form is the variant's own; both kernels of a
 * table always come from the same ISA. */
#define SR_GEMM_ROWS 32
#define SR_GEMM_TOKENS 32
struct gemm_pack_args {
    const float *x;       /* [n][x_stride] */
    int64_t x_stride, n_in;
    int32_t n;            /* 1..SR_GEMM_TOKENS */
    void *packed;         /* sr_gemm_block_bytes(n_in) bytes, 64-byte aligned */
};
typedef void sr_gemm_pack_fn(const struct gemm_pack_args *a);

struct gemm_args {
    const uint8_t *w;     /* first row of the panel */
    size_t row_bytes;
    sr_dequant_fn *dequant;
    int64_t n_in;
    int32_t n_rows;       /* 1..SR_GEMM_ROWS */
    int32_t n;            /* tokens */
    const uint8_t *packed;/* blocks of SR_GEMM_TOKENS tokens, sr_gemm_block_bytes(n_in) apart */
    const float *bias;    /* [n_rows] or NULL */
    float *y;             /* [n][y_stride], at the panel's first row */
    int64_t y_stride;
    void *scratch;        /* the thread's, sr_gemm_scratch_bytes(n_in) bytes, 64-byte aligned */
};
typedef void sr_gemm_fn(const struct gemm_args *a);

/* K is padded to a multiple of 64 with zeros. Large enough for every variant. */
static inline int64_t sr_gemm_padded(int64_t n_in) { return (n_in + 63) / 64 * 64; }
static inline size_t sr_gemm_block_bytes(int64_t n_in) { return (size_t)sr_gemm_padded(n_in) * SR_GEMM_TOKENS * 4; }
static inline size_t sr_gemm_scratch_bytes(int64_t n_in) { return (size_t)sr_gemm_padded(n_in) * (SR_GEMM_ROWS + 16) * 4 + 8192; }

/* ---- small ops (src/cpu/smallops) ---------------------------------------------------------------------------- */

/* y[d] = x * w / sqrt(mean(x^2) + eps); y may be x. */
typedef void sr_norm_fn(const float *x, float *y, const float *w, int64_t d, float eps);
/* Rotates x[2 * half] in place by angles given as cos[half], sin[half]; the family says which elements pair up. */
typedef void sr_rope_fn(float *x, const float *cos, const float *sin, int64_t half);
/* h[n] = silu(gate) * up; h may be gate. */
typedef void sr_silu_mul_fn(const float *gate, const float *up, float *h, int64_t n);
/* x[n] += y[n] */
typedef void sr_add_fn(float *x, const float *y, int64_t n);

/* ---- attention and sketch (src/cpu/attn, src/cpu/sketch) ------------------------------------------------------- */

/* ---- the table ------------------------------------------------------------------------------------------------ */

#define SR_FAMILY(fn, name) sr_##fn##_fn sr_##name##_scalar;
#define SR_KERNEL(fn, name, isa) sr_##fn##_fn sr_##name##_##isa;
#include "cpu/kernels.def"
#undef SR_FAMILY
#undef SR_KERNEL

struct cpu_kernels {
#define SR_FAMILY(fn, name) sr_##fn##_fn *name;
#define SR_KERNEL(fn, name, isa)
#include "cpu/kernels.def"
#undef SR_FAMILY
#undef SR_KERNEL
};

/* What this machine and its operating system can run; bit i is enum cpu_isa i. Asks for AMX permission once. */
uint32_t sr_cpu_isa_mask(void);
/* The mask of `isa` and all that it implies. */
uint32_t sr_cpu_isa_below(enum cpu_isa isa);
/* "scalar", "avx2" ...; find: ISA_COUNT for an unknown name. */
const char *sr_cpu_isa_name(enum cpu_isa isa);
enum cpu_isa sr_cpu_isa_find(const char *name);
/* The best variant under the mask for each family. */
void sr_cpu_kernels_fill(struct cpu_kernels *k, uint32_t mask);

/* The kernel of a stored type. */
sr_matvec_fn *sr_cpu_matvec_of(const struct cpu_kernels *k, sr_dtype dtype);
sr_dequant_fn *sr_cpu_dequant_of(const struct cpu_kernels *k, sr_dtype dtype);

#endif
