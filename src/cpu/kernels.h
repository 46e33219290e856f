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

#include <string.h>

/* Ordered: a larger value implies the smaller ones of the same family of machines. */
enum cpu_isa { ISA_SCALAR, ISA_AVX2, ISA_AVX512, ISA_VNNI, ISA_BF16, ISA_AMX, ISA_NEON, ISA_COUNT };

/* ---- matrix products (src/cpu/matmul) ------------------------------------------------------------------------ */

/* Elements that share one scale of a quantized activation row. */
#define SR_ACT_BLOCK 32
/* Rows of activations are padded with zeros to a multiple of this many elements; kernels may read all of it. */
#define SR_ACT_PAD 512

/* Activations of up to n tokens. Float weights read x; quantized weights read x ~ d * c, c = 128 q + q_low a code of 15
 * bits kept as two signed bytes: one byte alone costs SmolLM2 a mean KL of 4e-3 against float products, and the second
 * integer product hides behind the reading of the weights. Sums are ready for types that have offsets: s32[b] = d * sum of
 * c over block b of 32, s16[h] = the same over half blocks of 16. */
struct acts {
    const float *x;       /* [n][x_stride]; not padded */
    int64_t x_stride;
    const int8_t *q, *q_low; /* [n][pad]; pad = n_in rounded up to SR_ACT_PAD; q in -127..127, q_low in -64..63 */
    const int8_t *q_split, *q_split_low; /* [n][pad]: the same, of each 128 first the first halves (16) of its 4 blocks, then the second */
    const float *d, *s32; /* [n][pad / 32] */
    const float *s16;     /* [n][pad / 16] */
    int64_t pad;
};

/* One token: codes, d, s32, s16 of x[n], n a multiple of 32; all outputs filled up to `pad` elements (zeros). d = max |x|
 * of the block / SR_ACT_MAX, c = x / d rounded to nearest, ties to even. The outputs do not overlap. */
#define SR_ACT_MAX (127 * 128)
struct quantize_args { const float *x; int64_t n, pad; int8_t *q, *q_low, *q_split, *q_split_low; float *d, *s32, *s16; };
typedef void sr_quantize_fn(const struct quantize_args *a);

/* y[t][r] = row r . activation t (+ bias[r]) for n_rows rows that start at w and n = 1..SR_MATVEC_TOKENS tokens. Never
 * reads past the last byte of the last row. The value of y[t][r] depends on neither n nor n_rows; a row may be summed in
 * another order at another r % SR_MATVEC_ROWS, so calls begin at multiples of that. */
#define SR_MATVEC_TOKENS 8
#define SR_MATVEC_ROWS 16
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
 * SR_GEMM_ROWS weight rows are multiplied with all of them. Two kinds, each with its own pack: gemm is f32 throughout,
 * all variants share the scalar pack; gemm_bf16 rounds both sides to bf16 (to nearest, ties to even) and sums in f32, its
 * packed form is the variant's own. sr_cpu_has_bf16 tells whether gemm_bf16 has a variant that pays. */
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

/* ---- mixture of experts (src/cpu/moe) --------------------------------------------------------------------------- */

/* One token of struct topk_args: ids[k] and weight[k] of logits[n], 1 <= k <= n. The sum of exponentials is in double. */
typedef void sr_topk_fn(const float *logits, int32_t n, int32_t k, int32_t normalize, int32_t *ids, float *weight);

/* ---- attention (src/cpu/attn) ---------------------------------------------------------------------------------- */

/* dst = n floats in the cache's type: rounded to nearest, ties to even, in all variants the same bytes. Q8_0: n a
 * multiple of 32, d = max |x| / 127 kept as f16, q = x / d; a block with NaN gets a NaN scale. Q4_0: likewise, with the
 * bytes of sr_quantize_row for what it takes. F8_E4M3: magnitudes above 448 become 448. */
typedef void sr_kv_store_fn(sr_dtype type, const float *src, void *dst, int64_t n);

/* Up to SR_ATTN_BLOCK rows of one unit, any rows, added to the running states of all heads of the group. Only the n
 * rows given are loaded; the rows counted are those loaded. next_k and next_v are rows that may be prefetched, never loaded.
 * Rows of a scaled type are taken as they are stored: q and o are the caller's to scale. */
