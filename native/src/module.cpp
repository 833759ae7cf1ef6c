// The engine as Python sees it. Every argument is checked here: what comes from a damaged folder or
// from a mistake ends in a ValueError.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "encoder.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace enrobe {
namespace {

template <typename T, int D>
using Array = nb::ndarray<const T, nb::ndim<D>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<nb::numpy, float, nb::ndim<2>>;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

std::vector<const Kernels*> all_kernels() {
  std::vector<const Kernels*> found;
  for (const Kernels* table : {kernels_amx(), kernels_avx512(), kernels_avx_vnni(), kernels_avx2(),
                               kernels_arm(), kernels_plain()})
    if (table) found.push_back(table);
  return found;
}

const Kernels& kernels_called(const std::optional<std::string>& name) {
  const auto found = all_kernels();
  if (!name) return *found.front();
  std::string allowed;
  for (const Kernels* table : found) {
    if (*name == table->name) return *table;
    allowed += std::string(allowed.empty() ? "" : ", ") + table->name;
  }
  refuse("kernels '" + *name + "'; this processor has: " + allowed);
}

// `rows` x `columns` of floats that numpy will own.
Floats new_floats(size_t rows, size_t columns) {
  float* data = new float[rows * columns + 1];
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
  return Floats(data, {rows, columns}, owner);
}

void check_vector(const Array<float, 1>& values, size_t size, const std::string& what) {
  if (values.shape(0) != size)
    refuse(what + " has " + std::to_string(values.shape(0)) + " numbers; wanted " +
           std::to_string(size));
}

void check_places(const Array<int64_t, 1>& places, size_t count, size_t below, const char* what) {
  if (places.shape(0) != count)
    refuse(std::string(what) + " has " + std::to_string(places.shape(0)) + " entries; wanted " +
           std::to_string(count));
  for (size_t i = 0; i < count; ++i)
    if (places.data()[i] < 0 || static_cast<size_t>(places.data()[i]) >= below)
      refuse(std::string(what) + " holds " + std::to_string(places.data()[i]) +
             "; wanted 0 to " + std::to_string(below - 1));
}

// An encoder, and what its tables lie in.
struct Held {
  Encoder encoder;
  std::vector<nb::object> arrays;
  bool complete = false;

  Held(size_t layers, size_t hidden, size_t feed_forward, size_t heads, float epsilon,
       size_t threads, const std::optional<std::string>& kernels)
      : encoder(Sizes{layers, hidden, feed_forward, heads, epsilon}, kernels_called(kernels),
                threads) {
    if (!layers || !hidden || !feed_forward || !heads || hidden % heads)
      refuse("sizes of an encoder must be above 0, and hidden a multiple of heads");
    if (!threads || threads > 1024) refuse("threads must be from 1 to 1024");
  }

  void set_table_int8(const std::string& name, Array<int8_t, 2> values, Array<float, 1> scale) {
    check_table(values.shape(1), name);
    check_vector(scale, values.shape(0), name);
    encoder.set_table(name, Table{values.data(), scale.data(), nullptr, values.shape(0)});
    arrays.push_back(nb::cast(values));
    arrays.push_back(nb::cast(scale));
  }

  void set_table_float(const std::string& name, Array<float, 2> values) {
    check_table(values.shape(1), name);
    encoder.set_table(name, Table{nullptr, nullptr, values.data(), values.shape(0)});
    arrays.push_back(nb::cast(values));
  }

  void check_table(size_t columns, const std::string& name) const {
    if (columns != encoder.sizes.hidden) refuse(name + " is not as wide as the encoder");
  }

