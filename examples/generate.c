/* SPDX-License-Identifier: Apache-2.0
 *
 * Greedy answer to a prompt with engine.h alone:  generate MODEL.gguf "PROMPT" [TOKENS]
 */
#include <sinkrouter/engine.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int fault(const sr_error *err)
{
    fprintf(stderr, "generate: %s\n", err->text);
    return (int)err->status;
}

/* Prints tokens as they are chosen, whole characters only. */
static sr_status answer(sr_model *m, sr_session *s, sr_sampler *p, int n, sr_error *err)
{
    sr_utf8_hold hold = {0};
    char bytes[512], text[3 * (sizeof(bytes) + 4)];
    int32_t id;
    for (int i = 0; i < n; i++) {
        sr_status st = sr_sampler_next(p, sr_session_logits(s), sr_session_tokens(s), sr_session_len(s), &id, err);
        if (st != SR_OK || sr_token_is_end(m, id)) return st;
        size_t got = sr_token_text(m, id, 0, bytes, sizeof(bytes));
        fwrite(text, 1, sr_utf8_push(&hold, bytes, got < sizeof(bytes) ? got : sizeof(bytes), text), stdout);
        fflush(stdout);
        st = sr_session_decode(s, id, err);
        if (st != SR_OK) return st;
    }
    fwrite(text, 1, sr_utf8_finish(&hold, text), stdout);
    return SR_OK;
}

int main(int argc, char **argv)
{
    sr_error err = {0};
    sr_model *m = NULL;
    sr_session *s = NULL;
    sr_sampler *p = NULL;
    sr_model_info info;
    int32_t *ids = NULL, n = 0;
    if (argc < 3) return fprintf(stderr, "usage: generate MODEL.gguf PROMPT [TOKENS]\n"), 2;
    sr_sampler_options sampling = sr_sampler_options_default();
    sampling.temperature = 0;
    const sr_message prompt = {.role = SR_ROLE_USER, .text = argv[2], .bytes = strlen(argv[2])};
    sr_status st = sr_model_open(&m, argv[1], NULL, &err);
    if (st == SR_OK) st = sr_session_new(&s, m, NULL, &err);
    if (st == SR_OK) sr_model_get_info(m, &info);
    if (st == SR_OK) st = sr_sampler_new(&p, &sampling, info.n_vocab, &err);
    if (st == SR_OK) st = sr_chat_tokens(m, NULL, &prompt, 1, &ids, &n, &err);
    if (st == SR_OK) st = sr_session_prefill(s, ids, n, NULL, NULL, NULL, &err);
    if (st == SR_OK) st = answer(m, s, p, argc > 3 ? atoi(argv[3]) : 64, &err);
    if (st == SR_OK) {
        sr_session_stats t;
        sr_session_get_stats(s, &t);
        printf("\n%lld tokens read, %lld written at %.1f a second, %.3f of the dense K/V bytes read\n",
               (long long)t.prefill_tokens, (long long)t.decode_tokens, 1e3 * (double)t.decode_tokens / t.decode_ms,
               t.route.dense_bytes ? (double)t.route.kv_bytes / (double)t.route.dense_bytes : 1.0);
    }
    sr_tokens_free(ids);
    sr_sampler_free(p);
    sr_session_free(s);
    sr_model_close(m);
    return st == SR_OK ? 0 : fault(&err);
}
