/* SPDX-License-Identifier: Apache-2.0
 *
 * What a fuzz target defines. `make fuzz` links it with libFuzzer; the tests link it with replay.c, which feeds it
 * the corpus. A target returns 0 and must not keep state between calls.
 */
#ifndef SR_TESTS_FUZZ_H
#define SR_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
