// An activation of a value and its tangents as Python tells it: what activated.h calls Activated.
// Included in binding.cpp, inside its namespace: no include here, no #pragma once.

// One of them but for its tensors
struct ActivatedBuilder {
  sk::Activated told;
  const sk::Kernels& kernels;

  ActivatedBuilder(int dtype, const py::tuple& activation, int threads, const std::string& isa)
      : kernels(instruction_set(isa)) {
    told.dtype = choice<sk::Dtype>(dtype, "dtype");
    told.activation = formula(activation, sk::kCountOfActivation, "activation");
    told.threads = threads;
    need(threads > 0, "threads must be positive");
  }
  ActivatedBuilder(const ActivatedBuilder&) = delete;
};

// activated(activation, n, S, tensors): z, d, y, t, and slopes or None; or, on the way back, the adjoint of y or None,
// d, the adjoint of t, slopes, those of z, and of d or None. Of a value alone: z, y, its slope; or, on the way back, z,
// the adjoint of y or None, that of the slope or None, that of z.
PyObject* activated(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return answered([&] {
    need(count == 4 && PyList_Check(arguments[3]), "four arguments, the last of them a list");
    const auto& builder = py::cast<const ActivatedBuilder&>(py::handle(arguments[0]));
    sk::Activated a = builder.told;
    a.n = py::cast<std::int64_t>(py::handle(arguments[1]));
    a.S = py::cast<std::int64_t>(py::handle(arguments[2]));
    need(a.n > 0 && a.S >= 0, "there must be numbers");
    sk::reading::Each tensors(arguments[3], true);
    const auto next = [&] { return reinterpret_cast<void*>(tensors.address()); };
    a.alone = PyList_GET_SIZE(arguments[3]) < 5;
    if (a.alone) {
      const bool back = PyList_GET_SIZE(arguments[3]) == 4;
      a.z = next();
      if (back) {
        a.bar_y = next(), a.bar_slope = next(), a.bar_z = next();
      } else {
        a.y = next(), a.slopes = next();
      }
      need(a.S == 0 && a.z && (back ? a.bar_z != nullptr : a.y && a.slopes), "a value must have its tensors");
    } else if (PyList_GET_SIZE(arguments[3]) == 6) {
      a.bar_y = next(), a.d = next(), a.bar_t = next(), a.slopes = next(), a.bar_z = next(), a.bar_d = next();
      need(a.slopes && a.bar_z && (a.S == 0 || (a.d && a.bar_t)), "a way back must have its tensors");
    } else {
      a.z = next(), a.d = next(), a.y = next(), a.t = next(), a.slopes = next();
      need(a.z && a.y && (a.S == 0 || (a.d && a.t)), "an activation must have its tensors");
    }
    need(tensors.all(), "an activation must be given as many tensors as it has");
    py::gil_scoped_release release;
    sk::cpu::run_activated(builder.kernels, a);
  });
}