  void set_linear_int8(const std::string& name, Array<int8_t, 2> values, Array<float, 1> scale,
                       Array<float, 1> bias, std::optional<Array<float, 1>> smooth, int zero) {
    const size_t n = values.shape(0), k = values.shape(1);
    check_vector(scale, n, name + ".scale");
    check_vector(bias, n, name + ".bias");
    if (smooth) check_vector(*smooth, k, name + ".smooth");
    if (zero < 1 || zero > 254) refuse(name + ": zero must be from 1 to 254");
    // 32 bits hold sums of this many products of a byte and a signed one.
    if (!n || !k || k > 65536) refuse(name + ": an int8 matrix has from 1 to 65536 inputs");
    keep(name, [&] {
      return Linear::of_int8(encoder.kernels, values.data(), n, k, scale.data(),
                             smooth ? smooth->data() : nullptr, zero, bias.data());
    });
  }

  void set_linear_float(const std::string& name, Array<float, 2> values, Array<float, 1> bias) {
    const size_t n = values.shape(0), k = values.shape(1);
    check_vector(bias, n, name + ".bias");
    if (!n || !k) refuse(name + " is empty");
    keep(name,
         [&] { return Linear::of_float(encoder.kernels, values.data(), n, k, bias.data()); });
  }

  // Packs while other threads of Python go on. The table of layers is changed and looked up in under
  // Python's lock alone.
  template <typename Pack>
  void keep(const std::string& name, Pack pack) {
    Linear made;
    {
      nb::gil_scoped_release released;
      made = pack();
    }
    encoder.set_linear(name, std::move(made));
  }

  void set_norm(const std::string& name, Array<float, 1> weight, Array<float, 1> bias) {
    check_vector(bias, weight.shape(0), name + ".bias");
    if (!weight.shape(0)) refuse(name + " is empty");
    encoder.set_norm(name, weight.data(), bias.data(), weight.shape(0));
  }

  void finish() {
    encoder.finish();
    complete = true;
  }

  std::vector<Floats> run(Array<int64_t, 1> ids, Array<int64_t, 1> types,
                          Array<int64_t, 1> positions, Array<int64_t, 1> offsets, size_t depth,
                          const std::vector<size_t>& layers,
                          std::optional<Array<int64_t, 1>> picks) {
    if (!complete) refuse("finish() was not called");
    const size_t tokens = ids.shape(0), hidden = encoder.sizes.hidden;
    check_places(ids, tokens, encoder.table("word")->rows, "ids");
    check_places(positions, tokens, encoder.table("position")->rows, "positions");
    if (const Table* kinds = encoder.table("token_type"))
      check_places(types, tokens, kinds->rows, "types");
    if (offsets.shape(0) < 2 || offsets.data()[0] != 0 ||
        offsets.data()[offsets.shape(0) - 1] != static_cast<int64_t>(tokens))
      refuse("offsets must go from 0 to the number of ids");
    for (size_t i = 1; i < offsets.shape(0); ++i)
      if (offsets.data()[i] <= offsets.data()[i - 1]) refuse("offsets must ascend");
    if (depth > encoder.sizes.layers) refuse("depth is beyond the last layer");
    size_t picked = 0;
    if (picks) {
      picked = picks->shape(0);
      check_places(*picks, picked, tokens, "picks");
      for (size_t i = 1; i < picked; ++i)
        if (picks->data()[i] <= picks->data()[i - 1]) refuse("picks must ascend");
      if (!depth) refuse("picks are of a layer");
    }
    Wanted wanted;
    wanted.layers.assign(depth + 1, nullptr);
    if (picks) {
      wanted.picks = picks->data();
      wanted.picked = picked;
    }
    std::vector<Floats> found;
    for (const size_t layer : layers) {
      if (layer > depth) refuse("a layer is beyond depth");
      if (wanted.layers[layer]) refuse("a layer is asked for twice");
      found.push_back(new_floats(picks && layer == depth ? picked : tokens, hidden));
      wanted.layers[layer] = found.back().data();
    }
    const Batch batch{ids.data(), types.data(), positions.data(), offsets.data(),
                      offsets.shape(0) - 1};
    nb::gil_scoped_release released;
    encoder.run(batch, wanted);
    return found;
  }

