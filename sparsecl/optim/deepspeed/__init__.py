"""What is read of DeepSpeed beyond its interface: the only files that know its private names.

Facts of DeepSpeed 0.19.8. Where another version calls a thing otherwise, that is an error which
names it (`known.py`), not a guess.
"""
