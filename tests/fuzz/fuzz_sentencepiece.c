/* SPDX-License-Identifier: Apache-2.0
 *
 * Any bytes as tokenizer.model: it opens or is refused with one clean line; what opens cuts a text into its tokens.
 */
#include "fuzz_folder.h"

#include "text/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static const char text[] = "a b  ab<s>\xC3\xA9 e\xCC\x81\xFF 12<|x|>\n";
    struct gguf *g = NULL;
    struct tokenizer *t = NULL;
    struct token_list l = {0};
    sr_error err = {0};
    fuzz_write("tokenizer.model", data, bytes);
    sr_status st = sr_hf_open(&g, fuzz_folder, HF_TOKENIZER, &err);
    if (st == SR_OK) st = sr_tokenizer_open(&t, g, &err);
    if (st != SR_OK) fuzz_check_refusal(st, &err);
    else if (sr_tokenizer_encode(t, text, sizeof(text) - 1, SPECIAL_PARSE, &l, &err) != SR_OK) abort();
    for (int64_t i = 0; i < l.n; i++)
        if (l.ids[i] < 0 || l.ids[i] >= sr_tokenizer_vocab_size(t)) abort();
    sr_token_list_free(&l);
    sr_tokenizer_close(t);
    sr_gguf_close(g);
    return 0;
}
