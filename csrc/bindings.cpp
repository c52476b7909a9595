// The eager entry points: one thin function per op, so that a call costs no more than torch's own.
#include <Python.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "ops/armlp.h"
#include "ops/coding.h"
#include "ops/cpu/isa.h"
#include "ops/deep_nade.h"
#include "ops/explain.h"
#include "ops/fvsbn.h"
#include "ops/head.h"
#include "ops/inverse_adjoint.h"
#include "ops/masked_linear.h"
#include "ops/masked_mlp.h"
#include "ops/masked_mlp_flow.h"
#include "ops/nade.h"
#include "ops/offset_nade.h"
#include "ops/rnn.h"
#include "ops/univariate_transform.h"

namespace py = pybind11;

namespace {

template <typename Arguments>
void def(py::module_& m) {
  m.def(Arguments::op, &ar_fast::Op<Arguments>::call_from_python, py::call_guard<py::gil_scoped_release>());
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The ops of ar_fast, and the instruction set that they run on";
  // c10::Error is what TORCH_CHECK throws; Python sees the message without the C++ stack, as in torch.
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const c10::Error& e) {
      PyErr_SetString(PyExc_RuntimeError, e.what_without_backtrace());
    }
  });
  def<ar_fast::NadeArguments>(m);
  def<ar_fast::NadeLogProbArguments>(m);
  def<ar_fast::NadeSampleArguments>(m);
  def<ar_fast::DeepNadeSampleArguments>(m);
  def<ar_fast::OffsetNadeSampleArguments>(m);
  def<ar_fast::HeadLogProbArguments>(m);
  def<ar_fast::ArmlpSampleArguments>(m);
  def<ar_fast::FvsbnSampleArguments>(m);
  m.def("explain_begin", &ar_fast::explain_begin, "From now on the ops of this thread say how they run.");
  m.def("explain_end", &ar_fast::explain_end, "Returns what the ops said since explain_begin.");
  def<ar_fast::MaskedLinearArguments>(m);
  def<ar_fast::MaskedLinearGradInputArguments>(m);
  def<ar_fast::MaskedMlpSampleArguments>(m);
  def<ar_fast::MaskedMlpFlowArguments>(m);
  def<ar_fast::InverseAdjointArguments>(m);
  def<ar_fast::UnivariateTransformArguments>(m);
  def<ar_fast::RnnSampleArguments>(m);
  const py::call_guard<py::gil_scoped_release> without_gil;
  py::class_<ar_fast::StreamEncoder>(m, "StreamEncoder", "Sampling ops encode given values into streams, one per row.")
      .def(py::init<int64_t>(), py::arg("streams"))
      .def("begin", &ar_fast::StreamEncoder::begin, py::arg("values"), without_gil,
           "From now on ops of this thread encode (B, D) values, row r into stream r.")
      .def("end", &ar_fast::StreamEncoder::end, py::arg("failed"), without_gil, "Ops draw again.")
      .def("encode", &ar_fast::StreamEncoder::encode, py::arg("stream"), py::arg("intervals"), without_gil,
           "Encodes intervals (N, 3) int32: cumulative, frequency, precision.")
      .def("finish", [](ar_fast::StreamEncoder& self) {
        py::list streams;
        for (const std::string& words : self.finish()) streams.append(py::bytes(words));
        return streams;
      }, "The streams, as bytes.");
  py::class_<ar_fast::StreamDecoder>(m, "StreamDecoder", "Sampling ops decode the streams of their rows.")
      .def(py::init<std::vector<std::string>>(), py::arg("streams"))
      .def("begin", &ar_fast::StreamDecoder::begin, "From now on ops of this thread decode, row r from stream r.")
      .def("end", &ar_fast::StreamDecoder::end, py::arg("failed"), "Ops draw again.");
  m.def("isa", &ar_fast::isa_name, "The instruction set of the CPU kernels: DEFAULT, AVX2 or AVX512.");
  m.def("set_isa", &ar_fast::set_isa, py::arg("name"),
        "Restricts the CPU kernels to an instruction set; 'auto' undoes it.");
}
