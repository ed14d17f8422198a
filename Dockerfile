# syntax=docker/dockerfile:1
# Draft, not yet built: the GPU image for clusters.
#   docker build -t REGISTRY/calibrated-rl:0.1.0 .
# Both stages stand on the development image, because Triton, FlashInfer and DeepSpeed compile kernels at first use.
ARG BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04

FROM ${BASE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 DS_BUILD_OPS=0
WORKDIR /src
# vLLM first: it brings the torch 2.13 with CUDA that everything else then finds installed.
RUN pip install vllm==0.32.0
COPY pyproject.toml README.md LICENSE ./
COPY calibrated_rl calibrated_rl
COPY jobs jobs
RUN pip install '.[gpu]'

FROM ${BASE}
# rsync, ssh and ps are what Ray's cluster launcher expects in a container; python3-dev is for Triton.
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        openssh-client procps python3 python3-dev rsync tini wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1001 ray
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH RAY_AUTH_MODE=token
USER ray
WORKDIR /home/ray/calibrated_rl
COPY --chown=ray:ray configs configs
COPY --chown=ray:ray jobs jobs
ENTRYPOINT ["tini", "--"]
CMD ["bash"]
