// SPDX-License-Identifier: Apache-2.0
//
// The instances of attention over lists with its second look for one cache type: a file each, so that they compile side by side.
#include "cuda/attn_list.cuh"

sr::list_code sr::list_f16(int d, int group) { return list_instance_of<ELEM_F16>(d, group); }
