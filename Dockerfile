# The gateway as an image: docker build --tag image-gateway .
#
# docs/guides/container.md says how to run it: read-only, without capabilities, one volume.

# One base for both stages, because the virtual environment of the first links to its Python. The
# digest, that of 3.14.7, is what is built on. To take a newer one:
# docker buildx imagetools inspect python:3.14-slim-trixie
ARG BASE=python:3.14-slim-trixie@sha256:e11c17f46f87983eb946b121694dedba6290ee2b0dd5294d137d82943502d179

FROM ${BASE} AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY requirements/run.lock requirements/
COPY deploy/install.sh deploy/healthy.py deploy/
COPY config config/
COPY gateway gateway/
RUN deploy/install.sh /source /opt/gateway

FROM ${BASE}
# Nothing is installed from here on, so the pip of the base is removed too. The data folder is that of
# the user below, and of group 0: OpenShift runs a container as any user of that group.
RUN --mount=type=bind,from=build,source=/source/deploy,target=/mnt /mnt/install.sh --strip /usr/local \
    && install -d -o 10001 -g 0 -m 0770 /data
COPY --from=build /opt/gateway /opt/gateway

ENV PATH=/opt/gateway/bin:/usr/local/bin:/usr/bin:/bin \
    GATEWAY_LISTEN=0.0.0.0:8080 \
    GATEWAY_DATA_DIR=/data

# Mount your configuration at ./config. Without one, that of the package is used.
WORKDIR /etc/image-gateway
USER 10001:10001
VOLUME /data
EXPOSE 8080

# The first SIGTERM drains: open purchases are finished, which takes up to 600 s. Docker kills after
# 10 s by default: set docker run --stop-timeout 610, or stop_grace_period in compose.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["/opt/gateway/bin/healthy"]
ENTRYPOINT ["gateway"]
CMD ["serve"]
