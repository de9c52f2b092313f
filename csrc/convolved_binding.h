// A convolution of images as Python tells it: what convolved.h calls Convolved.
// Included in binding.cpp, inside its namespace: no include here, no #pragma once.

// One of them but for its samples
struct ConvolvedBuilder {
  sk::Convolved told;
  sk::Reaches of_outputs, of_inputs;
  const sk::Kernels& kernels;

  // channels of inputs and outputs; of each of two dims how many inputs, taps of the kernel and outputs, and stride,
  // padding and dilation
  ConvolvedBuilder(std::int64_t C, std::int64_t O, const std::vector<std::vector<std::int64_t>>& dims, bool transposed,
                   int threads, const std::string& isa)
      : kernels(instruction_set(isa)) {
    told.C = C;
    told.O = O;
    told.transposed = transposed;
    told.threads = threads;
    told.lanes = kernels.vector_bytes / 4;
    need(dims.size() == 2 && C > 0 && O > 0 && threads > 0, "channels and threads must be positive, of two dims");
    for (std::size_t i = 0; i < 2; ++i) {
      const auto& dim = dims[i];
      need(dim.size() == 6 && dim[0] > 0 && dim[1] > 0 && dim[2] > 0, "a dim must have six numbers");
      need(dim[3] > 0 && dim[4] >= 0 && dim[5] > 0, "steps must be positive, and no padding negative");
      told.dims[i] = {dim[0], dim[1], dim[2], dim[3], dim[4], dim[5]};
    }
    reach();
  }
  ConvolvedBuilder(const ConvolvedBuilder&) = delete;

  // Which taps of the kernel reach from a position to one on the other side
  void reach() {
    const auto [down, along] = told.dims;
    const auto add = [](sk::Reaches& reaches, std::int64_t weight, std::int64_t from, std::int64_t count) {
      const bool first = reaches.taps.size() == reaches.begin.back();
      sk::Taps* last = first ? nullptr : &reaches.taps.back();
      if (last && last->weight + last->count == weight && last->from + last->count == from) {
        last->count += count;
      } else {
        reaches.taps.push_back({weight, from, count});
      }
    };
    const std::int64_t taps = told.kernel();
    of_outputs.begin = of_inputs.begin = {0};
    for (std::int64_t at = 0; at < told.positions_out(); ++at) {
      for (std::int64_t tap = 0; tap < taps; ++tap) {
        const std::int64_t h = down.input(at / along.outputs, tap / along.kernel);
        const std::int64_t w = along.input(at % along.outputs, tap % along.kernel);
        const bool within = h >= 0 && h < down.inputs && w >= 0 && w < along.inputs;
        if (within) add(of_outputs, tap * told.C, (h * along.inputs + w) * told.C, told.C);
      }
      of_outputs.begin.push_back(of_outputs.taps.size());
    }
    // the output that has an input by a tap of a dim, if there is one
    const auto output_of = [](const sk::Slid& dim, std::int64_t input, std::int64_t tap) -> std::int64_t {
      const std::int64_t far = input - dim.input(0, tap);
      return far >= 0 && far % dim.stride == 0 && far / dim.stride < dim.outputs ? far / dim.stride : -1;
    };
    for (std::int64_t at = 0; at < told.positions(); ++at) {
      for (std::int64_t turned = 0; turned < taps; ++turned) {
        const std::int64_t tap = taps - 1 - turned;
        const std::int64_t h = output_of(down, at / along.inputs, tap / along.kernel);
        const std::int64_t w = output_of(along, at % along.inputs, tap % along.kernel);
        if (h >= 0 && w >= 0) add(of_inputs, turned * told.O, (h * along.outputs + w) * told.O, told.O);
      }
      of_inputs.begin.push_back(of_inputs.taps.size());
    }
  }
};

// convolved(convolution, N, tensors): inputs, outputs, weight, bias, what is made of the inputs, of the outputs, and
// the adjoints of weight and bias; None of what is not there, or not wanted.
PyObject* convolved(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return answered([&] {
    need(count == 3 && PyList_Check(arguments[2]), "three arguments, the last of them a list");
    const auto& builder = py::cast<const ConvolvedBuilder&>(py::handle(arguments[0]));
    sk::Convolved work = builder.told;
    work.of_outputs = &builder.of_outputs;
    work.of_inputs = &builder.of_inputs;
    work.N = py::cast<std::int64_t>(py::handle(arguments[1]));
    sk::reading::Each tensors(arguments[2], true);
    const auto next = [&] { return reinterpret_cast<void*>(tensors.address()); };
    work.inputs = next(), work.outputs = next(), work.weight = next(), work.bias = next();
    work.to_outputs = next(), work.to_inputs = next(), work.dweight = next(), work.dbias = next();
    need(work.N > 0 && tensors.all(), "a convolution must have samples, and be given eight tensors or None");
    need((!work.to_outputs || work.inputs) && (!work.to_inputs || work.outputs), "what is made must be of something");
    need((!work.to_outputs && !work.to_inputs) || work.weight, "what is made must be by a weight");
    need(!work.dweight || (work.inputs && work.outputs), "a weight's adjoint must be of both sides");
    need(!work.dbias || (work.transposed ? work.inputs : work.outputs), "a bias's adjoint must be of its side");
    py::gil_scoped_release release;
    sk::cpu::run_convolved(builder.kernels, work);
  });
}
