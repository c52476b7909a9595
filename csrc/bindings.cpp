// The eager doors: one thin function per op, so that a call costs no more than torch's own.
#include <Python.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "ops/armlp.h"
#include "ops/cpu/isa.h"
#include "ops/explain.h"
#include "ops/fvsbn.h"
#include "ops/head.h"
#include "ops/masked_linear.h"
#include "ops/masked_mlp.h"
#include "ops/nade.h"
#include "ops/offset_nade.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "ar_fast's ops, and which instruction set they run on";
  // c10::Error is what TORCH_CHECK throws; Python sees the message without the C++ stack, as in torch.
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const c10::Error& e) {
      PyErr_SetString(PyExc_RuntimeError, e.what_without_backtrace());
    }
  });
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.def("nade", &ar_fast::nade, no_gil);
  m.def("nade_log_prob", &ar_fast::nade_log_prob, no_gil);
  m.def("nade_sample", &ar_fast::nade_sample, no_gil);
  m.def("offset_nade_sample",
        [](const at::Tensor& state, const at::Tensor& in_weight, const at::Tensor& in_bias,
           const at::Tensor& out_weight, const at::Tensor& out_bias, const ar_fast::OptionalTensor& order,
           const ar_fast::OptionalTensor& given, const ar_fast::OptionalTensor& known, const std::vector<int64_t>& grid,
           const std::vector<int64_t>& window, bool shared_output, std::string activation, std::string head,
           int64_t levels, int64_t seed, int64_t first_index, int64_t start, int64_t stop, double temperature,
           std::string algorithm) {
          return ar_fast::offset_nade_sample(state, in_weight, in_bias, out_weight, out_bias, order, given, known, grid,
                                             window, shared_output, std::move(activation), std::move(head), levels, seed,
                                             first_index, start, stop, temperature, std::move(algorithm));
        },
        no_gil);
  m.def("head_log_prob", &ar_fast::head_log_prob, no_gil);
  m.def("armlp_sample", &ar_fast::armlp_sample, no_gil);
  m.def("fvsbn_sample", &ar_fast::fvsbn_sample, no_gil);
  m.def("explain_begin", &ar_fast::explain_begin, "From now on the ops of this thread say how they run.");
  m.def("explain_end", &ar_fast::explain_end, "What they said since explain_begin.");
  m.def("masked_linear", &ar_fast::masked_linear, no_gil);
  m.def("masked_linear_grad_input", &ar_fast::masked_linear_grad_input, no_gil);
  m.def("masked_mlp_sample",
        [](const at::Tensor& state, const std::vector<at::Tensor>& weights, const std::vector<at::Tensor>& biases,
           const std::vector<at::Tensor>& extents, const std::vector<at::Tensor>& unit_ends,
           const std::vector<int64_t>& program, const ar_fast::OptionalTensor& order,
           const ar_fast::OptionalTensor& in_offsets, const ar_fast::OptionalTensor& out_offsets,
           const ar_fast::OptionalTensor& given, const ar_fast::OptionalTensor& known, int64_t variables,
           std::string activation, std::string head, int64_t levels, const ar_fast::OptionalTensor& head_kinds,
           int64_t seed, int64_t first_index, int64_t start, int64_t stop, double temperature, std::string algorithm) {
          return ar_fast::masked_mlp_sample(state, weights, biases, extents, unit_ends, program, order, in_offsets,
                                            out_offsets, given, known, variables, std::move(activation),
                                            std::move(head), levels, head_kinds, seed, first_index, start, stop,
                                            temperature, std::move(algorithm));
        },
        no_gil);
  m.def("isa", &ar_fast::isa_name, "The instruction set of the CPU kernels: DEFAULT, AVX2 or AVX512.");
  m.def("set_isa", &ar_fast::set_isa, py::arg("name"), "Restricts the CPU kernels to an instruction set; 'auto' undoes it.");
}
