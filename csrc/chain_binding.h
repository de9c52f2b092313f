// A chain of layers as Python tells it: what chain.h calls Chain, and how a pass of it is run.
// Included in binding.cpp, inside its namespace: no include here, no #pragma once.

// A chain but for its tensors: owns the layers that `chain` points to.
struct ChainBuilder {
  sk::Chain chain;
  std::vector<sk::Layer> layers;
  std::vector<bool> biased;
  const sk::Kernels& kernels;

  // rows of (n_in, n_out, activation, strides of the weight, whether there is a bias, without gaps)
  ChainBuilder(int dtype, std::int64_t N, std::int64_t tile, int threads, bool in_place, const std::string& isa,
               const py::list& rows)
      : kernels(instruction_set(isa)) {
    chain.dtype = choice<sk::Dtype>(dtype, "dtype");
    chain.N = N;
    chain.tile = tile;
    chain.threads = threads;
    chain.in_place = in_place;
    need(N > 0 && tile > 0 && threads > 0, "samples, tile and threads must be positive");
    for (const auto& row : rows) {
      const auto t = py::cast<py::tuple>(row);
      sk::Layer layer;
      layer.n_in = py::cast<std::int64_t>(t[0]);
      layer.n_out = py::cast<std::int64_t>(t[1]);
      layer.activation = formula(t[2], sk::kCountOfActivation, "activation");
      const auto strides = py::cast<py::tuple>(t[3]);
      for (std::size_t i = 0; i < 2; ++i) layer.weight.stride[i] = py::cast<std::int64_t>(strides[i]);
      layer.bias.stride[0] = 1;
      need(layer.n_in > 0 && layer.n_out > 0, "layers must not be empty");
      need(layers.empty() || layers.back().n_out == layer.n_in, "a layer must take what the one before gives");
      layers.push_back(layer);
      biased.push_back(py::cast<bool>(t[4]));
    }
    need(!layers.empty() && layers.size() <= 64, "a chain has 1 to 64 linear layers");
    chain.layers = layers.data();
    chain.L = std::int64_t(layers.size());
  }
  ChainBuilder(const ChainBuilder&) = delete;
};

// run_chain(chain, pass, tensors): x, given, out, slopes, values, adjoint, owed, then the parameters, and of each of
// these its gradient; None of what is not there.
PyObject* run_chain(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return answered([&] {
    need(count == 3 && PyList_Check(arguments[2]), "three arguments, the last of them a list");
    const auto& builder = py::cast<const ChainBuilder&>(py::handle(arguments[0]));
    sk::Chain chain = builder.chain;
    auto layers = builder.layers;
    chain.layers = layers.data();
    chain.pass = sk::Pass(checked(py::cast<int>(py::handle(arguments[1])), sk::kPasses, "pass"));
    sk::reading::Each tensors(arguments[2], true);
    const auto next = [&] { return reinterpret_cast<void*>(tensors.address()); };
    chain.x = next();
    chain.given = next();
    chain.out = next();
    for (void** kept : {&chain.slopes, &chain.values, &chain.adjoint, &chain.owed}) *kept = next();
    for (std::size_t l = 0; l < layers.size(); ++l) {
      layers[l].weight.data = next();
      if (builder.biased[l]) layers[l].bias.data = next();
      need(layers[l].weight.data && (layers[l].bias.data || !builder.biased[l]), "a chain must have its parameters");
    }
    for (std::size_t l = 0; l < layers.size() && chain.sums(); ++l) {
      layers[l].dweight = next();
      if (builder.biased[l]) layers[l].dbias = next();
    }
    need(tensors.all(), "a chain must be given as many tensors as it has");
    const auto sizes = builder.kernels.chain_sizes(chain);
    const bool values = chain.pass == sk::Pass::kValues, back = chain.pass == sk::Pass::kBack;
    need(chain.x || !(values || back), "a chain must have its inputs");
    need(chain.given || values || back, "a pass must be given what it is of");
    need(chain.out || chain.sums(), "a pass must have a place for what it gives");
    need((chain.slopes || !sizes.slopes) && (chain.values || !sizes.values), "a pass must have what is kept");
    need(chain.adjoint || values || back, "a pass must have what a gradient keeps");
    py::gil_scoped_release release;
    sk::cpu::run_chain(builder.kernels, chain);
  });
}
