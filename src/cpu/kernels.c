/* SPDX-License-Identifier: Apache-2.0
 *
 * Which kernels this machine may run, and the table filled with the best of them. CPUID says what the processor can
 * do, XGETBV what the operating system saves, arch_prctl whether this process may use the AMX tiles: all three count.
 */
#include "cpu/kernels.h"

#include <string.h>

#define BIT(isa) (1u << (isa))

static const char *const isa_names[ISA_COUNT] = {"scalar", "avx2", "avx512", "vnni", "bf16", "amx", "neon"};

#ifdef __x86_64__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };

struct x86_features { uint32_t ebx7, ecx7, edx7, eax71, ecx1; uint64_t xcr0; };

static int all_of(uint64_t value, uint64_t bits) { return (value & bits) == bits; }

static void read_features(struct x86_features *f)
{
    uint32_t a, b, c, d;
    memset(f, 0, sizeof(*f));
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    f->ecx1 = c;
    if (c & bit_OSXSAVE) {
        uint32_t lo, hi;
        __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
        f->xcr0 = (uint64_t)hi << 32 | lo;
    }
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        f->ebx7 = b;
        f->ecx7 = c;
        f->edx7 = d;
        if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) f->eax71 = a;
    }
}

uint32_t sr_cpu_isa_mask(void)
{
    const uint32_t fma_f16c = 1u << 12 | 1u << 29, avx2 = 1u << 5;
    const uint32_t avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F DQ BW VL */
    const uint32_t vnni = 1u << 11, bf16 = 1u << 5, amx = 1u << 22 | 1u << 24 | 1u << 25; /* bf16, tile, int8 */
    const uint32_t with_amx = 1u << 1 | 1u << 8; /* VBMI, GFNI: every processor with AMX has them */
    const uint64_t ymm_state = 0x6, zmm_state = 0xe6, tile_state = 0x60000;
    struct x86_features f;
    uint32_t mask = BIT(ISA_SCALAR);
    read_features(&f);
    if (!all_of(f.xcr0, ymm_state) || !all_of(f.ecx1, fma_f16c) || !all_of(f.ebx7, avx2)) return mask;
    mask |= BIT(ISA_AVX2);
    if (!all_of(f.xcr0, zmm_state) || !all_of(f.ebx7, avx512)) return mask;
    mask |= BIT(ISA_AVX512);
    if (!all_of(f.ecx7, vnni)) return mask;
    mask |= BIT(ISA_VNNI);
    if (!all_of(f.eax71, bf16)) return mask;
    mask |= BIT(ISA_BF16);
    if (!all_of(f.xcr0, tile_state) || !all_of(f.edx7, amx) || !all_of(f.ecx7, with_amx)) return mask;
    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) != 0) return mask;
    return mask | BIT(ISA_AMX);
}
#elif defined(__aarch64__)
uint32_t sr_cpu_isa_mask(void) { return BIT(ISA_SCALAR) | BIT(ISA_NEON); } /* part of the base architecture */
#else
uint32_t sr_cpu_isa_mask(void) { return BIT(ISA_SCALAR); }
#endif

uint32_t sr_cpu_isa_below(enum cpu_isa isa)
{
    return isa == ISA_NEON ? BIT(ISA_SCALAR) | BIT(ISA_NEON) : BIT(isa + 1) - 1u;
}

const char *sr_cpu_isa_name(enum cpu_isa isa) { return isa_names[isa]; }

enum cpu_isa sr_cpu_isa_find(const char *name)
{
    int i = 0;
    while (i < ISA_COUNT && strcmp(isa_names[i], name) != 0) i++;
    return (enum cpu_isa)i;
}

enum { MASK_avx2 = BIT(ISA_AVX2), MASK_avx512 = BIT(ISA_AVX512), MASK_vnni = BIT(ISA_VNNI), MASK_bf16 = BIT(ISA_BF16),
       MASK_amx = BIT(ISA_AMX), MASK_neon = BIT(ISA_NEON) };

void sr_cpu_kernels_fill(struct cpu_kernels *k, uint32_t mask)
{
#define SR_FAMILY(fn, name) k->name = sr_##name##_scalar;
#define SR_KERNEL(fn, name, isa) if (mask & MASK_##isa) k->name = sr_##name##_##isa;
#include "cpu/kernels.def"
#undef SR_FAMILY
#undef SR_KERNEL
    (void)mask; /* a build without variants */
}

int sr_cpu_has_bf16(const struct cpu_kernels *k) { return k->gemm_bf16 != sr_gemm_bf16_scalar; }

sr_matvec_fn *sr_cpu_matvec_of(const struct cpu_kernels *k, sr_dtype dtype)
{
    switch (dtype) {
    case SR_DTYPE_F32: return k->matvec_f32;
    case SR_DTYPE_F16: return k->matvec_f16;
    case SR_DTYPE_BF16: return k->matvec_bf16;
    case SR_DTYPE_Q4_0: return k->matvec_q4_0;
    case SR_DTYPE_Q4_1: return k->matvec_q4_1;
    case SR_DTYPE_Q5_0: return k->matvec_q5_0;
    case SR_DTYPE_Q5_1: return k->matvec_q5_1;
    case SR_DTYPE_Q8_0: return k->matvec_q8_0;
    case SR_DTYPE_Q2_K: return k->matvec_q2_k;
    case SR_DTYPE_Q3_K: return k->matvec_q3_k;
    case SR_DTYPE_Q4_K: return k->matvec_q4_k;
    case SR_DTYPE_Q5_K: return k->matvec_q5_k;
    case SR_DTYPE_Q6_K: return k->matvec_q6_k;
    case SR_DTYPE_IQ4_NL: return k->matvec_iq4_nl;
    case SR_DTYPE_F8_E4M3: break;
    }
    return NULL;
}

sr_dequant_fn *sr_cpu_dequant_of(const struct cpu_kernels *k, sr_dtype dtype)
{
    switch (dtype) {
    case SR_DTYPE_F32: return k->dequant_f32;
    case SR_DTYPE_F16: return k->dequant_f16;
    case SR_DTYPE_BF16: return k->dequant_bf16;
    case SR_DTYPE_Q4_0: return k->dequant_q4_0;
    case SR_DTYPE_Q4_1: return k->dequant_q4_1;
    case SR_DTYPE_Q5_0: return k->dequant_q5_0;
    case SR_DTYPE_Q5_1: return k->dequant_q5_1;
    case SR_DTYPE_Q8_0: return k->dequant_q8_0;
    case SR_DTYPE_Q2_K: return k->dequant_q2_k;
    case SR_DTYPE_Q3_K: return k->dequant_q3_k;
    case SR_DTYPE_Q4_K: return k->dequant_q4_k;
    case SR_DTYPE_Q5_K: return k->dequant_q5_k;
    case SR_DTYPE_Q6_K: return k->dequant_q6_k;
    case SR_DTYPE_IQ4_NL: return k->dequant_iq4_nl;
    case SR_DTYPE_F8_E4M3: break;
    }
    return NULL;
}
