// The engine as Python sees it. Every argument is checked here: what comes from a damaged folder or
// from a mistake ends in a ValueError.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <stdexcept>

#include "encoder.h"
#include "layer.h"

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
      return Linear::of_int8(encoder.kernels, encoder.arena, values.data(), n, k, scale.data(),
                             smooth ? smooth->data() : nullptr, zero, bias.data());
    });
  }

  void set_linear_float(const std::string& name, Array<float, 2> values, Array<float, 1> bias) {
    const size_t n = values.shape(0), k = values.shape(1);
    check_vector(bias, n, name + ".bias");
    if (!n || !k) refuse(name + " is empty");
    keep(name, [&] {
      return Linear::of_float(encoder.kernels, encoder.arena, values.data(), n, k, bias.data());
    });
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
#if defined(__GLIBC__)
    // What was read to build the model, its vocabulary above all, is no longer needed.
    malloc_trim(0);
#endif
  }

  std::vector<Floats> run(Array<int64_t, 1> ids, Array<int64_t, 1> types,
                          Array<int64_t, 1> positions, Array<int64_t, 1> offsets, size_t depth,
                          const std::vector<size_t>& layers,
                          std::optional<Array<int64_t, 1>> picks,
                          std::optional<Array<int64_t, 2>> spans) {
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
    const size_t texts = offsets.shape(0) - 1;
    if (spans) {
      if (picks) refuse("picks and spans at once");
      if (spans->shape(0) != texts || spans->shape(1) != 2)
        refuse("spans must be a first token and an end for each text");
      for (size_t i = 0; i < texts; ++i) {
        const int64_t first = spans->data()[2 * i], end = spans->data()[2 * i + 1];
        if (first < offsets.data()[i] || end < first || end > offsets.data()[i + 1])
          refuse("a span is not of its text");
      }
    }
    Wanted wanted;
    wanted.layers.assign(depth + 1, nullptr);
    if (spans) wanted.spans = spans->data();
    if (picks) {
      wanted.picks = picks->data();
      wanted.picked = picked;
    }
    std::vector<Floats> found;
    for (const size_t layer : layers) {
      if (layer > depth) refuse("a layer is beyond depth");
      if (wanted.layers[layer]) refuse("a layer is asked for twice");
      found.push_back(
          new_floats(spans ? texts : picks && layer == depth ? picked : tokens, hidden));
      wanted.layers[layer] = found.back().data();
    }
    const Batch batch{ids.data(), types.data(), positions.data(), offsets.data(), texts};
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

// A product that is being trained; what it writes into is the caller's.
using Written = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <typename T>
void check_shape(const T& x, size_t rows, size_t columns, const char* what) {
  if (x.shape(0) != rows || x.shape(1) != columns)
    refuse(std::string(what) + " must be " + std::to_string(rows) + " x " +
           std::to_string(columns));
}

using Memory = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

Product::Shape shape_of(size_t rows, size_t inputs, size_t outputs, size_t parts, bool for_x) {
  if (parts != 2 && parts != 3) refuse("parts must be 2 or 3");
  // 32 bits hold three sums of this many products of two signed bytes.
  for (const size_t size : {rows, inputs, outputs})
    if (!size || size > 32768) refuse("a product has from 1 to 32768 rows, inputs and outputs");
  return {rows, inputs, outputs, parts, for_x};
}

size_t product_memory(size_t rows, size_t inputs, size_t outputs, size_t parts, bool for_x) {
  return Product::memory(kernels_called(std::nullopt),
                         shape_of(rows, inputs, outputs, parts, for_x));
}

void check_memory(const Memory& memory, size_t size) {
  if (memory.shape(0) < size) refuse("memory is too short");
  if (reinterpret_cast<uintptr_t>(memory.data()) % 64) refuse("memory must start at 64 bytes");
}

Product product_in(const Product::Shape& shape, const Memory& memory) {
  const Kernels& kernels = kernels_called(std::nullopt);
  check_memory(memory, Product::memory(kernels, shape));
  return Product(kernels, shape, memory.data());
}

Each checked_threads(size_t threads) {
  if (!threads || threads > 1024) refuse("threads must be from 1 to 1024");
  return in_threads(threads);
}

void product(Array<float, 2> x,
             const std::vector<std::pair<Array<float, 2>, Array<float, 1>>>& matrices, Memory memory,
             Written y, std::optional<Written> activated, size_t parts, bool for_x, size_t threads) {
  std::vector<Matrix> found;
  size_t outputs = 0;
  for (const auto& [matrix, bias] : matrices) {
    check_shape(matrix, matrix.shape(0), x.shape(1), "a matrix");
    if (bias.shape(0) != matrix.shape(0)) refuse("a bias is not as long as its matrix has rows");
    found.push_back({matrix.data(), bias.data(), matrix.shape(0)});
    outputs += matrix.shape(0);
  }
  const Product::Shape shape = shape_of(x.shape(0), x.shape(1), outputs, parts, for_x);
  check_shape(y, shape.rows, outputs, "y");
  if (activated) check_shape(*activated, shape.rows, outputs, "activated");
  Product made = product_in(shape, memory);
  const Each each = checked_threads(threads);
  nb::gil_scoped_release released;
  made.forward(x.data(), found, y.data(), activated ? activated->data() : nullptr, each);
}

void product_back(Memory memory, size_t inputs, size_t parts, bool for_x, Array<float, 2> y_grad,
                  std::optional<Array<float, 2>> y, std::optional<Written> x_grad,
                  std::optional<Written> grad, std::optional<Written> bias_grad, size_t threads) {
  const Product::Shape shape =
      shape_of(y_grad.shape(0), inputs, y_grad.shape(1), parts, for_x);
  if (y) check_shape(*y, shape.rows, shape.outputs, "y");
  if (x_grad) check_shape(*x_grad, shape.rows, inputs, "x_grad");
  if (x_grad && !for_x) refuse("x's gradient was not to be wanted");
  if (!grad != !bias_grad) refuse("grad and bias_grad go together");
  if (grad) {
    check_shape(*grad, shape.outputs, inputs, "grad");
    check_shape(*bias_grad, 1, shape.outputs, "bias_grad");
  }
  const Product made = product_in(shape, memory);
  const Each each = checked_threads(threads);
  nb::gil_scoped_release released;
  made.backward(y_grad.data(), y ? y->data() : nullptr, x_grad ? x_grad->data() : nullptr,
                grad ? grad->data() : nullptr, bias_grad ? bias_grad->data() : nullptr, each);
}

// --- training, beside products --------------------------------------------------------------------

// Rows of floats that may lie apart.
using Strided = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;
using WrittenStrided = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;
using Flat = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <typename T>
void check_rows(const T& x, size_t rows, size_t columns, const char* what) {
  check_shape(x, rows, columns, what);
  if (columns > 1 && x.stride(1) != 1) refuse(std::string(what) + ": rows must not have gaps");
}

double checked_share(double share) {
  if (!(share >= 0 && share < 1)) refuse("share must be from 0 up to 1");
  return share;
}

Texts checked_texts(const Array<int32_t, 1>& queries, const Array<int32_t, 1>& keys,
                    size_t query_count, size_t key_count, size_t wide, size_t heads, double share,
                    uint64_t seed) {
  const auto check_ascending = [](const Array<int32_t, 1>& offsets, size_t last, const char* what) {
    if (offsets.shape(0) < 2 || offsets(0) || offsets(offsets.shape(0) - 1) != (int64_t)last)
      refuse(std::string(what) + " must go from 0 to the number of rows");
    for (size_t i = 1; i < offsets.shape(0); ++i)
      if (offsets(i) < offsets(i - 1)) refuse(std::string(what) + " must ascend");
  };
  check_ascending(queries, query_count, "query_offsets");
  check_ascending(keys, key_count, "key_offsets");
  if (!heads || wide < heads || wide % heads) refuse("queries must be a multiple of heads wide");
  if (keys.shape(0) != queries.shape(0)) refuse("queries and keys are of other numbers of texts");
  for (size_t i = 1; i < keys.shape(0); ++i)
    if (keys(i - 1) == keys(i)) refuse("a text has no keys");
  return {queries.data(), keys.data(), keys.shape(0) - 1, heads, dropping(checked_share(share)), seed};
}

// What all texts' attention reads and writes.
Heads checked_heads(const Strided& q, const Strided& k, const Strided& v, size_t heads,
                    const Written& out, const Written& log_sums) {
  const size_t wide = q.shape(1);
  check_rows(q, q.shape(0), wide, "q");
  check_rows(k, k.shape(0), wide, "k");
  check_rows(v, k.shape(0), wide, "v");
  check_rows(out, q.shape(0), wide, "out");
  check_rows(log_sums, heads, q.shape(0), "log_sums");
  Heads all{};
  all.queries = q.shape(0), all.keys = k.shape(0), all.d = wide / heads;
  all.q = q.data(), all.k = k.data(), all.v = v.data();
  all.q_stride = q.stride(0), all.k_stride = k.stride(0), all.v_stride = v.stride(0);
  all.out = out.data(), all.out_stride = wide;
  all.log_sums = log_sums.data();
  return all;
}

void attend(Strided q, Strided k, Strided v, Array<int32_t, 1> query_offsets,
            Array<int32_t, 1> key_offsets, size_t heads, double share, uint64_t seed, Written out,
            Written log_sums, size_t threads) {
  const Kernels& kernels = kernels_called(std::nullopt);
  const Texts texts = checked_texts(query_offsets, key_offsets, q.shape(0), k.shape(0), q.shape(1),
                                    heads, share, seed);
  const Heads all = checked_heads(q, k, v, heads, out, log_sums);
  const Each each = checked_threads(threads);
  nb::gil_scoped_release released;
  attend_texts(kernels, texts, all, each);
}

void attend_back(Strided q, Strided k, Strided v, Array<int32_t, 1> query_offsets,
                 Array<int32_t, 1> key_offsets, size_t heads, double share, uint64_t seed,
                 Written out, Written log_sums, Array<float, 2> out_grad, WrittenStrided q_grad,
                 WrittenStrided k_grad, WrittenStrided v_grad, size_t threads) {
  const Kernels& kernels = kernels_called(std::nullopt);
  const Texts texts = checked_texts(query_offsets, key_offsets, q.shape(0), k.shape(0), q.shape(1),
                                    heads, share, seed);
  Heads all = checked_heads(q, k, v, heads, out, log_sums);
  check_shape(out_grad, q.shape(0), q.shape(1), "out_grad");
  check_rows(q_grad, q.shape(0), q.shape(1), "q_grad");
  check_rows(k_grad, k.shape(0), q.shape(1), "k_grad");
  check_rows(v_grad, k.shape(0), q.shape(1), "v_grad");
  all.out_grad = out_grad.data();
  all.q_grad = q_grad.data(), all.k_grad = k_grad.data(), all.v_grad = v_grad.data();
  all.q_grad_stride = q_grad.stride(0), all.k_grad_stride = k_grad.stride(0);
  all.v_grad_stride = v_grad.stride(0);
  const Each each = checked_threads(threads);
  nb::gil_scoped_release released;
  attend_texts_back(kernels, texts, all, each);
}

AddNorm checked_norm(const Array<float, 1>& weight, const Array<float, 1>& bias, size_t n, double eps,
                     double share, uint64_t seed) {
  if (weight.shape(0) != n || bias.shape(0) != n) refuse("the norm is of another width");
  return {n, weight.data(), bias.data(), static_cast<float>(eps), dropping(checked_share(share)),
          hash(seed, 0)};
}

void add_norm(Array<float, 2> x, Array<float, 2> residual, Array<float, 1> weight,
              Array<float, 1> bias, double eps, double share, uint64_t seed, Written total, Written out,
              Written found, size_t threads) {
  const Kernels& kernels = kernels_called(std::nullopt);
  const size_t rows = x.shape(0), n = x.shape(1);
  const AddNorm of = checked_norm(weight, bias, n, eps, share, seed);
  check_shape(residual, rows, n, "residual");
  check_shape(total, rows, n, "total");
  check_shape(out, rows, n, "out");
  check_shape(found, rows, 2, "found");
  const Each each = checked_threads(threads);
  nb::gil_scoped_release released;
  add_norm_rows(kernels, of, rows, x.data(), residual.data(), total.data(), out.data(), found.data(),
                each);
}

void add_norm_back(Array<float, 2> total, Array<float, 2> found, Array<float, 1> weight,
                   Array<float, 1> bias, double eps, double share, uint64_t seed,
                   Array<float, 2> out_grad, Written residual_grad, Written x_grad, Flat weight_grad,
                   Flat bias_grad, size_t threads) {
  const Kernels& kernels = kernels_called(std::nullopt);
  const size_t rows = total.shape(0), n = total.shape(1);
  const AddNorm of = checked_norm(weight, bias, n, eps, share, seed);
  check_shape(found, rows, 2, "found");
  check_shape(out_grad, rows, n, "out_grad");
  check_shape(residual_grad, rows, n, "residual_grad");
  check_shape(x_grad, rows, n, "x_grad");
  if (weight_grad.shape(0) != n || bias_grad.shape(0) != n) refuse("a gradient is of another width");
  const Each each = checked_threads(threads);
  nb::gil_scoped_release released;
  add_norm_rows_back(kernels, of, rows, total.data(), found.data(), out_grad.data(),
                     residual_grad.data(), x_grad.data(), weight_grad.data(), bias_grad.data(), each);
}

// --- a whole layer --------------------------------------------------------------------------------

using Weight = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;

TrainedLayer::Shape layer_shape(size_t rows, size_t hidden, size_t wide, size_t heads, size_t parts,
                                bool for_x) {
  for (const size_t outputs : {3 * hidden, wide}) shape_of(rows, hidden, outputs, parts, for_x);
  return {rows, hidden, wide, heads, parts, for_x};
}

// A layer in training, with what is the same in both directions. `weights` are weight and bias of
// query, key, value, output, attention_norm, up, down and norm.
struct LayerOf {
  TrainedLayer::Shape shape;
  LayerWeights weights;
  LayerCall call;
  const Kernels& kernels = kernels_called(std::nullopt);

  LayerOf(const std::vector<Weight>& of, const Array<int32_t, 1>& offsets, size_t rows, size_t hidden,
          size_t heads, double attention_share, double hidden_share, std::array<uint64_t, 3> seeds,
          double eps, size_t parts, bool for_x) {
    if (of.size() != 16) refuse("a layer has 16 weights and biases");
    const size_t wide = of[11].size();
    shape = layer_shape(rows, hidden, wide, heads, parts, for_x);
    size_t next = 0;
    const auto take = [&](size_t size) {
      if (of[next].size() != size) refuse("a weight or bias is of another size");
      return of[next++].data();
    };
    const auto matrix = [&](size_t inputs, size_t outputs) {
      const float* values = take(outputs * inputs);
      return Matrix{values, take(outputs), outputs};
    };
    const auto norm = [&] {
      const float* weight = take(hidden);
      return NormOf<const float>{weight, take(hidden)};
    };
    weights.query = matrix(hidden, hidden);
    weights.key = matrix(hidden, hidden);
    weights.value = matrix(hidden, hidden);
    weights.output = matrix(hidden, hidden);
    weights.attention_norm = norm();
    weights.up = matrix(hidden, wide);
    weights.down = matrix(wide, hidden);
    weights.norm = norm();
    const Texts texts =
        checked_texts(offsets, offsets, rows, rows, hidden, heads, attention_share, seeds[0]);
    call = {texts, checked_share(hidden_share), seeds[1], seeds[2], static_cast<float>(eps)};
  }

  TrainedLayer in(const Memory& memory) const {
    check_memory(memory, TrainedLayer::memory(kernels, shape));
    return TrainedLayer(kernels, shape, memory.data());
  }
};

size_t layer_memory(size_t rows, size_t hidden, size_t wide, size_t heads, size_t parts, bool for_x) {
  return TrainedLayer::memory(kernels_called(std::nullopt),
                              layer_shape(rows, hidden, wide, heads, parts, for_x));
}

void layer(Array<float, 2> x, const std::vector<Weight>& weights, Memory memory, Written out,
           Array<int32_t, 1> offsets, size_t heads, double attention_share, double hidden_share,
           std::array<uint64_t, 3> seeds, double eps, size_t parts, bool for_x, size_t threads) {
  const LayerOf of(weights, offsets, x.shape(0), x.shape(1), heads, attention_share, hidden_share,
                   seeds, eps, parts, for_x);
  check_shape(out, x.shape(0), x.shape(1), "out");
  const TrainedLayer made = of.in(memory);
  const Each each = checked_threads(threads);
  nb::gil_scoped_release released;
  made.forward(x.data(), of.weights, of.call, out.data(), each);
}

void layer_back(Array<float, 2> out_grad, const std::vector<Weight>& weights, Memory memory,
                std::optional<Written> x_grad, std::optional<Flat> grads, Array<int32_t, 1> offsets,
                size_t heads, double attention_share, double hidden_share,
                std::array<uint64_t, 3> seeds, double eps, size_t parts, bool for_x, size_t threads) {
  const LayerOf of(weights, offsets, out_grad.shape(0), out_grad.shape(1), heads, attention_share,
                   hidden_share, seeds, eps, parts, for_x);
  if (x_grad) check_shape(*x_grad, out_grad.shape(0), out_grad.shape(1), "x_grad");
  if (x_grad && !for_x) refuse("x's gradient was not to be wanted");
  if (grads && grads->shape(0) != TrainedLayer::weights(of.shape)) refuse("grads is of another size");
  const TrainedLayer made = of.in(memory);
  const Each each = checked_threads(threads);
  nb::gil_scoped_release released;
  made.backward(of.weights, of.call, out_grad.data(), x_grad ? x_grad->data() : nullptr,
                grads ? grads->data() : nullptr, each);
}

// A tensor of an optimiser: its numbers, their gradient and what is remembered of it.
struct Part {
  float *x, *mean, *square;
  const float* grad;
  size_t n;
  AdamW how;
};
constexpr size_t kChunk = 32768;

using Four = std::tuple<Flat, Array<float, 1>, Flat, Flat>;

// tensors: (x, gradient, mean, square); hows: (rate, keep, root) of each
void adamw(const std::vector<Four>& tensors,
                const std::vector<std::tuple<float, float, float>>& hows, float beta1, float beta2,
                float eps, float grad_scale, size_t threads) {
  const Kernels& kernels = kernels_called(std::nullopt);
  if (hows.size() != tensors.size()) refuse("as many hows as tensors");
  std::vector<Part> parts;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto& [x, grad, mean, square] = tensors[i];
    const auto& [rate, keep, root] = hows[i];
    const size_t n = x.shape(0);
    if (grad.shape(0) != n || mean.shape(0) != n || square.shape(0) != n)
      refuse("a tensor, its gradient and its moments must be of one size");
    for (size_t at = 0; at < n; at += kChunk)
      parts.push_back({x.data() + at, mean.data() + at, square.data() + at, grad.data() + at,
                       std::min(kChunk, n - at), {rate, keep, beta1, beta2, root, eps, grad_scale}});
  }
  nb::gil_scoped_release released;
  for_each(threads, parts.size(), [&](size_t i) {
    const Part& of = parts[i];
    kernels.adamw(of.how, of.n, of.grad, of.x, of.mean, of.square);
  });
}

