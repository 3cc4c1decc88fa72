"""The bench of search: real sentence vectors, beside a private in-process FAISS index of the same kind, in one run.

`make bench-search` prints the figures beside their demands and says how they were measured; `--json FILE` keeps all of it.
"""