#define SR_ATTN_BLOCK 64
#define SR_ATTN_MAX_GROUP 16
#define SR_ATTN_MAX_DIM 256
struct attn_block {
    const struct attn_shape *shape;
    const float *q;                    /* [group][head_dim] */
    const uint8_t *const *k, *const *v;/* [n] rows */
    const uint8_t *const *next_k, *const *next_v; /* [n_next] */
    int32_t n, n_next;
    float *o, *m, *l;                  /* the states: [group][head_dim], [group], [group]; not aliased */
    int64_t *k_rows, *v_rows;          /* added to */
    /* The caller's, SR_ATTN_BLOCK_SCRATCH bytes, 64-byte aligned; between the blocks of one q, from one that begins to one
     * that ends, it and the thread's tile registers are the kernel's. */
    void *scratch;
    int32_t begins, ends;
    int32_t is_list;                   /* of all blocks of a q: rows lie anywhere, each is fetched by itself */
};
#define SR_ATTN_BLOCK_SCRATCH (192 << 10)
/* A variant may round to whole numbers: a query for products with Q8_0 or Q4_0 keys, within max |q| / 65024 of each element;
 * weights times scales for products with Q8_0 or Q4_0 values, within 2^-22 of the largest weight of a block times its largest
 * scale. */
typedef void sr_attn_block_fn(const struct attn_block *a);

/* Causal attention of a block of queries of one unit over all rows that they may see. Row t of q and out holds the
 * group's heads side by side. Scratch: sr_attn_flash_bytes(head_dim), 64-byte aligned, contents of no meaning. */
#define SR_FLASH_ROWS 384              /* most query rows n_q * group */
#define SR_FLASH_KEYS 64
struct attn_flash {
    const struct attn_shape *shape;
    const struct attn_unit *unit;
    const float *q;                    /* [n_q][q_stride] */
    float *out;                        /* [n_q][out_stride] */
    int64_t q_stride, out_stride;
    int64_t pos;                       /* query t sees rows [0, pos + t] */
    int32_t n_q;
    void *scratch;
};
typedef void sr_attn_flash_fn(const struct attn_flash *a);
static inline size_t sr_attn_flash_bytes(int32_t head_dim)
{
    const size_t d = (size_t)(head_dim + 63) / 64 * 64;
    return (SR_FLASH_ROWS + 16) * (2 * d + 4) * 4 + SR_FLASH_KEYS * d * 16 + (size_t)SR_FLASH_ROWS * SR_FLASH_KEYS * 8 + 16384;
}

/* ---- sketch (src/cpu/sketch) ------------------------------------------------------------------------------------
 * A chunk has two planes. The first has SR_SKETCH_FIRST coordinates of every row: a word of one byte each for a row and, with
 * 4 bits and mixed, the row 16 further on, in the low and the high halves of the bytes; 32 rows (8 bits: 16) to 64 bytes. The second
 * has the other coordinates in runs of SR_SKETCH_RUN rows: words of 4 bytes, word 0 of all rows of the run, then word 1 of
 * all, ... Chunks have room for SR_CHUNK_ROWS rows; whole 64 bytes of the first and whole runs of the second are readable. */
#define SR_SKETCH_RUN 8
/* Of arrays of logits [group][SR_SKETCH_STRIDE]: not whole pages, or heads would share the lines of the first cache and loads
 * would wait for stores to others. */
#define SR_SKETCH_STRIDE (SR_CHUNK_ROWS + 48)

/* Words of a row in the second plane. */
static inline int32_t sr_sketch_words(const struct sketch_shape *s) { return sr_sketch_host_words(s->rank, s->bits); }

/* Bits of a field in word `word` of the second plane, and the number of fields in the words before it: where its factors lie. */
static inline int32_t sr_sketch_field_bits(const struct sketch_shape *s, int32_t word) { return s->bits != SR_SKETCH_MIXED ? s->bits : word % 2 ? 1 : 2; }
static inline int32_t sr_sketch_fields_before(const struct sketch_shape *s, int32_t word)
{
    return s->bits != SR_SKETCH_MIXED ? word * (32 / s->bits) : word / 2 * (SKETCH_TWOS + SKETCH_ONES) + word % 2 * SKETCH_TWOS;
}

