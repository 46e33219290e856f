/* SPDX-License-Identifier: Apache-2.0
 *
 * Status codes, errors, element types and logging shared by attention.h and engine.h.
 *
 * Every function that can fail returns an sr_status (SR_OK == 0) and takes an optional `sr_error *err` last,
 * which receives one line of text that names the thing at fault. Results come back through out-parameters and
 * are untouched on failure unless a function says otherwise. The library never exits, aborts or prints.
 */
#ifndef SINKROUTER_BASE_H
#define SINKROUTER_BASE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(SR_BUILD) && defined(__GNUC__)
#define SR_API __attribute__((visibility("default")))
#else
#define SR_API
#endif

/* The numeric value is also the exit code that the program uses for this kind of fault. */
typedef enum sr_status {
    SR_OK = 0,
    SR_ERR_USAGE = 2,       /* an argument, flag or configuration value */
    SR_ERR_FORMAT = 3,      /* a file or message whose content is rejected */
    SR_ERR_IO = 4,          /* the operating system refused or failed a read, write or open */
    SR_ERR_RESOURCE = 5,    /* memory, descriptors, threads */
    SR_ERR_UNSUPPORTED = 6, /* valid, but this build or version cannot do it */
    SR_ERR_NUMERIC = 7,     /* NaN or infinity where a number must be */
    SR_ERR_SERVICE = 8,     /* listening or authentication set-up */
    SR_ERR_RANK = 9         /* another rank of a cluster */
} sr_status;

#define SR_ERROR_TEXT_BYTES 240

/* Plain storage owned by the caller; `text` is always terminated and printable UTF-8 on one line. */
typedef struct sr_error {
    sr_status status;
    char text[SR_ERROR_TEXT_BYTES];
} sr_error;

/* Element types. The values are GGUF's type ids so that a file's number needs no translation. */
typedef enum sr_dtype {
    SR_DTYPE_F32 = 0,
    SR_DTYPE_F16 = 1,
    SR_DTYPE_Q4_0 = 2,
    SR_DTYPE_Q4_1 = 3,
    SR_DTYPE_Q5_0 = 6,
    SR_DTYPE_Q5_1 = 7,
    SR_DTYPE_Q8_0 = 8,
    SR_DTYPE_Q2_K = 10,
    SR_DTYPE_Q3_K = 11,
    SR_DTYPE_Q4_K = 12,
    SR_DTYPE_Q5_K = 13,
    SR_DTYPE_Q6_K = 14,
    SR_DTYPE_IQ4_NL = 20,
    SR_DTYPE_BF16 = 30,
    SR_DTYPE_F8_E4M3 = 256 /* of K/V only; no type of GGUF */
} sr_dtype;

/* "SR_ERR_FORMAT" -> "format", for logs and JSON. Never NULL. */
SR_API const char *sr_status_name(sr_status status);

/* Lower-case name as users type it ("f16", "q8_0", "q4_K"); NULL for a value that is not an sr_dtype. */
SR_API const char *sr_dtype_name(sr_dtype dtype);

/* Version as "0.1.0"; a static string. */
SR_API const char *sr_version(void);

typedef enum sr_log_level { SR_LOG_WARN = 0, SR_LOG_INFO = 1, SR_LOG_DEBUG = 2 } sr_log_level;

/* Receives one line without a newline. May be called from the thread that called the library, never from workers. */
typedef void sr_log_fn(void *user, sr_log_level level, const char *line);

/* Process-wide; NULL silences (the default). Set it before opening anything; not thread-safe. */
SR_API void sr_log_set(sr_log_fn *fn, void *user);

#ifdef __cplusplus
}
#endif

#endif
