/* SPDX-License-Identifier: Apache-2.0
 *
 * Rows of a cache to a device's pages and back: the places that attn_cuda.h names, and the same bytes after both ways.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "cuda/page_rows.h"

#include "formats/quant.h"

#include <stdlib.h>
#include <string.h>

enum { D = 96 };

static void both_ways(void **state)
{
    (void)state;
    static const sr_dtype types[] = {SR_DTYPE_F16, SR_DTYPE_BF16, SR_DTYPE_Q8_0, SR_DTYPE_F8_E4M3};
    for (size_t t = 0; t < sizeof types / sizeof types[0]; t++) {
        const size_t row = sr_row_bytes(types[t], D), all = SR_PAGE_ROWS * row;
        uint8_t *rows = malloc(all), *page = malloc(all), *back = malloc(all);
        for (size_t i = 0; i < all; i++) rows[i] = (uint8_t)(i * 131 + i / 255);
        memset(page, 0xee, all);
        sr_page_of_rows(types[t], D, rows, page);
        sr_rows_of_page(types[t], D, page, back);
        assert_memory_equal(rows, back, all);
        for (int r = 0; r < SR_PAGE_ROWS; r++) {
            if (types[t] != SR_DTYPE_Q8_0) assert_memory_equal(page + (size_t)r * row, rows + (size_t)r * row, row);
            for (int b = 0; types[t] == SR_DTYPE_Q8_0 && b < D / 32; b++) {
                const uint8_t *block = rows + (size_t)r * row + (size_t)b * 34;
                assert_memory_equal(page + r * D + b * 32, block + 2, 32);
                assert_memory_equal(page + SR_PAGE_ROWS * D + (r * (D / 32) + b) * 2, block, 2);
            }
        }
        free(rows);
        free(page);
        free(back);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(both_ways)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
