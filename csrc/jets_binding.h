// Named derivatives as Python tells them, all checked here: what jets.h calls Jets, and how it is run.
// Included in binding.cpp, inside its namespace: no include here, no #pragma once.

// Owns the sums of programs.
struct Programs {
  std::deque<std::vector<sk::SumOfProducts>> sums;
  std::deque<std::vector<sk::Product>> terms;

  // (slots, sigma, [(to, [(a, b, coefficient)])]); `ordered`: summed in this order
  sk::Program program(const py::handle& entry, int named_slots, bool ordered = false) {
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
      const auto one = [](const auto& p) { return p.wide == 1; };
      const auto scaled =
          ordered ? std::find_if_not(begin, products.end(), one) : std::stable_partition(begin, products.end(), one);
      sum.scaled += scaled - begin;
      rows.push_back(sum);
    }
    result.sums = rows.data();
    result.terms = products.data();
    result.count = std::int64_t(rows.size());
    return result;
  }
};

// Named derivatives but for their tensors: owns the layers and programs that `jets` points to.
struct JetsBuilder : Programs {
  sk::Jets jets;
  std::vector<sk::JetLayer> layers;
  std::vector<sk::Named> named;

  JetsBuilder(const JetsBuilder&) = delete;
  JetsBuilder(int dtype, std::int64_t D, int directions, const py::list& rows, const py::list& results) {
    jets.dtype = choice<sk::Dtype>(dtype, "dtype");
    jets.D = jets.W = D;
    jets.P = jets.directions = directions;
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
};

// A loss of named derivatives but for its tensors
struct JetLossBuilder : Programs {
  sk::JetLoss loss;
  std::vector<int> columns, bars;
  std::vector<sk::Deviation> deviations;
  std::vector<sk::Applied> functions;

  JetLossBuilder(const JetLossBuilder&) = delete;
  // `given`: counts of results, columns and coefficients; a deviation is (slot, slot of its slope, term), a function
  // (its number, slot, slot of what it makes, after how many sums)
  JetLossBuilder(const std::vector<int>& given, std::vector<int> columns, std::int64_t terms, const py::tuple& values,
                 const py::tuple& adjoint, const py::list& deviations, std::vector<int> bars, const py::list& functions)
      : columns(std::move(columns)), bars(std::move(bars)) {
    need(given.size() == 3 && given[1] == int(this->columns.size()), "counts of results, columns and coefficients");
    const int named = given[0] + given[1] + given[2];
    need(int(this->bars.size()) == named, "all that is given must have its adjoint's slot, or -1");
    loss.values = program(values, named + 1, true);
    loss.adjoint = program(adjoint, named + 1, true);
    need(loss.values.slots == loss.adjoint.slots, "a loss has one set of slots");
    for (const int bar : this->bars) need(-1 <= bar && bar < loss.adjoint.slots, "a slot of an adjoint");
    for (const auto& entry : deviations) {
      const auto t = py::cast<py::tuple>(entry);
      const auto slot = [&](int i) { return checked(py::cast<int>(t[i]), loss.values.slots, "slot"); };
      this->deviations.push_back({slot(0), slot(1), checked(py::cast<int>(t[2]), int(terms), "term"), {}});
    }
    std::int64_t before = 0;
    for (const auto& entry : functions) {
      const auto t = py::cast<py::tuple>(entry);
      const auto slot = [&](int i) { return checked(py::cast<int>(t[i]), loss.values.slots, "slot"); };
      const auto sums = py::cast<std::int64_t>(t[3]);
      need(before <= sums && sums <= loss.values.count, "functions must come in the order of sums");
      this->functions.push_back({choice<sk::Function>(py::cast<int>(t[0]), "function"), slot(1), slot(2), sums});
      before = sums;
    }
    loss.functions = this->functions.data();
    loss.count_functions = std::int64_t(this->functions.size());
    loss.count_results = given[0];
    loss.count_columns = given[1];
    loss.count_coefficients = given[2];
    loss.count_deviations = std::int64_t(this->deviations.size());
    loss.count_terms = terms;
    loss.columns = this->columns.data();
    loss.bars = this->bars.data();
  }
};

// What is to be computed of which tensors, but what for: `parameters` are those of a layer after the other, address and
// strides of weight and bias, and `gradients` where theirs go, or none.
struct JetsCall {
  sk::Jets jets;
  std::vector<sk::JetLayer> layers;
  std::vector<sk::Place> places;

