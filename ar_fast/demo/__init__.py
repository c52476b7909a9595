"""Trains a model on real digits, measures it beside plain PyTorch and draws from it: python -m ar_fast.demo."""
