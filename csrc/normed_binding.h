// A norm of a value and its tangents as Python tells it: what normed.h calls Normed.
// Included in binding.cpp, inside its namespace: no include here, no #pragma once.

// One of them but for its tensors
struct NormedBuilder {
  sk::Normed told;
  const sk::Kernels& kernels;

  // Of rows of n numbers, or of n numbers of each of so many channels
  NormedBuilder(int dtype, std::int64_t n, std::int64_t channels, bool centred, double eps, int threads,
                const std::string& isa)
      : kernels(instruction_set(isa)) {
    told.dtype = choice<sk::Dtype>(dtype, "dtype");
    told.n = n;
    told.rows_alone = channels == 0;
    told.channels = channels ? channels : 1;
    told.centred = centred;
    told.eps = eps;
    told.threads = threads;
    need(n > 0 && channels >= 0 && threads > 0, "numbers and threads must be positive");
  }
  NormedBuilder(const NormedBuilder&) = delete;
};

// normed(norm, rows, S, tensors): v, d, weight, bias, y, t; or, on the way back, v, d, weight, and the adjoints of y
// and of t, of v, d, weight and bias; None of a weight or bias that is not there, of d, weight and bias also if not
// wanted.
PyObject* normed(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return answered([&] {
    need(count == 4 && PyList_Check(arguments[3]), "four arguments, the last of them a list");
    const auto& builder = py::cast<const NormedBuilder&>(py::handle(arguments[0]));
    sk::Normed norm = builder.told;
    norm.rows = py::cast<std::int64_t>(py::handle(arguments[1]));
    norm.S = py::cast<std::int64_t>(py::handle(arguments[2]));
    need(norm.rows > 0 && norm.S > 0, "there must be numbers and tangents");
    sk::reading::Each tensors(arguments[3], true);
    const auto next = [&] { return reinterpret_cast<void*>(tensors.address()); };
    norm.v = next(), norm.d = next(), norm.weight = next();
    if (PyList_GET_SIZE(arguments[3]) == 9) {
      norm.bar_y = next(), norm.bar_t = next();
      norm.bar_v = next(), norm.bar_d = next(), norm.bar_weight = next(), norm.bar_bias = next();
      need(norm.v && norm.d && norm.bar_y && norm.bar_t && norm.bar_v, "a way back must have its tensors");
    } else {
      norm.bias = next(), norm.y = next(), norm.t = next();
      need(norm.v && norm.d && norm.y && norm.t, "a norm must have its tensors");
    }
    need(tensors.all(), "a norm must be given as many tensors as it has");
    py::gil_scoped_release release;
    sk::cpu::run_normed(builder.kernels, norm);
  });
}
