/* SPDX-License-Identifier: Apache-2.0
 *
 * Thinking: where a block begins and ends, budgets, the tokens that end it early, soft switches and advised
 * sampling. The vocabulary is the 256 bytes and the marks, so that every forced token can be read.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "sinkrouter/engine.h"
#include "tiny_model.h"
#include "vocab_build.h"

#include <stdio.h>
#include <string.h>

#define SENTENCE                                                                                             \
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking "       \
    "directly now.\n"

static struct sr_tv v;
static int32_t open_id, close_id, end_id;
static sr_error err;

static sr_model *open_vocab(int with_marks, int with_end)
{
    sr_model_options o = sr_model_options_default();
    sr_model *m;

    sr_tv_bpe(&v, "gpt-2");
    if (with_marks) open_id = sr_tv_add(&v, "<think>", TOKEN_USER, 0);
    if (with_marks) close_id = sr_tv_add(&v, "</think>", TOKEN_USER, 0);
    end_id = with_end ? sr_tv_add(&v, "<|im_end|>", TOKEN_CONTROL, 0) : -1;
    sr_tv_add(&v, "<|im_start|>", TOKEN_CONTROL, 0);
    o.vocab_only = 1;
    if (sr_model_open(&m, sr_tv_save(&v, "vocab.gguf"), &o, &err) != SR_OK) fail_msg("%s", err.text);
    return m;
}

static int32_t id_of(const sr_model *m, const char *text)
{
    int32_t *ids, n, id;

    assert_int_equal(sr_tokenize(m, text, strlen(text), SR_BOS_OFF, 1, &ids, &n, &err), SR_OK);
    assert_int_equal(n, 1);
    id = ids[0];
    sr_tokens_free(ids);
    return id;
}

static sr_thinking *begin(const sr_model *m, int32_t budget, const char *message, const char *prompt)
{
    const sr_thinking_options o = {.budget = budget, .message = message};
    sr_thinking *t;
    int32_t *ids, n;

    if (sr_thinking_new(&t, m, &o, &err) != SR_OK) fail_msg("%s", err.text);
    assert_int_equal(sr_tokenize(m, prompt, strlen(prompt), SR_BOS_OFF, 1, &ids, &n, &err), SR_OK);
    sr_thinking_begin(t, ids, n);
    sr_tokens_free(ids);
    return t;
}

/* A model that would say `text` for ever: what is taken, forced or not, goes to *all, each part to its own.
 */
struct said {
    char all[1024], thought[1024], answer[1024];
    int n;
};

static void take(struct said *s, const sr_model *m, sr_part part, int32_t id)
{
    size_t n = strlen(s->all);

    n += sr_token_text(m, id, 1, s->all + n, sizeof s->all - n - 1);
    s->all[n] = 0;
    char *to = part == SR_PART_THOUGHT ? s->thought : part == SR_PART_ANSWER ? s->answer : NULL;
    if (!to) return;
    n = strlen(to);
    n += sr_token_text(m, id, 1, to + n, 1000 - n);
    to[n] = 0;
    s->n++;
}

static void speak(struct said *s, const sr_model *m, sr_thinking *t, const char *text)
{
    int32_t *ids, n, forced;

    assert_int_equal(sr_tokenize(m, text, strlen(text), SR_BOS_OFF, 1, &ids, &n, &err), SR_OK);
    for (int32_t i = 0; i < n;) {
        forced = sr_thinking_forced(t);
        int32_t id = forced >= 0 ? forced : ids[i++];
        take(s, m, sr_thinking_push(t, id), id);
    }
    while ((forced = sr_thinking_forced(t)) >= 0) take(s, m, sr_thinking_push(t, forced), forced);
    sr_tokens_free(ids);
}

static void expect(int32_t budget, const char *prompt, const char *text, const char *thought,
                   const char *answer, sr_thinking_counts want)
{
    sr_model *m = open_vocab(1, 1);
    sr_thinking *t = begin(m, budget, NULL, prompt);
    struct said s = {.n = 0};
    sr_thinking_counts got;

    speak(&s, m, t, text);
    sr_thinking_get_counts(t, &got);
    assert_string_equal(s.thought, thought);
    assert_string_equal(s.answer, answer);
    assert_int_equal(got.thinking, want.thinking);
    assert_int_equal(got.answer, want.answer);
    assert_int_equal(got.forced, want.forced);
    assert_int_equal(got.ended_by_budget, want.ended_by_budget);
    assert_int_equal(got.is_open, want.is_open);
    sr_thinking_free(t);
    sr_model_close(m);
}

