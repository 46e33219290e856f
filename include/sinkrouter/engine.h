/* SPDX-License-Identifier: Apache-2.0
 *
 * Models, tokenizers, sessions and sampling. Three objects, lifetimes nested: sr_model (weights mapped from a GGUF file
 * or from safetensors in a folder, tokenizer, thread pool; immutable after open) > sr_session (one timeline of tokens
 * with its K/V cache and router) and sr_sampler (chooses the next token from logits).
 *
 *     sr_model_open -> sr_session_new -> sr_tokenize -> sr_session_prefill -> loop { sr_sampler_next, sr_session_decode }
 *
 * One thread at a time per model (its sessions share the pool). Results are deterministic: same build, machine and
 * options give the same bits for any number of threads. All text is UTF-8; strings returned are owned by the object
 * that returned them unless a function says otherwise.
 */
#ifndef SINKROUTER_ENGINE_H
#define SINKROUTER_ENGINE_H

#include "sinkrouter/attention.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sr_model sr_model;
typedef struct sr_session sr_session;
typedef struct sr_sampler sr_sampler;

/* ---- model ------------------------------------------------------------------------------------------------- */

/* Called with the share done (0..1) of a stage ("load", "check", "prefill"); return non-zero to cancel. */
typedef int sr_progress_fn(void *user, const char *stage, double share);

/* Rotary embedding other than the file's; a zero leaves what the file says. A context up to original_ctx * scale then
 * counts as trained. */
typedef enum sr_rope_scaling { SR_ROPE_SCALING_FILE = 0, SR_ROPE_SCALING_NONE, SR_ROPE_SCALING_LINEAR, SR_ROPE_SCALING_YARN } sr_rope_scaling;
typedef struct sr_rope_options {
    sr_rope_scaling scaling;
    double scale;                /* times the context is stretched */
    double freq_base;
    int32_t original_ctx;        /* context of the unscaled training (default: what the file declares) */
    double attn_factor, beta_fast, beta_slow; /* YaRN: 1, 32, 1 */
    double ext_factor;           /* YaRN: 1; used with has_ext_factor */
    int has_ext_factor;
} sr_rope_options;

/* Where the weights lie. AUTO: a copy in huge pages where they take at most a quarter of the available memory (decode is up
 * to a third faster than from the 4 KiB pages of a mapped file, and the file is not needed afterwards), else the mapping. */
typedef enum sr_load { SR_LOAD_AUTO = 0, SR_LOAD_MAP, SR_LOAD_COPY } sr_load;

/* As many layers on the GPU as its free memory takes, the rest on the CPU. */
#define SR_GPU_LAYERS_AUTO (-2)

typedef struct sr_model_options {
    int n_threads;               /* 0 = physical cores */
    int check;                   /* scan every tensor's values and scales for NaN and infinity at open */
    int vocab_only;              /* tokenizer and metadata only */
    sr_load load;
    const char *quantize;        /* NULL: weights as they are; "q8_0", "q4_k_m", ...: float matrices become that at open */
    int mlock;                   /* lock the weights in memory; a refusal by the system is logged, not an error */
    int metadata_only;           /* with vocab_only: not even the tokenizer must be usable (inspect) */
    sr_rope_options rope;
    const char *device;          /* NULL: the first GPU of a build with CUDA, else the CPU; "none" or "cpu"; "cuda", "CUDA0", .. */
    int n_gpu_layers;            /* the last so many layers and the output are on the GPU, the rest on the CPU; 0: no GPU; -1: all */
    const struct sr_session_options *fit; /* with n_gpu_layers SR_GPU_LAYERS_AUTO, a session that must fit too; NULL: the default one */
    const char *moments_path;    /* NULL: "<model path>.moments" if it exists; "" : none */
    sr_progress_fn *progress;
    void *progress_user;
} sr_model_options;

SR_API sr_model_options sr_model_options_default(void);
/* Device `index` of this build ("CUDA0: NAME (MiB, MiB free)"); 0 past the last one. The CPU is not counted. */
SR_API int sr_device_get(int index, char *line, size_t line_bytes);
/* Also installs a handler for SIGBUS that turns a model file cut short while in use into SR_ERR_IO of the step; faults that are
 * not of a model file go to the handler installed before. */
SR_API sr_status sr_model_open(sr_model **out, const char *path, const sr_model_options *o, sr_error *err);
SR_API void sr_model_close(sr_model *m);

