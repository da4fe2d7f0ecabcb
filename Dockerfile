# cosyjit with torch for CPUs: the command, the flow, and Prefect's workers. See docs/prefect.md.
FROM python:3.11-slim AS build
COPY . /checkout
RUN sh /checkout/containers/install.sh /checkout /opt/cosyjit --extra-index-url https://download.pytorch.org/whl/cpu

FROM python:3.11-slim
COPY --from=build /opt/cosyjit /opt/cosyjit
RUN useradd --uid 10001 --create-home cosyjit && install --directory --owner 10001 --group 10001 /store
# Nothing is written but what is below /store, the home directory and /tmp.
ENV PATH=/opt/cosyjit/bin:$PATH COSYJIT_STORE=/store PREFECT_SERVER_ANALYTICS_ENABLED=false PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /home/cosyjit
VOLUME /store
CMD ["cosyjit", "--help"]
