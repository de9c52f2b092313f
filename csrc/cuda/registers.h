// The step whose streams live in registers (registers.cuh), as the host sees it: which steps it computes, how a block
// goes about its tiles, and where a block's arrays lie in shared memory. No CUDA here.
#pragma once

#include <algorithm>
#include <vector>

#include "layout.h"

namespace sk::cuda {

constexpr int kWarps = kThreads / 32;
constexpr int kMostHidden = 5;      // layers of hidden units
constexpr int kOutputNumbers = 16;  // of a piece's outputs that a thread has: value, σ', σ'', what is owed, of four
constexpr int kMostBatch = 4;       // directions that warps which share rows draw at a time
constexpr int kRegisterInputs = 16, kRegisterOutputs = 8;  // of a piece
constexpr int kSpare = 4;  // floats after a direction's of a row, so that rows are in different banks
constexpr int kMostInputPieces = 4, kMostOutputPieces = 2;  // of a wide way; others have one of both

// σ' and σ''/σ' as functions of h = σ(z): of h above 0 `top` and 0 if they are told apart there, else polynomials, less
// e^-βh of the first, and β e^-βh more of the second.
struct Curve {
  bool known;
  bool tanh, split;
  float first[3], top, ratio[2], beta;
};

// How a block goes about it: groups of 16 rows, each by as many warps as share its columns; sums of gradients for so
// many layers between hidden ones; blocks of a multiprocessor, as far as registers go; and whether there is more than a
// piece of inputs or of outputs.
struct RegisterWay {
  int width, groups, between, blocks;
  bool wide;
  constexpr bool operator==(const RegisterWay& of) const {
    return width == of.width && groups == of.groups && between == of.between && blocks == of.blocks && wide == of.wide;
  }
};

// Bytes from the beginning of a block's shared memory. Arrays of what is multiplied, of 16 bits or of 32, [rows,
// features] of each hidden layer. Inputs and outputs are in pieces, one array after the other. What is new goes to the
// end, 16 bytes of it: which fields are read in pairs changes where registers are few (spills of 350 bytes were seen).
struct RegisterLayout {
  std::uint32_t first = 0, between = 0, last = 0;  // weights: [H, 16], [H, H] of each layer between, [8, H]
  std::uint32_t biases = 0, bias_sums = 0;         // [L, H] floats, and of the hidden layers' gradients
  std::uint32_t x = 0, source = 0;                 // [rows, 16]: inputs; what tangents of a batch begin with
  std::uint32_t targets = 0;  // of a batch's tangents four floats of each lane of a warp for a row; or its cotangents
  std::int32_t batch = 1;
  std::uint32_t h = 0, left = 0, right = 0;  // values; adjoints; tangents
  std::uint32_t top = 0;                     // [rows, 8], adjoints of outputs
  std::uint32_t q = 0;                       // what derivatives owe the values, in the order of lanes
  std::uint32_t own = 0;                     // 16 rows of each warp, with kSpare, if it needs some
  std::uint32_t outputs = 0;                 // kOutputNumbers of each thread for a piece, where registers are few
  std::uint32_t seed = 0, sums = 0, bytes = 0;
  std::int32_t q_in_halves = 0;
  std::uint32_t pulled = 0;  // of a wide way an output's gradient, in the order of lanes
  std::int32_t input_pieces = 1, output_pieces = 1;
  RegisterWay way = {0, 0, 0, 0, false};
};

// The kernels' one argument: `step` is what the kernel after it reads too.
struct RegisterArguments {
  Arguments step;
  RegisterLayout own;
  Curve curve[kMostHidden];
};

inline Curve curve_of(const Function& of) {
  const float a = of.parameters[0];
  switch (of.row) {
    case kActIdentityRow:
      return {true, false, false, {1, 0, 0}, 0, {0, 0}, 0};
    case kActReluRow:
      return {true, false, true, {0, 0, 0}, 1, {0, 0}, 0};
    case kActLeakyReluRow:
      return {a >= 0, false, true, {a, 0, 0}, 1, {0, 0}, 0};
    case kActEluRow:
      return {a > 0, false, true, {a, 1, 0}, 1, {1, 0}, 0};
    case kActTanhRow:
      return {true, true, false, {1, 0, -1}, 0, {0, -2}, 0};
    case kActSigmoidRow:
      return {true, false, false, {0, 1, -1}, 0, {1, -2}, 0};
    case kActSoftplusRow:
      return {a > 0, false, false, {1, 0, 0}, 0, {0, 0}, a};
    default:
      return {};
  }
}

// In words, what such a step has that this kernel does not compute; nothing if it computes it.
inline std::string refused_by_registers(const Step& step) {
  if (step.D > kMostInputPieces * kRegisterInputs) return "more than 64 inputs";
  if (step.O > kMostOutputPieces * kRegisterOutputs) return "more than 16 outputs";
  if (step.L < 2 || step.L > kMostHidden + 1) return "hidden layers are not 1 to 5";
  for (std::int64_t l = 0; l + 1 < step.L; ++l) {
    if (step.layers[l].n_out > 128) return "hidden layers are wider than 128";
    const bool wide = step.D > kRegisterInputs || step.O > kRegisterOutputs;
    if (wide && step.layers[l].n_out > 64) return "more than 16 inputs or 8 outputs of hidden layers wider than 64";
    if (!curve_of(function(step.layers[l].activation)).known) {
      return "an activation whose derivatives are no functions of its value";
    }
  }
  return "";
}

inline std::int32_t width_of(const Arguments& a) {
  std::int32_t widest = 32;
  for (int l = 0; l + 1 < a.L; ++l) {
    while (widest < a.layer[l].out) widest *= 2;
  }
  return widest;
}

inline int pieces(int n, int of_piece) { return (n + of_piece - 1) / of_piece; }

inline std::uint32_t shared_bytes(const Arguments& a, const RegisterWay& way, Precision precision, bool q_in_halves,
                                  int batch, RegisterLayout& to) {
  const std::uint32_t H = way.width, rows = 16 * way.groups, hidden = a.L - 1, size = operand_bytes(precision);
  Cursor cursor;
  const auto take = [&](std::uint64_t bytes) {
    const std::uint64_t aligned = 128 * size;
    return 4 * cursor.take((bytes + aligned - 1) / aligned * aligned);
  };
  to = RegisterLayout{};
  to.way = way;
  const std::uint32_t D = kRegisterInputs * (to.input_pieces = pieces(a.D, kRegisterInputs)),
                      O = kRegisterOutputs * (to.output_pieces = pieces(a.O, kRegisterOutputs));
  to.first = take(H * D * size);
  to.between = take((hidden - 1) * H * H * size);
  to.last = take(O * H * size);
  to.biases = take(a.L * H * 4);
  to.bias_sums = take(a.gradients ? hidden * H * 4 : 0);
  to.x = take(rows * D * size);
  const bool columns_shared = way.groups < kWarps, tangents = a.from == From::kDirections;
  const bool prepared = a.from != From::kOutputs;
  to.batch = prepared ? std::min(batch, tangents && columns_shared ? kMostBatch : kWarps / way.groups) : 1;
  to.source = take((tangents ? to.batch : 1) * rows * D * size);
  to.targets = take(prepared ? to.batch * way.groups * 64 * O : 0);
  const std::uint64_t array = std::uint64_t(rows) * H * size;
  to.h = take(hidden * array);
  to.left = take(hidden * array);
  to.right = take(hidden * array);
  to.top = take(rows * O * size);
  to.q_in_halves = q_in_halves;
  to.q = take(a.gradients ? hidden * rows * H * (q_in_halves ? 2 : 4) : 0);
  to.own = take(a.P && (prepared || columns_shared) ? kWarps * 16 * (D + kSpare) * 4 : 0);
  to.pulled = take(way.wide && a.P && !prepared ? rows * D * 4 : 0);
  to.outputs = take(columns_shared && size == 2 ? kThreads * kOutputNumbers * 4 * to.output_pieces : 0);
  to.seed = take(16);
  to.sums = take(kWarps * (2 * sizeof(double) + O * sizeof(float)));
  to.bytes = std::uint32_t(cursor.at * 4);
  return to.bytes;
}

// The gradients' places in a block's slot, as finish_step reads them
inline void place_gradients(Arguments& a, std::int32_t H) {
  std::uint32_t at = 0;
  for (int l = 0; l < a.L; ++l) {
    LayerArguments& layer = a.layer[l];
    layer.padded_in = l ? H : kRegisterInputs * pieces(a.D, kRegisterInputs);
    layer.padded_out = l + 1 < a.L ? H : 16;
    layer.gradient = at;
    layer.bias_gradient = at += layer.padded_in * layer.padded_out;
    at += layer.padded_out;
  }
  a.layout = Layout{};
  a.layout.gradient_floats = a.gradients ? at : 0;
  a.layout.slot_floats = a.layout.gradient_floats + kSumsBytes / 4;
}

// Few samples are shared by more warps for a row, so that there is a tile for each multiprocessor of a large GPU.
#define SK_HALF_WAYS(way)                                                                             \
  way(32, 8, 4, 1, false) way(32, 4, 4, 1, false) way(64, 8, 2, 1, false) way(64, 4, 4, 1, false)     \
      way(64, 2, 2, 2, false) way(64, 2, 4, 1, false) way(128, 2, 2, 1, false) way(32, 4, 4, 1, true) \
          way(64, 4, 4, 1, true) way(64, 2, 4, 1, true)
// Of float32 all arrays take twice the room.
#define SK_FLOAT_WAYS(way) way(32, 4, 4, 1, false) way(64, 2, 4, 1, false) way(32, 4, 4, 1, true) way(64, 2, 4, 1, true)
#define SK_WAY(...) {__VA_ARGS__},
constexpr RegisterWay kHalfWays[] = {SK_HALF_WAYS(SK_WAY)}, kFloatWays[] = {SK_FLOAT_WAYS(SK_WAY)};
#undef SK_WAY
inline std::vector<RegisterWay> ways_of(Precision precision) {
  if (operand_bytes(precision) == 2) return {std::begin(kHalfWays), std::end(kHalfWays)};
  return {std::begin(kFloatWays), std::end(kFloatWays)};
}
constexpr std::int64_t kTilesWanted = 128;

// What a step's `tile` says to this backend: samples of a tile of this kernel, or one of these.
constexpr std::int64_t kAnyTile = 1, kTilesInMemory = 2;

// Whether the step's kernel is this one, and how
inline bool prepare_registers(const Step& step, Precision precision, std::uint64_t limit, RegisterArguments& to) {
  if (step.tile == kTilesInMemory || !refused_by_registers(step).empty()) return false;
  to.step = numbers_of(step, precision);
  Arguments& a = to.step;
  const std::int32_t H = width_of(a);
  for (int l = 0; l + 1 < a.L; ++l) to.curve[l] = curve_of(a.layer[l].activation);
  place_gradients(a, H);
  const bool wide = a.D > kRegisterInputs || a.O > kRegisterOutputs;
  for (const RegisterWay& way : ways_of(precision)) {
    if (way.width != H || way.wide != wide || way.between < a.L - 2 ||
        (step.tile != kAnyTile && step.tile != 16 * way.groups))
      continue;
    if (to.own.way.groups == way.groups) continue;  // the better one of as many samples fits
    const std::uint64_t most = share(limit, way.blocks);
    RegisterLayout layout;
    const auto fits = [&](bool halves) {
      for (int batch = std::min(std::max(a.P, 1), kMostBatch); batch > 0; batch /= 2) {
        if (shared_bytes(a, way, precision, halves, batch, layout) <= most) return true;
      }
      return false;
    };
    // sums of several rounds want all their digits, and of float32 any
    const bool halves = a.rounds <= 1 && operand_bytes(precision) == 2;
    if (!fits(false) && !(halves && fits(true))) continue;
    to.own = layout;
    a.layout.samples = 16 * way.groups;
    a.tiles = (a.N + a.layout.samples - 1) / a.layout.samples;
    a.layout.floats = layout.bytes / 4;
    if (a.tiles >= kTilesWanted) break;
  }
  return to.own.way.width > 0;
}

// What a step is launched with, by this kernel or, where `own.way` is of no width, by that of tiles (step.cuh)
inline RegisterArguments prepare_any(const Step& step, Precision precision, std::uint64_t limit) {
  RegisterArguments to{};
  if (prepare_registers(step, precision, limit, to)) return to;
  to = RegisterArguments{};
  to.step = prepare(step, precision, limit);
  return to;
}

}  // namespace sk::cuda
