"""Programs beside train.py and sample.py, and the flags that all of them read the same way."""
