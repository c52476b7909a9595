// One small case of every kernel under ThreadSanitizer, which reports what nothing orders (cuda_emulation.h). Driven by
// tests/build/test_races.py.
//
//   ar_fast_races                       every case
//   ar_fast_races CASE                  one of them
//   ar_fast_races CASE FILE LINE        the same, and the __syncthreads() in that line of the file orders nothing
//   ar_fast_races --list                the names of the cases
//
// Prints the names of the kernels that ran.
//
// Sizes are small, cross a tile's boundary and take at least two blocks. ThreadSanitizer takes a millisecond or two for
// a thread, and has room for 8,128 threads of a launch.
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "../../kernels/cuda/armlp_cuda.h"
#include "../../kernels/cuda/fvsbn_cuda.h"
#include "../../kernels/cuda/head_cuda.h"
#include "../../kernels/cuda/masked_linear_cuda.h"
#include "../../kernels/cuda/masked_mlp_cuda.h"
#include "../../kernels/cuda/nade_cuda.h"
#include "../../kernels/cuda/offset_nade_cuda.h"
#include "../../kernels/cuda/rnn_cuda.h"
#include "../cuda_emulation.h"

namespace ar_fast {

namespace emulation {
extern std::set<std::string> launched_kernels;
}

namespace {

// What a case works on; freed when it is over.
class Memory {
 public:
  void* bytes(int64_t count) {
    // Aligned as torch aligns.
    void* const memory = std::aligned_alloc(256, static_cast<size_t>((count + 511) / 256 * 256));
    owned_.emplace_back(memory, std::free);
    return memory;
  }
  template <typename T>
  T* take(int64_t count) {
    return static_cast<T*>(bytes(count * static_cast<int64_t>(sizeof(T))));
  }
  float* reals(int64_t count) {
    float* const values = take<float>(count);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < count; ++i) values[i] = 0.3f * normal(generator_);
    return values;
  }
  // Integers in [0, below).
  template <typename T>
  T* integers(int64_t count, int below) {
    T* const values = take<T>(count);
    for (int64_t i = 0; i < count; ++i) values[i] = static_cast<T>(generator_() % static_cast<unsigned>(below));
    return values;
  }
  // 0, step, 2 step, ...
  template <typename T>
  T* steps(int64_t count, int64_t step) {
    T* const values = take<T>(count);
    for (int64_t i = 0; i < count; ++i) values[i] = static_cast<T>(step * i);
    return values;
  }

 private:
  std::vector<std::unique_ptr<void, void (*)(void*)>> owned_;
  std::mt19937 generator_{7};
};

int failures = 0;

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::printf("%s\n", cuda_error_message(error));
  ++failures;
}

Draws draws_of(Memory& m, Head head, int64_t batch, int64_t variables, int64_t history = 0) {
  Draws draws{};
  draws.head = head;
  draws.batch = batch;
  draws.variables = variables;
  draws.stop = variables;
  draws.seed = 5;
  draws.temperature = 1;
  draws.values_stride = history + variables;
  draws.values = m.take<float>(batch * draws.values_stride) + history;
  draws.log_prob = m.take<double>(batch);
  return draws;
}

constexpr Head kBernoulli{HeadKind::bernoulli}, kCategorical{HeadKind::categorical},
    kGaussians{HeadKind::gaussian_mixture}, kLogistics{HeadKind::logistic_mixture, 9};

// ---- NADE

NadeModel nade_model(Memory& m, int64_t variables, int64_t hidden, int64_t in_rows, int64_t out_rows) {
  NadeModel model{};
  model.storage = ScalarType::float32;
  model.activation = Activation::sigmoid;
  model.variables = variables;
  model.hidden = hidden;
  model.in_rows = in_rows * variables;
  model.out_rows = out_rows * variables;
  model.in_weight = m.reals(model.in_rows * hidden);
  model.in_bias = m.reals(hidden);
  model.out_weight = m.reals(model.out_rows * hidden);
  model.out_bias = m.reals(model.out_rows);
  return model;
}

