/* SPDX-License-Identifier: Apache-2.0
 *
 * Chat templates from bytes: detection on any text, and rendering of any messages by any known family. Pieces
 * must cover the text in order, and every message that is rendered whole must be found in the pieces that are
 * a user's.
 */
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "text/chat.h"
#include "text/chat_program.h"

static void require(int holds)
{
    if (!holds) abort();
}

static void detect(const char *text, size_t n)
{
    enum chat_template t = CHAT_NONE;
    struct chat_program p;
    sr_error err;

    if (sr_chat_template_detect(&t, text, n, &err) != SR_OK) {
        require(err.status == SR_ERR_UNSUPPORTED && err.text[0]);
        require(t == CHAT_NONE);
    }
    if (sr_chat_program_read(&p, text, n, &err) != SR_OK) return;
    for (int32_t i = 0; i < p.n_tokens; i++) require((size_t)p.token[i].at + p.token[i].bytes <= p.n);
    require(p.n <= 2 * n + 16);
    sr_chat_program_free(&p);
}

static int32_t cut_messages(struct chat_message *m, int32_t most, const uint8_t *data, size_t size)
{
    int32_t n = 0;

    while (size > 1 && n < most) {
        size_t bytes = data[1] < size - 2 ? data[1] : size - 2;
        m[n++] = (struct chat_message){(enum chat_role)(data[0] % 3), (const char *)data + 2, bytes};
        data += 2 + bytes;
        size -= 2 + bytes;
    }
    return n;
}

static void check(const struct chat_text *c, const struct chat_message *m, int32_t n)
{
    size_t at = 0, users = 0, messages = 0;

    for (int32_t i = 0; i < c->n_pieces; i++) {
        require(c->pieces[i].data == c->text + at && c->pieces[i].bytes > 0);
        at += c->pieces[i].bytes;
        if (c->pieces[i].from_user) users += c->pieces[i].bytes;
    }
    require(at == c->bytes);
    for (int32_t i = 0; i < n; i++) messages += m[i].bytes;
    switch (c->of) {
    case CHAT_CHATML:
    case CHAT_SMOLLM2:
    case CHAT_QWEN25:
    case CHAT_ZEPHYR:
    case CHAT_VICUNA: require(users == messages); break;
    case CHAT_LLAMA31: require(users <= messages + 5); break; /* and the date */
    default: require(users <= messages); break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct chat_message m[32];
    struct chat_text c = {0};
    sr_error err;

    if (size < 2) return 0;
    if (data[0] & 0x80) {
        detect((const char *)data + 1, size - 1);
        return 0;
    }
    struct chat_options o = {
        .add_generation_prompt = data[1] & 1, .think = (data[1] >> 1) % 3 - 1, .date = "today"};
    int32_t n = cut_messages(m, 32, data + 2, size - 2);
    sr_status st = sr_chat_render(&c, (enum chat_template)(data[0] % (CHAT_ZEPHYR + 1)), m, n, &o, &err);
    require(st == SR_OK || st == SR_ERR_USAGE);
    if (st != SR_OK) return 0;
    check(&c, m, n);
    sr_chat_text_free(&c);
    return 0;
}