/* Where a code of the second plane lies: `shift` bits up in a word; of 3 bits the lowest apart, in the next word. */
struct sketch_place { int32_t word, shift, low_shift; /* low_shift: -1 where the code is in one piece */ };
static inline struct sketch_place sr_sketch_place_of(const struct sketch_shape *s, int32_t j)
{
    const int32_t rest = j - SR_SKETCH_FIRST, eights = sr_sketch_words(s) / 2 * SKETCH_THREES;
    if (s->bits != SR_SKETCH_MIXED) return (struct sketch_place){rest / (32 / s->bits), rest % (32 / s->bits) * s->bits, -1};
    if (rest < eights) return (struct sketch_place){rest / SKETCH_THREES * 2, rest % SKETCH_THREES * 2, rest % SKETCH_THREES};
    if (rest < 2 * eights) return (struct sketch_place){(rest - eights) / 8 * 2, (8 + rest % 8) * 2, -1};
    return (struct sketch_place){(rest - 2 * eights) / 24 * 2 + 1, 8 + (rest - 2 * eights) % 24, -1};
}

/* Adds the code to a row's words of the second plane, zeros at first. */
static inline void sr_sketch_put(const struct sketch_shape *s, int32_t j, uint32_t code, uint32_t *words)
{
    const struct sketch_place p = sr_sketch_place_of(s, j);
    words[p.word] |= (p.low_shift < 0 ? code : code >> 1) << p.shift;
    if (p.low_shift >= 0) words[p.word + 1] |= (code & 1) << p.low_shift;
}

/* Bytes of a row in the first plane. */
static inline size_t sr_sketch_first_bytes(const struct sketch_shape *s) { return s->bits == 8 ? 4 : 2; }

/* Where a row's word of the first plane lies, and by how many bits its codes are shifted in their bytes. */
static inline size_t sr_sketch_first_at(int32_t bits, int32_t row)
{
    return (size_t)(bits == 8 ? row / 16 : row / 32) * 64 + (size_t)(row % 16) * 4;
}
static inline int32_t sr_sketch_first_shift(int32_t bits, int32_t row) { return bits == 8 ? 0 : row / 16 % 2 * 4; }

static inline size_t sr_sketch_word_at(const struct sketch_shape *s, int32_t row, int32_t word)
{
    const size_t run = (size_t)(row / SR_SKETCH_RUN * SR_SKETCH_RUN) * (size_t)sr_sketch_words(s) * 4;
    return SR_CHUNK_ROWS * sr_sketch_first_bytes(s) + run + (size_t)(word * SR_SKETCH_RUN + row % SR_SKETCH_RUN) * 4;
}

/* codes: one byte each. The row that shares the bytes is left as it is. */
static inline void sr_sketch_store_first(uint8_t *y_chunk, int32_t bits, int32_t row, uint32_t codes)
{
    uint8_t *p = y_chunk + sr_sketch_first_at(bits, row);
    const int32_t shift = sr_sketch_first_shift(bits, row);
    const uint32_t mask = (bits == 8 ? 0xffffffffu : 0x0f0f0f0fu) << shift;
    uint32_t word;
    memcpy(&word, p, 4);
    word = (word & ~mask) | codes << shift;
    memcpy(p, &word, 4);
}

/* Encodes rows [row0, row1) of one chunk. */
struct sketch_rows {
    const struct attn_shape *shape;
    const struct sketch_shape *sketch;
    const struct sketch_basis *basis;
    const uint8_t *k_chunk;            /* K rows of the chunk */
    uint8_t *y_chunk;
    int32_t row0, row1;                /* within the chunk */
    int64_t *k_rows, *clipped;         /* added to */
    float k_scale;                     /* that elements of K rows are multiplied by */
};
typedef void sr_sketch_encode_fn(const struct sketch_rows *a);