typedef struct sr_model_info {
    const char *path, *architecture, *name;    /* name may be "" */
    const char *tokenizer;                     /* "bpe/smollm" */
    const char *chat_template;                 /* "jinja", "none", or "unknown": the file's cannot be used */
    const char *backend;                       /* "cpu, vnni, 2 threads" */
    const char *type_name;                     /* "Q4_1", or "mixed": the type that holds most weights */
    int32_t n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff, n_vocab, n_ctx_train;
    int32_t sketch_rank; /* where the route options ask for none; with layers on both sides the CPU's */
    double rope_base, norm_eps;
    int32_t n_experts, n_experts_used;         /* 0 without experts; with them n_ff is the width of one */
    int tied_embeddings, has_moments;
    int64_t n_params;
    uint64_t file_bytes;
    int32_t n_parts, n_tensors, n_threads;
    int32_t n_gpu_layers;
    int is_mapped;               /* the weights are read from the mapped file */
    int is_synthetic;            /* random weights: a file of sr_model_make_random */
    int32_t route_min;           /* the min_len from which routed steps were measured faster than dense ones on this device */
} sr_model_info;

SR_API void sr_model_get_info(const sr_model *m, sr_model_info *out);
/* From the next call on at most n_threads of the model's threads compute; 0: all. Results do not depend on it. */
SR_API sr_status sr_model_limit_threads(sr_model *m, int n_threads, sr_error *err);
/* K and V bytes per token over all layers for these types. */
SR_API uint64_t sr_model_kv_bytes(const sr_model *m, sr_dtype k_type, sr_dtype v_type);
/* Memory that a session of n_ctx tokens needs: K/V, sketch (route options), scratch. */
typedef struct sr_memory_need { uint64_t weights, kv, sketch, scratch, total; } sr_memory_need;
typedef struct sr_session_options {
    int32_t n_ctx;               /* tokens; 0 = what the model was trained for */
    int allow_extrapolation;     /* allow n_ctx beyond that */
    sr_dtype k_type, v_type;     /* default F16 */
    int32_t n_batch;             /* tokens per prefill batch, 1..4096; default 512 */
    sr_route_options route;
} sr_session_options;
SR_API sr_session_options sr_session_options_default(void);
SR_API sr_status sr_model_memory_need(const sr_model *m, const sr_session_options *o, sr_memory_need *out, sr_error *err);

/* Metadata and tensors for inspection, in file order. Text forms are one printable line each. */
SR_API int64_t sr_model_n_metadata(const sr_model *m);
SR_API sr_status sr_model_metadata(const sr_model *m, int64_t i, char *key, size_t key_bytes, char *type, size_t type_bytes,
                                   char *value, size_t value_bytes);
typedef struct sr_tensor_info { char name[64]; const char *type; int32_t n_dims; int64_t ne[4]; uint64_t bytes, file_offset; int32_t part; } sr_tensor_info;
SR_API sr_status sr_model_tensor(const sr_model *m, int64_t i, sr_tensor_info *out);

/* A GGUF file of a published model's shape with random weights, for work on speed and memory: true tensors and sizes, a
 * vocabulary of bytes padded to the true size. type: q4_k_m, q5_k_m or the name of one stored type. The same options give
 * the same bytes. SR_ERR_RESOURCE if the disk has no room; until all is written the file is called PATH.part. */
typedef struct sr_random_options {
    const char *type;            /* "q4_k_m" */
    uint64_t seed;               /* 1 */
    sr_progress_fn *progress;    /* stage "write" */
    void *progress_user;
} sr_random_options;
SR_API sr_random_options sr_random_options_default(void);
SR_API sr_status sr_model_make_random(const char *path, const char *name, const sr_random_options *o, sr_error *err);
SR_API const char *sr_model_random_name(int32_t i); /* the names that are known; NULL past the last */

/* ---- text --------------------------------------------------------------------------------------------------- */

typedef enum sr_bos { SR_BOS_AUTO = -1 /* as the file says */, SR_BOS_OFF = 0, SR_BOS_ON = 1 } sr_bos;

/* *ids is allocated here (free with sr_tokens_free). parse_special: control tokens in the text match too. */
SR_API sr_status sr_tokenize(const sr_model *m, const char *text, size_t bytes, sr_bos bos, int parse_special, int32_t **ids, int32_t *n, sr_error *err);
SR_API void sr_tokens_free(int32_t *ids);
/* Raw bytes of one token: at most cap are written, the full length is returned. Control tokens give nothing unless asked. */
SR_API size_t sr_token_text(const sr_model *m, int32_t id, int show_control, char *out, size_t cap);
SR_API int sr_token_is_end(const sr_model *m, int32_t id);

