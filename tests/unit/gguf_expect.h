/* SPDX-License-Identifier: Apache-2.0
 *
 * What a GGUF file must come to: opens, or is refused with one clean line. For cmocka tests.
 */
#ifndef SR_TESTS_GGUF_EXPECT_H
#define SR_TESTS_GGUF_EXPECT_H

#include "gguf_build.h"

/* Opening the file must fail with `status`, in one printable line that names the file and contains `needle`. */
void sr_tb_refused_file(const char *path, sr_status status, const char *needle);
/* The same for the bytes. */
void sr_tb_refused(const struct sr_tb *b, sr_status status, const char *needle);
/* The bytes must open; the caller closes. */
struct gguf *sr_tb_opened(const struct sr_tb *b);
struct gguf *sr_tb_opened_file(const char *path);

/* Counts the warnings logged from now on; the last one is kept. */
void sr_tb_count_warnings(void);
int sr_tb_warnings(void);
const char *sr_tb_last_warning(void);

double sr_tb_seconds(void);
/* Peak resident set of the process in KiB. */
long sr_tb_peak_kib(void);

#endif
