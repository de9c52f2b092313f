// A machine that executes decoded PTX warp by warp: 32 lanes at once, under a mask. decode.py makes the programs,
// instructions.cpp holds what each instruction does, machine.cpp memory, checks and scheduling.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

namespace ptx {

constexpr int LANES = 32;

// Where the generic address space shows shared and local memory. Global addresses are the process's own.
constexpr uint64_t SHARED_WINDOW = 1ull << 60, LOCAL_WINDOW = 1ull << 61;

// The next enumerations and structures are spelled again in decode.py and run.py: keep them the same.
enum Space : int32_t { GENERIC, GLOBAL, SHARED, LOCAL, PARAM };
enum Rounding : int32_t { NEAREST, TO_ZERO, DOWN, UP };
enum Boolean : int32_t { NONE, AND, OR, XOR };
enum FindingKind : int32_t {
  OUT_OF_BOUNDS,
  MISALIGNED,
  READ_WRITE_RACE,
  WRITE_WRITE_RACE,
  UNINITIALISED,
  UNWAITED_COPY,
  DIVERGENT_BARRIER,
  DIVERGENT_WARP,
  DEADLOCK,
  ENDLESS,
  TRAP,
};
enum Schedule : int32_t { ROUND_ROBIN, AHEAD, REVERSE, RANDOM };

struct Instruction {
  int32_t handler, guard, negated;         // guard: a predicate's slot or -1
  int32_t outs, n_outs, ins, n_ins;        // ranges of Launch::operands
  int32_t target;                          // of a branch
  int32_t space, size, is_signed, strong;  // of a memory access; strong: volatile, relaxed, acquire, release
  int32_t flush, saturate, rounding, boolean, transposed;
  int32_t offset;  // of an address
};

struct Count {
  uint64_t warps, threads;  // executed, by warp and by thread
  uint64_t requests, bytes, sectors, ideal_sectors, passes, ideal_passes;
};

struct Region {
  uint64_t begin, end;
  uint64_t read, written, unique_read, unique_written;  // bytes
};

struct Finding {
  int32_t kind, pc, other_pc, block, thread, other_block, other_thread, region, size, reserved;
  uint64_t address, count;
};

struct Launch {
  const Instruction* code;
  const int32_t* operands;
  const int32_t* constant_slots;
  const uint64_t* constants;
  const uint8_t* params;
  Region* regions;
  Count* counts;
  Finding* findings;
  int32_t length, slots, n_constants, n_params, n_regions, max_findings, n_findings;
  int32_t grid[3], block[3];
  int32_t shared_bytes, local_bytes, granule, schedule, seed, reserved;
  uint64_t max_steps;
};

// An access as others see it: by some lanes of a warp, between two of the warp's barriers.
struct Access {
  uint32_t block = 0;  // + 1; 0: there was none
  uint32_t warp = 0, epoch = 0, lanes = 0, pc = 0;
};

// Accesses of one kind to one place that no barrier orders among each other.
struct Accesses {
  Access last;
  uint32_t per_warp = 0;                       // an index of Machine::pool_ once warps overlap; 0: only `last`
  uint32_t earlier_block = 0, earlier_pc = 0;  // an access by another block that ran before: as in Access
};

struct Cell {
  Accesses writes, reads, atomics;
  uint32_t pending = 0;  // pc + 1 of the cp.async that has not been waited for
};

enum class State { READY, AT_WARP, AT_BLOCK };

// Lanes of a warp at one place.
struct Fragment {
  int pc;
  uint32_t mask;
  State state = State::READY;
  bool forced = false;
};

struct Copy {
  uint64_t to, from;
  int bytes, live, group, pc;
};

struct Warp {
  int id = 0;
  uint32_t live = 0, epoch = 1;
  std::vector<uint64_t> registers;
  std::vector<Fragment> fragments;
  std::vector<uint32_t> known;  // the last epoch of each warp that barriers order before now
  std::vector<uint8_t> local;
  std::vector<Copy> copies[LANES];
  int committed[LANES] = {};

  uint64_t* slot(int i) { return registers.data() + size_t(i) * LANES; }
};

enum class Mode { READ, WRITE, ATOMIC };

// An array of zeros whose pages cost nothing before they are used.
template <class T>
class Zeros {
 public:
  explicit Zeros(size_t n) : data_(static_cast<T*>(std::calloc(n, sizeof(T))), &std::free) {}
  T& operator[](size_t i) { return data_.get()[i]; }
  T* data() { return data_.get(); }

 private:
  std::unique_ptr<T, decltype(&std::free)> data_;
};

class Machine {
 public:
  Launch& launch;
  std::vector<Warp> warps;

  explicit Machine(Launch& launch);
  void run();

  int pc_of(const Instruction& i) const { return int(&i - launch.code); }
  const int32_t* outs(const Instruction& i) const { return launch.operands + i.outs; }
  const int32_t* ins(const Instruction& i) const { return launch.operands + i.ins; }

  // Memory as all lanes of an instruction see it: check, count, and give each lane its address here, or nullptr.
  struct Request {
    uint64_t address[LANES];
    uint32_t mask = 0;
    int size = 0;
    Space space = GLOBAL;
    uint8_t* host[LANES] = {};
  };
  void access(Warp& w, const Instruction& i, Request& r, Mode mode, const uint8_t (*data)[32] = nullptr);
  Request request(Warp& w, const Instruction& i, uint32_t mask, int operand, int size);

  void copy_async(Warp& w, const Instruction& i, uint32_t mask);
  void commit(Warp& w, uint32_t mask);
  void wait(Warp& w, uint32_t mask, int groups_left);
  void barrier_of_warp(Warp& w, uint32_t mask);

  void find(FindingKind kind, const Warp& w, int lane, int pc, uint64_t address = 0, int size = 0, int region = -1,
            const Access* other = nullptr);

 private:
  std::vector<uint8_t> shared_, initialised_;
  std::vector<Cell> shared_cells_;
  std::vector<Zeros<Cell>> global_cells_;
  std::vector<Zeros<uint8_t>> touched_;
  std::vector<Access> pool_;
  std::map<std::tuple<int, int, int, int>, int> known_findings_;
  int block_ = 0;
  uint64_t steps_ = 0;
  bool stop_ = false;
  uint64_t random_ = 0;

  uint32_t draw();
  void start_block(int block);
  void run_block();
  bool run_warp(Warp& w, int budget);
  bool release_barriers();
  bool collect(Warp& w, size_t fragment, State state);
  bool advance(Warp& w, size_t fragment);
  void exit(Warp& w, uint32_t mask, int pc);
  void complete(Warp& w, int lane, const Copy& c);
  int region_of(uint64_t address, int size) const;
  bool ordered(const Access& a, const Access& b) const;
  const Access* conflict(const Accesses& all, const Access& a) const;
  void add(Accesses& all, const Access& a);
  void check(Cell& cell, const Access& a, Mode mode, bool same, int region, uint64_t address, int size);
  void count(const Instruction& i, const Request& r);
};

using Function = void (*)(Machine&, Warp&, const Instruction&, uint32_t mask);
enum class Kind { PLAIN, BRANCH, INDIRECT, EXIT, WARP, BLOCK };
struct Handler {
  Function run;
  Kind kind = Kind::PLAIN;
};

// By the canonical name that decode.py makes of an opcode, such as add.f32.
const std::map<std::string, Handler>& handlers();

}  // namespace ptx
