/* SPDX-License-Identifier: Apache-2.0
 *
 * sr_escape on any bytes and buffer sizes: terminated, inside the buffer, printable, and escaping it again changes
 * nothing but the backslashes it wrote.
 */
#include "fuzz.h"

#include "base/status.h"

#include <stdlib.h>
#include <string.h>

static void require(int holds)
{
    if (!holds) abort();
}

/* Escaping text without quotes, backslashes and odd bytes must be the identity. */
static void require_clean(const char *text)
{
    char plain[256], again[512];
    size_t n = 0;
    for (; text[n] && n < sizeof plain - 1; n++) plain[n] = text[n] == '\\' ? '/' : text[n];
    plain[n] = '\0';
    sr_escape(again, sizeof again, plain, n);
    require(strcmp(plain, again) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t dst_bytes = size ? 8 + data[0] % 200 : 8;
    char *dst = malloc(dst_bytes);
    require(dst != NULL);
    require(sr_escape(dst, dst_bytes, (const char *)data, size) == dst);
    require(memchr(dst, '\0', dst_bytes) != NULL);
    require_clean(dst);
    free(dst);
    return 0;
}
