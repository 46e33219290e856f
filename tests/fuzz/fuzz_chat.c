/* SPDX-License-Identifier: Apache-2.0
 *
 * Chat templates from bytes: any text as a program over a fixed conversation, and any messages through any
 * template of ours. Pieces must cover the text in order; what is marked as the template's holds no byte that
 * only messages have.
 */
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "text/chat.h"

static void require(int holds)
{
    if (!holds) abort();
}

/* No program can write this byte as its own: its text is checked before. */
enum { MESSAGE_ONLY = 0x07 };

static void check(const struct chat_text *c, int is_marked)
{
    size_t at = 0;

    for (int32_t i = 0; i < c->n_pieces; i++) {
        require(c->pieces[i].data == c->text + at && c->pieces[i].bytes > 0);
        require(!i || c->pieces[i].from_user != c->pieces[i - 1].from_user);
        if (is_marked && !c->pieces[i].from_user)
            require(!memchr(c->pieces[i].data, MESSAGE_ONLY, c->pieces[i].bytes));
        at += c->pieces[i].bytes;
    }
    require(at == c->bytes);
}

static void run_program(const char *text, size_t n)
{
    static const struct chat_message m[] = {
        {.role = CHAT_SYSTEM, .text = "\a", .bytes = 1},
        {.role = CHAT_USER, .text = " \a\xC3\xA9\a ", .bytes = 6},
        {.role = CHAT_ASSISTANT,
         .text = "<think>\a</think>",
         .bytes = 16,
         .reasoning = "\a",
         .reasoning_bytes = 1,
         .tool_calls = "[{\"function\": {\"name\": \"f\", \"arguments\": \"{\\\"x\\\": 1}\"}}]"},
        {.role = CHAT_TOOL, .text = "\a", .bytes = 1, .name = "f"},
    };
    const struct chat_options o = {.add_generation_prompt = 1,
                                   .think = -1,
                                   .now = 0,
                                   .bos = "<s>",
                                   .eos = "</s>",
                                   .tools = "[{\"type\": \"function\", \"function\": {\"name\": \"f\", "
                                            "\"parameters\": {\"n\": [1, 2.5, null]}}}]"};
    struct chat_template *t;
    struct chat_text c = {0};
    sr_error err;
    sr_status st = sr_chat_template_open(&t, text, n, &err);

    require(st == SR_OK || ((st == SR_ERR_FORMAT || st == SR_ERR_UNSUPPORTED) && err.text[0]));
    if (st != SR_OK) return;
    st = sr_chat_render(&c, t, m, 4, &o, &err);
    require(st == SR_OK ||
            ((st == SR_ERR_FORMAT || st == SR_ERR_UNSUPPORTED || st == SR_ERR_USAGE) && err.text[0]));
    if (st == SR_OK) check(&c, !memchr(text, MESSAGE_ONLY, n) && !memchr(text, '\\', n));
    sr_chat_text_free(&c);
    sr_chat_template_close(t);
}

static int32_t cut_messages(struct chat_message *m, int32_t most, const uint8_t *data, size_t size)
{
    int32_t n = 0;

    while (size > 1 && n < most) {
        size_t bytes = data[1] < size - 2 ? data[1] : size - 2;
        m[n++] = (struct chat_message){
            .role = (enum chat_role)(data[0] % 4), .text = (const char *)data + 2, .bytes = bytes};
        data += 2 + bytes;
        size -= 2 + bytes;
    }
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct chat_message m[32];
    struct chat_text c = {0};
    struct chat_template *t;
    sr_error err;

    if (size < 2) return 0;
    if (data[0] & 0x80) {
        run_program((const char *)data + 1, size - 1);
        return 0;
    }
    struct chat_options o = {
        .add_generation_prompt = data[1] & 1, .think = (data[1] >> 1) % 3 - 1, .now = -1};
    require(sr_chat_template_open_name(&t, sr_chat_template_known(data[0] % 9), &err) == SR_OK);
    sr_status st = sr_chat_render(&c, t, m, cut_messages(m, 32, data + 2, size - 2), &o, &err);
    require(st == SR_OK || st == SR_ERR_USAGE);
    if (st == SR_OK) check(&c, 1);
    sr_chat_text_free(&c);
    sr_chat_template_close(t);
    return 0;
}