  Floats apply(const std::string& name, Array<float, 2> x, const std::string& activation) {
    const Linear& by = encoder.linear(name);
    if (x.shape(1) != by.inputs) refuse(name + " wants " + std::to_string(by.inputs) + " inputs");
    const char* names[] = {"none", "gelu", "tanh", "relu"};
    size_t how = 0;
    while (how < 4 && activation != names[how]) ++how;
    if (how == 4) refuse("activation '" + activation + "'; allowed: none, gelu, tanh, relu");
    Floats out = new_floats(x.shape(0), by.outputs);
    float* to = out.data();
    nb::gil_scoped_release released;
    if (x.shape(0))
      encoder.apply(by, x.data(), x.shape(0), static_cast<Activation>(how), to);
    return out;
  }

  nb::tuple best(const std::string& name, Array<float, 2> x, size_t count) {
    const Linear& by = encoder.linear(name);
    if (x.shape(1) != by.inputs) refuse(name + " wants " + std::to_string(by.inputs) + " inputs");
    if (!count || count > by.outputs)
      refuse("count must be from 1 to " + std::to_string(by.outputs));
    const size_t rows = x.shape(0);
    int64_t* places = new int64_t[rows * count + 1];
    nb::capsule owner(places, [](void* p) noexcept { delete[] static_cast<int64_t*>(p); });
    Floats logs = new_floats(rows, count);
    float* values = logs.data();
    {
      nb::gil_scoped_release released;
      if (rows) encoder.best(by, x.data(), rows, count, places, values);
    }
    return nb::make_tuple(
        nb::ndarray<nb::numpy, int64_t, nb::ndim<2>>(places, {rows, count}, owner), logs);
  }

  Floats normalize(const std::string& name, Array<float, 2> x) {
    if (x.shape(1) != encoder.norm(name).size) refuse(name + " is of another width");
    Floats out = new_floats(x.shape(0), x.shape(1));
    encoder.normalize(name, x.data(), x.shape(0), out.data());
    return out;
  }
};

}  // namespace
}  // namespace enrobe

NB_MODULE(_native, module) {
  using enrobe::Held;
  module.def("kernels", [] {
    std::vector<std::string> names;
    for (const auto* table : enrobe::all_kernels()) names.emplace_back(table->name);
    return names;
  });
  nb::class_<Held>(module, "Encoder")
      .def(nb::init<size_t, size_t, size_t, size_t, float, size_t, std::optional<std::string>>(),
           "layers"_a, "hidden"_a, "feed_forward"_a, "heads"_a, "epsilon"_a, "threads"_a,
           "kernels"_a = nb::none())
      .def("set_table", &Held::set_table_int8, "name"_a, "values"_a.noconvert(),
           "scale"_a.noconvert())
      .def("set_table", &Held::set_table_float, "name"_a, "values"_a.noconvert())
      .def("set_linear", &Held::set_linear_int8, "name"_a, "values"_a.noconvert(),
           "scale"_a.noconvert(), "bias"_a.noconvert(), "smooth"_a.none() = nb::none(),
           "zero"_a = 128)
      .def("set_linear", &Held::set_linear_float, "name"_a, "values"_a.noconvert(),
           "bias"_a.noconvert())
      .def("set_norm", &Held::set_norm, "name"_a, "weight"_a.noconvert(), "bias"_a.noconvert())
      .def("finish", &Held::finish)
      .def("run", &Held::run, "ids"_a, "types"_a, "positions"_a, "offsets"_a, "depth"_a,
           "layers"_a, "picks"_a.none() = nb::none())
      .def("apply", &Held::apply, "name"_a, "x"_a, "activation"_a = "none")
      .def("best", &Held::best, "name"_a, "x"_a, "count"_a)
      .def("normalize", &Held::normalize, "name"_a, "x"_a);
}
