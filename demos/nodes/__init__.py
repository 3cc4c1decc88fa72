"""Three nodes in containers over one shared memory: `make demo-nodes`, or `docker compose up`."""
