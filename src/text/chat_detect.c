/* SPDX-License-Identifier: Apache-2.0
 *
 * Which family a template belongs to. Marks alone would take look-alikes: many templates print <|im_start|>
 * and add a default text, a date, tools or thinking of their own, and a prompt that is almost right is worse
 * than a refusal. So a program must contain every mark of the family and consist of nothing else than the
 * family's words: each text that it holds is made of the family's fragments, and each name is one that the
 * family uses. What is left open is only the order of known things.
 */
#include "text/chat.h"

#include <string.h>

#include "text/chat_program.h"
#include "text/chat_sentences.h"

#define MAX_LIST 48

struct family {
    enum chat_template id;
    const char *mark[8];  /* each in the canonical program */
    const char *never[2]; /* none of these in it */
    const char *names;    /* separated and surrounded by spaces */
    const char *fragment[MAX_LIST];
};

#define NAMES_BASE                                                                                           \
    " for in endfor if elif else endif set not and or is defined true false none message messages role "     \
    "content add_generation_prompt "

/* Canonical texts hold newlines as such, so the marks do too. */
#define CHATML_TURN   "\"<|im_start|>\"+message.role+\"\n\"+message.content+\"<|im_end|>\n\""
#define CHATML_PROMPT "\"<|im_start|>assistant\n\""
#define LLAMA3_TURN                                                                                          \
    "\"<|start_header_id|>\"+message.role+\"<|end_header_id|>\n\n\"+message.content|trim+\"<|eot_id|>\""
#define QWEN_TOOLS_HEAD                                                                                      \
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with " \
    "function "                                                                                              \
    "signatures within <tools></tools> XML tags:\n<tools>"
#define QWEN_TOOLS_TAIL                                                                                      \
    "</tools>\n\nFor each function call, return a json object with function name and arguments within "      \
    "<tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": "            \
    "<args-json-object>}"
#define QWEN_FRAGMENTS                                                                                       \
    "<|im_start|>", "<|im_end|>", "\n", "system", "user", "assistant", "tool", QWEN_TOOLS_HEAD,              \
        QWEN_TOOLS_TAIL, "<tool_call>", "</tool_call>", "{\"name\": \"", "\", \"arguments\": ", "}",         \
        "<tool_response>", "</tool_response>"
#define QWEN_NAMES                                                                                           \
    NAMES_BASE "tools tool tojson loop first last index0 tool_call tool_calls function name arguments "

