// On the CPU values can be looked at without a synchronisation, so a structure that would read outside a tensor raises:
// an order, offsets, kinds. What is data, a category, makes NaN on every device where it is none (kernels/head.h).
//
// A sampler draws an event of very many variables in many calls. Each call looks at the entries that it reads and no
// others, so that all the calls together look at each entry once; only the call that begins at position 0 looks at the
// whole order.
#pragma once

#include "../../kernels/draws.h"
#include "../common.h"

namespace ar_fast {

// The entries of offsets, kinds and the like that a call reads: order[k] of the k in a range, which have been checked,
// or the k themselves where order is null.
struct Entries {
  int64_t begin, end;
  const int64_t* order = nullptr;

  int64_t operator[](int64_t k) const { return order ? order[k] : k; }
};

// offsets run from 0 to rows, and a variable has at least `fewest` of the rows, 0 or 1.
void check_offset_values(const char* op, const char* name, const int64_t* offsets, int64_t variables, int64_t rows,
                         const Entries& entries, int64_t fewest = 1);

// Of positions [start, stop): a variable each; from position 0 on also that the whole order is a permutation.
void check_order_values(const char* op, const int64_t* order, int64_t variables, int64_t start, int64_t stop);
inline void check_order_values(const char* op, const Draws& draws) {
  check_order_values(op, draws.order, draws.variables, draws.start, draws.stop);
}

// head.kinds, where there are any, name heads; each variable has parameters as its head wants them. offsets have been
// checked.
void check_head_values(const char* op, const Head& head, int64_t variables, int64_t rows, const int64_t* offsets,
                       const Entries& entries);

// in_offsets (null: none) run from 0 to in_rows; a categorical variable has a row for each of its categories, another
// one.
void check_input_rows(const char* op, const Head& head, int64_t variables, int64_t rows, const int64_t* offsets,
                      const int64_t* in_offsets, int64_t in_rows, const Entries& entries);

}  // namespace ar_fast