/* Bytes of tokens to whole UTF-8 characters: hold one per stream, {0} to begin. push writes at most 3 * (n + 4) bytes. */
typedef struct sr_utf8_hold { uint8_t held[4]; int32_t n_held; } sr_utf8_hold;
SR_API size_t sr_utf8_push(sr_utf8_hold *u, const void *bytes, size_t n, char *out);
SR_API size_t sr_utf8_finish(sr_utf8_hold *u, char *out);

typedef enum sr_role { SR_ROLE_SYSTEM = 0, SR_ROLE_USER = 1, SR_ROLE_ASSISTANT = 2, SR_ROLE_TOOL = 3 } sr_role;
typedef struct sr_message {
    sr_role role;
    const char *text;                 /* a tool's result where role is SR_ROLE_TOOL */
    size_t bytes;
    const char *reasoning;            /* an assistant's thinking without its marks; NULL: none given */
    size_t reasoning_bytes;
    const char *tool_calls;           /* an assistant's, JSON array: [{"type": "function", "function": {"name", "arguments"}}] */
    const char *tool_call_id, *name;  /* of a tool's result; NULL: none */
} sr_message;

typedef struct sr_chat_options {
    const char *template_name;        /* one of ours (--chat-template); NULL: the next, or the model's */
    const char *template_text;        /* a Jinja program; NULL: the model's */
    size_t template_bytes;
    int generation_prompt;            /* begin the answer; default 1 */
    int think;                        /* enable_thinking of the template: -1 not set (default), 0, 1 */
    const char *tools;                /* JSON array of tool definitions, or NULL */
    const char *variables;            /* JSON object of more variables of the template, or NULL */
} sr_chat_options;
SR_API sr_chat_options sr_chat_options_default(void);
/* Renders with the template chosen and tokenizes; control tokens inside messages, tools and variables stay text. BOS as template
 * and file say, once. o NULL: the default. SR_ERR_USAGE when the template refuses the conversation. */
SR_API sr_status sr_chat_tokens(const sr_model *m, const sr_chat_options *o, const sr_message *msgs, int32_t n_msgs,
                                int32_t **ids, int32_t *n, sr_error *err);
/* The same as text, terminated; free it with sr_chat_string_free. */
SR_API sr_status sr_chat_string(const sr_model *m, const sr_chat_options *o, const sr_message *msgs, int32_t n_msgs,
                                char **text, size_t *bytes, sr_error *err);
SR_API void sr_chat_string_free(char *text);
/* NULL-terminated list of texts that end an assistant's turn beyond the end tokens; SR_ERR_UNSUPPORTED when the model has no template or
 * one with something that is not known, SR_ERR_FORMAT for one that is no program, SR_ERR_USAGE for an unknown name. */
SR_API sr_status sr_chat_template_check(const sr_model *m, const sr_chat_options *o, const char *const **stop_texts, sr_error *err);

/* ---- thinking ------------------------------------------------------------------------------------------------- */

/* Whether answers begin with a think block: the vocabulary has <think> and </think>, and the template writes or expects them. */
typedef enum sr_thinks {
    SR_THINKS_NEVER = 0,
    SR_THINKS_ALWAYS = 1,  /* the template has no switch */
    SR_THINKS_CHOICE = 2   /* enable_thinking switches it */
} sr_thinks;
SR_API sr_thinks sr_chat_thinks(const sr_model *m, const sr_chat_options *o);
/* What a turn asks for: the last of "/think" and "/no_think", as words of user and system messages: 1, 0, or -1 without either. */
SR_API int sr_chat_soft_switch(const sr_message *msgs, int32_t n_msgs);

/* The part of an answer that a token belongs to. */
typedef enum sr_part { SR_PART_ANSWER = 0, SR_PART_THOUGHT = 1, SR_PART_MARK = 2 /* of the block itself: never shown */ } sr_part;

/* Follows one answer token by token: what is thinking, when its budget is used up, and the tokens that then end it.
 *
 *     sr_thinking_begin, loop { id = sr_thinking_forced(t); if (id < 0) sr_sampler_next(..., &id); part = sr_thinking_push(t, id) }
 */
