#include "encoder.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>

namespace enrobe {

namespace {

// A part is what one thread works through on its own: enough rows that reading the weights is
// nothing beside multiplying with them, few enough that they stay in the second-level cache.
constexpr size_t kPart = 256;
// The last parts are smaller, so that no thread waits long for the others.
constexpr size_t kLeastPart = 128;
// Rows whose feed-forward is held at a time, which is the widest there is.
constexpr size_t kWideRows = 128;

// A row's length in memory, in floats. Not a power of two, which would put the rows of a block into
// the same few lines of the cache.
size_t row_stride(size_t n) { return padded(n) + 16; }

struct Range {
  size_t first, last;
};
// Rows that a thread of a team takes at a time.
constexpr size_t kRows = 8;

std::invalid_argument wrong(const std::string& what) { return std::invalid_argument(what); }

}  // namespace

struct Encoder::Part {
  const Batch& batch;
  const Wanted& wanted;
  size_t first_row, last_row;
  Range picks;  // of wanted.picks

  size_t start() const { return static_cast<size_t>(batch.offsets[first_row]); }
  size_t tokens() const { return static_cast<size_t>(batch.offsets[last_row]) - start(); }
  size_t picked() const { return picks.last - picks.first; }
  bool is_picked(size_t layer) const { return wanted.picks && layer + 2 == wanted.layers.size(); }
};

// Room for a part. Rows are `stride` floats apart; what lies beyond a row's numbers stays zero.
struct Encoder::Work {
  size_t tokens = 0, longest = 0;
  size_t stride, wide_stride;
  Block<float> x, asked, mixed, middle, projected, wide, scale, wide_scale;
  Block<uint8_t> bytes, wide_bytes;
  size_t bytes_stride;
  std::vector<Block<float>> scratch;  // one a thread

  float* keys() const { return projected.get() + stride; }
  float* values() const { return projected.get() + 2 * stride; }
  size_t projected_stride() const { return 3 * stride; }
  // Rows for a matrix, from `first` on; there is room for three such that are prepared.
  Rows rows(const Linear& by, const Block<float>& floats, size_t which = 0, size_t first = 0) const {
    return {floats.get() + first * stride, stride,
            bytes.get() + which * tokens * bytes_stride + first * by.bytes(),
            scale.get() + which * tokens + first};
  }

