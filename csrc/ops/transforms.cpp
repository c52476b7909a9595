#include "transforms.h"

#include <algorithm>
#include <cmath>

namespace ar_fast {
namespace {

struct NamedTransform {
  const char* name;
  TransformKind kind;
  size_t constants;
};

constexpr NamedTransform transforms[] = {{"affine_soft_clip", TransformKind::affine_soft_clip, 1},
                                         {"affine_clamp", TransformKind::affine_clamp, 2},
                                         {"affine_softplus", TransformKind::affine_softplus, 1},
                                         {"affine_sigmoid", TransformKind::affine_sigmoid, 2},
                                         {"affine_gated", TransformKind::affine_gated, 1},
                                         {"spline_soft_clip", TransformKind::spline_soft_clip, 3},
                                         {"spline_softplus", TransformKind::spline_softplus, 6}};

bool begins_with(std::string_view name, std::string_view prefix) { return name.substr(0, prefix.size()) == prefix; }

}  // namespace

Transform parse_transform(const char* op, std::string_view name, at::ArrayRef<double> constants) {
  Transform transform;
  if (!begins_with(name, "affine_") && !begins_with(name, "spline_")) {
    TORCH_CHECK(constants.empty(), op, ": constants must be empty except for a transform as head, got ",
                constants.size(), " of them for '", name, "'");
    return transform;
  }
  const auto* found = std::find_if(std::begin(transforms), std::end(transforms),
                                   [&](const NamedTransform& known) { return name == known.name; });
  TORCH_CHECK(found != std::end(transforms), op, ": a transform must be affine_soft_clip, affine_clamp, ",
              "affine_softplus, affine_sigmoid, affine_gated, spline_soft_clip or spline_softplus, got '", name, "'");
  TORCH_CHECK(constants.size() == found->constants, op, ": constants must hold ", found->constants, " numbers for ",
              name, ", got ", constants.size());
  TORCH_CHECK(std::all_of(constants.begin(), constants.end(), [](double value) { return std::isfinite(value); }), op,
              ": constants must be finite, got ", constants);
  transform.kind = found->kind;
  std::copy(constants.begin(), constants.end(), transform.constants);
  const double* c = transform.constants;
  const bool spline = !transform.is_affine();
  TORCH_CHECK(!(spline || transform.kind == TransformKind::affine_clamp) || c[0] < c[1], op,
              ": constants must begin with low < high for ", name, ", got ", constants);
  const double limit = transform.kind == TransformKind::affine_soft_clip ? c[0]
                       : transform.kind == TransformKind::spline_soft_clip ? c[2] : 1;
  TORCH_CHECK(limit > 0, op, ": the limit among constants must be positive, got ", constants);
  if (transform.kind == TransformKind::spline_softplus) {
    TORCH_CHECK(c[2] >= 0 && c[3] >= 0 && c[4] >= 0, op,
                ": the least shares and derivative among constants must not be negative, got ", constants);
  }
  return transform;
}

void check_transform_rows(const char* op, const Transform& transform, const char* owner, const c10::SymInt& rows,
                          const c10::SymInt& variables) {
  if (transform.is_affine()) {
    TORCH_CHECK(rows == variables * 2, op, ": ", owner, " must have 2 rows per variable (shift, raw scale), 2 x ",
                variables, ", for an affine transform, got ", rows);
    return;
  }
  TORCH_CHECK(rows % variables == 0 && rows / variables % 3 != 0 && rows / variables >= 2, op, ": ", owner,
              " must have 3 K - 1 or 3 K + 1 rows per variable (widths, heights, derivatives) for a spline of K bins, ",
              "got ", rows, " for ", variables, " variables");
  const c10::SymInt bins = (rows / variables + 1) / 3;
  if (transform.kind != TransformKind::spline_softplus) return;
  const double count = static_cast<double>(bins.guard_int(__FILE__, __LINE__));
  TORCH_CHECK(count * std::max(transform.constants[2], transform.constants[3]) <= 1, op,
              ": the least shares among constants must be at most 1 / K = 1 / ", bins, ", got ",
              transform.constants[2], " and ", transform.constants[3]);
}

}  // namespace ar_fast