NadeInput nade_input(Memory& m, const NadeModel& model, int64_t batch, int categories) {
  NadeInput input{};
  input.batch = batch;
  if (categories > 0) {
    input.categories = m.integers<int64_t>(batch * model.variables, categories);
  } else {
    input.x = m.integers<float>(batch * model.variables, 2);
  }
  return input;
}

void nade_forward(int categories, int64_t out_rows, Head head) {
  Memory m;
  // A chunk of the plain kernel has more than one step from 257 variables on.
  const int64_t variables = categories > 0 || out_rows > 1 ? 17 : 260;
  const NadeModel model = nade_model(m, variables, 130, std::max(1, categories), out_rows);
  const NadeInput input = nade_input(m, model, 10, categories);
  NadeForward output{};
  output.parameters = m.take<float>(input.batch * model.out_rows);
  output.head = head;
  output.log_prob_per_variable = m.take<float>(input.batch * model.variables);
  output.log_prob = m.take<float>(input.batch);
  check(nade_forward_cuda(model, input, output, m.bytes(nade_forward_cuda_cut(model, input).scratch_bytes), nullptr));
}

void nade_backward(int categories, int64_t out_rows, int64_t batch = 10) {
  Memory m;
  // General kernels take a block or two for each variable; many rows are split over blocks.
  const int64_t variables = categories > 0 || out_rows > 1 || batch > 10 ? 5 : 37;
  const NadeModel model = nade_model(m, variables, batch > 10 ? 20 : 150, std::max(1, categories), out_rows);
  const NadeInput input = nade_input(m, model, batch, categories);
  NadeBackward output{};
  output.grad_parameters = m.reals(input.batch * model.out_rows);
  output.grad_in_weight = m.take<float>(model.in_rows * model.hidden);
  output.grad_out_weight = m.take<float>(model.out_rows * model.hidden);
  output.grad_in_bias = m.take<float>(model.hidden);
  output.grad_x = categories > 0 ? nullptr : m.take<float>(input.batch * model.variables);
  output.grad_activation_scale = m.take<float>(input.batch * model.variables);
  check(nade_backward_cuda(model, input, output, m.bytes(nade_backward_cuda_cut(model, input).scratch_bytes), nullptr));
}

void nade_sample(int64_t hidden, int categories, int64_t out_rows, Head head) {
  Memory m;
  const NadeModel model = nade_model(m, 35, hidden, std::max(1, categories), out_rows);
  NadeSample sample{};
  sample.draws = draws_of(m, head, 2, model.variables);
  sample.gathers = categories > 0;
  sample.state = m.reals(sample.draws.batch * hidden);
  check(nade_sample_cuda(model, sample, m.bytes(nade_sample_cuda_cut(model, sample).scratch_bytes), nullptr));
}

// ---- Heads

void heads(Head head, int64_t rows) {
  Memory m;
  HeadRows of{};
  of.storage = ScalarType::float32;
  of.head = head;
  of.batch = 5;
  of.variables = 11;
  of.parameter_rows = rows * of.variables;
  of.parameters = m.reals(of.batch * of.parameter_rows);
  of.x = m.integers<float>(of.batch * of.variables, 2);
  check(head_log_prob_cuda(of, {m.take<float>(of.batch * of.variables)}, nullptr));
  check(head_backward_cuda(of,
                           {m.reals(of.batch), 0, m.take<float>(of.batch * of.parameter_rows),
                            m.take<float>(of.batch * of.variables)},
                           nullptr));
}

// ---- Masked linear

MaskedLinear masked_linear(Memory& m, ScalarType storage, int64_t batch, int64_t out, int64_t in, bool tf32 = false) {
  // Zeros are the same in every type, of 8 bytes at most.
  const auto zeros = [&](int64_t count) {
    double* const values = m.take<double>(count);
    std::fill(values, values + count, 0.0);
    return values;
  };
  MaskedLinear arguments{};
  arguments.storage = storage;
  arguments.tf32 = tf32;
  arguments.batch = batch;
  int32_t* const extents = m.take<int32_t>(out);
  for (int64_t i = 0; i < out; ++i) extents[i] = static_cast<int32_t>(i * in / out);
  arguments.mask = {out, in, extents, nullptr, nullptr, nullptr, nullptr};
  arguments.input_stride = in;
  arguments.grad_output_stride = out;
  arguments.input = zeros(batch * in);
  arguments.weight = zeros(out * in);
  arguments.bias = zeros(out);
  arguments.grad_output = zeros(batch * out);
  arguments.output = zeros(std::max({batch * out, batch * in, out * in}));
  return arguments;
}