  JetsCall(const JetsBuilder& plan, std::int64_t N, std::int64_t tile, int threads, bool in_place, const py::object& x,
           const py::object& v, const py::list& parameters, const py::list& gradients, const py::object& dx,
           const py::object& dv)
      : jets(plan.jets), layers(plan.layers) {
    jets.layers = layers.data();
    jets.N = N;
    jets.tile = tile;
    jets.threads = threads;
    jets.in_place = in_place;
    jets.x = strided(x);
    jets.along.given = strided(v);
    jets.dx = output(dx);
    jets.dv = output(dv);
    need(N > 0 && tile > 0, "samples and tile must be positive");
    need(jets.x.data && (jets.along.given.data || !jets.directions), "derivatives must have inputs and directions");
    need(parameters.size() == 2 * layers.size(), "each layer must have a weight and a bias, or none");
    const bool back = gradients.size() > 0;
    need(!back || gradients.size() == parameters.size(), "a gradient must have its place");
    for (std::size_t l = 0; l < layers.size(); ++l) {
      sk::Layer& layer = layers[l].layer;
      layer.weight = strided(parameters[2 * l]);
      layer.bias = strided(parameters[2 * l + 1]);
      need(layer.weight.data, "a layer must have a weight");
      if (!back) continue;
      layer.dweight = output(gradients[2 * l]);
      layer.dbias = output(gradients[2 * l + 1]);
      need(layer.dweight && (layer.dbias || !layer.bias.data), "a gradient must have its place");
    }
  }
  JetsCall(const JetsCall&) = delete;

  // Those of results [results, N]
  const sk::Place* places_in(void* array) {
    const std::int64_t size = jets.dtype == sk::Dtype::kFloat64 ? 8 : 4;
    for (std::int64_t r = 0; r < jets.results; ++r)
      places.push_back({static_cast<char*>(array) + r * jets.N * size, 1});
    return places.data();
  }
};

void mlp_jets(const JetsBuilder& plan, const std::string& isa, std::int64_t N, std::int64_t tile, int threads,
              bool in_place, const py::object& x, const py::object& v, const py::list& parameters,
              const py::list& gradients, const py::object& dx, const py::object& dv, const py::object& out,
              const py::object& cotangents, const py::object& between) {
  const auto& kernels = instruction_set(isa);
  JetsCall call(plan, N, tile, threads, in_place, x, v, parameters, gradients, dx, dv);
  need(out.is_none() != cotangents.is_none(), "derivatives must have their place, or their cotangents");
  (out.is_none() ? call.jets.cotangents : call.jets.out) = call.places_in(output(out.is_none() ? cotangents : out));
  need(!call.jets.cotangents || gradients.size() > 0, "a gradient must have its place");
  call.jets.between = output(between);
  need(!call.jets.between || tile % (kernels.vector_bytes / 4) == 0, "tiles must be whole panels for what is kept");
  py::gil_scoped_release release;
  sk::cpu::mlp_jets(kernels, call.jets);
}

// `terms`: of each (loss, unit, weight, share); `targets`: of each deviation, or None; `inputs` are those that columns
// are of
void mlp_jets_loss(const JetsBuilder& plan, const std::string& isa, std::int64_t N, std::int64_t tile, int threads,
                   bool in_place, const py::object& x, const py::object& v, const py::list& parameters,
                   const py::list& gradients, const py::object& dx, const py::object& dv, const JetLossBuilder& of,
                   const std::vector<double>& coefficients, const py::list& terms, const py::list& targets,
                   const py::object& inputs, const py::object& sample_weight, const py::object& total,
                   const py::object& each, const py::object& dinputs, const py::object& dcoefficients) {
  const auto& kernels = instruction_set(isa);
  JetsCall call(plan, N, tile, threads, in_place, x, v, parameters, gradients, dx, dv);
  sk::JetLoss loss = of.loss;
  auto deviations = of.deviations;
  std::vector<sk::JetTerm> numbers;
  need(loss.count_results == call.jets.results, "a loss must have the results of its plan");
  for (const int column : of.columns) checked(column, int(call.jets.D), "column");
  need(std::int64_t(coefficients.size()) == loss.count_coefficients, "each coefficient must have its number");
  need(std::int64_t(terms.size()) == loss.count_terms, "each term must have its unit, weight and share");
  need(targets.size() == deviations.size(), "each deviation must have a target, or None");
  for (const auto& term : terms) {
    const auto t = py::cast<py::tuple>(term);
    const auto rho = formula(t[0], sk::kCountOfLoss, "loss");
    numbers.push_back({rho, py::cast<double>(t[1]), py::cast<double>(t[2]), py::cast<double>(t[3])});
  }
  for (std::size_t i = 0; i < deviations.size(); ++i) deviations[i].target = strided(targets[i]);
  loss.coefficients = coefficients.data();
  loss.deviations = deviations.data();
  loss.terms = numbers.data();
  loss.inputs = strided(inputs);
  loss.sample_weight = strided(sample_weight);
  loss.total = output(total);
  loss.each = output(each);
  loss.dinputs = output(dinputs);
  loss.dcoefficients = output(dcoefficients);
  loss.back = gradients.size() > 0;
  need(loss.total && loss.each && (loss.inputs.data || of.columns.empty()),
       "a loss must have its place, and its inputs");
  call.jets.loss = &loss;
  py::gil_scoped_release release;
  sk::cpu::mlp_jets(kernels, call.jets);
}
