// The Python module: addresses, sizes and strides come in as integers, and nothing is known here of torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/mean_loss.h"
#include "cuda/registers.h"
#include "jets.h"
#include "math/enums.h"
#include "reading.h"
#ifdef SK_CUDA
#include "cuda/launch.h"
#endif

namespace py = pybind11;
using namespace py::literals;

namespace {

using Address = std::uintptr_t;

sk::Strided strided(const py::handle& entry) {
  sk::Strided result;
  if (entry.is_none()) return result;
  const auto tuple = py::cast<py::tuple>(entry);
  result.data = reinterpret_cast<const void*>(py::cast<Address>(tuple[0]));
  for (std::size_t i = 1; i < tuple.size() && i < 5; ++i) result.stride[i - 1] = py::cast<std::int64_t>(tuple[i]);
  return result;
}

void* output(const py::handle& entry) {
  return entry.is_none() ? nullptr : reinterpret_cast<void*>(py::cast<Address>(entry));
}

// A number from Python as one of `count` choices.
int checked(int code, int count, const char* what) {
  if (0 <= code && code < count) return code;
  throw std::invalid_argument(std::string(what) + " " + std::to_string(code) + " is none of the " +
                              std::to_string(count) + " that this core was built with");
}

template <class E>
E choice(int code, const char* what) {
  return E(checked(code, sk::kCountOf<E>, what));
}

// Of what the core has no float64 of, since PyTorch outruns it there
sk::Dtype only_float32(int code) {
  const auto dtype = choice<sk::Dtype>(code, "dtype");
  if (dtype != sk::Dtype::kFloat32) throw std::invalid_argument("this is computed in float32 alone");
  return dtype;
}

sk::Target target(const py::handle& entry) {
  const auto tuple = py::cast<py::tuple>(entry);
  const auto data = strided(tuple[1]);
  const auto kind = choice<sk::TargetKind>(py::cast<int>(tuple[0]), "target kind");
  return {data.data ? kind : sk::TargetKind::kNone, data};
}

// A row of a table of `count` with its parameters
sk::Formula formula(const py::handle& entry, int count, const char* what) {
  const auto tuple = py::cast<py::tuple>(entry);
  sk::Formula result;
  result.row = checked(py::cast<int>(tuple[0]), count, what);
  for (std::size_t i = 1; i < tuple.size() && i < 3; ++i) result.parameters[i - 1] = py::cast<double>(tuple[i]);
  return result;
}

const sk::Kernels& instruction_set(const std::string& name) {
  std::string known;
  for (const auto* set : sk::cpu::instruction_sets()) {
    if (name.empty() || name == set->name) return *set;
    known += (known.empty() ? "" : ", ") + std::string(set->name);
  }
  throw std::invalid_argument("instruction set '" + name + "' is not available on this machine; known: " + known);
}

void need(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

#include "jets_binding.h"

// A step under construction: owns the layers and the streams that `step` points to.
struct StepBuilder {
  sk::Step step;
  std::vector<sk::Layer> layers;
  std::shared_ptr<const JetsBuilder> streams;

  sk::Step& finish() {
    step.layers = layers.data();
    step.L = std::int64_t(layers.size());
    need(!layers.empty(), "a student has a linear layer");
    need(step.tile >= 1 && step.group >= 1, "tile and group must be positive");
    need(step.N >= 0 && step.P >= 0 && 0 <= step.W && step.W <= step.D,
         "sizes must not be negative, nor W more than D");
    need(step.order == 1 || step.order == 2, "order must be 1 or 2");
    need(!step.headed() || step.order == 1, "a head has first derivatives only");
    constexpr int kResiduals = sk::kCountOfLoss + sk::kCountOfCoupled;
    need(step.headed() || step.loss[0].row < kResiduals, "a likelihood must have a head");
    need(step.loss[1].row < kResiduals && step.loss[2].row < kResiduals, "a likelihood is a loss of values");
    std::int64_t n = step.D;
    for (const auto& layer : layers) {
      need(layer.n_in == n && layer.n_out >= 0, "a layer must take what the one before gives");
      need(layer.weight.data || layer.n_in * layer.n_out == 0, "a layer must have a weight");
      n = layer.n_out;
    }
    need(n == step.O, "the last layer must give O outputs");
    if (!streams) return step;
    const auto& jets = streams->jets;
    step.streams = &jets;
    need(step.order == 2 && step.projection == sk::Projection::kDirections && !step.headed(), "streams of order 2");
    need(!jets.results || (step.residuals != sk::Residuals::kLoss && step.P > 0), "streams of a sum");
    need(jets.dtype == step.dtype && jets.L == step.L && jets.D == step.D &&
             (jets.results == 0 || jets.results == 2 * step.O) && (jets.directions > 0 || step.P == 0),
         "streams must be those of the step");
    for (std::size_t l = 0; l < layers.size(); ++l) {
      need(streams->layers[l].layer.n_out == layers[l].n_out, "streams must be those of the step");
    }
    return step;
  }

  // Every address that is there: x, parameters, given vectors, targets, weights of residuals; and of what is written.
  // `core.addresses` has them in this order.
  template <class Visit>
  void each_read(Visit visit) {
    const auto of = [&](sk::Strided& array) { array.data ? visit(array.data) : void(); };
    of(step.x);
    for (auto& layer : layers) of(layer.weight), of(layer.bias);
    of(step.directions.given);
    for (auto& target : step.target) of(target.data);
    for (auto* weight : {&step.sample_weight, &step.output_weight, &step.derivative_weight}) of(*weight);
  }
  template <class Visit>
  void each_written(Visit visit) {
    for (void** to : {&step.y, &step.derivatives, &step.second, &step.total, &step.terms, &step.dx, &step.dgiven}) {
      if (*to) visit(*to);
    }
    for (auto& layer : layers) {
      for (void** to : {&layer.dweight, &layer.dbias}) {
        if (*to) visit(*to);
      }
    }
  }

  // The same with other addresses in the places of its own: `next_read` and `next_written` say which.
  template <class Read, class Written>
  void at(Read next_read, Written next_written) {
    each_read([&](const void*& place) { place = reinterpret_cast<const void*>(next_read()); });
    each_written([&](void*& place) { place = reinterpret_cast<void*>(next_written()); });
  }

  // The same of a step that is kept, ready to be run, which this is a copy of.
  void again(const std::vector<Address>& reads, const std::vector<Address>& writes, std::uint64_t seed,
             std::uint64_t place, Address seed_at = 0) {
    std::size_t read = 0, written = 0;
    const auto next = [](const std::vector<Address>& places, std::size_t& i) {
      need(i < places.size() && places[i], "a step must be given all of its addresses");
      return places[i++];
    };
    at([&] { return next(reads, read); }, [&] { return next(writes, written); });
    need(read == reads.size() && written == writes.size(), "a step must be given no more addresses than it has");
    step.directions.seed = seed;
    step.directions.place = place;
    step.directions.seed_at = reinterpret_cast<const std::int64_t*>(seed_at);
    run();
  }

  // One that is to be run: what it reads and writes without asking is there.
  sk::Step& run() {
    finish();
    need(step.x.data || step.N * step.D == 0, "a step must have inputs");
    const bool given = step.directions.distribution == sk::Distribution::kGiven;
    const bool empty = step.P * step.N * step.drawn() == 0;
    need(!given || step.directions.given.data || empty, "directions must be drawn or given");
    for (const auto& layer : layers) {
      need(!step.gradients || layer.dweight || layer.n_in * layer.n_out == 0, "a gradient must have its place");
      need(!step.gradients || !layer.bias.data || layer.dbias || layer.n_out == 0, "a gradient must have its place");
    }
    return step;
  }
};

// As Python keeps a function that takes its arguments as they lie, without pybind11's look at each.
PyCFunction fast(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

sk::cuda::Prepared cuda_arguments(const sk::Step& step, sk::Precision precision, std::uint64_t limit, int blocks,
                                  Address scratch) {
  need(!step.headed(), "a head must be none on a GPU");
  auto a = sk::cuda::prepare(step, precision, limit);
  a.give_scratch(reinterpret_cast<void*>(scratch), blocks);
  return a;
}

void set_layers(StepBuilder& self, const py::list& rows) {
  self.layers.clear();
  for (const auto& row : rows) {
    const auto t = py::cast<py::tuple>(row);
    sk::Layer layer;
    layer.n_in = py::cast<std::int64_t>(t[0]);
    layer.n_out = py::cast<std::int64_t>(t[1]);
    layer.activation = formula(t[2], sk::kCountOfActivation, "activation");
    layer.weight = strided(t[3]);
    layer.bias = strided(t[4]);
    layer.dweight = output(t[5]);
    layer.dbias = output(t[6]);
    self.layers.push_back(layer);
  }
}

// What a function of Python's own kind gives that does no more than `work`: None, or what was thrown as its exception.
template <class Work>
PyObject* answered(Work work) {
  try {
    work();
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
  Py_RETURN_NONE;
}

const sk::Step& of_cpu(const sk::Step& step) {
  need(step.L <= 64, "a student has 1 to 64 linear layers");
  need(step.order == 1 || step.streams, "order 2 must have streams");
  return step;
}

PyObject* mlp_sobolev_at(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return answered([&] {
    need(count == 6 && PyList_Check(arguments[2]) && PyList_Check(arguments[3]), "six arguments, two of them lists");
    StepBuilder self = py::cast<const StepBuilder&>(py::handle(arguments[0]));  // two threads may run the same one
    const auto& kernels = instruction_set(py::cast<std::string>(py::handle(arguments[1])));
    sk::reading::Each reads(arguments[2]), writes(arguments[3]);
    self.at([&] { return reads.number(); }, [&] { return writes.address(); });
    need(reads.all() && writes.all(), "a step must be given as many addresses as it has");
    self.step.directions.seed = py::cast<std::uint64_t>(py::handle(arguments[4]));
    self.step.directions.place = py::cast<std::uint64_t>(py::handle(arguments[5]));
    const auto& step = of_cpu(self.run());
    py::gil_scoped_release release;
    sk::cpu::mlp_sobolev(kernels, step);
  });
}

// mean_loss(loss, tensors that are read, tensors that are filled)
PyObject* mean_loss(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return answered([&] {
    need(count == 3 && PyList_Check(arguments[1]) && PyList_Check(arguments[2]), "three arguments, two of them lists");
    const auto& loss = py::cast<const sk::cpu::MeanLoss&>(py::handle(arguments[0]));
    sk::reading::Each reads(arguments[1]), writes(arguments[2]);
    std::vector<const void*> read(std::size_t(loss.gradients() + 3 + loss.projected));
    std::vector<void*> written(std::size_t(loss.gradients() + 2));
    for (auto& place : read) place = reinterpret_cast<const void*>(reads.address());
    for (auto& place : written) place = reinterpret_cast<void*>(writes.address());
    need(reads.all() && writes.all(), "a loss must be given as many tensors as it has");
    py::gil_scoped_release release;
    sk::cpu::mean_loss(loss, read, written);
  });
}

#include "activated_binding.h"
#include "attention_binding.h"
#include "chain_binding.h"
#include "normed_binding.h"
#include "convolved_binding.h"
#include "recurrent_binding.h"

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The C++ core of sobolev_kernels: fused Sobolev steps on plain memory.";

  py::class_<StepBuilder>(m, "Step")
      .def(py::init([](int dtype, std::int64_t N, std::int64_t D, std::int64_t O, std::int64_t P, std::int64_t W,
                       int order) {
             StepBuilder self;
             self.step.dtype = choice<sk::Dtype>(dtype, "dtype");
             self.step.N = N;
             self.step.D = D;
             self.step.O = O;
             self.step.P = P;
             self.step.W = W;
             self.step.order = order;
             return self;
           }),
           py::arg("dtype"), py::arg("N"), py::arg("D"), py::arg("O"), py::arg("P"), py::arg("W"), py::arg("order"))
      .def(
          "streams", [](StepBuilder& self, std::shared_ptr<JetsBuilder> streams) { self.streams = std::move(streams); },
          "by which it makes order 2: all derivatives, or with results y and the sum of the second ones")
      .def("layers", &set_layers, "rows of (n_in, n_out, activation, weight, bias, dweight, dbias)")
      .def("input", [](StepBuilder& self, const py::object& x) { self.step.x = strided(x); })
      .def("directions",
           [](StepBuilder& self, int projection, int distribution, const py::object& given, std::uint64_t seed,
              std::uint64_t place, bool shared, double magnitude) {
             self.step.projection = choice<sk::Projection>(projection, "projection");
             const auto drawn = choice<sk::Distribution>(distribution, "distribution");
             self.step.directions = {drawn, strided(given), seed, place, nullptr, shared, magnitude};
           })
      .def(
          "residuals",
          [](StepBuilder& self, int kind, const py::list& targets, const py::object& sample_weight,
             const py::object& output_weight, const py::object& derivative_weight) {
            self.step.residuals = choice<sk::Residuals>(kind, "residuals");
            for (std::size_t i = 0; i < targets.size() && i < sk::kMaxTerms; ++i) {
              self.step.target[i] = target(targets[i]);
            }
            self.step.sample_weight = strided(sample_weight);
            self.step.output_weight = strided(output_weight);
            self.step.derivative_weight = strided(derivative_weight);
          },
          "targets: (kind, address and strides) of each term")
      .def(
          "loss",
          [](StepBuilder& self, const py::list& terms, bool per_sample) {
            for (std::size_t i = 0; i < terms.size() && i < sk::kMaxTerms; ++i) {
              const auto t = py::cast<py::tuple>(terms[i]);
              constexpr int kCount = sk::kCountOfLoss + sk::kCountOfCoupled + sk::kCountOfLikelihood;
              self.step.loss[i] = formula(t[0], kCount, "loss");
              self.step.weight[i] = py::cast<double>(t[1]);
              self.step.share[i] = py::cast<double>(t[2]);
            }
            self.step.per_sample = per_sample;
          },
          "terms: (formula, weight, share) of each")
      .def("head",
           [](StepBuilder& self, const py::tuple& head) { self.step.head = formula(head, sk::kCountOfHead, "head"); })
      .def("outputs",
           [](StepBuilder& self, bool gradients, const py::object& y, const py::object& derivatives,
              const py::object& second, const py::object& loss, const py::object& terms, const py::object& dx,
              const py::object& dgiven) {
             self.step.gradients = gradients;
             self.step.y = output(y);
             self.step.derivatives = output(derivatives);
             self.step.second = output(second);
             self.step.total = output(loss);
             self.step.terms = output(terms);
             self.step.dx = output(dx);
             self.step.dgiven = output(dgiven);
           })
      .def(
          "addresses",
          [](StepBuilder& self) {
            std::vector<Address> reads, writes;
            self.each_read([&](const void* place) { reads.push_back(reinterpret_cast<Address>(place)); });
            self.each_written([&](void* place) { writes.push_back(reinterpret_cast<Address>(place)); });
            return std::make_pair(reads, writes);
          },
          "what it reads and what it writes, in the order in which mlp_sobolev_at takes others for them")
      .def("plan", [](StepBuilder& self, int side, std::int64_t tile, std::int64_t group, bool gather, bool in_place,
                      bool lockstep, int threads) {
        self.step.side = choice<sk::Side>(side, "side");
        self.step.tile = tile;
        self.step.group = group;
        self.step.gather = gather;
        self.step.in_place = in_place;
        self.step.lockstep = lockstep;
        self.step.threads = threads < 1 ? 1 : threads;
      });

  m.def(
      "tables",
      [] {
        py::dict tables;
#define SK_TABLE(name, ...) tables[name] = py::make_tuple(__VA_ARGS__);
        SK_TABLES(SK_TABLE)
#undef SK_TABLE
        return tables;
      },
      "the names of rows and choices by table, in the order of their numbers");
  m.def(
      "mlp_sobolev",
      [](StepBuilder& self, const std::string& isa) {
        const auto& kernels = instruction_set(isa);
        const auto& step = of_cpu(self.run());
        py::gil_scoped_release release;
        sk::cpu::mlp_sobolev(kernels, step);
      },
      py::arg("step"), py::arg("isa") = "");
  py::class_<JetsBuilder, std::shared_ptr<JetsBuilder>>(m, "Jets", "named derivatives of a student, but for tensors")
      .def(py::init<int, std::int64_t, int, const py::list&, const py::list&>(), py::arg("dtype"), py::arg("D"),
           py::arg("directions"), py::arg("layers"), py::arg("results"));
  m.def("mlp_jets", &mlp_jets, "named derivatives, or from their cotangents the gradients", py::arg("plan"),
        py::arg("isa"), py::arg("N"), py::arg("tile"), py::arg("threads"), py::arg("in_place"), py::arg("x"),
        py::arg("v"), py::arg("parameters"), py::arg("gradients"), py::arg("dx"), py::arg("dv"), py::arg("out"),
        py::arg("cotangents"), py::arg("between") = py::none());
  py::class_<JetLossBuilder>(m, "JetLoss", "a loss of named derivatives, but for tensors")
      .def(py::init<const std::vector<int>&, std::vector<int>, std::int64_t, const py::tuple&, const py::tuple&,
                    const py::list&, std::vector<int>, const py::list&>(),
           py::arg("given"), py::arg("columns"), py::arg("terms"), py::arg("values"), py::arg("adjoint"),
           py::arg("deviations"), py::arg("bars"), py::arg("functions"));
  m.def("mlp_jets_loss", &mlp_jets_loss, "a loss of named derivatives, and all its gradients", py::arg("plan"),
        py::arg("isa"), py::arg("N"), py::arg("tile"), py::arg("threads"), py::arg("in_place"), py::arg("x"),
        py::arg("v"), py::arg("parameters"), py::arg("gradients"), py::arg("dx"), py::arg("dv"), py::arg("loss"),
        py::arg("coefficients"), py::arg("terms"), py::arg("targets"), py::arg("inputs"), py::arg("sample_weight"),
        py::arg("total"), py::arg("each"), py::arg("dinputs"), py::arg("dcoefficients"));
  py::class_<sk::cpu::MeanLoss>(m, "MeanLoss", "weighted means of pointwise terms of values and derivatives")
      .def(py::init([](bool wide, const py::tuple& losses, double values, double derivatives,
                       const std::vector<std::int64_t>& sizes, bool projected) {
             sk::cpu::MeanLoss loss;
             loss.wide = wide;
             for (std::size_t i = 0; i < 2; ++i) loss.losses[i] = formula(losses[i], sk::kCountOfLoss, "loss");
             loss.weights[0] = values, loss.weights[1] = derivatives;
             need(sizes.size() == 4, "N, O, D and P");
             loss.N = sizes[0], loss.O = sizes[1], loss.D = sizes[2], loss.P = sizes[3];
             loss.projected = projected;
             return loss;
           }),
           py::arg("wide"), py::arg("losses"), py::arg("values"), py::arg("derivatives"), py::arg("sizes"),
           py::arg("projected"));
  py::class_<ChainBuilder>(m, "Chain", "a chain of layers amid other operations, but for its tensors")
      .def(py::init<int, std::int64_t, std::int64_t, int, bool, const std::string&, const py::list&>(),
           py::arg("dtype"), py::arg("N"), py::arg("tile"), py::arg("threads"), py::arg("in_place"), py::arg("isa"),
           py::arg("layers"))
      .def(
          "sizes",
          [](const ChainBuilder& self) {
            const auto sizes = self.kernels.chain_sizes(self.chain);
            return py::make_tuple(sizes.slopes, sizes.values, sizes.adjoint);
          },
          "numbers of what its passes keep: slopes, values, and of each gradient");
  py::class_<ActivatedBuilder>(m, "Activated", "an activation of a value and its tangents, but for its tensors")
      .def(py::init<int, const py::tuple&, int, const std::string&>(), py::arg("dtype"), py::arg("activation"),
           py::arg("threads"), py::arg("isa"));
  py::class_<NormedBuilder>(m, "Normed", "a norm of a value and its tangents, but for its tensors")
      .def(py::init<int, std::int64_t, std::int64_t, bool, double, int, const std::string&>(), py::arg("dtype"),
           py::arg("n"), py::arg("channels"), py::arg("centred"), py::arg("eps"), py::arg("threads"), py::arg("isa"));
  py::class_<ConvolvedBuilder>(m, "Convolved", "a convolution of images, but for its samples")
      .def(py::init<std::int64_t, std::int64_t, const std::vector<std::vector<std::int64_t>>&, bool, int,
                    const std::string&>(),
           py::arg("C"), py::arg("O"), py::arg("dims"), py::arg("transposed"), py::arg("threads"), py::arg("isa"));
  py::class_<RecurrentBuilder>(m, "Recurrent", "a GRU over all steps, but for its tensors")
      .def(py::init<int, const py::tuple&, bool, bool, std::int64_t, int, const std::string&>(), py::arg("dtype"),
           py::arg("sizes"), py::arg("steps_first"), py::arg("biased"), py::arg("tile"), py::arg("threads"),
           py::arg("isa"))
      .def(
          "kept",
          [](const RecurrentBuilder& self) {
            const sk::Recurrent& r = self.told;
            const std::int64_t lanes = self.kernels.vector_bytes / (r.dtype == sk::Dtype::kFloat64 ? 8 : 4);
            return (r.N + lanes - 1) / lanes * lanes * r.T * r.H;
          },
          "numbers of each array that its passes keep");
  static PyMethodDef read_at_every_step[] = {
      {"read", fast(sk::reading::read), METH_FASTCALL, "(module, rules, kinds, parameters): whether it is an MLP"},
      {"held", fast(sk::reading::held), METH_FASTCALL, "What modules hold: each with copies of its dicts."},
      {"modules", fast(sk::reading::modules), METH_FASTCALL,
       "(roots, plain, kinds, parameters): what they are made of"},
      {"plain", fast(sk::reading::plain), METH_FASTCALL, "(roots, values): what plain values there are, in a number"},
      {"nodes", fast(sk::reading::nodes), METH_FASTCALL, "(nodes): these and all that they lead to, in order"},
      {"addresses", fast(sk::reading::addresses), METH_FASTCALL, "(tensors, needs): where they are, or None"},
      {"mlp_sobolev_at", fast(mlp_sobolev_at), METH_FASTCALL,
       "(step, isa, addresses, tensors, seed, place): a kept step, of what is at these and into those"},
      {"mean_loss", fast(mean_loss), METH_FASTCALL,
       "(loss, reads, writes): a loss of tensors without gaps, its slopes"},
      {"activated", fast(activated), METH_FASTCALL,
       "(activation, n, S, tensors): one of a value and its tangents, or its way back"},
      {"attention", fast(attention), METH_FASTCALL,
       "(dtype, sizes, scale, causal, threads, isa, tensors, strides): one of a value and its tangents, or back"},
      {"convolved", fast(convolved), METH_FASTCALL, "(convolution, N, tensors): one of images, its adjoints"},
      {"normed", fast(normed), METH_FASTCALL, "(norm, rows, S, tensors): one of a value and its tangents, or back"},
      {"run_recurrent", fast(run_recurrent), METH_FASTCALL, "(layer, pass, S, tensors): a pass of a recurrent layer"},
      {"run_chain", fast(run_chain), METH_FASTCALL, "(chain, pass, tensors): a pass of a chain of layers"},
      {nullptr, nullptr, 0, nullptr},
  };
  if (PyModule_AddFunctions(m.ptr(), read_at_every_step) < 0) throw py::error_already_set();
  m.def(
      "draw_directions",
      [](StepBuilder& self, Address out, const std::string& isa) {
        sk::cpu::draw_directions(instruction_set(isa), self.step, reinterpret_cast<void*>(out));
      },
      py::arg("step"), py::arg("out"), py::arg("isa") = "");
  m.def(
      "working_memory",
      [](StepBuilder& self, const std::string& isa) {
        return sk::cpu::working_memory(instruction_set(isa), of_cpu(self.finish()));
      },
      py::arg("step"), py::arg("isa") = "");
  m.def(
      "instruction_sets",
      [] {
        std::vector<std::pair<std::string, int>> found;
        for (const auto* set : sk::cpu::instruction_sets()) found.emplace_back(set->name, set->vector_bytes);
        return found;
      },
      "(name, bytes of a vector) of each instruction set this machine can execute, the best first");

  // CUDA: what can be prepared without a GPU is there in every build
  m.def(
      "cuda_layout",
      [](StepBuilder& self, int precision, std::uint64_t limit) {
        const auto& step = self.finish();
        const auto rounded = choice<sk::Precision>(precision, "precision");
        const auto prepared = sk::cuda::prepare(step, rounded, limit);
        const auto& all = prepared.all;
        const auto& layout = all.step.layout;
        const auto& [width, groups, between, most, wide, order] = all.own.way;
        return py::dict("samples"_a = layout.samples, "threads"_a = sk::cuda::kThreads, "tiles"_a = all.step.tiles,
                        "shared"_a = layout.shared_bytes, "slot"_a = layout.slot_floats * 4,
                        "table"_a = prepared.table_bytes(),
                        "way"_a = py::make_tuple(width, groups, between, most, wide, int(order)));
      },
      "how a block with `limit` bytes of shared memory goes about the step; bytes", py::arg("step"),
      py::arg("precision"), py::arg("limit"));
  m.def(
      "cuda_arguments_at",
      [](const StepBuilder& kept, int precision, std::uint64_t limit, int blocks, int,
         const std::vector<Address>& reads, const std::vector<Address>& writes, std::uint64_t seed, std::uint64_t place,
         Address seed_at, Address scratch) -> py::object {
        StepBuilder self = kept;
        self.again(reads, writes, seed, place, seed_at);
        const auto prepared =
            cuda_arguments(self.step, choice<sk::Precision>(precision, "precision"), limit, blocks, scratch);
        const auto& a = prepared.all.step;
        const auto bytes = [](const auto& of) { return py::bytes(reinterpret_cast<const char*>(&of), sizeof of); };
        const auto grid = sk::cuda::grid_of_finish(a, prepared.layers);
        py::list table;
        for (const auto& some : sk::cuda::told(a, prepared.layers)) table.append(bytes(some));
        return py::make_tuple(table, bytes(prepared.all), bytes(a),
                              sk::cuda::finishes(a) ? py::object(py::make_tuple(grid.columns, grid.rows)) : py::none());
      },
      "what cuda_step_at would launch: the arguments of what tells layers, of the step and of what finishes it, and "
      "the "
      "grid of the latter, if it is launched",
      py::arg("step"), py::arg("precision"), py::arg("limit"), py::arg("blocks"), py::arg("device"), py::arg("reads"),
      py::arg("writes"), py::arg("seed"), py::arg("place"), py::arg("seed_at"), py::arg("scratch"));
#ifdef SK_CUDA
  m.def(
      "cuda_step_at",
      [](const StepBuilder& kept, int precision, std::uint64_t limit, int blocks, int device,
         const std::vector<Address>& reads, const std::vector<Address>& writes, std::uint64_t seed, std::uint64_t place,
         Address seed_at, Address scratch, Address stream) {
        StepBuilder self = kept;
        self.again(reads, writes, seed, place, seed_at);
        const auto rounded = choice<sk::Precision>(precision, "precision");
        const auto a = cuda_arguments(self.step, rounded, limit, blocks, scratch);
        py::gil_scoped_release release;
        sk::cuda::launch(a, rounded, device, stream);
      },
      "a step on a device, on its stream, at other addresses than it was told", py::arg("step"), py::arg("precision"),
      py::arg("limit"), py::arg("blocks"), py::arg("device"), py::arg("reads"), py::arg("writes"), py::arg("seed"),
      py::arg("place"), py::arg("seed_at"), py::arg("scratch"), py::arg("stream"));
  m.def(
      "cuda_blocks",
      [](int precision, const std::tuple<int, int, int, std::int16_t, bool, int>& way, std::uint64_t shared,
         int device) {
        const auto& [width, groups, between, most, wide, order] = way;
        return sk::cuda::blocks_of_a_multiprocessor(device, choice<sk::Precision>(precision, "precision"),
                                                    {width, groups, between, most, wide, std::int8_t(order)}, shared);
      },
      "blocks that a multiprocessor holds at a time", py::arg("precision"), py::arg("way"), py::arg("shared"),
      py::arg("device"));
  m.def("cuda_devices", &sk::cuda::count_devices, "GPUs that there are; 0 without a driver");
#endif
}
