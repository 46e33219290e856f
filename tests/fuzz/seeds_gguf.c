/* SPDX-License-Identifier: Apache-2.0
 *
 * Writes the corpus of fuzz_gguf: small legal GGUF files, each with another part of the format in it, and one split
 * model. Not part of any build; run it when a seed is added:
 *   cc -D_GNU_SOURCE -Iinclude -Isrc tests/fuzz/seeds_gguf.c tests/unit/gguf_build.c build/libsinkrouter.a -lxxhash
 *   ./a.out tests/fuzz/corpus/gguf
 */
#include "../unit/gguf_build.h"

#include <stdio.h>
#include <string.h>

static struct sr_tb b;

static void all_value_types(void)
{
    sr_tb_begin(&b, 0, 15);
    sr_tb_kv_str(&b, "general.architecture", "llama");
    sr_tb_key(&b, "a", GGUF_U8), sr_tb_u8(&b, 1);
    sr_tb_key(&b, "b", GGUF_I8), sr_tb_u8(&b, 0xff);
    sr_tb_key(&b, "c", GGUF_U16), sr_tb_put(&b, "\1\2", 2);
    sr_tb_key(&b, "d", GGUF_I16), sr_tb_put(&b, "\1\2", 2);
    sr_tb_kv_u32(&b, "general.alignment", 32);
    sr_tb_key(&b, "e", GGUF_I32), sr_tb_u32(&b, 5);
    sr_tb_key(&b, "f", GGUF_F32), sr_tb_u32(&b, 0x3f800000u);
    sr_tb_key(&b, "g", GGUF_BOOL), sr_tb_u8(&b, 1);
    sr_tb_key(&b, "h", GGUF_U64), sr_tb_u64(&b, 7);
    sr_tb_key(&b, "i", GGUF_I64), sr_tb_u64(&b, 7);
    sr_tb_key(&b, "j", GGUF_F64), sr_tb_u64(&b, 7);
    sr_tb_kv_array(&b, "k", GGUF_STRING, 3), sr_tb_text(&b, "x"), sr_tb_text(&b, ""), sr_tb_text(&b, "yz");
    sr_tb_kv_array(&b, "l", GGUF_F32, 2), sr_tb_u64(&b, 1);
    sr_tb_kv_array(&b, "m", GGUF_BOOL, 2), sr_tb_put(&b, "\0\1", 2);
}

static void one_tensor(uint32_t type, uint64_t elems, size_t bytes)
{
    sr_tb_begin(&b, 1, 0);
    sr_tb_info(&b, "blk.0.attn_q.weight", 2, (uint64_t[]){elems, 2}, type, 0);
    sr_tb_pad(&b, 32);
    for (size_t i = 0; i < 2 * bytes; i++) sr_tb_u8(&b, (uint8_t)(i * 37 % 61));
}

static void tensors_in_any_order(void)
{
    sr_tb_begin(&b, 4, 1);
    sr_tb_kv_u32(&b, "general.alignment", 8);
    sr_tb_info(&b, "d", 1, (uint64_t[]){2}, SR_DTYPE_F32, 48);
    sr_tb_info(&b, "a", 2, (uint64_t[]){2, 1}, SR_DTYPE_F16, 0);
    sr_tb_info(&b, "c", 3, (uint64_t[]){1, 1, 2}, SR_DTYPE_BF16, 24);
    sr_tb_info(&b, "b", 4, (uint64_t[]){1, 1, 1, 2}, SR_DTYPE_F32, 8);
    sr_tb_pad(&b, 8);
    sr_tb_zeros(&b, 56);
}

/* "SPLT", the size of the first shard, both shards. */
static void split_model(void)
{
    static uint8_t first[512];
    size_t first_bytes = 0;
    for (uint32_t no = 0; no < 2; no++) {
        sr_tb_begin(&b, 1, 3);
        sr_tb_kv_u32(&b, "split.no", no);
        sr_tb_kv_u32(&b, "split.count", 2);
        sr_tb_kv_u32(&b, "split.tensors.count", 2);
        sr_tb_info(&b, no ? "b" : "a", 1, (uint64_t[]){8}, SR_DTYPE_F32, 0);
        sr_tb_pad(&b, 32);
        sr_tb_zeros(&b, 32);
        if (no == 0) memcpy(first, b.data, first_bytes = b.bytes);
    }
    struct sr_tb second = b;
    b = (struct sr_tb){0};
    sr_tb_put(&b, "SPLT", 4);
    sr_tb_u32(&b, (uint32_t)first_bytes);
    sr_tb_put(&b, first, first_bytes);
    sr_tb_put(&b, second.data, second.bytes);
    sr_tb_free(&second);
}

static int save(const char *dir, const char *name)
{
    char path[1024];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    const int bad = !f || fwrite(b.data, 1, b.bytes, f) != b.bytes;
    if (bad || fclose(f)) {
        perror(path);
        return 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    static const uint8_t types[] = {SR_DTYPE_F32, SR_DTYPE_F16, SR_DTYPE_Q4_0, SR_DTYPE_Q4_1, SR_DTYPE_Q5_0, SR_DTYPE_Q5_1, SR_DTYPE_Q8_0, SR_DTYPE_Q2_K,
                                    SR_DTYPE_Q3_K, SR_DTYPE_Q4_K, SR_DTYPE_Q5_K, SR_DTYPE_Q6_K, SR_DTYPE_IQ4_NL, SR_DTYPE_BF16, 17, 39};
    int bad = 0;
    if (argc != 2) return 2;
    for (size_t i = 0; i < sizeof(types); i++) {
        const struct dtype_traits *t = sr_gguf_type_find(types[i]);
        one_tensor(types[i], (uint64_t)t->block_elems, (size_t)t->block_bytes);
        bad |= save(argv[1], t->name);
    }
    all_value_types();
    bad |= save(argv[1], "values");
    tensors_in_any_order();
    bad |= save(argv[1], "order");
    split_model();
    bad |= save(argv[1], "split");
    sr_tb_free(&b);
    return bad;
}