static void parts_of_an_answer(void **state)
{
    (void)state;
    expect(-1, "x", "<think>abc</think>yes", "abc", "yes", (sr_thinking_counts){.thinking = 3, .answer = 3});
    expect(-1, "x", "no marks", "", "no marks", (sr_thinking_counts){.answer = 8});
    expect(-1, "x", "<think>abc", "abc", "", (sr_thinking_counts){.thinking = 3, .is_open = 1});
    /* only the first block is one: later marks are text */
    expect(-1, "x", "<think>a</think>b<think>c</think>", "a", "b<think>c</think>",
           (sr_thinking_counts){.thinking = 1, .answer = 4});
    expect(-1, "x", "</think>b", "", "</think>b", (sr_thinking_counts){.answer = 2});
    expect(-1, "x", "<think><think></think>b", "<think>", "b",
           (sr_thinking_counts){.thinking = 1, .answer = 1});
}

static void prompts_that_open_or_close(void **state)
{
    (void)state;
    expect(-1, "u<|im_end|>a<think>\n", "abc</think>yes", "abc", "yes",
           (sr_thinking_counts){.thinking = 3, .answer = 3});
    expect(-1, "u<|im_end|>a<think>\n\n</think>\n\n", "<think>yes", "", "<think>yes",
           (sr_thinking_counts){.answer = 4});
    /* marks of earlier turns say nothing */
    expect(-1, "<think>t</think>a<|im_end|>u<|im_end|>", "<think>abc</think>y", "abc", "y",
           (sr_thinking_counts){.thinking = 3, .answer = 1});
    expect(-1, "<think>t<|im_end|>u", "yes", "", "yes", (sr_thinking_counts){.answer = 3});
}

static void budgets(void **state)
{
    const int n = (int)strlen(SENTENCE) + 3; /* the words, the mark and two newlines */

    (void)state;
    expect(4, "x", "<think>abcdyes", "abcd" SENTENCE, "yes",
           (sr_thinking_counts){.thinking = 4, .answer = 3, .forced = n, .ended_by_budget = 1});
    expect(1, "x", "<think>ayes", "a" SENTENCE, "yes",
           (sr_thinking_counts){.thinking = 1, .answer = 3, .forced = n, .ended_by_budget = 1});
    expect(3, "a<think>", "abcyes", "abc" SENTENCE, "yes",
           (sr_thinking_counts){.thinking = 3, .answer = 3, .forced = n, .ended_by_budget = 1});
    /* ended in time: nothing is forced */
    expect(4, "x", "<think>abc</think>yes", "abc", "yes", (sr_thinking_counts){.thinking = 3, .answer = 3});
    /* no budget that can be reached */
    expect(2147483647, "x", "<think>abc</think>yes", "abc", "yes",
           (sr_thinking_counts){.thinking = 3, .answer = 3});
    expect(4, "x", "no thinking at all", "", "no thinking at all", (sr_thinking_counts){.answer = 18});
    /* 0: the empty block, whether the model or the prompt opened it; a block that the prompt closed is left
     * alone */
    expect(0, "x", "<think>yes", "\n\n", "yes",
           (sr_thinking_counts){.answer = 3, .forced = 5, .ended_by_budget = 1});
    expect(0, "a<think>", "yes", "\n\n", "yes",
           (sr_thinking_counts){.answer = 3, .forced = 5, .ended_by_budget = 1});
    expect(0, "a<think></think>", "yes", "", "yes", (sr_thinking_counts){.answer = 3});
}

static void forced_text_is_the_published_one(void **state)
{
    sr_model *m = open_vocab(1, 1);
    sr_thinking *t = begin(m, 1, NULL, "x");
    struct said s = {.n = 0};

    (void)state;
    speak(&s, m, t, "<think>a");
    assert_string_equal(s.all, "<think>a" SENTENCE "</think>\n\n");
    sr_thinking_begin(t, NULL, 0); /* the next answer begins anew */
    assert_int_equal(sr_thinking_forced(t), -1);
    s = (struct said){.n = 0};
    speak(&s, m, t, "b");
    assert_string_equal(s.answer, "b");
    sr_thinking_free(t);
    t = begin(m, 0, "Enough.", "x");
    s = (struct said){.n = 0};
    speak(&s, m, t, "<think>z");
    assert_string_equal(s.all, "<think>\n\nEnough.</think>\n\nz");
    sr_thinking_free(t);
    sr_model_close(m);
}

