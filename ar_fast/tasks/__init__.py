"""Tasks for whole models: training and comparison. The models do not depend on them."""
