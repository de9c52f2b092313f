// Named derivatives as Python tells them, all checked here: what jets.h calls Jets, and how it is run.
// Included in binding.cpp, inside its namespace: no include here, no #pragma once.

// Named derivatives but for their tensors: owns the layers and programs that `jets` points to.
struct JetsBuilder {
  sk::Jets jets;
  std::vector<sk::JetLayer> layers;
  std::vector<sk::Named> named;
  std::deque<std::vector<sk::SumOfProducts>> sums;
  std::deque<std::vector<sk::Product>> terms;

  JetsBuilder(const JetsBuilder&) = delete;
  JetsBuilder(int dtype, std::int64_t D, int directions, const py::list& rows, const py::list& results) {
    jets.dtype = choice<sk::Dtype>(dtype, "dtype");
    jets.D = D;
    jets.directions = directions;
    int streams = 1 + directions;
    std::int64_t n = D;
    for (const auto& row : rows) {
      layers.push_back(layer(py::cast<py::tuple>(row)));
      const auto& last = layers.back();
      need(last.given == streams && last.layer.n_in == n, "a layer must take what the one before gives");
      streams = last.made;
      n = last.layer.n_out;
    }
    need(!layers.empty() && layers.size() <= 64, "a student has 1 to 64 linear layers");
    jets.O = n;
    for (const auto& result : results) {
      for (const auto& part : py::cast<py::list>(result)) {
        const auto t = py::cast<py::tuple>(part);
        const int stream = checked(py::cast<int>(t[0]), streams, "stream");
        const int column = checked(py::cast<int>(t[1]), int(jets.O), "output");
        named.push_back({int(jets.results), stream, column, py::cast<double>(t[2])});
      }
      ++jets.results;
    }
    jets.layers = layers.data();
    jets.L = std::int64_t(layers.size());
    jets.named = named.data();
    jets.count_named = std::int64_t(named.size());
  }

  // (n_in, n_out, activation, given, made, kept, whether the value is given, values, forward, adjoint)
  sk::JetLayer layer(const py::tuple& t) {
    sk::JetLayer result;
    result.layer.n_in = py::cast<std::int64_t>(t[0]);
    result.layer.n_out = py::cast<std::int64_t>(t[1]);
    result.layer.activation = formula(t[2], sk::kCountOfActivation, "activation");
    result.given = py::cast<int>(t[3]);
    result.made = py::cast<int>(t[4]);
    result.kept = py::cast<int>(t[5]);
    result.value = py::cast<bool>(t[6]);
    const bool positive = result.layer.n_in > 0 && result.layer.n_out > 0 && result.given > 0 && result.made > 0;
    need(positive && result.kept >= 0, "layers and their streams must not be empty");
    if (t[7].is_none()) {
      need(result.given == result.made, "a layer without a program makes what it is given");
      return result;
    }
    result.values = program(t[7], result.given + result.made);
    result.forward = program(t[8], result.given + result.made + result.kept);
    result.adjoint = program(t[9], result.given + result.made + result.kept);
    return result;
  }

  // (slots, sigma, [(to, [(a, b, coefficient)])])
  sk::Program program(const py::handle& entry, int named_slots) {
    const auto t = py::cast<py::tuple>(entry);
    sk::Program result;
    result.slots = py::cast<int>(t[0]);
    need(result.slots >= named_slots, "a program must have a slot for each stream");
    const auto slot = [&](const py::handle& i) { return checked(py::cast<int>(i), result.slots, "slot"); };
    const auto sigma = py::cast<py::list>(t[1]);
    for (std::size_t m = 0; m < sigma.size() && m < sk::kDerivatives; ++m) {
      if (!sigma[m].is_none()) result.sigma[m] = slot(sigma[m]);
    }
    auto& products = terms.emplace_back();
    auto& rows = sums.emplace_back();
    for (const auto& row : py::cast<py::list>(t[2])) {
      const auto pair = py::cast<py::tuple>(row);
      sk::SumOfProducts sum;
      sum.to = slot(pair[0]);
      sum.begin = sum.scaled = std::int64_t(products.size());
      for (const auto& part : py::cast<py::list>(pair[1])) {
        const auto abc = py::cast<py::tuple>(part);
        const double c = py::cast<double>(abc[2]);
        products.push_back({slot(abc[0]), slot(abc[1]), c, float(c)});
      }
      sum.end = std::int64_t(products.size());
      const auto begin = products.begin() + sum.begin;
      const auto scaled = std::stable_partition(begin, products.end(), [](const auto& p) { return p.wide == 1; });
      sum.scaled += scaled - begin;
      rows.push_back(sum);
    }
    result.sums = rows.data();
    result.terms = products.data();
    result.count = std::int64_t(rows.size());
    return result;
  }
};

// `parameters` are those of a layer after the other, address and strides of weight and bias, and `gradients` where
// theirs go
void mlp_jets(const JetsBuilder& plan, const std::string& isa, std::int64_t N, std::int64_t tile, int threads,
              const py::object& x, const py::object& v, const py::list& parameters, const py::list& gradients,
              const py::object& out, const py::object& cotangents, const py::object& dx, const py::object& dv) {
  const auto& kernels = instruction_set(isa);
  sk::Jets jets = plan.jets;
  auto layers = plan.layers;
  jets.layers = layers.data();
  jets.N = N;
  jets.tile = tile;
  jets.threads = threads;
  jets.x = strided(x);
  jets.v = strided(v);
  jets.out = output(out);
  jets.cotangents = output(cotangents);
  jets.dx = output(dx);
  jets.dv = output(dv);
  need(N > 0 && tile > 0, "samples and tile must be positive");
  need(jets.x.data && (jets.v.data || !jets.directions), "derivatives must have inputs and directions");
  need(jets.out || jets.cotangents, "derivatives must have their place");
  need(parameters.size() == 2 * layers.size(), "each layer must have a weight and a bias, or none");
  need(!jets.cotangents || gradients.size() == parameters.size(), "a gradient must have its place");
  for (std::size_t l = 0; l < layers.size(); ++l) {
    sk::Layer& layer = layers[l].layer;
    layer.weight = strided(parameters[2 * l]);
    layer.bias = strided(parameters[2 * l + 1]);
    need(layer.weight.data, "a layer must have a weight");
    if (!jets.cotangents) continue;
    layer.dweight = output(gradients[2 * l]);
    layer.dbias = output(gradients[2 * l + 1]);
    need(layer.dweight && (layer.dbias || !layer.bias.data), "a gradient must have its place");
  }
  py::gil_scoped_release release;
  sk::cpu::mlp_jets(kernels, jets);
}
