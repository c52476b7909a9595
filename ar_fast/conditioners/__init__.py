"""Autoregressive networks described as steps: evaluated one variable at a time, inverted, and the inverse's gradient."""