void masked_linear_rows() {
  Memory m;
  const MaskedLinear arguments = masked_linear(m, ScalarType::float32, 6, 20, 300);
  check(masked_linear_rows_cuda(arguments, nullptr));
  check(masked_linear_grad_input_rows_cuda(arguments, nullptr));
}

// By tiles, on a GPU with as many multiprocessors as were set; the next case sees all again.
void all_products(Memory& m, const MaskedLinear& arguments) {
  for (const auto product :
       {MaskedLinearProduct::y, MaskedLinearProduct::grad_input, MaskedLinearProduct::grad_weight}) {
    MaskedLinearTiling tiling;
    check(masked_linear_tiling_cuda(product, arguments, tiling));
    check(masked_linear_tiles_cuda(product, tiling, arguments, m.bytes(tiling.scratch_bytes), nullptr));
  }
  emulation::multiprocessors = 132;
}

// Wide tiles of both sizes, with sums in chunks.
void masked_linear_wide_tiles(int64_t batch) {
  Memory m;
  emulation::multiprocessors = 1;
  const MaskedLinear arguments = masked_linear(m, ScalarType::float32, batch, 270, 290);
  all_products(m, arguments);
}

// Both sizes of tiles, by how many multiprocessors there are.
void masked_linear_tiles(ScalarType storage, bool tf32, int64_t tile) {
  Memory m;
  emulation::multiprocessors = tile == 128 ? 1 : 132;
  const MaskedLinear arguments =
      tile == 128 ? masked_linear(m, storage, 136, 136, 144, tf32) : masked_linear(m, storage, 70, 72, 80, tf32);
  all_products(m, arguments);
}

// What is left of a product by strips beside the GEMM.
void masked_linear_strips() {
  constexpr int64_t out = 8, in = 16;
  Memory m;
  const MaskedLinear arguments = masked_linear(m, ScalarType::bfloat16, 3, out, in);
  const int64_t extents[2] = {arguments.mask.extents[0], arguments.mask.extents[out - 1]};
  for (const auto product :
       {MaskedLinearProduct::y, MaskedLinearProduct::grad_input, MaskedLinearProduct::grad_weight}) {
    MaskedStrips strips;
    check(masked_linear_strips_cuda(product, arguments, {64, 2, extents}, strips));
    void* const copies = m.bytes(strips.count * out * in * 2);
    for (int i = 0; i < strips.count; ++i) strips.strip[i].offset = i * out * in;
    check(masked_linear_copy_cuda(arguments, strips, 0, strips.count, copies, nullptr));
    check(masked_linear_finish_cuda(product, arguments, nullptr));
  }
}

// ---- The other samplers

void masked_mlp(int64_t batch, int64_t units, int64_t variables = 9) {
  Memory m;
  MaskedMlpSample sample{};
  sample.draws = draws_of(m, kBernoulli, batch, variables);
  sample.storage = ScalarType::float32;
  sample.activation = Activation::relu;
  sample.in_rows = variables;
  sample.features = variables + 2 * units;
  sample.hidden_layers = 2;
  const auto layer = [&](int64_t index, int64_t count, int64_t inputs, int32_t source) {
    MaskedMlpLayer& own = sample.layers[index];
    own.units = count;
    own.offset = variables + index * units;
    own.bias = m.reals(count);
    own.terms = 1;
    own.add = -1;
    own.activated = index < 2;
    int32_t *const extents = m.take<int32_t>(count), *const ends = m.take<int32_t>(variables);
    // Unit u sees the variables before position u variables / units, and the units below that see no more.
    for (int64_t u = 0; u < count; ++u) {
      const int64_t degree = u * variables / count;
      extents[u] = static_cast<int32_t>(source == 0 ? degree : (degree + (index < 2)) * inputs / variables);
    }
    for (int64_t p = 0; p < variables; ++p) {
      ends[p] = static_cast<int32_t>(((p + 1) * count + variables - 1) / variables);
    }
    ends[variables - 1] = static_cast<int32_t>(count);
    own.term[0] = {m.reals(count * inputs), extents, source};
    own.unit_ends = index < 2 ? ends : nullptr;
  };
  layer(0, units, variables, 0);
  layer(1, units, units, 1);
  layer(2, variables, units, 2);
  sample.state = m.reals(batch * sample.features);
  check(masked_mlp_sample_cuda(sample, m.bytes(masked_mlp_sample_cuda_cut(sample).scratch_bytes), nullptr));
}

