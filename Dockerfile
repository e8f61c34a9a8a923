# One image for every process; docker-compose.yml says which.
FROM python:3.13-slim AS build
WORKDIR /src
# Without pip in it: nothing is installed later.
RUN python -m venv --without-pip /venv
COPY pyproject.toml constraints.txt README.md LICENSE Procfile ./
COPY api api
COPY core core
COPY workers workers
# For traces: --build-arg EXTRAS=[tracing]
ARG EXTRAS=
RUN pip --python /venv/bin/python install --no-cache-dir --constraint constraints.txt ".${EXTRAS}"

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin payouts \
    && install --directory --owner 10001 --mode 700 /var/lib/payouts
COPY --from=build /venv /venv
# The root file system is read-only.
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /tmp
EXPOSE 8000