/* clang-format off */
static const struct family families[] = {
    {.id = CHAT_CHATML,
     .mark = {CHATML_TURN, CHATML_PROMPT, "add_generation_prompt"},
     .names = NAMES_BASE,
     .fragment = {"<|im_start|>", "<|im_end|>", "\n", "assistant"}},
    {.id = CHAT_SMOLLM2,
     .mark = {CHATML_TURN, CHATML_PROMPT, SR_CHAT_SMOLLM2_SYSTEM "<|im_end|>\n",
              "loop.first and messages[0].role!=\"system\""},
     .names = NAMES_BASE "loop first ",
     .fragment = {"<|im_start|>", "<|im_end|>", "\n", "assistant", "system",
                  SR_CHAT_SMOLLM2_SYSTEM}},
    {.id = CHAT_QWEN25,
     .mark = {CHATML_TURN, CHATML_PROMPT, "\"<|im_start|>system\n" SR_CHAT_QWEN25_SYSTEM "<|im_end|>\n\"", "messages[0].role==\"system\""},
     .names = QWEN_NAMES,
     .fragment = {SR_CHAT_QWEN25_SYSTEM, QWEN_FRAGMENTS}},
    {.id = CHAT_QWEN3,
     .mark = {CHATML_TURN, CHATML_PROMPT, "enable_thinking is false", "\"<think>\n\n</think>\n\n\"", "ns.last_query_index",
              "reasoning_content.strip(\"\n\")"},
     .names = QWEN_NAMES "namespace ns multi_step_tool last_query_index length index startswith endswith reasoning_content "
                         "split lstrip rstrip strip string enable_thinking ",
     .fragment = {QWEN_FRAGMENTS, "<think>", "</think>"}},
    {.id = CHAT_LLAMA2,
     .mark = {"bos_token+\"[INST] \"+content.strip()+\" [/INST]\"", "\" \"+content.strip()+\" \"+eos_token",
              "\"<<SYS>>\n\"+system_message+\"\n<</SYS>>\n\n\"+message.content"},
     .names = NAMES_BASE "loop index0 loop_messages system_message strip bos_token eos_token raise_exception ",
     .fragment = {"[INST] ", " [/INST]", " ", "<<SYS>>\n", "\n<</SYS>>\n\n", "user", "assistant", "system"}},
    {.id = CHAT_LLAMA31,
     .mark = {LLAMA3_TURN, "bos_token", SR_CHAT_LLAMA31_CUTOFF, "\"Today Date: \"+date_string", SR_CHAT_LLAMA31_DATE,
              "messages[0].content|trim"},
     .names = NAMES_BASE "bos_token loop last custom_tools tools tools_in_user_message date_string strftime_now system_message "
                         "builtin_tools reject join t tojson indent length first_user_message raise_exception trim tool_calls "
                         "tool_call function name arguments arg_name arg_val items mapping iterable ",
     .fragment = {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>", "<|eom_id|>",
                  "<|python_tag|>", "system", "user", "assistant", "ipython", "tool", "tool_calls", SR_CHAT_LLAMA31_DATE, "%d %b %Y",
                  SR_CHAT_LLAMA31_CUTOFF, "Today Date: ", "\n", "Environment: ipython\n", "Tools: ",
                  "equalto", "code_interpreter", ", ", ".call(", "=\"", "\"", ")", "{\"name\": \"", "\"parameters\": ", "}",
                  "You have access to the following functions. To call a function, please respond with JSON for a function call.",
                  "Respond in the format {\"name\": function name, \"parameters\": dictionary of argument name and its value}.",
                  "Do not use variables.\n\n",
                  "Given the following functions, please respond with a JSON for a function call ",
                  "with its proper arguments that best answers the given prompt.\n\n"}},
    {.id = CHAT_LLAMA3,
     .mark = {LLAMA3_TURN, "bos_token", "\"<|start_header_id|>assistant<|end_header_id|>\n\n\""},
     .names = NAMES_BASE "loop index0 loop_messages bos_token trim ",
     .fragment = {"<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>", "assistant"}},
    {.id = CHAT_ZEPHYR, /* the newline after a turn is text outside of tags */
     .mark = {"\"<|user|>\n\"+message.content+eos_token}}\"\n\"", "\"<|system|>\n\"+message.content+eos_token}}\"\n\"",
              "\"<|assistant|>\n\"+message.content+eos_token}}\"\n\"", "{{\"<|assistant|>\"}}\"\n\""},
     .names = NAMES_BASE "loop last eos_token ",
     .fragment = {"<|user|>", "<|system|>", "<|assistant|>", "\n", "user", "system", "assistant"}},
    {.id = CHAT_VICUNA, /* a turn after an answer begins without a space; the first one has it from the system text */
     .mark = {"\"USER: \"+message.content", "\" ASSISTANT: \"+message.content+", "ASSISTANT:\""},
     .never = {"\" USER: \"+message.content", "strip"},
     .names = NAMES_BASE "loop index0 first loop_messages system_message raise_exception eos_token ",
     .fragment = {"USER: ", " ASSISTANT: ", " ASSISTANT:", "ASSISTANT:", " ", "</s>", "user", "assistant", "system",
                  SR_CHAT_VICUNA_SYSTEM}},
};

static const struct { enum chat_template id; const char *name; } names[] = {
    {CHAT_CHATML, "chatml"}, {CHAT_SMOLLM2, "smollm2"}, {CHAT_QWEN25, "qwen2.5"}, {CHAT_QWEN3, "qwen3"},
    {CHAT_LLAMA2, "llama2"}, {CHAT_LLAMA3, "llama3"}, {CHAT_LLAMA31, "llama3.1"}, {CHAT_VICUNA, "vicuna"},
    {CHAT_ZEPHYR, "zephyr"},
};

/* clang-format on */
#define KNOWN_NAMES "chatml, smollm2, qwen2.5, qwen3, llama2, llama3, llama3.1, vicuna, zephyr"

/* ---- matching ---- */

