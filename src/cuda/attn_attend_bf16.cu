// SPDX-License-Identifier: Apache-2.0
//
// The attend kernel's instances for one cache type: a file each, so that they compile side by side.
#include "cuda/attn_attend.cuh"

sr::attend_code sr::attend_bf16(int d, int nt, bool has_ring) { return instance_of<ELEM_BF16>(d, nt, has_ring); }