/* A character that is not whole yet is waited for. */
static void characters_stay_whole(void **state)
{
    sr_model *m = open_vocab(1, 1);
    sr_thinking *t = begin(m, 2, NULL, "<think>");
    struct said s = {.n = 0};

    (void)state;
    speak(&s, m, t,
          "a\xC3\xA9"
          "b");
    assert_int_equal(strncmp(s.thought, "a\xC3\xA9\n\nConsidering", 16), 0);
    assert_string_equal(s.answer, "b");
    sr_thinking_free(t);
    sr_model_close(m);
}

static void refusals(void **state)
{
    sr_thinking_options o = sr_thinking_options_default();
    sr_thinking *t = NULL;
    sr_model *m = open_vocab(0, 1);
    sr_chat_options chat = sr_chat_options_default();

    (void)state;
    assert_int_equal(o.budget, -1);
    assert_int_equal(sr_thinking_new(&t, m, &o, &err), SR_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "no tokens <think> and </think>"));
    assert_null(t);
    chat.template_name = "qwen3";
    assert_int_equal(sr_chat_thinks(m, &chat), SR_THINKS_NEVER);
    sr_model_close(m);
    m = open_vocab(1, 1);
    o.budget = -2;
    assert_int_equal(sr_thinking_new(&t, m, &o, &err), SR_ERR_USAGE);
    assert_int_equal(sr_chat_thinks(m, &chat), SR_THINKS_CHOICE);
    chat.template_name = "chatml";
    assert_int_equal(sr_chat_thinks(m, &chat), SR_THINKS_NEVER);
    chat = sr_chat_options_default();
    assert_int_equal(sr_chat_thinks(m, &chat), SR_THINKS_NEVER); /* no template at all */
    chat.template_text = "{{ 'a<think>' }}";
    chat.template_bytes = strlen(chat.template_text);
    assert_int_equal(sr_chat_thinks(m, &chat), SR_THINKS_ALWAYS);
    chat.template_text = "{{ messages[0].content.split('</think>')[-1] }}";
    chat.template_bytes = strlen(chat.template_text);
    assert_int_equal(sr_chat_thinks(m, &chat), SR_THINKS_ALWAYS);
    sr_thinking_free(NULL);
    sr_model_close(m);
}

static int switch_in(const char *system, const char *user)
{
    const sr_message m[] = {{.role = SR_ROLE_SYSTEM, .text = system, .bytes = strlen(system)},
                            {.role = SR_ROLE_USER, .text = user, .bytes = strlen(user)},
                            {.role = SR_ROLE_ASSISTANT, .text = "/think", .bytes = 6}};
    return sr_chat_soft_switch(m, 3);
}

static void soft_switches(void **state)
{
    (void)state;
    assert_int_equal(switch_in("", "hello"), -1);
    assert_int_equal(switch_in("", "hello /think"), 1);
    assert_int_equal(switch_in("", "/no_think hello"), 0);
    assert_int_equal(switch_in("/no_think", "hello"), 0);
    assert_int_equal(switch_in("/no_think", "hello /think"), 1);
    assert_int_equal(switch_in("", "/think then\n/no_think\nend"), 0);
    assert_int_equal(switch_in("", "a/think /thinking /no_thinks x/no_think"), -1);
    assert_int_equal(switch_in("", "/"), -1);
}

/* Both modes through the template: what the prompt holds decides. */
static void switched_by_the_template(void **state)
{
    sr_model *m = open_vocab(1, 1);
    const sr_message msg = {.role = SR_ROLE_USER, .text = "hi", .bytes = 2};
    sr_chat_options o = sr_chat_options_default();
    char *text;
    size_t n;

    (void)state;
    o.template_name = "qwen3";
    for (int think = -1; think <= 1; think++) {
        o.think = think;
        assert_int_equal(sr_chat_string(m, &o, &msg, 1, &text, &n, &err), SR_OK);
        assert_int_equal(strlen(text), n);
        assert_int_equal(strstr(text, "<think>\n\n</think>\n\n") != NULL, think == 0);
        sr_chat_string_free(text);
    }
    sr_model_close(m);
}