  void make_room(const Encoder& encoder, size_t for_tokens, size_t for_longest, size_t threads) {
    const Sizes& sizes = encoder.sizes;
    stride = row_stride(sizes.hidden);
    wide_stride = row_stride(sizes.feed_forward);
    if (for_tokens > tokens) {
      tokens = for_tokens;
      const auto zeros = [](size_t count) {
        Block<float> made = allocate<float>(count);
        std::fill(made.get(), made.get() + count, 0.0f);
        return made;
      };
      for (Block<float>* rows : {&x, &asked, &mixed, &middle}) *rows = zeros(tokens * stride);
      // A head that is no multiple of 16 wide is read beyond its end.
      projected = zeros(tokens * projected_stride() + 2 * kPanel);
      const size_t wide_rows = std::min(tokens, kWideRows);
      wide = zeros(wide_rows * wide_stride);
      const size_t parts = encoder.kernels.slice ? 3 : 1;
      bytes_stride = row_bytes(sizes.hidden, parts);
      bytes = allocate<uint8_t>(3 * tokens * bytes_stride);
      wide_bytes = allocate<uint8_t>(wide_rows * row_bytes(sizes.feed_forward, parts));
      scale = zeros(3 * tokens);
      wide_scale = zeros(wide_rows);
    }
    if (for_longest > longest || scratch.size() < threads) {
      longest = std::max(longest, for_longest);
      scratch.clear();
      const size_t d = sizes.hidden / sizes.heads;
      for (size_t i = 0; i < threads; ++i)
        scratch.push_back(allocate<float>(std::max(encoder.kernels.attend_scratch(longest, d),
                                                   encoder.kernels.attend_int16_scratch(longest, d))));
    }
  }
};

Encoder::Encoder(Sizes given, const Kernels& table, size_t count)
    : sizes(given), kernels(table), threads(count) {}

Encoder::~Encoder() = default;

void Encoder::set_table(const std::string& name, Table table) { tables_[name] = table; }

void Encoder::set_linear(const std::string& name, Linear linear) {
  linears_[name] = std::move(linear);
}

void Encoder::set_norm(const std::string& name, const float* weight, const float* bias,
                       size_t size) {
  Norm made;
  made.size = size;
  for (auto [from, to] : {std::pair{weight, &made.weight}, std::pair{bias, &made.bias}}) {
    *to = allocate<float>(padded(size));
    std::fill(to->get(), to->get() + padded(size), 0.0f);
    std::copy(from, from + size, to->get());
  }
  norms_[name] = std::move(made);
}

const Linear& Encoder::linear(const std::string& name) const {
  const auto found = linears_.find(name);
  if (found == linears_.end()) throw wrong("no linear layer " + name);
  return found->second;
}

const Norm& Encoder::norm(const std::string& name) const {
  const auto found = norms_.find(name);
  if (found == norms_.end()) throw wrong("no norm " + name);
  return found->second;
}

const Table* Encoder::table(const std::string& name) const {
  const auto found = tables_.find(name);
  return found == tables_.end() ? nullptr : &found->second;
}

void Encoder::finish() {
  const auto fitting = [this](const std::string& name, size_t n, size_t k) {
    const Linear& found = linear(name);
    if (found.outputs != n || found.inputs != k)
      throw wrong(name + " has " + std::to_string(found.outputs) + " outputs of " +
                  std::to_string(found.inputs) + " inputs; wanted " + std::to_string(n) + " of " +
                  std::to_string(k));
    return &found;
  };
  const auto fitting_norm = [this](const std::string& name) {
    const Norm& found = norm(name);
    if (found.size != sizes.hidden) throw wrong(name + " is not as wide as the encoder");
    return &found;
  };
  for (const char* name : {"word", "position"})
    if (!table(name)) throw wrong(std::string("no table ") + name);
  const size_t h = sizes.hidden, f = sizes.feed_forward;
  first_norm_ = fitting_norm("embeddings.norm");
  layers_.clear();
  for (size_t i = 0; i < sizes.layers; ++i) {
    const std::string name = "layers." + std::to_string(i) + ".";
    Layer layer{fitting(name + "query", h, h), fitting(name + "key", h, h),
                fitting(name + "value", h, h), fitting(name + "output", h, h),
                fitting(name + "up", f, h),    fitting(name + "down", h, f),
                fitting_norm(name + "attention_norm"), fitting_norm(name + "norm"), 2, 1};
    if (layer.value->same_inputs(*layer.key)) layer.value_inputs = 0;
    if (layer.query->same_inputs(*layer.key))
      layer.query_inputs = 0;
    else if (layer.query->same_inputs(*layer.value))
      layer.query_inputs = 1;
    layers_.push_back(layer);
  }
}

namespace {

// One step of a team: out = activation(x times a matrix) + residual. All threads are through when it
// returns.
struct Step {
  const Linear& linear;
  Rows x;
  size_t rows;
  Activation activation;
  const float* residual;
  size_t residual_stride;
  float* out;
  size_t out_stride;
};

// Of rows that are prepared.
void multiply(const Step& step, Team& team) {
  team.each(step.linear.panels(), 1, [&](size_t panel) {
    const bool in_order = team.size() == 1 && panel + 1 < step.linear.panels();
    step.linear.multiply(step.x, step.rows, panel, step.activation, step.residual,
                         step.residual_stride, step.out, step.out_stride,
                         in_order ? step.linear.weights(panel + 1) : nullptr);
  });
}

void prepare_and_multiply(const Step& step, Team& team) {
  if (step.linear.takes_bytes())
    team.each(step.rows, kRows, [&](size_t row) { step.linear.prepare(step.x, row); });
  multiply(step, team);
}

}  // namespace

void Encoder::embed(const Part& part, Work& work, Team& team) const {
  const Batch& batch = part.batch;
  const std::pair<const Table*, const int64_t*> parts[] = {
      {table("word"), batch.ids}, {table("position"), batch.positions},
      {table("token_type"), batch.types}};
  team.each(part.tokens(), kRows, [&](size_t t) {
    float* row = work.middle.get() + t * work.stride;
    std::fill(row, row + sizes.hidden, 0.0f);
    for (const auto& [from, places] : parts) {
      if (!from) continue;
      const size_t place = static_cast<size_t>(places[part.start() + t]);
      if (from->numbers) {
        kernels.add_int8(from->numbers + place * sizes.hidden, from->scale[place], sizes.hidden,
                         row);
      } else {
        const float* values = from->floats + place * sizes.hidden;
        for (size_t i = 0; i < sizes.hidden; ++i) row[i] += values[i];
      }
    }
    kernels.norm(row, sizes.hidden, first_norm_->weight.get(), first_norm_->bias.get(),
                 sizes.epsilon, work.x.get() + t * work.stride);
    prepare(part, 0, work, t);
  });
}

void Encoder::prepare(const Part& part, size_t index, Work& work, size_t row) const {
  if (index + 1 >= part.wanted.layers.size()) return;
  const Layer& layer = layers_[index];
  layer.key->prepare(work.rows(*layer.key, work.x), row);
  if (layer.value_inputs) layer.value->prepare(work.rows(*layer.value, work.x, 1), row);
  if (layer.query_inputs == 2 && !part.is_picked(index))
    layer.query->prepare(work.rows(*layer.query, work.x, 2), row);
}

void Encoder::run_layer(const Part& part, size_t index, Work& work, Team& team,
                        size_t rank) const {
  const Layer& layer = layers_[index];
  const bool picked = part.is_picked(index);
  const size_t tokens = part.tokens(), asking = picked ? part.picked() : tokens;
  const size_t stride = work.stride;
  if (picked)
    team.each(asking, kRows, [&](size_t row) {
      const size_t token =
          static_cast<size_t>(part.wanted.picks[part.picks.first + row]) - part.start();
      const float* from = work.x.get() + token * stride;
      std::copy(from, from + sizes.hidden, work.asked.get() + row * stride);
      layer.query->prepare(work.rows(*layer.query, work.asked, 2), row);
    });
  const Block<float>& x = picked ? work.asked : work.x;

  struct Text {
    size_t start, end, query, queries;
  };
  std::vector<Text> texts;
  size_t query = 0;  // of the text's first
  for (size_t row = part.first_row; row < part.last_row; ++row) {
    const size_t start = static_cast<size_t>(part.batch.offsets[row]) - part.start();
    const size_t end = static_cast<size_t>(part.batch.offsets[row + 1]) - part.start();
    size_t queries = end - start;
    if (picked) {
      const int64_t* picks = part.wanted.picks;
      queries = 0;
      while (query + queries < asking &&
             picks[part.picks.first + query + queries] < part.batch.offsets[row + 1])
        ++queries;
    }
    if (queries) texts.push_back({start, end, query, queries});
    query += queries;
  }

  const size_t apart = work.projected_stride();
  const struct {
    const Linear& linear;
    Rows from;
    size_t rows;
    float* to;
  } projections[] = {
      {*layer.query, work.rows(*layer.query, x, picked ? 2 : layer.query_inputs), asking,
       work.projected.get()},
      {*layer.key, work.rows(*layer.key, work.x), tokens, work.keys()},
      {*layer.value, work.rows(*layer.value, work.x, layer.value_inputs), tokens, work.values()}};
  const size_t panels = layer.query->panels();
  const auto project = [&](size_t panel) {
    for (size_t i = 0; i < 3; ++i) {
      const auto& [linear, from, rows, to] = projections[i];
      const size_t next = panel + (i == 2);
      const bool in_order = team.size() == 1 && next < panels;
      linear.multiply(from, rows, panel, Activation::none, nullptr, 0, to, apart,
                      in_order ? projections[(i + 1) % 3].linear.weights(next) : nullptr);
    }
  };
  const size_t d = sizes.hidden / sizes.heads;
  // What becomes bytes right after it need not be float32 before.
  const auto run = layer.output->is_int8() ? kernels.attend_int16 : kernels.attend;
  const auto attend = [&](size_t head, const Text& text) {
    const size_t at = head * d, first = text.start * apart + at;
    run(work.projected.get() + text.query * apart + at, apart, text.queries, work.keys() + first,
        work.values() + first, apart, text.end - text.start, d,
        work.mixed.get() + text.query * stride + at, stride, work.scratch[rank].get());
  };
  // Heads whose columns are whole panels are through at once, while those are in the cache.
  const size_t group = std::lcm(d, kPanel);
  if (2 * group <= sizes.hidden) {
    team.each((sizes.hidden + group - 1) / group, 1, [&](size_t place) {
      const size_t start = place * group, end = std::min(start + group, sizes.hidden);
      for (size_t panel = start / kPanel; panel * kPanel < end; ++panel) project(panel);
      for (const Text& text : texts)
        for (size_t head = start / d; head * d < end; ++head) attend(head, text);
    });
  } else {
    team.each(panels, 1, project);
    team.each(texts.size() * sizes.heads, 1,
              [&](size_t unit) { attend(unit % sizes.heads, texts[unit / sizes.heads]); });
  }

  // Queries, keys and values are no longer needed: their place is taken.
  float* summed = work.projected.get();
  prepare_and_multiply({*layer.output, work.rows(*layer.output, work.mixed), asking,
                        Activation::none, x.get(), stride, summed, stride},
                       team);
  const auto normalize = [&](const float* from, const Norm& norm, float* to, size_t row) {
    kernels.norm(from + row * stride, sizes.hidden, norm.weight.get(), norm.bias.get(),
                 sizes.epsilon, to + row * stride);
  };
  team.each(asking, kRows, [&](size_t row) {
    normalize(summed, *layer.attention_norm, work.middle.get(), row);
    layer.up->prepare(work.rows(*layer.up, work.middle), row);
  });
  for (size_t first = 0; first < asking; first += kWideRows) {
    const size_t rows = std::min(kWideRows, asking - first);
    multiply({*layer.up, work.rows(*layer.up, work.middle, 0, first), rows, Activation::gelu,
              nullptr, 0, work.wide.get(), work.wide_stride},
             team);
    prepare_and_multiply(
        {*layer.down,
         {work.wide.get(), work.wide_stride, work.wide_bytes.get(), work.wide_scale.get()},
         rows, Activation::none, work.middle.get() + first * stride, stride,
         work.mixed.get() + first * stride, stride},
        team);
  }
  team.each(asking, kRows, [&](size_t row) {
    normalize(work.mixed.get(), *layer.norm, work.x.get(), row);
    prepare(part, index + 1, work, row);
  });
}

void Encoder::run_part(const Part& part, Work& work, Team& team, size_t rank) const {
  const auto keep = [&](size_t layer) {
    float* to = part.wanted.layers[layer];
    if (!to) return;
    if (part.wanted.spans) {
      team.each(part.last_row - part.first_row, 1, [&](size_t text) {
        const size_t row = part.first_row + text;
        const int64_t* span = part.wanted.spans + 2 * row;
        float* sum = to + row * sizes.hidden;
        std::fill(sum, sum + sizes.hidden, 0.0f);
        for (size_t token = static_cast<size_t>(span[0]); token < static_cast<size_t>(span[1]);
             ++token) {
          const float* from = work.x.get() + (token - part.start()) * work.stride;
          for (size_t i = 0; i < sizes.hidden; ++i) sum[i] += from[i];
        }
      });
      return;
    }
    const bool picked = layer && part.is_picked(layer - 1);
    const size_t rows = picked ? part.picked() : part.tokens();
    const size_t first = picked ? part.picks.first : part.start();
    team.each(rows, kRows, [&](size_t row) {
      const float* from = work.x.get() + row * work.stride;
      std::copy(from, from + sizes.hidden, to + (first + row) * sizes.hidden);
    });
  };
  kernels.begin();
  embed(part, work, team);
  keep(0);
  for (size_t index = 0; index + 1 < part.wanted.layers.size(); ++index) {
    run_layer(part, index, work, team, rank);
    keep(index + 1);
  }
  kernels.end();
}

void Encoder::spread(const std::function<void(size_t)>& work) {
  if (threads == 1) {
    work(0);
    return;
  }
  // After a fork the threads are the parent's.
  const long process = getpid();
  if (!pool_ || pool_process_ != process) {
    if (pool_) pool_.release();
    pool_ = std::make_unique<Pool>(threads);
    pool_process_ = process;
  }
  pool_->run(work);
}

void Encoder::run(const Batch& batch, const Wanted& wanted) {
  std::lock_guard<std::mutex> lock(running_);
  const size_t all = static_cast<size_t>(batch.offsets[batch.rows]);
  const auto parts_of = [&](bool alone) {
    std::vector<Part> parts;
    size_t pick = 0;
    for (size_t row = 0; row < batch.rows;) {
      const size_t left = all - static_cast<size_t>(batch.offsets[row]);
      const size_t most =
          alone ? std::clamp(left / (2 * threads), kLeastPart, kPart)
                : kPart * threads;
      size_t last = row + 1;
      while (last < batch.rows &&
             static_cast<size_t>(batch.offsets[last + 1] - batch.offsets[row]) <= most)
        ++last;
      const size_t first_pick = pick;
      while (pick < wanted.picked && wanted.picks[pick] < batch.offsets[last]) ++pick;
      parts.push_back({batch, wanted, row, last, {first_pick, pick}});
      row = last;
    }
    return parts;
  };
  // Many: each thread takes the next one. Few: all work on the same.
  std::vector<Part> parts = parts_of(true);
  const bool alone =
      threads == 1 || (all >= 3 * threads * kPart && parts.size() >= 3 * threads);
  if (!alone) parts = parts_of(false);

  size_t tokens = 0, longest = 0;
  for (const Part& part : parts) tokens = std::max(tokens, part.tokens());
  for (size_t row = 0; row < batch.rows; ++row)
    longest = std::max(longest, static_cast<size_t>(batch.offsets[row + 1] - batch.offsets[row]));
  while (kept_.size() < (alone ? threads : 1)) kept_.push_back(std::make_unique<Work>());
  for (size_t i = 0; i < (alone ? threads : 1); ++i)
    kept_[i]->make_room(*this, tokens, longest, alone ? 1 : threads);

  std::atomic<size_t> next{0};
  Team together(threads);
  const auto work = [&](size_t rank) {
    if (alone) {
      Team self(1);
      for (size_t i; (i = next.fetch_add(1)) < parts.size();)
        run_part(parts[i], *kept_[rank], self, 0);
    } else {
      for (const Part& part : parts) run_part(part, *kept_[0], together, rank);
    }
  };
  spread(work);
}

void Encoder::product(const Linear& by, const float* x, size_t rows, Activation activation,
                      const std::function<void(size_t, const float*)>& keep) {
  std::lock_guard<std::mutex> lock(running_);
  const size_t stride = row_stride(by.inputs), out_stride = row_stride(by.outputs);
  // Some rows at a time: a vocabulary is wide.
  const size_t most = std::min<size_t>(rows, 64);
  Block<float> from = allocate<float>(most * stride), to = allocate<float>(most * out_stride);
  Block<uint8_t> bytes = allocate<uint8_t>(most * by.bytes());
  Block<float> scale = allocate<float>(most);
  std::fill(from.get(), from.get() + most * stride, 0.0f);
  const Rows inputs{from.get(), stride, bytes.get(), scale.get()};
  Team team(threads);
  const auto work = [&](size_t) {
    kernels.begin();
    for (size_t first = 0; first < rows; first += most) {
      const size_t count = std::min(most, rows - first);
      team.each(count, kRows, [&](size_t row) {
        std::copy(x + (first + row) * by.inputs, x + (first + row + 1) * by.inputs,
                  from.get() + row * stride);
      });
      prepare_and_multiply({by, inputs, count, activation, nullptr, 0, to.get(), out_stride}, team);
      team.each(count, 1,
                [&](size_t row) { keep(first + row, to.get() + row * out_stride); });
    }
    kernels.end();
  };
  spread(work);
}

void Encoder::apply(const Linear& by, const float* x, size_t rows, Activation activation,
                    float* out) {
  product(by, x, rows, activation, [&](size_t row, const float* found) {
    std::copy(found, found + by.outputs, out + row * by.outputs);
  });
}

void Encoder::best(const Linear& by, const float* x, size_t rows, size_t count,
                   int64_t* places, float* logs) {
  product(by, x, rows, Activation::none, [&](size_t row, const float* found) {
    const float* end = found + by.outputs;
    const float most = *std::max_element(found, end);
    double total = 0;
    for (const float* p = found; p < end; ++p) total += std::exp(*p - most);
    const float offset = most + static_cast<float>(std::log(total));
    // The best so far, in order. One that is no better than the last of them goes no further.
    int64_t* kept = places + row * count;
    float* values = logs + row * count;
    size_t size = 0;
    for (size_t place = 0; place < by.outputs; ++place) {
      const float value = found[place];
      if (size == count && !(value > values[count - 1])) continue;
      size_t to = size < count ? size++ : count - 1;
      for (; to && value > values[to - 1]; --to) values[to] = values[to - 1], kept[to] = kept[to - 1];
      values[to] = value, kept[to] = static_cast<int64_t>(place);
    }
    for (size_t i = 0; i < count; ++i) values[i] -= offset;
  });
}

void Encoder::normalize(const std::string& name, const float* x, size_t rows, float* out) {
  const Norm& by = norm(name);
  const size_t stride = row_stride(by.size);
  Block<float> row = allocate<float>(stride), done = allocate<float>(stride);
  std::fill(row.get(), row.get() + stride, 0.0f);
  for (size_t i = 0; i < rows; ++i) {
    std::copy(x + i * by.size, x + (i + 1) * by.size, row.get());
    kernels.norm(row.get(), by.size, by.weight.get(), by.bias.get(), sizes.epsilon, done.get());
    std::copy(done.get(), done.get() + by.size, out + i * by.size);
  }
}

}  // namespace enrobe
