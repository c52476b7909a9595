"""The univariate transforms of flows, as the tests use them."""

import math

# The constants of each transform, and how many parameters a variable has.
TRANSFORMS = {
    "affine_soft_clip": ((-math.log(1e-3),), 2),
    "affine_clamp": ((-1.0, 0.5), 2),
    "affine_softplus": ((1e-3,), 2),
    "affine_sigmoid": ((2.0, 1e-3), 2),
    "affine_gated": ((2.0,), 2),
    "spline_soft_clip": ((-5.0, 5.0, -math.log(1e-3)), 3 * 8 - 1),
    "spline_softplus": ((-3.0, 3.0, 1e-3, 2e-3, 1e-3, 0.5), 3 * 10 - 1),
    "spline_softplus ends": ((-2.0, 4.0, 1e-3, 1e-3, 1e-3, 1.0), 3 * 5 + 1),
    "spline_soft_clip one bin": ((-1.0, 1.0, 7.0), 2),
}
