// Memory with its checks, and the order in which warps run.
//
// Races are found by what barriers order, not by values: each warp counts epochs, one from barrier to barrier, and
// knows the last epoch of every other warp that a barrier orders before now. A place remembers its last write and the
// reads and atomics since; an access that none of them is ordered before is a race. Blocks of one launch are never
// ordered.

#include "machine.h"

#include <algorithm>
#include <bit>
#include <climits>

namespace ptx {
namespace {

const Handler* handler_at(int id) {
  static const std::vector<Handler> all = [] {
    std::vector<Handler> v;
    for (auto& [name, h] : handlers()) v.push_back(h);
    return v;
  }();
  return &all[id];
}

template <class F>
void for_lanes(uint32_t mask, F f) {
  for (; mask; mask &= mask - 1) f(std::countr_zero(mask));
}

}  // namespace

Machine::Machine(Launch& l) : launch(l), random_(uint64_t(l.seed) * 2 + 1) {
  for (int i = 0; i < l.n_regions; i++) {
    uint64_t places = (l.regions[i].end - l.regions[i].begin) / l.granule + 2;
    global_cells_.emplace_back(places);
    touched_.emplace_back(places);
  }
}

uint32_t Machine::draw() {
  random_ = random_ * 6364136223846793005ull + 1442695040888963407ull;
  return uint32_t(random_ >> 33);
}

void Machine::find(FindingKind kind, const Warp& w, int lane, int pc, uint64_t address, int size, int region,
                   const Access* other) {
  int other_pc = other ? int(other->pc) : -1;
  auto [known, is_new] = known_findings_.try_emplace({kind, pc, other_pc, region}, launch.n_findings);
  if (is_new && launch.n_findings == launch.max_findings) {
    known_findings_.erase(known);
    return;
  }
  Finding& f = launch.findings[known->second];
  if (is_new) {
    launch.n_findings++;
    f = {kind, pc, other_pc, block_, w.id * LANES + lane, -1, -1, region, size, 0, address, 0};
    if (other) {
      f.other_block = int(other->block) - 1;
      f.other_thread = int(other->warp * LANES) + (other->lanes ? std::countr_zero(other->lanes) : 0);
    }
  }
  f.count++;
}

// ---- What is ordered ----

bool Machine::ordered(const Access& before, const Access& now) const {
  if (before.block != now.block) return false;
  if (before.warp == now.warp) return before.epoch < now.epoch || before.lanes == now.lanes;
  return warps[now.warp].known[before.warp] >= before.epoch;
}

const Access* Machine::conflict(const Accesses& all, const Access& now) const {
  static thread_local Access other;
  if (!all.last.block) return nullptr;
  if (all.last.block != now.block) return &all.last;
  if (all.earlier_block) {
    other = {all.earlier_block, 0, 0, 0, all.earlier_pc};
    return &other;
  }
  if (!all.per_warp) return ordered(all.last, now) ? nullptr : &all.last;
  for (size_t k = 0; k < warps.size(); k++) {
    const Access& a = pool_[all.per_warp + k];
    if (a.block && !ordered(a, now)) return &a;
  }
  return nullptr;
}

void Machine::add(Accesses& all, const Access& now) {
  auto merge = [](Access& a, const Access& b) {
    uint32_t lanes = a.block && a.epoch == b.epoch ? a.lanes : 0;
    a = b;
    a.lanes |= lanes;
  };
  if (all.last.block && all.last.block != now.block) {
    all.earlier_block = all.last.block, all.earlier_pc = all.last.pc;
    all.last = now;
    all.per_warp = 0;
  } else if (all.per_warp) {
    merge(pool_[all.per_warp + now.warp], now);
  } else if (!all.last.block || all.last.warp == now.warp) {
    merge(all.last, now);
  } else if (ordered(all.last, now)) {
    all.last = now;
  } else {
    all.per_warp = uint32_t(pool_.size());
    pool_.resize(pool_.size() + warps.size());
    pool_[all.per_warp + all.last.warp] = all.last;
    pool_[all.per_warp + now.warp] = now;
  }
}

// `same`: the write leaves every byte as it was.
void Machine::check(Cell& cell, const Access& now, Mode mode, bool same, int region, uint64_t address, int size) {
  const Warp& w = warps[now.warp];
  int lane = std::countr_zero(now.lanes);
  auto report = [&](FindingKind kind, const Access* other) {
    find(kind, w, lane, int(now.pc), address, size, region, other);
  };
  if (cell.pending) {
    Access copy{0, 0, 0, 0, cell.pending - 1};
    return report(UNWAITED_COPY, &copy);
  }
  // Threads of a block may write one value to one place by one instruction: so does Triton where it holds copies.
  const Access* write = conflict(cell.writes, now);
  bool copies = write && mode == Mode::WRITE && same && write->block == now.block && write->pc == now.pc;
  if (write && !copies) report(mode == Mode::WRITE ? WRITE_WRITE_RACE : READ_WRITE_RACE, write);
  if (mode != Mode::ATOMIC)
    if (const Access* other = conflict(cell.atomics, now)) report(READ_WRITE_RACE, other);
  if (mode != Mode::READ)
    if (const Access* other = conflict(cell.reads, now)) report(READ_WRITE_RACE, other);
  if (mode == Mode::READ)
    add(cell.reads, now);
  else if (mode == Mode::ATOMIC)
    add(cell.atomics, now);
  else if (copies)
    add(cell.writes, now);
  else
    cell.writes = {now}, cell.reads = {}, cell.atomics = {};
}

// ---- Memory ----

int Machine::region_of(uint64_t address, int size) const {
  for (int k = 0; k < launch.n_regions; k++)
    if (address >= launch.regions[k].begin && address + size <= launch.regions[k].end) return k;
  return -1;
}

Machine::Request Machine::request(Warp& w, const Instruction& i, uint32_t mask, int operand, int size) {
  Request r;
  r.mask = mask;
  r.size = size;
  const uint64_t* base = w.slot(ins(i)[operand]);
  for_lanes(mask, [&](int l) { r.address[l] = base[l] + int64_t(i.offset); });
  r.space = Space(i.space);
  if (r.space == GENERIC) {
    uint64_t a = r.address[std::countr_zero(mask)];
    r.space = a >= LOCAL_WINDOW ? LOCAL : a >= SHARED_WINDOW ? SHARED : GLOBAL;
    uint64_t window = r.space == LOCAL ? LOCAL_WINDOW : r.space == SHARED ? SHARED_WINDOW : 0;
    for_lanes(mask, [&](int l) { r.address[l] -= window; });
  } else if (r.space == SHARED || r.space == LOCAL) {
    for_lanes(mask, [&](int l) { r.address[l] = uint32_t(r.address[l]); });
  }
  return r;
}

void Machine::access(Warp& w, const Instruction& i, Request& r, Mode mode, const uint8_t (*data)[32]) {
  int pc = pc_of(i), granule = launch.granule;
  count(i, r);
  for_lanes(r.mask, [&](int l) {
    uint64_t a = r.address[l];
    int region = -1;
    uint8_t* host = nullptr;
    if (r.space == GLOBAL) {
      region = region_of(a, r.size);
      if (region >= 0) host = reinterpret_cast<uint8_t*>(a);
    } else if (r.space == SHARED) {
      if (a + r.size <= shared_.size()) host = shared_.data() + a;
    } else if (r.space == LOCAL) {
      if (a + r.size <= uint64_t(launch.local_bytes)) host = w.local.data() + l * launch.local_bytes + a;
    } else if (a + r.size <= uint64_t(launch.n_params)) {
      host = const_cast<uint8_t*>(launch.params) + a;
    }
    if (!host) return find(OUT_OF_BOUNDS, w, l, pc, a, r.size, r.space == GLOBAL ? -1 : -1 - r.space);
    if (a % r.size) find(MISALIGNED, w, l, pc, a, r.size, region);
    r.host[l] = host;
    if (r.space == GLOBAL || r.space == SHARED) {
      Access now{uint32_t(block_) + 1, uint32_t(w.id), w.epoch, 1u << l, uint32_t(pc)};
      Mode as = i.strong ? Mode::ATOMIC : mode;
      bool same = data && !std::memcmp(host, data[l], r.size);
      uint64_t origin = r.space == GLOBAL ? launch.regions[region].begin : 0;
      Cell* cells = r.space == GLOBAL ? global_cells_[region].data() : shared_cells_.data();
      uint64_t first = (a - origin) / granule, last = (a - origin + r.size - 1) / granule;
      for (uint64_t k = first; k <= last; k++) check(cells[k], now, as, same, region, a, r.size);
      if (r.space == GLOBAL) {
        uint8_t bits = mode == Mode::READ ? 1 : mode == Mode::WRITE ? 2 : 3;
        Region& g = launch.regions[region];
        if (bits & 1) g.read += r.size;
        if (bits & 2) g.written += r.size;
        for (uint64_t k = first; k <= last; k++) {
          uint8_t& t = touched_[region][k];
          if (bits & ~t & 1) g.unique_read += granule;
          if (bits & ~t & 2) g.unique_written += granule;
          t |= bits;
        }
      } else if (mode == Mode::WRITE) {
        std::fill_n(initialised_.begin() + a, r.size, 1);
      } else if (!cells[first].pending && !cells[last].pending) {
        uint8_t* from = initialised_.data() + a;
        if (std::find(from, from + r.size, 0) != from + r.size) {
          find(UNINITIALISED, w, l, pc, a, r.size);
          std::fill_n(from, r.size, 1);  // once for each place
        }
      }
    }
    if (data) std::memcpy(host, data[l], r.size);
  });
}

// Sectors: 32 bytes of global memory each. Passes: a shared request of 4 (8, 16) bytes a lane is served for 32 (16, 8)
// lanes at a time, and once for each different word of the busiest of 32 banks.
void Machine::count(const Instruction& i, const Request& r) {
  Count& c = launch.counts[pc_of(i)];
  int lanes = std::popcount(r.mask);
  if (!lanes || (r.space != GLOBAL && r.space != SHARED)) return;
  c.requests++;
  c.bytes += uint64_t(lanes) * r.size;
  uint64_t units[LANES * 9];
  if (r.space == GLOBAL) {
    int n = 0;
    for_lanes(r.mask, [&](int l) { units[n++] = r.address[l]; });
    std::sort(units, units + n);
    uint64_t distinct = 0, end = 0, sector = 0;  // end: of the bytes seen; sector: the next that was not seen
    for (int k = 0; k < n; k++) {
      uint64_t a = units[k], b = a + r.size;
      distinct += b > end ? b - std::max(a, end) : 0;
      end = std::max(end, b);
      uint64_t first = std::max(a / 32, sector), next = (b + 31) / 32;
      if (next > first) c.sectors += next - first, sector = next;
    }
    c.ideal_sectors += (distinct + 31) / 32;
    return;
  }
  int group = std::min(LANES, 128 / std::max(r.size, 4));
  for (int first = 0; first < LANES; first += group) {
    uint32_t part = r.mask & (group == LANES ? ~0u : ((1u << group) - 1) << first);
    if (!part) continue;
    int n = 0, busy[32] = {}, most = 0;
    for_lanes(part, [&](int l) {
      for (uint64_t word = r.address[l] / 4; word <= (r.address[l] + r.size - 1) / 4; word++) units[n++] = word;
    });
    std::sort(units, units + n);
    n = int(std::unique(units, units + n) - units);
    for (int k = 0; k < n; k++) most = std::max(most, ++busy[units[k] % 32]);
    c.passes += most;
    c.ideal_passes++;
  }
}

// ---- Asynchronous copies: done as late as the program allows, at the wait ----

void Machine::copy_async(Warp& w, const Instruction& i, uint32_t mask) {
  int pc = pc_of(i), granule = launch.granule;
  const int32_t* in = ins(i);
  Instruction as = i;
  as.space = SHARED;
  Request to = request(w, as, mask, 0, i.size), from = to;
  for_lanes(mask, [&](int l) {  // i.target: the offset of the source
    from.address[l] = w.slot(in[1])[l] + int64_t(i.target);
  });
  count(i, to);
  uint32_t reading = 0;
  for_lanes(mask, [&](int l) {
    int live = std::min(i.size, int(uint32_t(w.slot(in[2])[l])));
    Copy c{to.address[l], from.address[l], i.size, live, w.committed[l], pc};
    if (c.to + c.bytes > shared_.size()) return find(OUT_OF_BOUNDS, w, l, pc, c.to, c.bytes, -1 - SHARED);
    if ((live && c.from % c.bytes) || c.to % c.bytes) find(MISALIGNED, w, l, pc, c.to, c.bytes);
    Access now{uint32_t(block_) + 1, uint32_t(w.id), w.epoch, 1u << l, uint32_t(pc)};
    if (live) {
      int region = region_of(c.from, live);
      if (region < 0) return find(OUT_OF_BOUNDS, w, l, pc, c.from, live);
      reading |= 1u << l;
      Region& g = launch.regions[region];
      g.read += live;
      for (uint64_t k = (c.from - g.begin) / granule; k <= (c.from - g.begin + live - 1) / granule; k++) {
        check(global_cells_[region][k], now, Mode::READ, false, region, c.from, live);
        if (!(touched_[region][k] & 1)) g.unique_read += granule;
        touched_[region][k] |= 1;
      }
    }
    for (uint64_t k = c.to / granule; k < (c.to + c.bytes) / granule; k++) {
      check(shared_cells_[k], now, Mode::WRITE, false, -1, c.to, c.bytes);
      shared_cells_[k].pending = pc + 1;
    }
    w.copies[l].push_back(c);
  });
  from.mask = reading;
  from.space = GLOBAL;
  uint64_t bytes = launch.counts[pc].bytes, requests = launch.counts[pc].requests;
  count(i, from);
  launch.counts[pc].bytes = bytes, launch.counts[pc].requests = requests;  // one request, of both spaces
}

void Machine::complete(Warp& w, int lane, const Copy& c) {
  int granule = launch.granule;
  std::memset(shared_.data() + c.to, 0, c.bytes);
  std::memcpy(shared_.data() + c.to, reinterpret_cast<const void*>(c.from), c.live);
  std::fill_n(initialised_.begin() + c.to, c.bytes, 1);
  Access now{uint32_t(block_) + 1, uint32_t(w.id), w.epoch, 1u << lane, uint32_t(c.pc)};
  for (uint64_t k = c.to / granule; k < (c.to + c.bytes) / granule; k++) {
    shared_cells_[k].pending = 0;
    check(shared_cells_[k], now, Mode::WRITE, false, -1, c.to, c.bytes);
  }
  if (!c.live) return;
  int region = region_of(c.from, c.live);
  uint64_t origin = launch.regions[region].begin;
  for (uint64_t k = (c.from - origin) / granule; k <= (c.from - origin + c.live - 1) / granule; k++)
    check(global_cells_[region][k], now, Mode::READ, false, region, c.from, c.live);
}

void Machine::commit(Warp& w, uint32_t mask) {
  for_lanes(mask, [&](int l) { w.committed[l]++; });
}

// groups_left < 0: also what was never committed.
void Machine::wait(Warp& w, uint32_t mask, int groups_left) {
  for_lanes(mask, [&](int l) {
    auto& copies = w.copies[l];
    auto done = std::partition_point(copies.begin(), copies.end(), [&](const Copy& c) {
      return groups_left < 0 || c.group < w.committed[l] - groups_left;
    });
    for (auto c = copies.begin(); c != done; ++c) complete(w, l, *c);
    copies.erase(copies.begin(), done);
  });
}

// ---- Control ----

void Machine::barrier_of_warp(Warp& w, uint32_t) { w.known[w.id] = w.epoch++; }

void Machine::exit(Warp& w, uint32_t mask, int pc) {
  w.live &= ~mask;
  for_lanes(mask, [&](int l) {
    for (auto& c : w.copies[l]) {
      Access copy{0, 0, 0, 0, uint32_t(c.pc)};
      find(UNWAITED_COPY, w, l, pc, c.to, c.bytes, -1, &copy);
    }
    w.copies[l].clear();
  });
}

// A fragment has come to where lanes meet: join those that wait there. Returns whether it was the first.
bool Machine::collect(Warp& w, size_t fragment, State state) {
  Fragment& f = w.fragments[fragment];
  f.state = state;
  for (Fragment& other : w.fragments)
    if (&other != &f && other.mask && other.state == state && other.pc == f.pc) {
      f.mask |= other.mask;
      other.mask = 0;
    }
  return true;
}

// Runs the lowest fragment until it meets another, waits or ends. Returns whether the budget lasted.
bool Machine::run_warp(Warp& w, int budget) {
  while (budget > 0 && !stop_) {
    std::erase_if(w.fragments, [](const Fragment& f) { return !f.mask; });
    int pc = INT_MAX, limit = INT_MAX;
    size_t chosen = 0;
    for (size_t k = 0; k < w.fragments.size(); k++)
      if (w.fragments[k].state == State::READY && w.fragments[k].pc < pc) pc = w.fragments[k].pc, chosen = k;
    if (pc == INT_MAX) return true;
    for (size_t k = 0; k < w.fragments.size(); k++) {
      Fragment& other = w.fragments[k];
      if (k == chosen || other.state != State::READY) continue;
      if (other.pc == pc)
        w.fragments[chosen].mask |= other.mask, other.mask = 0;
      else
        limit = std::min(limit, other.pc);
    }
    while (budget-- > 0 && w.fragments[chosen].pc < limit && !stop_)
      if (!advance(w, chosen)) break;
  }
  return false;
}

// One instruction. Returns false where the fragments have to be looked at again.
bool Machine::advance(Warp& w, size_t chosen) {
  Fragment& f = w.fragments[chosen];
  const Instruction& i = launch.code[f.pc];
  const Handler* h = handler_at(i.handler);
  uint32_t mask = f.mask;
  if (i.guard >= 0) {
    const uint64_t* guard = w.slot(i.guard);
    uint32_t yes = 0;
    for_lanes(mask, [&](int l) { yes |= uint32_t((guard[l] & 1) != uint64_t(i.negated)) << l; });
    mask = yes;
  }
  if (++steps_ > launch.max_steps) {
    find(ENDLESS, w, std::countr_zero(f.mask), f.pc);
    stop_ = true;
    return false;
  }
  if (!mask) {
    f.pc++;
    return true;
  }
  bool collective = h->kind == Kind::WARP || h->kind == Kind::BLOCK;
  if (collective && mask != f.mask) {
    uint32_t rest = f.mask & ~mask;
    int next = f.pc + 1;
    f.mask = mask;
    w.fragments.push_back({next, rest});
    return false;
  }
  if (h->kind == Kind::WARP) {
    uint32_t members = uint32_t(w.slot(ins(i)[i.n_ins - 1])[std::countr_zero(mask)]);
    bool stranger = mask & ~members;
    if (!f.forced && ((members & w.live) & ~mask)) {
      collect(w, chosen, State::AT_WARP);
      if ((members & w.live) & ~f.mask) return false;
      f.state = State::READY;
      mask = f.mask;
    }
    if (f.forced || stranger) find(DIVERGENT_WARP, w, std::countr_zero(mask), f.pc);
    f.forced = false;
  }
  Count& c = launch.counts[f.pc];
  c.warps++;
  c.threads += std::popcount(mask);
  switch (h->kind) {
    case Kind::PLAIN:
    case Kind::WARP:
      h->run(*this, w, i, mask);
      f.pc++;
      return true;
    case Kind::BRANCH:
      if (mask == f.mask) {
        f.pc = i.target;
        return true;
      }
      f.mask &= ~mask;
      f.pc++;
      w.fragments.push_back({i.target, mask});
      return false;
    case Kind::INDIRECT: {
      std::map<int, uint32_t> to;
      for_lanes(mask, [&](int l) {
        uint64_t index = std::min<uint64_t>(uint32_t(w.slot(ins(i)[0])[l]), i.n_ins - 2);
        to[int(w.slot(ins(i)[1 + index])[l])] |= 1u << l;
      });
      f.mask &= ~mask;
      f.pc++;
      for (auto [pc, lanes] : to) w.fragments.push_back({pc, lanes});
      return false;
    }
    case Kind::EXIT: {
      int pc = f.pc;
      h->run(*this, w, i, mask);
      f.mask &= ~mask;
      f.pc++;
      exit(w, mask, pc);
      return false;
    }
    case Kind::BLOCK:
      collect(w, chosen, State::AT_BLOCK);
      return false;
  }
  return false;
}

// Opens barriers at which all are. Returns whether one was.
bool Machine::release_barriers() {
  int threads = launch.block[0] * launch.block[1] * launch.block[2], live = 0;
  struct Waiting {
    Warp* warp;
    Fragment* fragment;
  };
  std::map<uint32_t, std::vector<Waiting>> at;
  for (Warp& w : warps) {
    live += std::popcount(w.live);
    for (Fragment& f : w.fragments)
      if (f.mask && f.state == State::AT_BLOCK) {
        const Instruction& i = launch.code[f.pc];
        at[uint32_t(w.slot(ins(i)[0])[std::countr_zero(f.mask)])].push_back({&w, &f});
      }
  }
  bool opened = false;
  for (auto& [id, waiting] : at) {
    const Fragment& first = *waiting[0].fragment;
    const Instruction& i = launch.code[first.pc];
    int wanted = int(waiting[0].warp->slot(ins(i)[1])[std::countr_zero(first.mask)]), arrived = 0, yes = 0;
    bool whole = wanted == 0, same_place = true;
    for (auto [w, f] : waiting) {
      arrived += std::popcount(f->mask);
      same_place &= f->pc == first.pc;
      for_lanes(f->mask, [&](int l) { yes += int(w->slot(ins(launch.code[f->pc])[2])[l] & 1); });
    }
    if (arrived < (whole ? live : wanted)) continue;
    opened = true;
    if (!same_place || (whole && live < threads))
      find(DIVERGENT_BARRIER, *waiting[0].warp, std::countr_zero(first.mask), first.pc);
    std::vector<uint32_t> known(warps.size());
    for (auto [w, f] : waiting) {
      w->known[w->id] = w->epoch;
      for (size_t k = 0; k < known.size(); k++) known[k] = std::max(known[k], w->known[k]);
    }
    for (auto [w, f] : waiting) {
      const Instruction& b = launch.code[f->pc];
      uint64_t result = b.boolean == AND ? yes == arrived : b.boolean == OR ? yes > 0 : uint64_t(yes);
      if (b.n_outs) for_lanes(f->mask, [&](int l) { w->slot(outs(b)[0])[l] = result; });
      w->known = known;
      w->epoch = known[w->id] + 1;
      f->state = State::READY;
      f->pc++;
    }
  }
  return opened;
}

void Machine::start_block(int block) {
  block_ = block;
  int threads = launch.block[0] * launch.block[1] * launch.block[2], n = (threads + LANES - 1) / LANES;
  shared_.assign(launch.shared_bytes, 0xff);
  initialised_.assign(launch.shared_bytes, 0);
  shared_cells_.assign(launch.shared_bytes / launch.granule + 1, Cell());
  pool_.assign(n, Access());  // index 0 stands for none
  warps.resize(n);
  const int* grid = launch.grid;
  for (int k = 0; k < n; k++) {
    Warp& w = warps[k];
    int lanes = std::min(LANES, threads - k * LANES);
    w.id = k;
    w.live = lanes == LANES ? ~0u : (1u << lanes) - 1;
    w.epoch = 1;
    w.known.assign(n, 0);
    w.fragments.assign(1, {0, w.live});
    w.local.assign(size_t(LANES) * launch.local_bytes, 0xff);
    w.registers.assign(size_t(launch.slots) * LANES, ~0ull);  // NaN, as long as nothing was written
    for (int l = 0; l < LANES; l++) w.copies[l].clear(), w.committed[l] = 0;
    for (int c = 0; c < launch.n_constants; c++)
      std::fill_n(w.slot(launch.constant_slots[c]), LANES, launch.constants[c]);
    for (int l = 0; l < LANES; l++) {  // the order of SPECIAL in decode.py
      int t = k * LANES + l;
      const uint32_t* d = reinterpret_cast<const uint32_t*>(launch.block);
      uint32_t values[] = {t % d[0],
                           t / d[0] % d[1],
                           t / d[0] / d[1],
                           d[0],
                           d[1],
                           d[2],
                           uint32_t(block % grid[0]),
                           uint32_t(block / grid[0] % grid[1]),
                           uint32_t(block / grid[0] / grid[1]),
                           uint32_t(grid[0]),
                           uint32_t(grid[1]),
                           uint32_t(grid[2]),
                           uint32_t(l),
                           uint32_t(k),
                           uint32_t(n),
                           (1u << l) - 1,
                           uint32_t((2ull << l) - 1),
                           ~uint32_t((2ull << l) - 1),
                           ~((1u << l) - 1),
                           1u << l,
                           uint32_t(launch.shared_bytes),
                           0};
      for (size_t s = 0; s < std::size(values); s++) w.slot(int(s))[l] = values[s];
    }
  }
}

void Machine::run_block() {
  auto runnable = [](const Warp& w) {
    return std::any_of(w.fragments.begin(), w.fragments.end(),
                       [](const Fragment& f) { return f.mask && f.state == State::READY; });
  };
  size_t n = warps.size(), turn = 0;
  std::vector<size_t> ready;  // from the warp on whose turn it is, in their order
  while (!stop_) {
    ready.clear();
    bool first_only = launch.schedule == ROUND_ROBIN || launch.schedule == AHEAD;
    for (size_t k = 0; k < n && !(first_only && !ready.empty()); k++)
      if (size_t warp = (turn + k) % n; runnable(warps[warp])) ready.push_back(warp);
    if (ready.empty()) {
      if (release_barriers()) continue;
      bool forced = false, waiting = false;
      for (Warp& w : warps)
        for (Fragment& f : w.fragments) {
          waiting |= f.mask != 0;
          if (f.mask && f.state == State::AT_WARP && !forced) f.state = State::READY, f.forced = forced = true;
        }
      if (forced) continue;
      for (Warp& w : warps)
        for (Fragment& f : w.fragments)
          if (f.mask) find(DEADLOCK, w, std::countr_zero(f.mask), f.pc);
      if (waiting) stop_ = true;
      return;
    }
    size_t chosen = ready.front();
    int budget = INT_MAX;
    if (launch.schedule == ROUND_ROBIN) {
      turn = (chosen + 1) % n;
      budget = 4;
    } else if (launch.schedule == REVERSE) {
      chosen = ready.back();
    } else if (launch.schedule == RANDOM) {
      chosen = ready[draw() % ready.size()];
      budget = 1 + int(draw() % 64);
    }
    run_warp(warps[chosen], budget);
    if (!runnable(warps[chosen])) release_barriers();
  }
}

void Machine::run() {
  int blocks = launch.grid[0] * launch.grid[1] * launch.grid[2];
  std::vector<int> order(blocks);
  for (int k = 0; k < blocks; k++) order[k] = launch.schedule == REVERSE ? blocks - 1 - k : k;
  if (launch.schedule == RANDOM)
    for (int k = blocks - 1; k > 0; k--) std::swap(order[k], order[draw() % (k + 1)]);
  for (int block : order) {
    start_block(block);
    run_block();
    if (stop_) return;
  }
}

}  // namespace ptx

extern "C" {

int ptx_handler(const char* name) {
  auto& all = ptx::handlers();
  auto found = all.find(name);
  return found == all.end() ? -1 : int(std::distance(all.begin(), found));
}

// The names, one a line.
const char* ptx_names() {
  static const std::string names = [] {
    std::string s;
    for (auto& [name, handler] : ptx::handlers()) s += name + "\n";
    return s;
  }();
  return names.c_str();
}

void ptx_launch(ptx::Launch* launch) { ptx::Machine(*launch).run(); }
}
