# Topwork's container images, see docs/deployment.md.
#
#   serve       the server and its worker for CPUs; the default target
#   serve-cuda  the same for NVIDIA GPUs
#   train       topwork-train
#
# Two optional build secrets: pip.conf, the settings of pip, and ca.pem, the certificates to which
# pip.conf refers as /run/secrets/ca.pem.

FROM debian:bookworm-slim AS python
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig /var/log/*


# Only this stage has pip; it installs into environments without pip.
FROM python AS tools
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3-pip
ENV PIP_CONFIG_FILE=/run/secrets/pip.conf \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_PROGRESS_BAR=off \
    PIP_QUIET=1
WORKDIR /build
COPY pyproject.toml constraints.txt ./
# Further extras of the servers' images, such as "text".
ARG EXTRAS=
# The sources are copied later, so that installed packages stay cached until one of these files changes.
RUN python3 -c 'import os, tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
        extras = project["optional-dependencies"]; \
        wanted = [line for name in os.environ.get("EXTRAS", "").split() for line in extras[name]]; \
        [open(f"{name}.txt", "w").write("\n".join( \
            [*project["dependencies"], *extras["serve"], *extras["http"], *extras[name], *more] \
         ).replace("topwork[serve]\n", "")) for name, more in \
            (("cpu", wanted), ("cuda", wanted), ("train", extras["parquet"] + extras["text"]))]' \
    && python3 -m venv --without-pip /opt/topwork


FROM tools AS wheel
COPY LICENSE README.md ./
COPY service service
COPY trainer trainer
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.pem \
    python3 -m pip wheel --no-deps --wheel-dir /wheel .


FROM tools AS train-environment
# Package index with CPU builds of torch; PyPI's build contains gigabytes of CUDA.
ARG TORCH_INDEX=
# torch is installed first and pinned: together with other packages pip may choose another build.
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.pem \
    python3 -m pip --python /opt/topwork install --constraint constraints.txt \
        ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch \
    && python3 -m pip --python /opt/topwork install --constraint constraints.txt \
        --requirement cpu.txt --requirement train.txt
COPY --from=wheel /wheel /wheel
RUN python3 -m pip --python /opt/topwork install --no-deps --no-index /wheel/*.whl


# The default backbone, with which a server makes models in an empty repository; needs torch.
FROM train-environment AS backbone
RUN /opt/topwork/bin/python -c 'from pathlib import Path; \
        from topwork.bundle.store import Repository; \
        from topwork_trainer import backbones; \
        from topwork_trainer.backbones.prepare import prepare_backbone; \
        prepare_backbone(Repository(Path("/bundled")), backbones.parse(backbones.DEFAULT))' \
    && mv /bundled/backbones/* /backbone


FROM tools AS serve-cuda-environment
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.pem \
    python3 -m pip --python /opt/topwork install --constraint constraints.txt \
        --requirement cuda.txt
COPY --from=wheel /wheel /wheel
COPY deploy/prune.sh ./
RUN python3 -m pip --python /opt/topwork install --no-deps --no-index /wheel/*.whl \
    && sh prune.sh /opt/topwork


FROM tools AS serve-environment
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.pem \
    python3 -m pip --python /opt/topwork install --constraint constraints.txt \
        --requirement cpu.txt
COPY --from=wheel /wheel /wheel
COPY deploy/prune.sh ./
RUN python3 -m pip --python /opt/topwork install --no-deps --no-index /wheel/*.whl \
    && sh prune.sh /opt/topwork


# Base of all images. Any user may run them, even one that /etc/passwd lacks: Topwork writes only to
# /repository and /tmp, and /tmp is the home directory.
FROM python AS runtime
RUN useradd --uid 10001 --gid 0 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin topwork \
    && install --directory --owner 10001 --group 0 --mode 2775 /repository
ENV HOME=/tmp \
    PATH=/opt/topwork/bin:/usr/local/bin:/usr/bin:/bin \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:0
# deploy/image.py adds version, revision and created.
LABEL org.opencontainers.image.title="Topwork" \
      org.opencontainers.image.description="gRPC image-classification server that adds classes while it serves, and its trainer." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="debian:bookworm-slim"


FROM runtime AS train
ENV TOPWORK_TRAIN_FIT_REPOSITORY=/repository
WORKDIR /repository
COPY --from=train-environment /opt/topwork /opt/topwork
ENTRYPOINT ["topwork-train"]
CMD ["--help"]


FROM runtime AS server
# Process 1 is Python, which handles SIGTERM and stops its encoder processes and its worker. It starts
# only with TLS or with --insecure, because other hosts can reach its address.
ENTRYPOINT ["topwork"]
CMD ["serve"]
STOPSIGNAL SIGTERM
ENV TOPWORK_SERVE_REPOSITORY=/repository \
    TOPWORK_SERVE_BUNDLED_BACKBONE=/opt/backbone \
    TOPWORK_SERVE_ADDRESS=0.0.0.0:50051 \
    TOPWORK_SERVE_METRICS_PORT=9464 \
    TOPWORK_SERVE_HEALTH_PORT=8081 \
    TOPWORK_SERVE_LOG_FORMAT=json \
    TOPWORK_WORKER_REPOSITORY=/repository \
    TOPWORK_WORKER_LOG_FORMAT=json \
    TOPWORK_HEALTH_ADDRESS=127.0.0.1:8081
# 8080: with --http-port.
EXPOSE 50051 8080 9464
# Queries the health port, which is plaintext even if the main port uses TLS. A container that runs
# only a worker has no health port: start it with --no-healthcheck.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["topwork", "health"]


FROM server AS serve-cuda
COPY --from=serve-cuda-environment /opt/topwork /opt/topwork
COPY --from=backbone /backbone /opt/backbone
# pip has installed CUDA and cuDNN, which the server finds. The driver is the host's.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TOPWORK_SERVE_PROVIDER=cuda


FROM server AS serve
COPY --from=serve-environment /opt/topwork /opt/topwork
COPY --from=backbone /backbone /opt/backbone