// In blocks of positions; with two warps for a row of 90 units. A block of threads has more than one tile.
void masked_mlp_blocks(int64_t batch, int64_t units) {
  const int64_t inputs = kBlockedInputs;
  kBlockedInputs = 0;
  emulation::multiprocessors = 1;
  masked_mlp(batch, units, 19);
  emulation::multiprocessors = 132;
  kBlockedInputs = inputs;
}

void armlp(Head head, int64_t parameters, int64_t hidden) {
  Memory m;
  constexpr int64_t variables = 11;
  ArmlpSample sample{};
  sample.draws = draws_of(m, head, 2, variables);
  sample.storage = ScalarType::float32;
  sample.activation = Activation::sigmoid;
  sample.hidden = hidden;
  sample.out_rows = parameters * variables;
  const int64_t rows_each = head.kind == HeadKind::categorical ? parameters : 1;
  int64_t* const starts = m.take<int64_t>(3);
  starts[0] = 0;
  starts[1] = 7 * rows_each * 8;
  starts[2] = starts[1] + 10 * rows_each * 3;
  sample.block_starts = starts;
  sample.in_weight = m.reals(starts[2] * hidden);
  sample.in_bias = m.reals(variables * hidden);
  sample.out_weight = m.reals(sample.out_rows * hidden);
  sample.out_bias = m.reals(sample.out_rows);
  sample.state = m.reals(sample.draws.batch * variables);
  check(armlp_sample_cuda(sample, m.bytes(armlp_sample_cuda_cut(sample).scratch_bytes), nullptr));
}

void fvsbn(Head head, int64_t parameters) {
  Memory m;
  constexpr int64_t variables = 70;
  FvsbnSample sample{};
  sample.draws = draws_of(m, head, 2, variables);
  sample.storage = ScalarType::float32;
  sample.out_rows = parameters * variables;
  sample.weight = m.reals(sample.out_rows * sample.out_rows);
  sample.state = m.reals(sample.draws.batch * sample.out_rows);
  check(fvsbn_sample_cuda(sample, nullptr));
}

void offset_nade(Head head, int64_t parameters) {
  Memory m;
  OffsetNadeSample sample{};
  sample.storage = ScalarType::float32;
  sample.activation = Activation::tanh;
  sample.gathers = head.kind == HeadKind::categorical;
  sample.rows = 3;
  sample.columns = 4;
  sample.channels = 2;
  sample.up = sample.side = 1;
  sample.hidden = 40;
  sample.values_per_input = sample.gathers ? parameters : 1;
  sample.parameters = parameters;
  sample.shared_output = true;
  // A further layer whose inputs are split and one whose units are not all by threads at once.
  sample.layers = 2;
  sample.layer[0] = {m.reals(40 * 300), m.reals(300), 300};
  sample.layer[1] = {m.reals(300 * 24), m.reals(24), 24};
  sample.draws = draws_of(m, head, 2, 24, sample.reach());
  sample.in_weight = m.reals((sample.taps() * 2 + 1) * sample.values_per_input * sample.hidden);
  sample.in_bias = m.reals(sample.hidden);
  sample.out_weight = m.reals(2 * parameters * 24);
  sample.out_bias = m.reals(2 * parameters);
  check(offset_nade_sample_cuda(sample, m.bytes(offset_nade_cuda_cut(sample).scratch_bytes), nullptr));
}

