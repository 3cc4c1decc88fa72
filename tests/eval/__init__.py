"""How good the answers are that a group's history finds, on labelled questions and real embeddings: `make eval`."""
