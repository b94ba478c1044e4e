# The photo check as a container: ONNX Runtime and the server, no training framework. Build in the repository's root:
#   docker build -t photo-check . && docker run -p 8080:8080 -v $PWD/data/bundles/RUN-onnx:/bundle:ro photo-check
FROM python:3.12-slim AS build
WORKDIR /build
COPY pyproject.toml README.md LICENSE requirements.txt ./
COPY src src
# The pins of requirements.txt for what the server imports; the package's other dependencies serve training alone.
RUN python -m venv /app \
 && grep -E '^(numpy|pillow|pillow-heif|onnxruntime|fastapi|uvicorn|python-multipart|prometheus-client)[=[]' requirements.txt > serve.txt \
 && /app/bin/pip install --no-cache-dir -r serve.txt \
 && /app/bin/pip install --no-cache-dir --no-deps .

FROM python:3.12-slim
COPY --from=build /app /app
RUN useradd --system --no-create-home check
USER check
ENV PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1
EXPOSE 8080
HEALTHCHECK --start-period=10s CMD ["/app/bin/python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/readyz', timeout=3)"]
# Not through the command line: its other verbs load pandas, which is not in here.
ENTRYPOINT ["/app/bin/python", "-c", "from pathlib import Path; from carspotter_check.server import serve; serve(Path('/bundle'), '0.0.0.0')"]
