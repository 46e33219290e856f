/* SPDX-License-Identifier: Apache-2.0
 *
 * Any bytes as config.json beside a small tokenizer and an empty safetensors file: it opens or is refused with one
 * clean line, and so is what the model's configuration makes of it.
 */
#include "fuzz_folder.h"

#include "model/config.h"

static const char tokenizer[] =
    "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1},\"merges\":[]}}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct gguf *g = NULL;
    struct model_config c;
    sr_error err = {0};
    if (!fuzz_folder[0]) {
        fuzz_write("tokenizer.json", tokenizer, sizeof(tokenizer) - 1);
        fuzz_write("model.safetensors", "\x02\0\0\0\0\0\0\0{}", 10);
    }
    fuzz_write("config.json", data, bytes);
    sr_status st = sr_hf_open(&g, fuzz_folder, HF_MODEL, &err);
    if (st == SR_OK) st = sr_config_read(&c, g, &err);
    if (st != SR_OK) fuzz_check_refusal(st, &err);
    sr_gguf_close(g);
    return 0;
}
