// Transforms by their names (kernels/transforms.h), for an op that applies one to given numbers instead of drawing from a
// head.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>

#include "../kernels/transforms.h"
#include "common.h"

namespace ar_fast {

// Any other name has the kind none, and must have no constants.
Transform parse_transform(const char* op, std::string_view name, at::ArrayRef<double> constants);

// Checks how many parameters a variable has; `owner` is the name of the tensor whose rows they are.
void check_transform_rows(const char* op, const Transform& transform, const char* owner, const c10::SymInt& rows,
                          const c10::SymInt& variables);

}  // namespace ar_fast