// A row finishes by its limit before the others do. Of bfloat16, one layer whose weights no block of an sm_86 holds,
// with pairs of rows that take turns.
void rnn(RnnTeams teams, RnnCell cell, Head head, int64_t parameters, ScalarType storage = ScalarType::float32) {
  Memory m;
  const bool matrix = storage == ScalarType::bfloat16;
  constexpr int64_t batch = 5, positions = 3;
  const int64_t layers = matrix ? 1 : 2, hidden = matrix ? 140 : 21;
  emulation::multiprocessors = matrix ? 8 : teams == RnnTeams::grid ? 3 : 2;
  if (matrix) emulation::capability = 8;
  RnnSample sample{};
  sample.storage = storage;
  sample.cell = cell;
  sample.gathers = head.kind == HeadKind::categorical;
  sample.layers = layers;
  sample.hidden = hidden;
  sample.parameters = parameters;
  const int64_t rows = sample.gates() * hidden;
  // Twice as many as are read where weights have 16 bits.
  for (int64_t l = 0; l < layers; ++l) {
    sample.layer[l] = {l > 0 ? m.reals(rows * hidden) : nullptr, l > 0 ? m.reals(rows) : nullptr,
                       m.reals(rows * hidden), m.reals(rows)};
  }
  sample.in_table = m.reals((sample.gathers ? parameters : 1) * rows);
  sample.in_bias = m.reals(rows);
  sample.out_weight = m.reals(parameters * hidden);
  sample.out_bias = m.reals(parameters);
  sample.draws = draws_of(m, head, batch, positions);
  int64_t* const limits = m.take<int64_t>(batch);
  std::fill(limits, limits + batch, positions);
  limits[1] = 2;
  sample.limits = limits;
  sample.stop_token = -1;
  sample.cell_state = cell == RnnCell::lstm ? m.reals(layers * batch * hidden) : nullptr;
  sample.last = m.integers<float>(batch, 2);
  sample.finished = m.steps<uint8_t>(batch, 0);
  std::fill(sample.draws.log_prob, sample.draws.log_prob + batch, 0.0);
  RnnCut cut{};
  check(rnn_cuda_cut(sample, teams, cut));
  const int64_t states = 2 * layers * batch * cut.padded;
  float* const in_turns = m.reals(states);
  std::fill(in_turns, in_turns + states, 0.0f);
  const RnnScratch scratch{in_turns, cut.parameters_on_chip ? nullptr : m.take<float>(batch * parameters),
                           m.steps<int>(cut.teams, 0),
                           cut.draw_blocks > 0 ? m.steps<uint64_t>(batch, 0) : nullptr,
                           cut.matrix ? m.steps<uint64_t>(batch * 2 * cut.padded, 0) : nullptr};
  check(rnn_sample_cuda(sample, cut, scratch, nullptr));
  emulation::multiprocessors = 132;
  emulation::capability = 9;
}

struct Case {
  const char* name;
  std::function<void()> run;
};

