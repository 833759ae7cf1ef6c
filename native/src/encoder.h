// An encoder with its weights, run over rows of tokens.
//
// Legend: T tokens, B rows of text, H hidden, F feed-forward, P picked positions.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "linear.h"
#include "team.h"

namespace enrobe {

struct Sizes {
  size_t layers, hidden, feed_forward, heads;
  float epsilon;
};

// An embedding table where it lies: int8 with a scale a row, or float32. Shapes: (N, H), (N).
struct Table {
  const int8_t* numbers = nullptr;
  const float* scale = nullptr;
  const float* floats = nullptr;
  size_t rows = 0;
};

struct Norm {
  Block<float> weight, bias;
  size_t size = 0;
};

// Rows of tokens end to end. Shapes: ids, types and positions (T); offsets (B + 1).
struct Batch {
  const int64_t *ids, *types, *positions, *offsets;
  size_t rows;
  size_t tokens() const { return static_cast<size_t>(offsets[rows]); }
};

// Where hidden states go: by layer, 0 the embeddings, null where not wanted. Shapes: (T, H); the
// last layer's (P, H), if positions are picked. `picks` ascend. With spans (B, 2) it is each text's sums
// (B, H) over its tokens from the first to before the second.
struct Wanted {
  std::vector<float*> layers;  // depth + 1
  const int64_t* picks = nullptr;
  size_t picked = 0;
  const int64_t* spans = nullptr;
};

class Encoder {
 public:
  Encoder(Sizes sizes, const Kernels& kernels, size_t threads);
  ~Encoder();

  void set_table(const std::string& name, Table table);
  void set_linear(const std::string& name, Linear linear);
  void set_norm(const std::string& name, const float* weight, const float* bias, size_t size);
  // Check that every part is there and fits; std::invalid_argument where not.
  void finish();

  void run(const Batch& batch, const Wanted& wanted);
  // x (M, K) -> out (M, N), by one of its linear layers, and an activation.
  void apply(const Linear& by, const float* x, size_t rows, Activation activation, float* out);
  // Of softmax(x times a layer): the likeliest outputs of each row and the natural logs of their
  // probabilities, best first, of equal ones the lower first. Shapes: x (M, K) -> (M, count).
  void best(const Linear& by, const float* x, size_t rows, size_t count, int64_t* places,
            float* logs);
  void normalize(const std::string& name, const float* x, size_t rows, float* out);

  const Sizes sizes;
  const Kernels& kernels;
  const size_t threads;
  Arena arena;  // of its matrices
  const Linear& linear(const std::string& name) const;
  const Norm& norm(const std::string& name) const;
  const Table* table(const std::string& name) const;

 private:
  struct Layer {
    const Linear *query, *key, *value, *output, *up, *down;
    const Norm *attention_norm, *norm;
    // Which of the prepared inputs each takes: of those that are alike, the first one's.
    size_t query_inputs, value_inputs;  // the key's are 0
  };
  struct Work;
  struct Part;
  void run_part(const Part& part, Work& work, Team& team, size_t rank) const;
  void embed(const Part& part, Work& work, Team& team) const;
  // A row of the inputs of a layer's queries, keys and values, for what takes bytes.
  void prepare(const Part& part, size_t index, Work& work, size_t row) const;
  void run_layer(const Part& part, size_t index, Work& work, Team& team, size_t rank) const;
  // `keep(row, outputs)` for each row of x times a layer, in any thread; outputs are padded.
  void product(const Linear& by, const float* x, size_t rows, Activation activation,
               const std::function<void(size_t, const float*)>& keep);
  // work(rank) in every thread.
  void spread(const std::function<void(size_t)>& work);

  std::map<std::string, Linear> linears_;
  std::map<std::string, Norm> norms_;
  std::map<std::string, Table> tables_;
  std::vector<Layer> layers_;
  const Norm* first_norm_ = nullptr;
  std::mutex running_;
  std::unique_ptr<Pool> pool_;
  long pool_process_ = 0;
  std::vector<std::unique_ptr<Work>> kept_;
};

}  // namespace enrobe