/* Estimated logits of rows [row0, row1) of one chunk. By the first plane: base + sum over its coordinates of
 * w[j] * (code_j - 2^(b-1) + 1/2). In the second a factor belongs to a field of b bits, whose level is its value less
 * (2^b - 1) / 2; the upper two bits of a code of 3 have twice the factor of the lowest. Where that is at least open[g] (or no number) for some head g and row of a run in
 * the range, the run's second plane is read: all its logits become that + more + the sum over the other coordinates.
 * Writes whole blocks of 16: rows of a touched block outside the range get -inf. max = largest in the range.
 * Rows to be skipped are as if outside the range, but for y_rows and the first plane's bytes.
 *
 * Of these logits: sum[g] = sum of exp(logit - from[g]), within 2^-17 of it, if max[g] <= from[g] + SR_SCAN_ABOVE, else of no
 * meaning; and the rows that may still be needed, those with logit >= floor[g] + cut for some head, in rising order. */
#define SR_SCAN_ABOVE 60
struct sketch_scan {
    const struct sketch_shape *sketch;
    const uint8_t *y_chunk, *next;     /* next: the chunk that is probably scanned after it, or NULL */
    int32_t group, row0, row1;
    const float *w;                    /* [group][sr_sketch_padded(sketch)] factors: z_j * step_j, zeros beyond rank */
    const float *base, *more, *open;   /* [group] */
    const float *from, *floor;         /* [group] */
    float cut;
    int32_t first_row;                 /* of the chunk: added to the row numbers put out, and in those of skip */
    const int32_t *skip;               /* [n_skip] rows of the range, rising */
    int32_t n_skip;
    float *logits;                     /* [group][SR_SKETCH_STRIDE], indexed by row within the chunk */
    float *max, *sum;                  /* [group] out */
    int32_t *kept_rows;                /* room for SR_CHUNK_ROWS */
    float *kept;                       /* [group][SR_SKETCH_STRIDE] their logits */
    int32_t n_kept;                    /* out */
    struct attn_touched *touched;      /* y_rows and y_bytes, of rows in the range, added to */
};
/* The first plane's coordinates, then whole words of the second's. */
static inline int32_t sr_sketch_padded(const struct sketch_shape *s) { return SR_SKETCH_FIRST + sr_sketch_fields_before(s, sr_sketch_words(s)); }
#define SR_SKETCH_MAX_FIELDS 352 /* of the second plane, whole vectors of 16 */
typedef void sr_sketch_scan_fn(struct sketch_scan *a);

/* Of n kept rows: the share of head g is exp(kept[g] - log_total[g]); bin[i] = floor(-t * bins_per_nat), clamped to
 * [0, SR_SKETCH_BINS - 1], of the largest log share t over the heads, or SR_SKETCH_BINS where t < cut. The shares of a row
 * with a bin are added to row bin[i] of `sums`, in the order of the rows; the columns behind the group have no meaning. */
#define SR_SKETCH_BINS 512
struct sketch_share {
    int32_t group, n;
    const float *kept;                 /* [group][SR_SKETCH_STRIDE] */
    const float *log_total;            /* [group] */
    float cut, bins_per_nat;
    uint16_t *bin;                     /* [n] out */
    float *sums;                       /* [SR_SKETCH_BINS][sr_sketch_width(group)], 64-byte aligned */
};
static inline int32_t sr_sketch_width(int32_t group) { return (group + 3) / 4 * 4; }
typedef void sr_sketch_share_fn(const struct sketch_share *a);

/* Rows with first <= bin < end, in order; returns their number. list has room for them and no more. */
struct sketch_pick { int32_t n, first, end; const uint16_t *bin; const int32_t *rows; int32_t *list; };
typedef int32_t sr_sketch_pick_fn(const struct sketch_pick *a);

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

/* Non-zero if the table's gemm_bf16 is faster than its gemm. */
int sr_cpu_has_bf16(const struct cpu_kernels *k);

/* The kernel of a stored type. */
sr_matvec_fn *sr_cpu_matvec_of(const struct cpu_kernels *k, sr_dtype dtype);
sr_dequant_fn *sr_cpu_dequant_of(const struct cpu_kernels *k, sr_dtype dtype);

#endif
