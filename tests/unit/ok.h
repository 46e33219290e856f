/* SPDX-License-Identifier: Apache-2.0
 *
 * OK(call): the call must succeed, or the test fails with the call and the text of `err`. Included after cmocka.h.
 */
#ifndef SR_TESTS_OK_H
#define SR_TESTS_OK_H

#include "sinkrouter/base.h"

static sr_error err;

#define OK(call)                                                  \
    do {                                                          \
        if ((call) != SR_OK) fail_msg("%s: %s", #call, err.text); \
    } while (0)

#endif