const std::vector<Case> cases = {
    {"nade_forward", [] { nade_forward(0, 1, kBernoulli); }},
    {"nade_forward_categories", [] { nade_forward(3, 3, kCategorical); }},
    {"nade_forward_gaussians", [] { nade_forward(0, 6, kGaussians); }},
    {"nade_backward", [] { nade_backward(0, 1); }},
    {"nade_backward_many_rows", [] { nade_backward(0, 1, 130); }},
    {"nade_backward_categories", [] { nade_backward(3, 3); }},
    {"nade_backward_gaussians", [] { nade_backward(0, 6); }},
    {"nade_sample", [] { nade_sample(150, 0, 1, kBernoulli); }},
    {"nade_sample_many_warps", [] { nade_sample(600, 0, 1, kBernoulli); }},
    {"nade_sample_categories", [] { nade_sample(150, 10, 10, kCategorical); }},
    {"nade_sample_gaussians", [] { nade_sample(300, 0, 30, kGaussians); }},
    {"nade_sample_in_scratch", [] { nade_sample(9000, 2, 2, kCategorical); }},
    {"head_bernoulli", [] { heads(kBernoulli, 1); }},
    {"head_categorical", [] { heads(kCategorical, 40); }},
    {"head_gaussians", [] { heads(kGaussians, 12); }},
    {"head_logistics", [] { heads(kLogistics, 12); }},
    {"masked_linear_rows", masked_linear_rows},
    {"masked_linear_tiles_float32", [] { masked_linear_tiles(ScalarType::float32, false, 64); }},
    {"masked_linear_wide_tiles_few", [] { masked_linear_wide_tiles(20); }},
    {"masked_linear_wide_tiles", [] { masked_linear_wide_tiles(70); }},
    {"masked_linear_tiles_float64", [] { masked_linear_tiles(ScalarType::float64, false, 64); }},
    {"masked_linear_tiles_tf32", [] { masked_linear_tiles(ScalarType::float32, true, 64); }},
    {"masked_linear_tiles_tf32_128", [] { masked_linear_tiles(ScalarType::float32, true, 128); }},
    {"masked_linear_tiles_float16", [] { masked_linear_tiles(ScalarType::float16, false, 64); }},
    {"masked_linear_tiles_float16_128", [] { masked_linear_tiles(ScalarType::float16, false, 128); }},
    {"masked_linear_tiles_bfloat16", [] { masked_linear_tiles(ScalarType::bfloat16, false, 64); }},
    {"masked_linear_tiles_bfloat16_128", [] { masked_linear_tiles(ScalarType::bfloat16, false, 128); }},
    {"masked_linear_strips", masked_linear_strips},
    {"masked_mlp", [] { masked_mlp(6, 30); }},
    {"masked_mlp_in_scratch", [] { masked_mlp(6, 2500); }},
    {"masked_mlp_blocks", [] { masked_mlp_blocks(6, 30); }},
    {"masked_mlp_blocks_many_warps", [] { masked_mlp_blocks(2, 90); }},
    {"armlp", [] { armlp(kBernoulli, 1, 40); }},
    {"armlp_categories", [] { armlp(kCategorical, 3, 300); }},
    {"armlp_in_scratch", [] { armlp(kGaussians, 6, 16000); }},
    {"fvsbn", [] { fvsbn(kBernoulli, 1); }},
    {"fvsbn_categories", [] { fvsbn(kCategorical, 3); }},
    {"offset_nade", [] { offset_nade(kBernoulli, 1); }},
    {"offset_nade_categories", [] { offset_nade(kCategorical, 9); }},
    {"rnn_block", [] { rnn(RnnTeams::one_block, RnnCell::gru, kCategorical, 7); }},
    {"rnn_grid", [] { rnn(RnnTeams::grid, RnnCell::gru, kCategorical, 7); }},
    {"rnn_grid_lstm", [] { rnn(RnnTeams::grid, RnnCell::lstm, kGaussians, 6); }},
    {"rnn_matrix", [] { rnn(RnnTeams::automatic, RnnCell::gru, kCategorical, 7, ScalarType::bfloat16); }},
};

int run(int count, char** arguments) {
  const std::string chosen = count > 1 ? arguments[1] : "";
  if (chosen == "--list") {
    for (const Case& own : cases) std::printf("%s\n", own.name);
    return 0;
  }
  if (count > 3) emulation::skip_barrier(arguments[2], std::atoi(arguments[3]));
  bool found = false;
  for (const Case& own : cases) {
    if (!chosen.empty() && chosen != own.name) continue;
    std::printf("%s:", own.name);
    std::fflush(stdout);
    emulation::launched_kernels.clear();
    own.run();
    for (const std::string& kernel : emulation::launched_kernels) std::printf(" %s", kernel.c_str());
    std::printf("\n");
    found = true;
  }
  return !found || failures > 0;
}

}  // namespace
}  // namespace ar_fast

int main(int count, char** arguments) { return ar_fast::run(count, arguments); }
