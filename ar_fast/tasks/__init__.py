"""What people do with whole models: training, comparisons. Nothing in the models knows of it."""
