// SPDX-License-Identifier: Apache-2.0
//
// The kernel before a choice, for its launcher.
#ifndef SR_CUDA_SKETCH_PREPARE_CUH
#define SR_CUDA_SKETCH_PREPARE_CUH

#include "cuda/rope_turn.cuh"
#include "cuda/sketch_parts.cuh"

namespace sr {

// Of a K/V type; blocks (CHOOSE_PARTS, n_units).
typedef void prepare_code(choose_params, turn_params);
prepare_code *sr_prepare_code(int type);

constexpr size_t PREPARE_STATIC = 3328; // bytes of shared memory of its blocks besides what a launch asks for, at most

} // namespace sr

#endif