// Of all tensors together; parts are summed in one order, whatever the threads.
double sum_of_squares(const std::vector<Array<float, 1>>& tensors, size_t threads) {
  const Kernels& kernels = kernels_called(std::nullopt);
  std::vector<std::pair<const float*, size_t>> parts;
  for (const auto& x : tensors)
    for (size_t at = 0; at < x.shape(0); at += kChunk)
      parts.emplace_back(x.data() + at, std::min(kChunk, x.shape(0) - at));
  std::vector<float> sums(parts.size());
  nb::gil_scoped_release released;
  for_each(threads, parts.size(), [&](size_t i) {
    sums[i] = kernels.sum_of_squares(parts[i].first, parts[i].second);
  });
  double total = 0;
  for (const float part : sums) total += part;
  return total;
}

}  // namespace
}  // namespace enrobe

NB_MODULE(_native, module) {
  using enrobe::Held;
  module.def("kernels", [] {
    std::vector<std::string> names;
    for (const auto* table : enrobe::all_kernels()) names.emplace_back(table->name);
    return names;
  });
  module.def("product_memory", &enrobe::product_memory, "rows"_a, "inputs"_a, "outputs"_a, "parts"_a,
             "for_x"_a);
  module.def("product", &enrobe::product, "x"_a.noconvert(), "matrices"_a.noconvert(),
             "memory"_a.noconvert(), "y"_a.noconvert(), "activated"_a.noconvert().none(), "parts"_a,
             "for_x"_a, "threads"_a);
  module.def("product_back", &enrobe::product_back, "memory"_a.noconvert(), "inputs"_a, "parts"_a,
             "for_x"_a, "y_grad"_a.noconvert(), "y"_a.noconvert().none(),
             "x_grad"_a.noconvert().none(), "grad"_a.noconvert().none(),
             "bias_grad"_a.noconvert().none(), "threads"_a);
  module.def("attend", &enrobe::attend, "q"_a.noconvert(), "k"_a.noconvert(), "v"_a.noconvert(),
             "query_offsets"_a.noconvert(), "key_offsets"_a.noconvert(), "heads"_a, "share"_a,
             "seed"_a, "out"_a.noconvert(), "log_sums"_a.noconvert(), "threads"_a);
  module.def("attend_back", &enrobe::attend_back, "q"_a.noconvert(), "k"_a.noconvert(),
             "v"_a.noconvert(), "query_offsets"_a.noconvert(), "key_offsets"_a.noconvert(),
             "heads"_a, "share"_a, "seed"_a, "out"_a.noconvert(), "log_sums"_a.noconvert(),
             "out_grad"_a.noconvert(), "q_grad"_a.noconvert(), "k_grad"_a.noconvert(),
             "v_grad"_a.noconvert(), "threads"_a);
  module.def("add_norm", &enrobe::add_norm, "x"_a.noconvert(), "residual"_a.noconvert(),
             "weight"_a.noconvert(), "bias"_a.noconvert(), "eps"_a, "share"_a, "seed"_a,
             "total"_a.noconvert(), "out"_a.noconvert(), "found"_a.noconvert(), "threads"_a);
  module.def("add_norm_back", &enrobe::add_norm_back, "total"_a.noconvert(), "found"_a.noconvert(),
             "weight"_a.noconvert(), "bias"_a.noconvert(), "eps"_a, "share"_a, "seed"_a,
             "out_grad"_a.noconvert(), "residual_grad"_a.noconvert(), "x_grad"_a.noconvert(),
             "weight_grad"_a.noconvert(), "bias_grad"_a.noconvert(), "threads"_a);
  module.def("layer_memory", &enrobe::layer_memory, "rows"_a, "hidden"_a, "wide"_a, "heads"_a,
             "parts"_a, "for_x"_a);
  module.def("layer", &enrobe::layer, "x"_a.noconvert(), "weights"_a.noconvert(),
             "memory"_a.noconvert(), "out"_a.noconvert(), "offsets"_a.noconvert(), "heads"_a,
             "attention_share"_a, "hidden_share"_a, "seeds"_a, "eps"_a, "parts"_a, "for_x"_a,
             "threads"_a);
  module.def("layer_back", &enrobe::layer_back, "out_grad"_a.noconvert(), "weights"_a.noconvert(),
             "memory"_a.noconvert(), "x_grad"_a.noconvert().none(), "grads"_a.noconvert().none(),
             "offsets"_a.noconvert(), "heads"_a, "attention_share"_a, "hidden_share"_a, "seeds"_a,
             "eps"_a, "parts"_a, "for_x"_a, "threads"_a);
  module.def("adamw", &enrobe::adamw, "tensors"_a.noconvert(), "hows"_a, "beta1"_a, "beta2"_a,
             "eps"_a, "grad_scale"_a, "threads"_a);
  module.def("sum_of_squares", &enrobe::sum_of_squares, "tensors"_a.noconvert(), "threads"_a);
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
           "layers"_a, "picks"_a.none() = nb::none(), "spans"_a.none() = nb::none())
      .def("apply", &Held::apply, "name"_a, "x"_a, "activation"_a = "none")
      .def("best", &Held::best, "name"_a, "x"_a, "count"_a)
      .def("normalize", &Held::normalize, "name"_a, "x"_a);
}