static int has_marks(const struct family *f, const struct chat_program *p)
{
    for (size_t i = 0; i < sizeof f->mark / sizeof f->mark[0] && f->mark[i]; i++)
        if (!sr_chat_program_has(p, f->mark[i])) return 0;
    for (size_t i = 0; i < sizeof f->never / sizeof f->never[0] && f->never[i]; i++)
        if (sr_chat_program_has(p, f->never[i])) return 0;
    return 1;
}

/* The longest fragment that s begins with. */
static size_t fragment_length(const struct family *f, const char *s, size_t n)
{
    size_t best = 0;

    for (size_t i = 0; i < MAX_LIST && f->fragment[i]; i++) {
        size_t len = strlen(f->fragment[i]);
        if (len > best && len <= n && memcmp(f->fragment[i], s, len) == 0) best = len;
    }
    return best;
}

static int knows_text(const struct family *f, const char *s, size_t n)
{
    while (n > 0) {
        size_t len = fragment_length(f, s, n);
        if (len == 0) return 0;
        s += len;
        n -= len;
    }
    return 1;
}

static int knows_name(const struct family *f, const char *s, size_t n)
{
    char padded[64];

    if (n + 2 > sizeof padded) return 0;
    padded[0] = padded[n + 1] = ' ';
    memcpy(padded + 1, s, n);
    return memmem(f->names, strlen(f->names), padded, n + 2) != NULL;
}

static int token_is(const struct chat_program *p, int32_t i, const char *s)
{
    return i >= 0 && p->token[i].bytes == strlen(s) && memcmp(p->canon + p->token[i].at, s, strlen(s)) == 0;
}

static int knows_words(const struct family *f, const struct chat_program *p)
{
    for (int32_t i = 0; i < p->n_tokens; i++) {
        const struct program_token *t = &p->token[i];
        const char *s = p->canon + t->at;
        if (t->kind == PROGRAM_NAME && !knows_name(f, s, t->bytes)) return 0;
        /* the text of an error is never part of a prompt */
        if (t->kind == PROGRAM_TEXT && token_is(p, i - 1, "(") && token_is(p, i - 2, "raise_exception"))
            continue;
        if (t->kind == PROGRAM_TEXT && !knows_text(f, s, t->bytes)) return 0;
    }
    return 1;
}

/* Every for and if is ended: a program that was cut short may have lost more than its end. */
static int is_whole(const struct chat_program *p)
{
    int32_t open = 0;

    for (int32_t i = 1; i < p->n_tokens; i++) {
        if (!token_is(p, i - 1, "{%")) continue;
        open += token_is(p, i, "for") || token_is(p, i, "if");
        open -= token_is(p, i, "endfor") || token_is(p, i, "endif");
        if (open < 0) return 0;
    }
    return open == 0;
}

sr_status sr_chat_template_detect(enum chat_template *out, const char *text, size_t bytes, sr_error *err)
{
    struct chat_program p;
    sr_status st;
    char head[72];

    if (bytes == 0) {
        *out = CHAT_NONE;
        return SR_OK;
    }
    st = sr_chat_program_read(&p, text, bytes, err);
    if (st == SR_ERR_RESOURCE) return st;
    for (size_t i = 0; st == SR_OK && is_whole(&p) && i < sizeof families / sizeof families[0]; i++) {
        if (!has_marks(&families[i], &p) || !knows_words(&families[i], &p)) continue;
        *out = families[i].id;
        sr_chat_program_free(&p);
        return SR_OK;
    }
    if (st == SR_OK) sr_chat_program_free(&p);
    sr_escape(head, sizeof head, text, bytes);
    return sr_fail(err, SR_ERR_UNSUPPORTED,
                   "chat template \"%s\" is not known; --chat-template names one of " KNOWN_NAMES, head);
}

sr_status sr_chat_template_find(enum chat_template *out, const char *name, sr_error *err)
{
    char shown[40];

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(names[i].name, name) != 0) continue;
        *out = names[i].id;
        return SR_OK;
    }
    sr_escape(shown, sizeof shown, name, strlen(name));
    return sr_fail(err, SR_ERR_USAGE, "chat template \"%s\" is not known; known: " KNOWN_NAMES, shown);
}

const char *sr_chat_template_name(enum chat_template t)
{
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (names[i].id == t) return names[i].name;
    return "none";
}
