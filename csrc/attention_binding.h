// Attention as Python tells it: what attention.h calls Attention.
// Included in binding.cpp, inside its namespace: no include here, no #pragma once.

// attention(dtype, (B, L, M, E, F, S), scale, causal, threads, isa, tensors, strides): q, k, v, their tangents, y, t,
// the adjoints of y and t, those of q, k and v, and of their tangents; None of what is not there. Three strides of
// each.
PyObject* attention(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return answered([&] {
    need(count == 8 && PyTuple_Check(arguments[1]) && PyList_Check(arguments[6]) && PyList_Check(arguments[7]),
         "eight arguments, the last two of them lists");
    sk::Attention a;
    a.dtype = only_float32(py::cast<int>(py::handle(arguments[0])));
    const auto sizes = py::cast<std::vector<std::int64_t>>(py::handle(arguments[1]));
    need(sizes.size() == 6, "sizes are B, L, M, E, F, S");
    std::int64_t* const to[] = {&a.B, &a.L, &a.M, &a.E, &a.F, &a.S};
    for (std::size_t i = 0; i < 6; ++i) {
      *to[i] = sizes[i];
      need(sizes[i] > 0 || i == 5, "sizes must be positive");
    }
    a.scale = py::cast<double>(py::handle(arguments[2]));
    a.causal = py::cast<bool>(py::handle(arguments[3]));
    a.threads = py::cast<int>(py::handle(arguments[4]));
    const sk::Kernels& kernels = instruction_set(py::cast<std::string>(py::handle(arguments[5])));
    sk::Positions* const heads[] = {&a.q,     &a.k,     &a.v,     &a.dq,    &a.dk,    &a.dv,     &a.y,      &a.t,
                                    &a.bar_y, &a.bar_t, &a.bar_q, &a.bar_k, &a.bar_v, &a.bar_dq, &a.bar_dk, &a.bar_dv};
    const auto strides = py::cast<std::vector<std::int64_t>>(py::handle(arguments[7]));
    need(strides.size() == 3 * std::size(heads), "each must have its strides");
    sk::reading::Each tensors(arguments[6], true);
    for (std::size_t i = 0; i < std::size(heads); ++i) {
      *heads[i] = {reinterpret_cast<void*>(tensors.address()), strides[3 * i], strides[3 * i + 1], strides[3 * i + 2]};
    }
    need(tensors.all(), "attention must be given as many tensors as it has");
    const bool back = a.back();
    need(a.threads > 0 && a.S >= 0, "threads must be positive, and there must not be fewer tangents than none");
    need(a.q.data && a.k.data && a.v.data, "attention must have its values");
    need(back ? a.bar_k.data && a.bar_v.data : a.y.data != nullptr, "attention must have places for what it gives");
    need(a.S == 0 || (a.dq.data && a.dk.data && a.dv.data), "tangents must be there");
    need(a.S == 0 || (back ? a.bar_t.data : a.t.data), "tangents must have their adjoints, or places");
    need(!a.bar_dq.data == !a.bar_dk.data && !a.bar_dq.data == !a.bar_dv.data, "adjoints are those of all tangents");
    py::gil_scoped_release release;
    sk::cpu::run_attention(kernels, a);
  });
}
