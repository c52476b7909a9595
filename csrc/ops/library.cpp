// The schemas of all ops, in one place. The header X.h of each op gives the shapes and the mathematics.
#include "library.h"

TORCH_LIBRARY(AR_FAST_LIBRARY, m) {
  m.def(
      "nade(Tensor x, Tensor in_weight, Tensor in_bias, Tensor out_weight, Tensor out_bias, Tensor? order=None, "
      "Tensor? in_offsets=None, Tensor? out_offsets=None, Tensor? activation_scale=None, str activation='sigmoid', "
      "str algorithm='auto') -> Tensor");
  m.def(
      "nade_backward(Tensor grad, Tensor x, Tensor in_weight, Tensor in_bias, Tensor out_weight, Tensor? order, "
      "Tensor? in_offsets, Tensor? out_offsets, Tensor? activation_scale, str activation, bool needs_x, "
      "bool needs_activation_scale, str algorithm) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "nade_log_prob(Tensor x, Tensor in_weight, Tensor in_bias, Tensor out_weight, Tensor out_bias, "
      "Tensor? order=None, Tensor? in_offsets=None, Tensor? out_offsets=None, Tensor? activation_scale=None, "
      "str activation='sigmoid', str head='bernoulli', int levels=0, Tensor? head_kinds=None, "
      "bool per_variable=False, str algorithm='auto') -> Tensor");
  m.def(
      "nade_log_prob_forward(Tensor x, Tensor in_weight, Tensor in_bias, Tensor out_weight, Tensor out_bias, "
      "Tensor? order, Tensor? in_offsets, Tensor? out_offsets, Tensor? activation_scale, str activation, str head, "
      "int levels, Tensor? head_kinds, bool per_variable, bool keep_parameters, str algorithm) -> (Tensor, Tensor)");
  m.def(
      "nade_sample(Tensor state, Tensor in_weight, Tensor out_weight, Tensor out_bias, Tensor? order, "
      "Tensor? in_offsets, Tensor? out_offsets, Tensor? activation_scale, Tensor? given, Tensor? known, "
      "int variables, str activation, str head, int levels, Tensor? head_kinds, int seed, int first_index, int start, "
      "int stop, float temperature, str algorithm='auto') -> (Tensor, Tensor, Tensor)");

  m.def(
      "deep_nade_sample(Tensor state, Tensor in_weight, Tensor mask_weight, Tensor[] weights, Tensor[] biases, "
      "Tensor out_weight, Tensor out_bias, Tensor? order, Tensor? in_offsets, Tensor? out_offsets, Tensor? given, "
      "Tensor? known, int variables, str activation, str head, int levels, Tensor? head_kinds, int seed, "
      "int first_index, int start, int stop, float temperature) -> (Tensor, Tensor, Tensor)");

  m.def(
      "offset_nade_sample(Tensor state, Tensor in_weight, Tensor in_bias, Tensor[] weights, Tensor[] biases, "
      "Tensor out_weight, Tensor out_bias, Tensor? order, Tensor? given, Tensor? known, int[] grid, int[] window, "
      "bool shared_output, str activation, str head, int levels, int seed, int first_index, int start, int stop, "
      "float temperature, str algorithm='auto') -> (Tensor, Tensor, Tensor)");

  m.def(
      "head_log_prob(Tensor parameters, Tensor x, Tensor? offsets, str head, int levels, Tensor? head_kinds)"
      " -> Tensor");
  m.def(
      "head_log_prob_backward(Tensor grad, Tensor parameters, Tensor x, Tensor? offsets, str head, int levels, "
      "Tensor? head_kinds) -> (Tensor, Tensor)");

  m.def(
      "masked_linear(Tensor input, Tensor weight, Tensor? bias, Tensor? extents, Tensor? rows, Tensor? columns, "
      "Tensor? tiles, Tensor? dense, str algorithm='auto', str? activation=None, int[] steps=[]) -> Tensor");
  m.def(
      "masked_linear_grad_input(Tensor grad_output, Tensor weight, Tensor? extents, Tensor? rows, Tensor? columns, "
      "Tensor? tiles, Tensor? dense, str algorithm='auto', int[] steps=[]) -> Tensor");
  m.def(
      "masked_linear_grad_weight(Tensor grad_output, Tensor input, Tensor? extents, Tensor? rows, Tensor? columns, "
      "Tensor? tiles, Tensor? dense, str algorithm='auto', int[] steps=[]) -> Tensor");

  m.def(
      "masked_mlp_sample(Tensor state, Tensor[] weights, Tensor[] biases, Tensor[] extents, Tensor[] unit_ends, "
      "int[] program, Tensor? order, Tensor? in_offsets, Tensor? out_offsets, Tensor? given, Tensor? known, "
      "int variables, str activation, str head, int levels, Tensor? head_kinds, int seed, int first_index, int start, "
      "int stop, float temperature, str algorithm='auto', bool by_input=False, float[] constants=[])"
      " -> (Tensor, Tensor, Tensor)");

  m.def(
      "masked_mlp_flow(Tensor x, Tensor? context, Tensor[] weights, Tensor[] masks, Tensor[] biases, int[] program, "
      "Tensor[] orders, str context_columns, str activation, str transform, float[] constants, "
      "bool by_parameter=False, bool scale_first=False) -> (Tensor, Tensor)");
  m.def(
      "inverse_adjoint(Tensor grad, Tensor factors, Tensor[] weights, Tensor[] slopes, int[] program, int[] ends)"
      " -> Tensor");
  m.def(
      "univariate_transform(Tensor x, Tensor parameters, str transform, float[] constants, bool by_parameter=False, "
      "bool scale_first=False) -> (Tensor, Tensor)");
  m.def(
      "univariate_transform_backward(Tensor grad_y, Tensor grad_log_det, Tensor x, Tensor parameters, str transform, "
      "float[] constants, bool by_parameter=False, bool scale_first=False) -> (Tensor, Tensor)");

  m.def(
      "armlp_sample(Tensor state, Tensor in_weight, Tensor block_starts, Tensor in_bias, Tensor out_weight, "
      "Tensor out_bias, Tensor? order, Tensor? offsets, Tensor? in_offsets, Tensor? given, Tensor? known, "
      "str activation, str head, int levels, Tensor? head_kinds, int seed, int first_index, int start, int stop, "
      "float temperature, str algorithm='auto') -> (Tensor, Tensor, Tensor)");

  m.def(
      "fvsbn_sample(Tensor state, Tensor weight, Tensor? order, Tensor? offsets, Tensor? in_offsets, Tensor? given, "
      "Tensor? known, int variables, str head, int levels, Tensor? head_kinds, int seed, int first_index, int start, "
      "int stop, float temperature, str algorithm='auto') -> (Tensor, Tensor, Tensor)");

  m.def(
      "rnn_sample(Tensor state, Tensor? cell_state, Tensor last, Tensor? finished, Tensor in_table, Tensor in_bias, "
      "Tensor[] in_weights, Tensor[] in_biases, Tensor[] recurrent_weights, Tensor[] recurrent_biases, "
      "Tensor out_weight, Tensor out_bias, Tensor? order, Tensor? given, Tensor? known, Tensor? limits, int variables, "
      "str cell, str head, int levels, int seed, int first_index, int first_position, int start, int stop, "
      "float temperature, int top_k, float top_p, int stop_token, str algorithm='auto')"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
