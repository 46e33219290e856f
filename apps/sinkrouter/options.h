/* SPDX-License-Identifier: Apache-2.0
 *
 * What the command line said, for every command: one plain struct that flags_table.c fills by offset. Lists
 * hold one value where a command takes only one. Strings are borrowed from argv.
 */
#ifndef SR_APP_OPTIONS_H
#define SR_APP_OPTIONS_H

#include "sinkrouter/engine.h"

enum command {
    CMD_RUN = 1,
    CMD_CHAT = 2,
    CMD_BENCH = 4,
    CMD_PERPLEXITY = 8,
    CMD_CALIBRATE = 16,
    CMD_INSPECT = 32
};

enum { LIST_MAX = 64 };
enum on_off { CHOICE_UNSET = 0, CHOICE_ON = 1, CHOICE_OFF = 2, CHOICE_AUTO = 3 };

struct int_list {
    int32_t n;
    int64_t v[LIST_MAX];
};
struct real_list {
    int32_t n;
    double v[LIST_MAX];
};
struct text_list {
    int32_t n;
    const char *v[LIST_MAX];
};
struct pair_list {
    int32_t n;
    int64_t v[LIST_MAX][2];
};

struct options {
    enum command command;
    int help;

    /* model */
    struct text_list models, texts;
    const char *moments, *load_mode, *quantize;
    int no_mmap; /* -1: neither --mmap nor --no-mmap */
    int mlock, check;
    struct int_list mmap; /* bench's -mmp */
    struct int_list threads, threads_batch;
    const char *device;
    int64_t gpu_layers; /* as sr_model_options.n_gpu_layers */
    int list_devices;

    /* rotary embedding; 0 (ext: negative) as the file says */
    const char *rope_scaling;
    double rope_scale, rope_freq_scale, rope_base, yarn_ext, yarn_attn, yarn_slow, yarn_fast;
    int64_t yarn_ctx;

    /* session */
    int64_t n_ctx;
    int allow_extrapolation;
    struct text_list type_k, type_v; /* sr_dtype names, checked */
    struct int_list batch, ubatch;
    enum on_off flash;
    struct text_list flash_list;
    const char *session;

    /* routing */
    struct text_list route; /* --route or --modes */
    struct real_list eps, tau, delta;
    enum on_off breaker, look, trail;
    struct int_list rank, budget, lengths; /* lengths: of calibrate --paper */
    int paper;
    double skip; /* -1: not given */
    const char *tau_file;
    int64_t window, sinks, min_len, bits, route_seed; /* -1: the library's default */
    double audit;                                     /* -1: the library's default */
    struct real_list keep;

    /* text in */
    const char *prompt, *file, *system, *system_file, *chat_template, *chat_template_file,
        *chat_template_kwargs;
    enum on_off think, show_thinking;
    int64_t think_budget; /* -1: no limit */
    const char *think_message, *reasoning_format;
    int64_t file_tokens, offset;
    int escape, no_escape, conversation, no_conversation, single_turn;
    enum on_off bos;
    struct text_list stops;

    /* sampling */
    double temp, top_p, min_p; /* -1: not given */
    double repeat_penalty, presence_penalty, frequency_penalty;
    int64_t top_k; /* -1: not given */
    int64_t repeat_last_n, seed;
    int greedy, ignore_eos;
    const char *samplers;

    /* how much */
    int64_t n_predict; /* run, chat, perplexity's decoded tokens, calibrate's tokens */
    struct int_list n_prompt, n_gen, depth, parallel;
    struct pair_list prompt_gen;
    int64_t repetitions, delay;
    int no_warmup, profile, speed;
    const char *fill; /* bench: "random" or NULL */
    const char *op;   /* bench: "attention" or NULL; with its shapes */
    const char *heads;
    struct int_list head_dim, skip_groups;
    int64_t op_bytes; /* MiB; 0: as the machine wants */
    const char *task;
    int64_t needles, values, tile;

    /* output */
    const char *output, *output_err, *stats, *log_file;
    const char *make_random, *make_type; /* inspect: a synthetic model instead */
    int quiet, verbose, display_prompt, verbose_prompt, special, no_timings, tensors;
    int64_t verbosity;
    enum on_off color;

    struct text_list idle, idle_why; /* flags given that have no effect, as given, and why they have none */
};

#endif
