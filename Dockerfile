# syntax=docker/dockerfile:1
# A node of a shared pool: the server with the default embedder, without torch.
#
#   docker build -t sharedrag .                                              EXTRAS="server,light" is the default
#   docker build -t sharedrag --build-arg EXTRAS=server,sentence-transformers .   with torch
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
ARG EXTRAS=server,light
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/sharedrag
WORKDIR /src
# What the project needs, before the project itself: a change of the code does not install it all again.
COPY pyproject.toml README.md LICENSE ./
RUN mkdir sharedrag && touch sharedrag/__init__.py \
    && /opt/sharedrag/bin/pip install --quiet ".[${EXTRAS}]" && /opt/sharedrag/bin/pip uninstall --quiet --yes sharedrag
COPY sharedrag sharedrag
COPY server server
COPY demos demos
RUN /opt/sharedrag/bin/pip install --quiet --no-deps . \
    && /opt/sharedrag/bin/pip uninstall --quiet --yes pip setuptools \
    && cd /opt/sharedrag/lib/python3*/site-packages \
    && rm -rf pyarrow/include pyarrow/tests numpy/*/tests numpy/tests faiss/tests \
    && { /opt/sharedrag/bin/python -m compileall -q -j 0 . || echo "Some packages ship files that do not compile: fine"; }

FROM ${PYTHON}
LABEL org.opencontainers.image.title="sharedrag" \
      org.opencontainers.image.description="A shared-memory chat-history RAG store: one node" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 sharedrag && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin sharedrag \
    && mkdir /pool && chown sharedrag:sharedrag /pool
COPY --from=build /opt/sharedrag /opt/sharedrag
ENV PATH=/opt/sharedrag/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 SHAREDRAG_POOL=/pool/history.pool
USER sharedrag
VOLUME /pool
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
ENTRYPOINT ["sharedrag"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