typedef struct sr_thinking sr_thinking;
typedef struct sr_thinking_options {
    int32_t budget;       /* tokens inside the block; -1: no limit (default); 0: the block is closed at once */
    const char *message;  /* what ends it early, before </think>; NULL: Qwen3's sentence */
} sr_thinking_options;
SR_API sr_thinking_options sr_thinking_options_default(void);
/* SR_ERR_UNSUPPORTED when the vocabulary has no think tokens. The model must outlive it. */
SR_API sr_status sr_thinking_new(sr_thinking **out, const sr_model *m, const sr_thinking_options *o, sr_error *err);
SR_API void sr_thinking_free(sr_thinking *t);
/* A new answer after this prompt, which may have opened the block itself, or closed it. */
SR_API void sr_thinking_begin(sr_thinking *t, const int32_t *prompt, int32_t n);
/* The token to take instead of sampling, or -1. */
SR_API int32_t sr_thinking_forced(const sr_thinking *t);
/* Tells which token was taken, forced or sampled. Does not allocate. */
SR_API sr_part sr_thinking_push(sr_thinking *t, int32_t id);
typedef struct sr_thinking_counts {
    int32_t thinking, answer; /* tokens sampled inside the block and outside; marks are in neither */
    int32_t forced;           /* tokens put in when the budget was used up */
    int ended_by_budget, is_open;
} sr_thinking_counts;
SR_API void sr_thinking_get_counts(const sr_thinking *t, sr_thinking_counts *out);

/* ---- session --------------------------------------------------------------------------------------------------- */

SR_API sr_status sr_session_new(sr_session **out, sr_model *m, const sr_session_options *o, sr_error *err);
SR_API void sr_session_free(sr_session *s);
SR_API int32_t sr_session_len(const sr_session *s);
SR_API int32_t sr_session_n_ctx(const sr_session *s);
SR_API const int32_t *sr_session_tokens(const sr_session *s);   /* [len], borrowed until the next call */
/* Exact prefill of n tokens in batches. Logits of the last one are then in sr_session_logits. SR_ERR_USAGE when the
 * context would overflow (nothing changed); on cancel by progress, the tokens of finished batches stay: SR_OK with *done < n. */
SR_API sr_status sr_session_prefill(sr_session *s, const int32_t *ids, int32_t n, sr_progress_fn *progress, void *user, int32_t *done, sr_error *err);
/* One token through the routed decode path. */
SR_API sr_status sr_session_decode(sr_session *s, int32_t id, sr_error *err);
/* [n_vocab] floats of the last token; borrowed until the next call. NULL before any token. */
SR_API const float *sr_session_logits(const sr_session *s);
/* Exact logits of n tokens fed as one prefill, [n][n_vocab] into out: for tests and perplexity of dense text. */
SR_API sr_status sr_session_prefill_logits(sr_session *s, const int32_t *ids, int32_t n, float *out, sr_error *err);
/* Forgets tokens from len on; the next prefill or decode continues there. len 0 frees the cache. */
SR_API sr_status sr_session_truncate(sr_session *s, int32_t len, sr_error *err);
/* The session holds n tokens without a meaning and a cache of random rows: speed and memory of long contexts without a prefill. */
SR_API sr_status sr_session_fill_random(sr_session *s, int32_t n, uint64_t seed, sr_error *err);
/* The session's tokens from the fifth on, with their cached rows turned to their new positions, are repeated until they are there
 * `copies` times: long contexts of real keys without a prefill. What they would have attended to is not made up for. */
SR_API sr_status sr_session_tile(sr_session *s, int32_t copies, sr_error *err);
/* Brings the session to hold exactly ids[0..n): keeps the longest common prefix, prefills the rest (at least the last
 * token, so that logits are there). *reused gets the number kept. */
SR_API sr_status sr_session_sync(sr_session *s, const int32_t *ids, int32_t n, sr_progress_fn *progress, void *user, int32_t *reused, sr_error *err);
SR_API sr_status sr_session_route_set(sr_session *s, const sr_route_options *r, sr_error *err);
/* Before the first token: from then on the session can be set to the baselines (SR_ROUTE_QUEST and after), which slows its
 * prefill. */
SR_API sr_status sr_session_observe(sr_session *s, sr_error *err);
/* As sr_attention_watch. */
SR_API void sr_session_watch(sr_session *s, sr_route_watch_fn *fn, void *user);
SR_API void sr_session_route_get(const sr_session *s, sr_route_options *out);

/* Counters and times since creation or the last reset. */
typedef struct sr_session_stats {
    int64_t prefill_tokens, decode_tokens;
    double prefill_ms, decode_ms;
    sr_route_stats route;
} sr_session_stats;
SR_API void sr_session_get_stats(const sr_session *s, sr_session_stats *out);
SR_API void sr_session_stats_reset(sr_session *s);
SR_API void sr_session_memory(const sr_session *s, uint64_t *kv_bytes, uint64_t *sketch_bytes);
/* Share of decisions per (layer, KV group) that read near rows only or nothing; heat[n_layers * n_kv_heads], NaN where none was made. */
SR_API void sr_session_heat(const sr_session *s, float *heat);

