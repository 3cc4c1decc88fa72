"""The pool's history over HTTP: a thin door. What the history library means, it means here; nothing is kept in a worker."""
