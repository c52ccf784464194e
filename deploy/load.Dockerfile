# Locust with the project's load test. Build from the root of the repository:
#   docker build -f deploy/load.Dockerfile -t crossfade-load .
FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY requirements.lock ./
RUN pip download --quiet --require-hashes --dest /wheels --requirement requirements.lock
ENV PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels
COPY pyproject.toml README.md ./
COPY proto proto
COPY clients/python clients/python
COPY service service
RUN pip wheel --quiet --no-deps --wheel-dir /wheels ./proto ./clients/python . \
    && python -m venv --without-pip /opt/load \
    && pip --python /opt/load/bin/python install --quiet --compile crossfade crossfade-client locust

FROM python:3.11-slim-bookworm
COPY --from=build /opt/load /opt/load
COPY loadtests /opt/load/src/loadtests
WORKDIR /opt/load/src
ENV PATH=/opt/load/bin:$PATH \
    PYTHONPATH=/opt/load/src \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8089
STOPSIGNAL SIGTERM
CMD ["locust", "--locustfile", "loadtests/locustfile.py"]