/* Steps that fail leave the session as it was before them. Restoring starts the counters of route anew.
 * Exact save and restore of tokens, K/V, sketch and logits (checksum, model identity). Save writes a temporary file beside
 * path, syncs and renames; a lock file beside it makes a second writer fail with SR_ERR_IO "locked". Restore replaces the
 * session's content only when the whole file was good; model, cache types, rope and route-sketch settings must match
 * (SR_ERR_UNSUPPORTED names the field). */
SR_API sr_status sr_session_save(sr_session *s, const char *path, sr_error *err);
SR_API sr_status sr_session_restore(sr_session *s, const char *path, sr_error *err);

/* Moments for a calibration file: of positions 4..2,047 of this session, and of the rest of its prompt. moments_all comes before the first token and makes
 * sure that they will be collected: SR_ERR_USAGE if the session has tokens, or if the model was opened with a moments file
 * (then nothing is collected; open it with moments_path ""). moments_save writes what was collected, else the loaded ones. */
SR_API sr_status sr_session_moments_all(sr_session *s, sr_error *err);
SR_API sr_status sr_session_moments_save(sr_session *s, const char *path, sr_error *err);

/* ---- batch ------------------------------------------------------------------------------------------------------- */

/* Scratch for decode steps that several sessions share. The model's weights are then read once for all of them, so tokens
 * per second grow with their number until products, not weights, are the limit. The batch ends before its model. */
typedef struct sr_batch sr_batch;
#define SR_BATCH_MAX 256
SR_API sr_status sr_batch_new(sr_batch **out, sr_model *m, int32_t max_sessions, sr_error *err);
SR_API void sr_batch_free(sr_batch *b);
/* Session i takes token ids[i]: n (1..max_sessions) different sessions of the batch's model, of any lengths, each routed by
 * its own options. All of them step or, on failure, none. Which sessions take part may change from step to step. Logits are
 * in each session (sr_session_logits); each session's decode_ms counts the whole step. On the CPU up to SR_BATCH_SAME
 * sessions give the bits that each would give alone; with more the weights' products are those of prefill. On a GPU logits
 * are those of each alone up to rounding. */
#define SR_BATCH_SAME 15
SR_API sr_status sr_batch_decode(sr_batch *b, sr_session *const *sessions, const int32_t *ids, int32_t n, sr_error *err);

/* Milliseconds per op of the forward pass since the last reset, for profiles; i from 0 until NULL is returned. */
SR_API const char *sr_session_profile(const sr_session *s, int32_t i, double *ms, int64_t *calls);

/* ---- sampling ---------------------------------------------------------------------------------------------------- */

/* The chain is applied in the order of `order`, names separated by ';': penalties top_k top_p min_p temperature
 * (llama.cpp's order is the default). temperature <= 0: greedy, the lowest id wins ties. */
typedef struct sr_sampler_options {
    float temperature, top_p, min_p;       /* 0.8, 0.95, 0.05 */
    int32_t top_k;                         /* 40; <= 0 all */
    float repeat_penalty, presence_penalty, frequency_penalty; /* 1, 0, 0 */
    int32_t repeat_last_n;                 /* 64; 0 off, -1 the whole context */
    uint64_t seed;
    const char *order;                     /* "penalties;top_k;top_p;min_p;temperature" */
} sr_sampler_options;

SR_API sr_sampler_options sr_sampler_options_default(void);
SR_API sr_status sr_sampler_new(sr_sampler **out, const sr_sampler_options *o, int32_t n_vocab, sr_error *err);
SR_API void sr_sampler_free(sr_sampler *p);
/* Next token from logits [n_vocab] given the tokens so far (for penalties). Does not allocate. SR_ERR_NUMERIC if every logit is
 * NaN or -inf or one is NaN. */
SR_API sr_status sr_sampler_next(sr_sampler *p, const float *logits, const int32_t *tokens, int32_t n_tokens, int32_t *id, sr_error *err);
/* Sets temperature, top_k, top_p, min_p, repeat_penalty and the order as the model's authors advise for answers with and
 * without thinking: what its file says (general.sampling.*, generation_config.json), for Qwen3 what is published beside it.
 * Returns 0 and changes nothing where no advice is known. */
SR_API int sr_sampler_advice(const sr_model *m, int thinking, sr_sampler_options *o);
/* A seed from the system's random source. */
SR_API uint64_t sr_seed_random(void);

#ifdef __cplusplus
}
#endif

#endif
