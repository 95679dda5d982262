"""What ``test_model.py`` is made of: apps, callbacks, executors, stacks, and the contract again."""
