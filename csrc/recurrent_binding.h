// A recurrent layer as Python tells it: what recurrent.h calls Recurrent, and how a pass of it is run.
// Included in binding.cpp, inside its namespace: no include here, no #pragma once.

// One of them but for its tensors; sizes N, T, I, H
struct RecurrentBuilder {
  sk::Recurrent told;
  bool biased;
  const sk::Kernels& kernels;

  RecurrentBuilder(int dtype, const py::tuple& sizes, bool steps_first, bool with_biases, std::int64_t tile,
                   int threads, const std::string& isa)
      : biased(with_biases), kernels(instruction_set(isa)) {
    told.dtype = only_float32(dtype);
    need(sizes.size() == 4, "sizes are N, T, I, H");
    std::int64_t* const to[] = {&told.N, &told.T, &told.I, &told.H};
    for (std::size_t i = 0; i < 4; ++i) {
      *to[i] = py::cast<std::int64_t>(sizes[i]);
      need(*to[i] > 0, "sizes must be positive");
    }
    need(tile > 0 && threads > 0, "tile and threads must be positive");
    told.steps_first = steps_first;
    told.tile = tile;
    told.threads = threads;
    for (std::int64_t l = 0; l < told.L; ++l) {
      sk::Layer& layer = told.layers[l];
      layer.n_in = l ? told.H : told.I;
      layer.n_out = 3 * told.H;
      layer.weight.stride[0] = layer.n_in;
      layer.weight.stride[1] = layer.bias.stride[0] = 1;
    }
  }
  RecurrentBuilder(const RecurrentBuilder&) = delete;
};

// run_recurrent(layer, pass, S, tensors): x, d, first, given, moved, out, out_moved, values, adjoint, owed, tangents;
// then the weights of inputs and of states, their biases if it has them, and of each of these its gradient; None of
// what is not there.
PyObject* run_recurrent(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return answered([&] {
    need(count == 4 && PyList_Check(arguments[3]), "four arguments, the last of them a list");
    const auto& builder = py::cast<const RecurrentBuilder&>(py::handle(arguments[0]));
    sk::Recurrent r = builder.told;
    r.pass = sk::RecurrentPass(checked(py::cast<int>(py::handle(arguments[1])), sk::kRecurrentPasses, "pass"));
    r.S = py::cast<std::int64_t>(py::handle(arguments[2]));
    need(r.S >= 0, "there must not be fewer tangents than none");
    sk::reading::Each tensors(arguments[3], true);
    const auto next = [&] { return reinterpret_cast<void*>(tensors.address()); };
    for (const void** read : {&r.x, &r.d, &r.first, &r.given, &r.moved}) *read = next();
    for (void** made : {&r.out, &r.out_moved, &r.values, &r.adjoint, &r.owed, &r.tangents}) *made = next();
    for (sk::Layer& layer : r.layers) layer.weight.data = next();
    for (sk::Layer& layer : r.layers) layer.bias.data = builder.biased ? next() : nullptr;
    for (sk::Layer& layer : r.layers) layer.dweight = next();
    for (sk::Layer& layer : r.layers) layer.dbias = builder.biased ? next() : nullptr;
    need(tensors.all(), "a recurrent layer must be given as many tensors as it has");
    using Pass = sk::RecurrentPass;
    const bool pairs = r.pass == Pass::kPairs || r.pass == Pass::kPairsBack, values = r.pass == Pass::kValues;
    const bool gradient = r.pass == Pass::kGradient || r.pass == Pass::kAlong;
    need(r.layers[0].weight.data && r.layers[1].weight.data, "a recurrent layer must have its weights");
    need(!builder.biased || (r.layers[0].bias.data && r.layers[1].bias.data), "a recurrent layer must have its biases");
    need(!r.layers[0].dweight == !r.layers[1].dweight && !r.layers[0].dbias == !r.layers[1].dbias,
         "gradients are those of all weights and of all biases");
    need(pairs || r.S == 0, "a pass of values has no tangents");
    need(r.x || gradient, "a pass must have its inputs");
    need(r.first || r.backward() || gradient, "a recurrent layer must have its first state");
    need(r.values || (!r.backward() && !gradient), "a pass must have what is kept of values");
    need(!gradient || (r.given && r.adjoint), "a pass must be given what it is of, and what a gradient keeps");
    need(r.out || r.sums(), "a pass must have a place for what it gives");
    need(r.S == 0 || (r.d && (r.out_moved || r.sums())), "tangents must be there, and places for theirs");
    need(r.S == 0 || !r.backward() || (r.moved && r.tangents), "a way back must have adjoints of tangents, and these");
    need(!values || !r.tangents, "values have no tangents");
    py::gil_scoped_release release;
    sk::cpu::run_recurrent(builder.kernels, r);
  });
}
