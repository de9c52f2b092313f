// The step (registers.cuh) as the host sees it: which ones are computed, how a block goes about its tiles, and where
// its arrays lie in shared memory. No CUDA here.
#pragma once

#include <algorithm>
#include <vector>

#include "from_step.h"

namespace sk::cuda {

constexpr int kWarps = kThreads / 32;
constexpr int kMostHidden = kMostLayers - 1;
constexpr int kOutputNumbers = 16;  // of a piece's outputs that a thread has: value, σ', σ'', what is owed, of four
constexpr int kSecondNumbers = 20;  // of order 2, σ''' too
constexpr int kFewNumbers = 8;      // of those, value and σ'': in the block's slot where there is no room on chip
constexpr int kMostBatch = 4;       // directions that warps which share rows draw at a time
constexpr int kRegisterInputs = 16, kRegisterOutputs = 8;  // of a piece
// Of a roomy way, behind those, sums of ρ, of both terms and both rows; and of losses that couple a sample's numbers
// the sums rr, aa, at, tt and ww, of both rows, and of each row ρ by the first three, all in doubles
constexpr int kRhoNumbers = 4, kCoupledSums = 5, kCoupledSlopes = 3;
constexpr int kSpare = 4;  // floats after a direction's of a row, so that rows are in different banks
constexpr int kMostInputPieces = 4, kMostOutputPieces = 2;  // of a wide way; others have one of both
constexpr int kWidestKept = 64;  // layers of which σ' and σ'' can be kept: wider ones have no registers to spare

// What a block has room for: one piece of inputs and outputs; several; or, for what the others have no room for, arrays
// and sums of gradients of each hidden layer, which are in its slot, in L2; or that of order 2.
enum class Room : int { kPlain, kPieces, kSlot, kSecond };

// Of a roomy way, what comes by turns to where it is multiplied: weights between hidden layers, or all weights and all
// pieces of inputs and outputs, which have one place then.
enum class Turns : int { kNone, kBetween, kAll };

// How a block goes about it: groups of 16 rows, each by as many warps as share its columns; sums of gradients for so
// many layers between hidden ones, or of any in the slot if 0; blocks of a multiprocessor, as far as registers go; and
// whether there is more than a piece of inputs or of outputs.
struct RegisterWay {
  std::int32_t width, groups, between;
  std::int16_t blocks;
  bool wide;
  std::int8_t order = 1;
  // All warps share 16 samples, as shared memory has room for no more: neither for q, which each lane has for itself,
  // in the block's slot then, in L2.
  constexpr bool of_few() const { return groups == 1; }
  constexpr bool roomy() const { return between == 0; }
  constexpr bool operator==(const RegisterWay& of) const {
    return width == of.width && groups == of.groups && between == of.between && blocks == of.blocks &&
           wide == of.wide && order == of.order;
  }
};

// Bytes from the beginning of a block's shared memory. Arrays of what is multiplied, of 16 bits or of 32, [rows,
// features] of each hidden layer. Inputs and outputs are in pieces, one array after the other. Which fields are read in
// pairs follows from where they are, and spills from that, where registers are few: what is new goes to the end.
struct RegisterLayout {
  RegisterWay way = {0, 0, 0, 0, false, 1};
  std::uint32_t first = 0, between = 0, last = 0;  // weights: [H, 16], [H, H] of each layer between, [8, H]
  std::uint32_t biases = 0, bias_sums = 0;         // [L, H] floats, and of the hidden layers' gradients
  std::uint32_t x = 0, source = 0;                 // [rows, 16]: inputs; what tangents of a batch begin with
  std::uint32_t targets = 0;  // of a batch's tangents four floats of each lane of a warp for a row; or its cotangents
  std::int32_t batch = 1;
  std::uint32_t h = 0, left = 0, right = 0;  // values; adjoints; tangents
  std::uint32_t kept = 0;                    // σ' and σ''/σ', each in the order of lanes, if not functions of h
  std::uint32_t top = 0;                     // [rows, 8], adjoints of outputs
  std::uint32_t q = 0;                       // what derivatives owe the values, in the order of lanes; or in the slot
  std::uint32_t own = 0;                     // 16 rows of each warp, with kSpare, if it needs some
  std::uint32_t few = 0;                     // kFewNumbers of each thread, in floats from the slot's beginning
  std::uint32_t outputs = 0;                 // kOutputNumbers of each thread for a piece, where registers are few
  std::uint32_t seed = 0, sums = 0, bytes = 0;
  std::int32_t q_in_halves = 0;
  std::uint32_t pulled = 0;  // of a wide way an output's gradient, in the order of lanes
  std::int32_t input_pieces = 1, output_pieces = 1;
  std::int32_t own_row = 0;  // floats of a row of `own`
  // Of a roomy way, of which all but weights and these two is in the block's slot, in bytes from its beginning:
  std::uint32_t operands = 0;  // two layers' [rows, H]
  std::uint32_t staged = 0;    // pieces of inputs, or of outputs' adjoints, that gradients of weights are made of
  Turns turns = Turns::kNone;
  std::int32_t input_window = 1, output_window = 1;  // pieces that are there at a time
  // Of order 2: how far an array of first derivatives is from that of second ones; and what both owe the values, in
  // the order of lanes
  std::uint32_t apart = 0, curved = 0;
};

// The kernels' one argument: `step` is what the kernel after it reads too.
struct RegisterArguments {
  Arguments step;
  RegisterLayout own;
  Curve curve[kMostHidden];
};
static_assert(sizeof(RegisterArguments) <= 4096);

// All that a step's launches are told, but for the table's place and the slots'
struct Prepared {
  RegisterArguments all;
  std::vector<ToldLayer> layers;
  std::uint64_t table_bytes() const {
    return all.own.way.roomy() ? (layers.size() * sizeof(ToldLayer) + 255) / 256 * 256 : 0;
  }
  // The scratch, which the caller allocates: the table, and a slot for each block
  void give_scratch(void* scratch, int blocks) {
    Arguments& a = all.step;
    a.blocks = blocks;
    a.table = table_bytes() ? static_cast<const ToldLayer*>(scratch) : nullptr;
    a.slots = reinterpret_cast<float*>(static_cast<unsigned char*>(scratch) + table_bytes());
  }
};

// Whether there is more than a piece of inputs or of outputs
template <class T>
bool in_pieces(const T& step) {
  return step.D > kRegisterInputs || step.O > kRegisterOutputs;
}

// In words, what of a step the kernel does not compute; nothing if it computes it.
inline std::string refused(const Step& step) {
  if (step.L < 2) return "no hidden layer";
  for (std::int64_t l = 0; l + 1 < step.L; ++l) {
    if (step.layers[l].n_out > 128) return "hidden layers are wider than 128";
  }
  for (int term = 0; step.order == 2 && term < step.count_terms(); ++term) {
    if (step.loss[term].row >= kCountOfLoss) return "order 2 with a loss that couples a sample's numbers";
  }
  return "";
}

inline std::int32_t width_of(const Arguments& a, const std::vector<ToldLayer>& layers) {
  std::int32_t widest = in_pieces(a) ? kWidestKept : 32;  // of pieces there is one way, for all widths
  for (int l = 0; l + 1 < a.L; ++l) {
    while (widest < layers[l].layer.out) widest *= 2;
  }
  return widest;
}

// Whether a hidden layer's derivatives are kept beside its values
inline bool keeps_derivatives(const Arguments& a, const std::vector<ToldLayer>& layers) {
  if (!a.P && !a.gradients) return false;
  if (a.order == 2) return true;
  return std::any_of(layers.begin(), layers.end() - 1, [](const ToldLayer& of) { return !of.curve.known; });
}

// Whether the loss of a term is one of sums over a sample's numbers
inline bool couples(const Arguments& a) {
  return std::any_of(std::begin(a.loss), std::end(a.loss), [](const Function& of) { return of.row >= kCountOfLoss; });
}

// Bytes of a direction's rows of floats, for each warp
constexpr std::uint64_t own_bytes(std::uint64_t inputs) { return kWarps * 16 * (inputs + kSpare) * 4; }

// Whether what a warp has for itself lies where tangents of the second layer will: they come after it is read.
inline bool own_in_tangents(const RegisterWay& way, std::uint32_t hidden, Precision precision) {
  return way.of_few() && (hidden - 1) * 16 * way.width * operand_bytes(precision) >= own_bytes(kRegisterInputs);
}

// What a block has in its slot after gradients and sums, in bytes from its beginning
struct Slot {
  std::uint64_t& bytes;
  Slot(const Arguments& a, std::uint64_t& bytes) : bytes(bytes) {
    bytes = std::uint64_t(a.layout.gradient_floats) * 4 + kSumsBytes;
  }
  std::uint32_t take(std::uint64_t more) {
    const std::uint64_t at = bytes;
    bytes += (more + 15) / 16 * 16;
    return std::uint32_t(at);
  }
};

inline int pieces(int n, int of_piece) { return (n + of_piece - 1) / of_piece; }

inline std::uint64_t shared_bytes(const Arguments& a, const RegisterWay& way, Precision precision, bool kept,
                                  bool tight, int batch, RegisterLayout& to, std::uint64_t& slot_bytes) {
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
  const bool prepared = a.from != From::kOutputs, own_in_right = own_in_tangents(way, hidden, precision);
  to.batch = prepared ? std::min(batch, tangents && columns_shared ? kMostBatch : kWarps / way.groups) : 1;
  if (own_in_right && a.from == From::kCotangents) to.batch = 1;  // the next one's targets would be overwritten
  to.source = take((tangents ? to.batch : 1) * rows * D * size);
  to.targets = take(prepared ? to.batch * way.groups * 64 * O : 0);
  Slot slot(a, slot_bytes);
  const std::uint32_t array = rows * H * size;
  to.h = take(hidden * array);
  to.left = take(hidden * array);
  to.right = take(hidden * array);
  if (kept) to.kept = take(2 * hidden * array);
  to.top = take(rows * O * size);
  to.q_in_halves = tight;
  if (way.of_few()) to.few = slot.take(kFewNumbers * kThreads * 4) / 4;
  const std::uint64_t of_q = std::uint64_t(hidden) * rows * H * (to.q_in_halves ? 2 : 4);
  to.q = way.of_few() ? slot.take(of_q) : take(a.gradients ? of_q : 0);
  to.own_row = D + kSpare;
  to.own = own_in_right ? to.right + array : take(a.P && (prepared || columns_shared) ? own_bytes(D) : 0);
  to.pulled = take(way.wide && a.P && !prepared ? rows * D * 4 : 0);
  to.outputs = take(columns_shared && size == 2 ? kThreads * kOutputNumbers * 4 * to.output_pieces : 0);
  to.seed = take(16);
  to.sums = take(kWarps * (2 * sizeof(double) + O * sizeof(float)));
  to.bytes = std::uint32_t(cursor.at * 4);
  return cursor.at * 4;
}

// The same of a roomy way.
inline std::uint64_t roomy_bytes(const Arguments& a, const RegisterWay& way, Precision precision, bool kept,
                                 Turns turns, RegisterLayout& to, std::uint64_t& slot_bytes) {
  const std::uint64_t H = way.width, rows = 16 * way.groups, hidden = a.L - 1, size = operand_bytes(precision);
  const bool all = turns == Turns::kAll;
  to = RegisterLayout{};
  to.way = way, to.turns = turns;
  const std::uint64_t D = kRegisterInputs * (to.input_pieces = pieces(a.D, kRegisterInputs)),
                      two = 2 * pieces(a.O, 2 * kRegisterOutputs), O = kRegisterOutputs * two;
  to.output_pieces = pieces(a.O, kRegisterOutputs);
  to.input_window = all ? std::int32_t(H / kRegisterInputs) : to.input_pieces;
  to.output_window = all ? std::int32_t(H / kRegisterOutputs) : std::int32_t(two);
  Cursor cursor;
  const auto take = [&](std::uint64_t numbers) { return 4 * cursor.take((numbers + 127) / 128 * 128 * size); };
  to.between = take((turns == Turns::kNone ? hidden - 1 : 1) * H * H);
  to.first = all ? to.between : take(H * D);
  to.last = all ? to.between : take(O * H);
  to.staged = all ? to.between : take(rows * std::max(D, O));
  to.operands = take(2 * rows * H);
  to.seed = 4 * cursor.take(16);
  to.sums = 4 * cursor.take(kWarps * (1 + way.order) * sizeof(double));
  to.bytes = std::uint32_t(cursor.at * 4);

  Slot slot(a, slot_bytes);
  const bool tangents = a.from == From::kDirections, prepared = a.from != From::kOutputs;
  const bool second = way.order == 2;
  const std::uint64_t of_kept = precision == Precision::kBf16 ? 2 : 4;
  to.batch = prepared ? std::min(std::max(a.P, 1), tangents ? kMostBatch : kWarps / way.groups) : 1;
  to.left = slot.take(hidden * rows * H * size);
  to.right = slot.take(hidden * rows * H * size);
  to.top = slot.take(rows * O * size);
  to.targets = slot.take(prepared ? to.batch * rows * O * 4 : 0);
  if (second) to.apart = slot.take(slot_bytes - to.left) - to.left;
  if (second && a.P) to.curved = slot.take(2 * of_kept * hidden * rows * H);
  to.h = slot.take(hidden * rows * H * size);
  if (kept) to.kept = slot.take((second ? 3 * of_kept : 2 * size) * hidden * rows * H);
  to.q = slot.take(hidden * rows * H * 4);
  const std::uint64_t of_coupled = couples(a) ? 2 * kCoupledSums * kThreads + kCoupledSlopes * rows : 0;
  const std::uint64_t of_lane = (second ? kSecondNumbers : kOutputNumbers) * to.output_pieces + kRhoNumbers;
  to.few = slot.take(kThreads * 4 * of_lane + of_coupled * 8) / 4;
  to.bias_sums = slot.take(way.groups * O * 4);
  to.x = slot.take(rows * D * size);
  to.source = slot.take((tangents ? to.batch : 1) * rows * D * size);
  to.own_row = std::int32_t(D) + kSpare;
  to.own = slot.take(a.P ? own_bytes(D) : 0);
  to.pulled = slot.take(a.P && !prepared ? 2 * rows * D * 4 : 0);
  return cursor.at * 4;
}

// The gradients' places in a block's slot, as finish_step reads them
inline void place_gradients(Arguments& a, std::vector<ToldLayer>& layers, std::int32_t H) {
  std::uint32_t at = 0;
  for (int l = 0; l < a.L; ++l) {
    LayerArguments& layer = layers[l].layer;
    layer.padded_in = l ? H : kRegisterInputs * pieces(a.D, kRegisterInputs);
    layer.padded_out = l + 1 < a.L ? H : 16 * pieces(a.O, 16);
    layer.gradient = at;
    layer.bias_gradient = at += layer.padded_in * layer.padded_out;
    at += layer.padded_out;
  }
  a.layout = Layout{};
  a.layout.gradient_floats = a.gradients ? at : 0;
  a.layout.slot_floats = a.layout.gradient_floats + kSumsBytes / 4;
}

#define SK_SECOND_WAYS(way) way(64, 2, 0, 1, true, 2) way(128, 2, 0, 1, true, 2)
// Few samples are shared by more warps for a row, so that there is a tile for each multiprocessor of a large GPU.
#define SK_HALF_WAYS(way)                                                                             \
  way(32, 8, 4, 1, false) way(32, 4, 4, 1, false) way(64, 8, 2, 1, false) way(64, 4, 4, 1, false)     \
      way(64, 2, 2, 2, false) way(64, 2, 4, 1, false) way(128, 2, 2, 1, false) way(64, 2, 4, 1, true) \
          way(64, 2, 0, 1, true) way(128, 2, 0, 1, true) SK_SECOND_WAYS(way)
// Of float32 all arrays take twice the room.
#define SK_FLOAT_WAYS(way)                                                                        \
  way(32, 4, 4, 1, false) way(64, 2, 4, 1, false) way(128, 1, 2, 1, false) way(64, 2, 4, 1, true) \
      way(64, 2, 0, 1, true) way(128, 2, 0, 1, true) SK_SECOND_WAYS(way)
#define SK_WAY(...) {__VA_ARGS__},
constexpr RegisterWay kHalfWays[] = {SK_HALF_WAYS(SK_WAY)}, kFloatWays[] = {SK_FLOAT_WAYS(SK_WAY)};
#undef SK_WAY
inline std::vector<RegisterWay> ways_of(Precision precision) {
  if (operand_bytes(precision) == 2) return {std::begin(kHalfWays), std::end(kHalfWays)};
  return {std::begin(kFloatWays), std::end(kFloatWays)};
}
constexpr std::int64_t kTilesWanted = 128;
constexpr std::int64_t kAnyTile = 1;  // what a step's `tile` says, or samples of one

// Of a block's slot, whose bytes are counted in 32 bits
constexpr std::uint64_t kMostSlot = (1u << 31) - 1;

// What a step is launched with, on a device whose blocks may have `limit` bytes of shared memory.
inline Prepared prepare(const Step& step, Precision precision, std::uint64_t limit) {
  if (const std::string reason = refused(step); !reason.empty()) throw std::invalid_argument(reason);
  Prepared to{{}, layers_of(step)};
  to.all.step = numbers_of(step);
  Arguments& a = to.all.step;
  auto& layers = to.layers;
  const RegisterWay& taken = to.all.own.way;
  const std::int32_t H = width_of(a, layers);
  place_gradients(a, layers, H);
  std::uint64_t least = 0, slot = 0;  // of those that do not fit; of the one that does
  const bool wide = in_pieces(a), kept = keeps_derivatives(a, layers);
  const bool many = a.D > kMostInputPieces * kRegisterInputs || a.O > kMostOutputPieces * kRegisterOutputs;
  const bool in_slot = many || couples(a);
  for (const RegisterWay& way : ways_of(precision)) {
    if (way.order != step.order || (step.tile != kAnyTile && step.tile != 16 * way.groups)) continue;
    if (way.roomy()) {
      if (taken.width || way.width < H) continue;  // what others do they do faster
      place_gradients(a, layers, way.width);
    } else if (way.width != H || way.wide != wide || way.between < a.L - 2 || (kept && H > kWidestKept) || in_slot) {
      continue;
    }
    if (taken.groups == way.groups) continue;  // the better one of as many samples fits
    const std::uint64_t most = share(limit, way.blocks);
    RegisterLayout layout;
    std::uint64_t slot_bytes = 0;
    const auto is_enough = [&](std::uint64_t bytes) {
      if (bytes <= most) return true;
      if (!least || bytes < least) least = bytes;
      return false;
    };
    const auto fits = [&](bool tight) {
      for (int batch = std::min(std::max(a.P, 1), kMostBatch); batch > 0; batch /= 2) {
        if (is_enough(shared_bytes(a, way, precision, kept, tight, batch, layout, slot_bytes))) return true;
      }
      return false;
    };
    const auto fits_in_slot = [&](Turns turns) {
      return is_enough(roomy_bytes(a, way, precision, kept, turns, layout, slot_bytes));
    };
    // sums of several rounds want all their digits, and of float32 any
    const bool tight = a.rounds <= 1 && operand_bytes(precision) == 2;
    const bool fit = way.roomy()
                         ? fits_in_slot(Turns::kNone) || fits_in_slot(Turns::kBetween) || fits_in_slot(Turns::kAll)
                         : fits(false) || (tight && fits(true));
    if (!fit) continue;
    to.all.own = layout;
    a.layout.samples = 16 * way.groups;
    a.layout.slot_floats = std::uint32_t(slot_bytes / 4);
    slot = slot_bytes;
    a.tiles = (a.N + a.layout.samples - 1) / a.layout.samples;
    a.layout.shared_bytes = layout.bytes;
    if (a.tiles >= kTilesWanted) break;
  }
  const std::string student = std::to_string(a.L - 1) + " hidden layers of " + std::to_string(H);
  if (slot > kMostSlot) {
    throw std::invalid_argument(student + " and inputs and outputs take " + std::to_string(slot) +
                                " bytes of a block's slot, it has " + std::to_string(kMostSlot));
  }
  if (taken.width) {
    for (int l = 0; !taken.roomy() && l < a.L; ++l) a.layer[l] = layers[l].layer;
    for (int l = 0; !taken.roomy() && l + 1 < a.L; ++l) to.all.curve[l] = layers[l].curve;
    return to;
  }
  if (!least) {
    const std::string tile = step.tile == kAnyTile ? "" : " in tiles of " + std::to_string(step.tile);
    throw std::invalid_argument(student + tile + " are more than the kernel has registers for");
  }
  throw std::invalid_argument("a tile of this student takes " + std::to_string(least) +
                              " bytes of shared memory, a block has " + std::to_string(limit));
}

}  // namespace sk::cuda
