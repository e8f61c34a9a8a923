# One image for every process; docker-compose.yml says which.
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE Procfile ./
COPY api api
COPY core core
COPY workers workers
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir -c constraints.txt .

FROM python:3.11-slim
RUN useradd --system --no-create-home payouts
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
USER payouts
WORKDIR /tmp
EXPOSE 8000
