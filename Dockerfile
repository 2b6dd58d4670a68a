# syntax=docker/dockerfile:1

# The one image: every service is a command of the same binary. The laboratory (the local stack, demo, load, bench and
# chaos) is not in it.
#
#   docker build -t tally .
#   docker run --rm tally --help

# The full image, not the slim one: librdkafka is built from source, with the C and C++ compilers, make and the headers of
# OpenSSL and zlib that this one has.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# The caches are mounts, gone from the layer when the command ends: so the binary is copied out within it.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --profile dist --locked --package tally --no-default-features \
    && install -D --mode=0755 target/dist/tally /out/tally

# The same Debian as the build's, for the same OpenSSL.
FROM debian:bookworm-slim
# Versions are the distribution's: a pinned one would be gone from its archive with the next security fix.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 tally \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin tally \
    && install --directory --owner=tally --group=tally --mode=0700 /var/lib/tally
COPY --from=build /out/tally /usr/local/bin/tally

# A `tally.toml` that is mounted here is read; everything can come as TALLY_SECTION__KEY instead.
WORKDIR /etc/tally
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
ENTRYPOINT ["tally"]
CMD ["--help"]