static void advice(void **state)
{
    struct tiny_spec spec = tiny_spec_default();
    sr_model_options o = sr_model_options_default();
    sr_sampler_options s = sr_sampler_options_default();
    sr_model *m;

    (void)state;
    o.vocab_only = 1;
    spec.architecture = "qwen3";
    tiny_model_write(tiny_path("q.gguf"), &spec);
    assert_int_equal(sr_model_open(&m, tiny_path("q.gguf"), &o, &err), SR_OK);
    assert_int_equal(sr_sampler_advice(m, 1, &s), 1);
    assert_true(s.temperature == 0.6f && s.top_p == 0.95f && s.top_k == 20 && s.min_p == 0);
    assert_true(strstr(s.order, "temperature") < strstr(s.order, "top_k"));
    assert_int_equal(sr_sampler_advice(m, 0, &s), 1);
    assert_true(s.temperature == 0.7f && s.top_p == 0.8f && s.top_k == 20 && s.min_p == 0);
    sr_model_close(m);
    spec.architecture = "llama";
    s = sr_sampler_options_default();
    tiny_model_write(tiny_path("l.gguf"), &spec);
    assert_int_equal(sr_model_open(&m, tiny_path("l.gguf"), &o, &err), SR_OK);
    assert_int_equal(sr_sampler_advice(m, 1, &s), 0);
    assert_true(s.temperature == sr_sampler_options_default().temperature);
    sr_model_close(m);
}

/* What a file says of sampling where it is in range, beside the defaults. */
static void advice_of_the_file(void **state)
{
    static const struct tiny_change changes[] = {{.key = "general.sampling.temp", .kind = TINY_F32, .f32 = 0.25},
                                                 {.key = "general.sampling.top_k", .kind = TINY_U32, .u32 = 7},
                                                 {.key = "general.sampling.top_p", .kind = TINY_F32, .f32 = 1.5},
                                                 {.key = "general.sampling.penalty_repeat", .kind = TINY_F32, .f32 = 1.25}};
    const sr_sampler_options plain = sr_sampler_options_default();
    struct tiny_spec spec = tiny_spec_default();
    sr_model_options o = sr_model_options_default();
    sr_sampler_options s = plain;
    sr_model *m;

    (void)state;
    o.vocab_only = 1;
    spec.changes = changes;
    spec.n_changes = 4;
    tiny_model_write(tiny_path("s.gguf"), &spec);
    assert_int_equal(sr_model_open(&m, tiny_path("s.gguf"), &o, &err), SR_OK);
    assert_int_equal(sr_sampler_advice(m, 0, &s), 1);
    assert_true(s.temperature == 0.25f && s.top_k == 7 && s.repeat_penalty == 1.25f);
    assert_true(s.top_p == plain.top_p && s.min_p == plain.min_p);
    sr_model_close(m);
}

/* The file of a Qwen3 that thinks or not speaks of thinking; that of one with a single mode of that. */
static void advice_of_two_modes(void **state)
{
    static const char both[] = "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking is defined and not enable_thinking %}"
                               "<think>\n\n</think>\n\n{% endif %}";
    sr_sampler_options s = sr_sampler_options_default();

    (void)state;
    for (int is_both = 0; is_both < 2; is_both++) {
        sr_model_close(open_vocab(1, 1));
        v.architecture = "qwen3";
        v.temperature = 0.25f;
        v.chat_template = is_both ? both : "{{ messages[0].content }}";
        sr_model_options o = sr_model_options_default();
        sr_model *m;
        o.vocab_only = 1;
        if (sr_model_open(&m, sr_tv_save(&v, "modes.gguf"), &o, &err) != SR_OK) fail_msg("%s", err.text);
        assert_int_equal(sr_chat_thinks(m, NULL), is_both ? SR_THINKS_CHOICE : SR_THINKS_NEVER);
        assert_int_equal(sr_sampler_advice(m, 1, &s), 1);
        assert_true(s.temperature == 0.25f && s.top_p == 0.95f && s.top_k == 20 && s.min_p == 0);
        assert_int_equal(sr_sampler_advice(m, 0, &s), 1);
        assert_true(s.temperature == (is_both ? 0.7f : 0.25f) && s.top_p == 0.8f);
        sr_model_close(m);
    }
}

static void ids_are_found(void **state)
{
    sr_model *m = open_vocab(1, 1);

    (void)state;
    assert_int_equal(id_of(m, "<think>"), open_id);
    assert_int_equal(id_of(m, "</think>"), close_id);
    assert_true(sr_token_is_end(m, end_id));
    sr_model_close(m);
}

static int clean(void **state)
{
    (void)state;
    sr_tb_clean();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_are_found),
        cmocka_unit_test(parts_of_an_answer),
        cmocka_unit_test(prompts_that_open_or_close),
        cmocka_unit_test(budgets),
        cmocka_unit_test(forced_text_is_the_published_one),
        cmocka_unit_test(characters_stay_whole),
        cmocka_unit_test(refusals),
        cmocka_unit_test(soft_switches),
        cmocka_unit_test(switched_by_the_template),
        cmocka_unit_test(advice),
        cmocka_unit_test(advice_of_the_file),
        cmocka_unit_test(advice_of_two_modes),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("thinking", tests, NULL, clean);
}
