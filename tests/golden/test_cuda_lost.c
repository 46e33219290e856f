/* SPDX-License-Identifier: Apache-2.0
 *
 * A device that fails in the middle of work: one clear line from the next download, the same again after it, and an end
 * without a crash. A program of its own, since the device is gone for the process. Skipped without a GPU.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "backend/backend.h"

#include <string.h>

static void lost(void **state)
{
    (void)state;
    struct backend *b;
    sr_error err;
    float x[64] = {1}, *dev, *other = NULL;
    const sr_status st = sr_backend_cuda_open(&b, 0, 1, &err);
    if (st != SR_OK) print_message("SKIP: %s\n", err.text);
    if (st != SR_OK) assert_int_equal(st, SR_ERR_UNSUPPORTED);
    if (st != SR_OK) skip();
    assert_int_equal(b->ops->mem_new(b, (void **)&dev, sizeof x, "test", &err), SR_OK);
    b->ops->upload(b, dev, x, sizeof x);
    b->ops->add(b, &(struct add_args){.x = dev, .y = (const float *)(uintptr_t)64, .d = 64, .n = 1}); /* no such address */
    assert_int_equal(b->ops->download(b, x, dev, sizeof x, &err), SR_ERR_RESOURCE);
    print_message("%s\n", err.text);
    assert_non_null(strstr(err.text, "lost"));
    assert_null(strchr(err.text, '\n'));
    assert_int_equal(b->ops->download(b, x, dev, sizeof x, &err), SR_ERR_RESOURCE);
    assert_non_null(strstr(err.text, "lost"));
    assert_int_equal(b->ops->mem_new(b, (void **)&other, sizeof x, "more", &err), SR_ERR_RESOURCE);
    assert_null(other);
    b->ops->mem_free(b, dev);
    sr_backend_close(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(lost)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
