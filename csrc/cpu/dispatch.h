// The CPU's side of the core: which instruction sets there are, and a step run on one of them with threads.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels.h"

namespace sk::cpu {

// Those this machine can execute, the best first.
const std::vector<const Kernels*>& instruction_sets();

// All of a step. Deterministic for a given number of threads.
void mlp_sobolev(const Kernels& kernels, const Step& step);

// Named derivatives, or of their cotangents the gradients. As deterministic.
void mlp_jets(const Kernels& kernels, const Jets& jets);

// A pass of a chain of layers. As deterministic.
void run_chain(const Kernels& kernels, const Chain& chain);

// A pass of a recurrent layer. As deterministic.
void run_recurrent(const Kernels& kernels, const Recurrent& recurrent);

// A convolution, or its way back. As deterministic.
void run_convolved(const Kernels& kernels, const Convolved& convolved);

// An activation of a value and its tangents, or its way back.
void run_activated(const Kernels& kernels, const Activated& activated);

// Attention of a value and its tangents, or its way back.
void run_attention(const Kernels& kernels, const Attention& attention);

// A norm of a value and its tangents, or its way back. Deterministic for a given number of threads.
void run_normed(const Kernels& kernels, const Normed& normed);

// The directions of a step as a tensor: out [P, N, D].
void draw_directions(const Kernels& kernels, const Step& step, void* out);

// Bytes of working memory that mlp_sobolev takes.
std::size_t working_memory(const Kernels& kernels, const Step& step);

}  // namespace sk::cpu
